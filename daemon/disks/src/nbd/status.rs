//! Block status: a server's description of runs of bytes.
//!
//! Rule: an answer may be shorter than the question, and one context's shorter than another's. A caller that
//! wants to know of a whole range asks until the range is covered; an answer without progress is an error,
//! never an end.

use warmd_cbt::units::{Extent, Length, Offset};

use super::{
    call::ContextRuns,
    disk::NbdDisk,
    error::{NbdCause, NbdError, RequestAt},
    reply::Violation,
    wire::{NbdCommand, status},
};

/// The most bytes that one request asks about: a multiple of every block size that fits into 32 bits.
const STEP: u64 = (4 << 30) - (64 << 10);

/// One meta context's value for a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRun {
    pub extent: Extent,
    /// Bits whose meaning the context defines; bit 0 of a dirty bitmap is "changed", bit 1 of
    /// `base:allocation` is "reads as zeroes".
    pub flags: u32,
}

/// One meta context's runs, from the start of the requested extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextStatus {
    pub context: String,
    /// Without gaps, covering at least one byte, perhaps not all that was asked.
    pub runs: Vec<StatusRun>,
}

impl NbdDisk {
    /// Asks once for all contexts' runs of `extent`; with `one`, only of the run that begins at its start.
    pub async fn block_status(&self, extent: Extent, one: bool) -> Result<Vec<ContextStatus>, NbdError> {
        self.check_bounds(NbdCommand::BlockStatus, extent.start().0, extent.len().0)?;
        if self.export().contexts.is_empty() {
            let asked = self.options().contexts.join(", ");
            return Err(NbdError::of(NbdCause::NoContext(asked)).at(request_at(extent)));
        }
        let (offset, length) = self.whole_blocks(extent);
        let contexts = self.status_once(offset, length, one).await?;
        let known = |(context, told): (String, ContextRuns)| {
            let runs: Vec<_> = runs_within(offset, &told, extent).collect();
            (!runs.is_empty()).then_some(ContextStatus { context, runs })
        };
        Ok(contexts.into_iter().filter_map(known).collect())
    }

    /// Gives `take` the extents of `range` that have the lowest bit set in `context`: the changed ones of a
    /// dirty bitmap. In order, as the server reports them; they are not collected in memory. Repeats the
    /// request until it has covered the range.
    pub async fn dirty_extents(
        &self,
        context: &str,
        range: Extent,
        mut take: impl FnMut(Extent) + Send,
    ) -> Result<(), NbdError> {
        let mut at = range.start();
        while let Some(rest) = Extent::between(at, range.end()) {
            for StatusRun { extent, flags } in self.status_of(context, rest).await? {
                at = extent.end();
                if flags & status::DIRTY != 0 {
                    take(extent);
                }
            }
        }
        Ok(())
    }

    /// Asks once for the runs of `context` in `extent`: at least one run.
    pub(super) async fn status_of(&self, context: &str, extent: Extent) -> Result<Vec<StatusRun>, NbdError> {
        if !self.contexts().any(|name| name == context) {
            return Err(NbdError::of(NbdCause::NoContext(context.into())).at(request_at(extent)));
        }
        let answer = self.block_status(extent, false).await?;
        let told = answer.into_iter().find(|status| status.context == context);
        told.map(|status| status.runs)
            .ok_or_else(|| NbdError::of(Violation::StatusMissing).at(request_at(extent)))
    }

    /// The extent to ask for: `extent`, or as much of it as one request takes, grown to the server's blocks.
    fn whole_blocks(&self, extent: Extent) -> (u64, u32) {
        let block = u64::from(self.export().blocks.minimum);
        let start = extent.start().0 / block * block;
        let end = extent.end().0.div_ceil(block) * block;
        (start, end.min(self.len()).min(start + STEP).saturating_sub(start) as u32)
    }
}

/// Descriptors from `offset` on as runs, cut to `extent`.
fn runs_within(offset: u64, told: &ContextRuns, extent: Extent) -> impl Iterator<Item = StatusRun> {
    let mut at = Offset(offset);
    told.runs.iter().filter_map(move |(length, flags)| {
        let run = Extent::new(at, Length(u64::from(*length)))?;
        at = run.end();
        run.intersect(&extent).map(|extent| StatusRun { extent, flags: *flags })
    })
}

fn request_at(extent: Extent) -> RequestAt {
    RequestAt { command: NbdCommand::BlockStatus, offset: extent.start().0, length: extent.len().0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_to_what_was_asked() {
        let extent = Extent::new(Offset(100), Length(1000)).unwrap();
        let told = ContextRuns { id: 0, runs: vec![(50, 9), (512, 1), (512, 0), (512, 1)] };
        let runs: Vec<_> = runs_within(0, &told, extent)
            .map(|run| (run.extent.start().0, run.extent.end().0, run.flags))
            .collect();
        assert_eq!(runs, [(100, 562, 1), (562, 1074, 0), (1074, 1100, 1)]);
    }

    #[test]
    fn a_request_about_status_fits_every_block_size() {
        assert!(u32::try_from(STEP).is_ok() && STEP.is_multiple_of(64 << 10));
    }
}
