//! The work since the last commit, for the next one.
//!
//! Rule: only finished work gets in. A batch is small for any disk size: it is committed by bytes moved and
//! by time, and holds 24 bytes for each block whose hash changed.

use crate::{
    manifest::BlockHash,
    store::PassFigures,
    units::{BlockIndex, Extent},
};

/// Finished work that waits for its flush and commit.
#[derive(Debug, Default)]
pub struct Batch {
    extents: Vec<Extent>,
    hashes: Vec<(BlockIndex, BlockHash)>,
    figures: PassFigures,
}

impl Batch {
    /// Adds finished work: the extent, block-aligned, that may leave `pending`; the hashes of those of its
    /// blocks that are new on the target; and its figures.
    pub fn add(
        &mut self,
        extent: Extent,
        hashes: impl IntoIterator<Item = (BlockIndex, BlockHash)>,
        figures: PassFigures,
    ) {
        match self.extents.last_mut() {
            Some(last) if last.end() == extent.start() => {
                *last = Extent::between(last.start(), extent.end()).unwrap_or(*last);
            }
            _ => self.extents.push(extent),
        }
        self.hashes.extend(hashes);
        self.figures += figures;
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Runs of blocks in it.
    pub fn extents(&self) -> usize {
        self.extents.len()
    }

    /// The sums of its figures.
    pub fn figures(&self) -> PassFigures {
        self.figures
    }

    pub(crate) fn into_parts(mut self) -> (Vec<Extent>, Vec<(BlockIndex, BlockHash)>, PassFigures) {
        self.hashes.sort_unstable_by_key(|(block, _)| *block);
        self.figures.batches = 1;
        (self.extents, self.hashes, self.figures)
    }
}
