//! A disk's holes, asked in large queries: runs that are known as zero without a read.
//!
//! Rule: an answer is kept until the walk has passed it, so that a hole costs one query for each
//! answer, and none for each block or piece in it. A range without an answer is data.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    disk::{Allocation, DiskError, ErrorKind, ReadDisk},
    extents::CHUNK_BYTES,
    units::{BLOCK, Extent, Offset},
};

/// How far one query reaches past the requested place. The answer about that may be so old when
/// the walk gets there.
const ASK_REACH: u64 = 64 << 30;

/// The holes of one disk from the walk's position on. The walk goes forward only.
pub(super) struct KnownHoles {
    disk: Arc<dyn ReadDisk>,
    /// Runs without gaps, equal neighbours joined.
    told: VecDeque<Allocation>,
    /// Whether all blocks up to the disk's end will be checked, or only scattered ones.
    far: bool,
    refused: bool,
}

impl KnownHoles {
    pub(super) fn new(disk: Arc<dyn ReadDisk>, far: bool) -> Self {
        Self { disk, told: VecDeque::new(), far, refused: false }
    }

    /// The first run of whole blocks in `rest` that is a hole, or that is not known as one.
    pub(super) async fn run(&mut self, rest: Extent) -> Result<Allocation, DiskError> {
        let data = |extent| Allocation { extent, zero: false };
        while self.told.front().is_some_and(|run| run.extent.end() <= rest.start()) {
            self.told.pop_front();
        }
        if self.told.front().is_some_and(|run| run.extent.start() > rest.start()) {
            self.told.clear();
        }
        if self.told.is_empty() && !self.ask(rest.start(), rest.end()).await? {
            return Ok(data(rest));
        }
        // A hole that ends with the answer may continue.
        while self.told.len() == 1 && self.known_to(rest) < rest.end() {
            if !self.ask(self.known_to(rest), rest.end()).await? {
                break;
            }
        }
        let Some(first) = self.told.front() else { return Ok(data(rest)) };
        let (zero, end) = (first.zero, first.extent.end().min(rest.end()));
        // A hole loses its partial last block, which counts as data; a run shorter than a block is data.
        let whole = if zero { end.0 / BLOCK * BLOCK } else { end.0.div_ceil(BLOCK) * BLOCK };
        let end = if end == rest.end() { end } else { Offset(whole).min(rest.end()) };
        if let Some(extent) = Extent::between(rest.start(), end) {
            return Ok(Allocation { extent, zero });
        }
        let block = Offset(rest.start().0 + BLOCK).min(rest.end());
        Ok(data(Extent::between(rest.start(), block).unwrap_or(rest)))
    }

    fn known_to(&self, rest: Extent) -> Offset {
        self.told.back().map_or(rest.start(), |run| run.extent.end())
    }

    /// Queries the range from `at` on; at least up to `least`, if the disk reports so much at once. False if
    /// the disk reported nothing.
    async fn ask(&mut self, at: Offset, least: Offset) -> Result<bool, DiskError> {
        if self.refused {
            return Ok(false);
        }
        let size = self.disk.size().0;
        let reach = if self.far { at.0 + ASK_REACH } else { (at.0 / CHUNK_BYTES + 1) * CHUNK_BYTES };
        let end = Offset(reach.min(size)).max(least);
        let Some(question) = Extent::between(at, end) else { return Ok(false) };
        let answer = match self.disk.allocation(question).await {
            Ok(answer) => answer,
            Err(error) if error.kind == ErrorKind::Refused => {
                self.refused = true;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let mut known = at;
        for part in answer {
            let Some(extent) = part.extent.intersect(&question).filter(|extent| extent.start() == known)
            else {
                break;
            };
            known = extent.end();
            match self.told.back_mut().filter(|last| last.zero == part.zero) {
                Some(last) => last.extent = Extent::between(last.extent.start(), known).unwrap_or(extent),
                None => self.told.push_back(Allocation { extent, zero: part.zero }),
            }
        }
        Ok(known > at)
    }
}
