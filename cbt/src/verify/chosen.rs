//! Which blocks an audit reads: settled ones from where the last audit ended, as many as its budget allows.
//!
//! Rule: a block is skipped only if source and manifest agree that it is zeroes, and not in every round.

use std::sync::Arc;

use super::{VerifyError, audit::AuditJob, hashes, holes::KnownHoles};
use crate::{
    extents::{CHUNK_BYTES, ExtentSet},
    manifest::BlockHash,
    units::{BLOCK, Extent, Length, Offset},
};

/// One of so many blocks in holes is read; and the walk skips at most so many times the budget.
const HOLES: u64 = 16;

/// The blocks that will be read.
pub(super) struct AuditSelection {
    blocks: ExtentSet,
    /// Blocks that may still be chosen, and that may still be skipped.
    left: u64,
    steps: u64,
    holes: u64,
    next: Offset,
}

impl AuditSelection {
    pub(super) fn new(job: &AuditJob) -> Self {
        let size = job.ledger.size();
        let budget = job.budget.0.div_ceil(BLOCK);
        Self {
            blocks: ExtentSet::new(size),
            left: budget,
            steps: budget.saturating_mul(HOLES),
            holes: 0,
            next: job.from.min(Offset(size.0)),
        }
    }

    pub(super) fn blocks(&self) -> &ExtentSet {
        &self.blocks
    }

    /// Bytes that were skipped.
    pub(super) fn holes(&self) -> Length {
        Length(self.holes)
    }

    /// Where the next walk begins.
    pub(super) fn next(&self) -> Offset {
        self.next
    }

    /// Chooses enough blocks, at most once around the disk. After a failure the next walk begins past the
    /// place that the source could not describe.
    pub(super) async fn walk(&mut self, job: &AuditJob) -> Result<(), VerifyError> {
        let (settled, start) = (job.ledger.settled(), self.next);
        let mut holes = KnownHoles::new(Arc::clone(&job.source), false);
        let rounds = [Extent::between(start, Offset(settled.size().0)), Extent::between(Offset(0), start)];
        for part in rounds.into_iter().flatten().flat_map(|round| round.split(CHUNK_BYTES)) {
            if !self.part(job, &mut holes, &settled, part).await? {
                break;
            }
        }
        Ok(())
    }

    /// Chooses from one part of the disk; false when there is enough.
    async fn part(
        &mut self,
        job: &AuditJob,
        holes: &mut KnownHoles,
        settled: &ExtentSet,
        part: Extent,
    ) -> Result<bool, VerifyError> {
        let mut hashes_of_part = None;
        let runs = settled.extents_from(part.start());
        for run in runs.map_while(|run| run.intersect(&part)) {
            let mut at = run.start();
            while let Some(rest) = Extent::between(at, run.end()) {
                let told = holes.run(rest).await.map_err(|cause| {
                    let past = at.0 + (job.chunk as u64 / BLOCK).max(1) * BLOCK;
                    self.next = Offset(past).min(part.end());
                    VerifyError::Source(cause)
                })?;
                // They affect holes alone.
                if told.zero && hashes_of_part.is_none() {
                    let aligned = part.align_out(BLOCK, job.ledger.size()).unwrap_or(part);
                    hashes_of_part = Some(hashes(&**job.ledger.store(), job.ledger.disk(), aligned).await?);
                }
                let known = hashes_of_part.as_deref().unwrap_or_default();
                for block in told.extent.split(BLOCK) {
                    if self.left == 0 || self.steps == 0 {
                        self.next = block.start();
                        return Ok(false);
                    }
                    let number = block.blocks().start;
                    let hash = known.get((number - part.blocks().start) as usize);
                    self.step(
                        block,
                        told.zero && hash == Some(&BlockHash::ZERO) && !looks_into(number, job.round),
                    );
                }
                at = told.extent.end();
            }
        }
        self.next = part.end();
        Ok(true)
    }

    fn step(&mut self, block: Extent, is_hole: bool) {
        self.steps -= 1;
        if is_hole {
            self.holes += block.len().0;
        } else {
            self.blocks.insert(block);
            self.left -= 1;
        }
    }
}

/// Whether this hole is read in this round: one in [`HOLES`], others from round to round. The choice is
/// [`mixed`] and not sequential: rounds are numbers of passes, of which a disk among several has only every
/// few.
fn looks_into(block: u64, round: u64) -> bool {
    block.wrapping_add(mixed(round)).is_multiple_of(HOLES)
}

/// The finalizer of SplitMix64.
pub(super) fn mixed(round: u64) -> u64 {
    let mut mixed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
