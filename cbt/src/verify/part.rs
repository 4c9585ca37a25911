//! The part of a disk that a verification checks: all or some of its blocks, and the start.
//!
//! Rule: a block that is left out is not checked, and not covered by the result.

use std::sync::Arc;

use crate::{
    extents::ExtentSet,
    units::{Extent, Length, Offset},
};

/// The blocks to check; all of the disk by default.
#[derive(Clone, Debug, Default)]
pub struct VerifyPart {
    /// Only these; all if `None`. Of a disk of the same size.
    pub only: Option<Arc<ExtentSet>>,
    /// The blocks before it were checked by an earlier run, and were equal:
    /// [`super::VerifyProgress::checked_to`]. A block's start.
    pub from: Offset,
}

impl VerifyPart {
    /// Only these blocks.
    pub fn only(blocks: ExtentSet) -> Self {
        Self { only: Some(Arc::new(blocks)), from: Offset(0) }
    }

    /// Bytes of a disk of `size` bytes to check, and how many of them lie before `from`.
    pub(super) fn bytes(&self, size: Length) -> (u64, u64) {
        match &self.only {
            None => (size.0, self.from.0.min(size.0)),
            Some(blocks) => {
                let left: u64 = blocks.extents_from(self.from).map(|extent| extent.len().0).sum();
                let all = blocks.bytes().0;
                (all, all.saturating_sub(left))
            }
        }
    }

    /// The parts of `within` still to check, in order.
    pub(super) fn runs(&self, within: Extent) -> impl Iterator<Item = Extent> + '_ {
        let from = within.start().max(self.from);
        let whole = self.only.is_none().then(|| Extent::between(from, within.end())).flatten();
        let some = self.only.iter().flat_map(move |blocks| {
            let runs = blocks.extents_from(from).take_while(move |run| run.start() < within.end());
            runs.filter_map(move |run| run.intersect(&within))
        });
        whole.into_iter().chain(some)
    }
}
