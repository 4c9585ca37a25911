//! A window: the next pending extents, cut into pieces of work.

use std::{iter::Peekable, vec::IntoIter};

use super::PieceWork;
use crate::{
    extents::coalesce,
    ledger::Ledger,
    manifest::BlockHash,
    units::{BLOCK, Extent, Length, Offset},
};

/// Pending extents nearer than this are one query of the source's holes.
pub(super) const ASK_GAP: u64 = 1 << 20;
/// How far past a window the query may reach.
pub(super) const ASK_REACH: u64 = 4 << 30;

/// The next pending extents from a place on, as the ledger has them.
pub(super) struct Slice {
    /// Pending, in order.
    pub(super) extents: Vec<Extent>,
    /// The trusted parts of it, in order.
    pub(super) trusted: Vec<Extent>,
    /// The end of the run of near extents that includes the last of `extents`.
    pub(super) run_end: Offset,
}

impl Slice {
    /// Up to `bytes` (at least a block) of pending disk from `from` on; `None` if there is none.
    pub(super) fn take(ledger: &Ledger, from: Offset, bytes: u64) -> Option<Self> {
        ledger.look(|pending, trusted| {
            let mut left = bytes.div_ceil(BLOCK) * BLOCK;
            let extents: Vec<_> = pending
                .extents_from(from)
                .map_while(|extent| {
                    let taken = Extent::new(extent.start(), Length(extent.len().0.min(left)))?;
                    left -= taken.len().0;
                    Some(taken)
                })
                .collect();
            let last = *extents.last()?;
            let reach = Offset(last.start().0 + ASK_REACH);
            let near = pending.extents_from(last.start()).take_while(|extent| extent.start() < reach);
            let run_end = coalesce(near, ASK_GAP).next()?.end().min(last.end() + Length(ASK_REACH));
            let trusted = extents.iter().flat_map(|extent| {
                trusted.extents_from(extent.start()).map_while(|trusted| trusted.intersect(extent))
            });
            Some(Self { trusted: trusted.collect(), run_end, extents })
        })
    }

    /// Where the next window begins.
    pub(super) fn end(&self) -> Offset {
        self.extents.last().map_or(Offset(0), Extent::end)
    }

    /// The pieces of work, and the extents that must be claimed before them. `holes` are block-aligned, in
    /// order, and known to be zero; `expected` has the trusted blocks' hashes, in order.
    pub(super) fn into_work(
        self,
        holes: &[Extent],
        expected: Vec<(u64, BlockHash)>,
        chunk: usize,
        zero_request: u64,
    ) -> (Vec<PieceWork>, Vec<Extent>) {
        let mut cutter =
            Cutter { expected: expected.into_iter().peekable(), work: Vec::new(), claims: Vec::new() };
        for extent in self.extents {
            let first = holes.partition_point(|hole| hole.end() <= extent.start());
            let mut at = extent.start();
            for hole in holes[first..].iter().map_while(|hole| hole.intersect(&extent)) {
                cutter.data(Extent::between(at, hole.start()), chunk);
                cutter.hole(hole, zero_request);
                at = hole.end();
            }
            cutter.data(Extent::between(at, extent.end()), chunk);
        }
        (cutter.work, coalesce(cutter.claims, 0).collect())
    }
}

struct Cutter {
    expected: Peekable<IntoIter<(u64, BlockHash)>>,
    work: Vec<PieceWork>,
    claims: Vec<Extent>,
}

impl Cutter {
    fn data(&mut self, extent: Option<Extent>, chunk: usize) {
        for extent in extent.into_iter().flat_map(|extent| extent.split(chunk as u64)) {
            let blocks = extent.blocks();
            let known = self.expected.peek().is_some_and(|(block, _)| blocks.contains(block));
            let expected = if known { blocks.map(|block| self.expect(block)).collect() } else { Vec::new() };
            if known {
                self.claims.push(extent);
            }
            self.work.push(PieceWork::Copy { extent, expected });
        }
    }

    fn hole(&mut self, hole: Extent, zero_request: u64) {
        let mut at = hole.start();
        while at < hole.end() {
            let fate = |expected: Option<BlockHash>| (expected.is_some(), expected == Some(BlockHash::ZERO));
            let first = fate(self.expect(at.0 / BLOCK));
            let mut end = Offset(at.0 + BLOCK).min(hole.end());
            while end < hole.end() && fate(self.peek(end.0 / BLOCK)) == first {
                self.expect(end.0 / BLOCK);
                end = Offset(end.0 + BLOCK).min(hole.end());
            }
            let Some(run) = Extent::between(at, end) else { return };
            match first {
                (_, true) => self.work.push(PieceWork::Skip(run)),
                (trusted, false) => {
                    self.work.extend(run.split(zero_request).map(PieceWork::Zero));
                    if trusted {
                        self.claims.push(run);
                    }
                }
            }
            at = end;
        }
    }

    fn peek(&mut self, block: u64) -> Option<BlockHash> {
        self.expected.peek().filter(|(known, _)| *known == block).map(|(_, hash)| *hash)
    }

    fn expect(&mut self, block: u64) -> Option<BlockHash> {
        self.expected.next_if(|(known, _)| *known == block).map(|(_, hash)| hash)
    }
}
