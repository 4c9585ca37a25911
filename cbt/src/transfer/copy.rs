//! One piece of work, from its buffer to its last write's return.
//!
//! Rule: it returns only when none of its requests is in flight, after any failure; and it begins no write
//! once no caller waits for its answer any more.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::{PassError, PassProgress, queue_depth::ReadSlot};
use crate::{
    buffer::Buffer,
    disk::{ReadDisk, WriteDisk},
    limit::{DiskShares, Permit, Reservation},
    manifest::BlockHash,
    store::PassFigures,
    telemetry::{Stage, StageMeter, Wait},
    units::{BLOCK, BlockIndex, Extent, Length},
};

/// The part that all pieces of a pass share.
pub(super) struct PassShared {
    pub(super) source: Arc<dyn ReadDisk>,
    pub(super) target: Arc<dyn WriteDisk>,
    pub(super) write_slots: Semaphore,
    pub(super) progress: Arc<PassProgress>,
    pub(super) limits: DiskShares,
}

/// A finished piece to commit.
#[derive(Debug)]
pub(super) struct FinishedPiece {
    pub(super) extent: Extent,
    /// Of the blocks that were written or zeroed.
    pub(super) hashes: Vec<(BlockIndex, BlockHash)>,
    pub(super) figures: PassFigures,
    /// Blocks of room that the piece used when it was issued.
    pub(super) room: usize,
}

/// A piece of work with its resources.
pub(super) enum Piece {
    Skip(Extent),
    Zero {
        extent: Extent,
        budget: Reservation,
    },
    Copy {
        extent: Extent,
        expected: Vec<Option<BlockHash>>,
        slot: ReadTurn,
        budget: Reservation,
        buffer: Buffer,
    },
}

/// The right to one request to the source, of the pass and of the limits.
type ReadTurn = (ReadSlot, Permit);

/// The fate of a block that was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BlockAction {
    /// The target has it already.
    Keep,
    Zero,
    Write,
}

/// Bytes that are digested before other tasks may run: 32 µs of one core.
const DIGEST_STRETCH: usize = 2 * BLOCK as usize;

impl PassShared {
    /// Does the work. `None` if it was abandoned before its last write.
    pub(super) async fn run(
        &self,
        piece: Piece,
        abandoned: impl Fn() -> bool,
    ) -> Result<Option<FinishedPiece>, PassError> {
        match piece {
            Piece::Skip(extent) => Ok(Some(self.skip(extent))),
            Piece::Zero { extent, budget } => self.zero(extent, budget, abandoned).await,
            Piece::Copy { extent, expected, slot, budget, buffer } => {
                self.copy(extent, &expected, slot, budget, buffer, abandoned).await
            }
        }
    }

    /// A hole that the target has already.
    fn skip(&self, extent: Extent) -> FinishedPiece {
        let skipped = extent.len().0;
        self.progress.skipped.fetch_add(skipped, Relaxed);
        let figures = PassFigures { skipped, drained: skipped, requests: 1, ..PassFigures::default() };
        FinishedPiece { extent, hashes: Vec::new(), figures, room: 0 }
    }

    async fn zero(
        &self,
        extent: Extent,
        budget: Reservation,
        abandoned: impl Fn() -> bool,
    ) -> Result<Option<FinishedPiece>, PassError> {
        let Some(_slot) = self.write_slot().await else { return Ok(None) };
        if abandoned() {
            return Ok(None);
        }
        if !self.write_zeroes(extent, &abandoned).await? {
            return Ok(None);
        }
        let zeroed = extent.len().0;
        budget.spend(self.cost_of_zeroing(zeroed));
        let figures = PassFigures { zeroed, drained: zeroed, requests: 1, ..PassFigures::default() };
        let hashes = extent.blocks().map(|block| (BlockIndex(block), BlockHash::ZERO)).collect();
        Ok(Some(FinishedPiece { extent, hashes, figures, room: extent.blocks().count() }))
    }

    async fn copy(
        &self,
        extent: Extent,
        expected: &[Option<BlockHash>],
        (mut slot, turn): ReadTurn,
        budget: Reservation,
        buffer: Buffer,
        abandoned: impl Fn() -> bool,
    ) -> Result<Option<FinishedPiece>, PassError> {
        let bytes = extent.len().0;
        let read = self.stage(Stage::Read).begin();
        slot.begin();
        let buffer = self.source.read(extent.start(), buffer).await.map_err(PassError::Source)?;
        read.done(bytes);
        slot.done(bytes as usize);
        drop(turn);
        let hashes = self.digest(&buffer).await;
        let mut figures = PassFigures { read: bytes, drained: bytes, requests: 1, ..PassFigures::default() };
        let mut zeroes = Vec::new();
        let mut writes = Vec::new();
        for (fate, run) in runs(extent, &hashes, expected) {
            match fate {
                BlockAction::Keep => figures.skipped += run.len().0,
                BlockAction::Zero => zeroes.push(run),
                BlockAction::Write => writes.push(run),
            }
        }
        figures.zeroed = zeroes.iter().map(|run| run.len().0).sum();
        figures.written = writes.iter().map(|run| run.len().0).sum();
        budget.spend(figures.written + self.cost_of_zeroing(figures.zeroed));
        self.progress.skipped.fetch_add(figures.skipped, Relaxed);
        if !zeroes.is_empty() || !writes.is_empty() {
            let Some(_slot) = self.write_slot().await else { return Ok(None) };
            if abandoned() {
                return Ok(None);
            }
            // Joined, not tried: if one fails, the other is waited for all the same.
            let (zeroed, written) = futures::join!(
                self.zero_runs(&zeroes, &abandoned),
                self.write_runs(extent, &writes, buffer, &abandoned)
            );
            if !(written? && zeroed?) {
                return Ok(None);
            }
        }
        let changed = zeroes.iter().chain(&writes).flat_map(Extent::blocks);
        let first = extent.blocks().start;
        let hashes = changed.map(|block| (BlockIndex(block), hashes[(block - first) as usize])).collect();
        Ok(Some(FinishedPiece { extent, hashes, figures, room: extent.blocks().count() }))
    }

    /// Like the function below, false if it was abandoned while it waited for its turn.
    async fn zero_runs(&self, runs: &[Extent], abandoned: &impl Fn() -> bool) -> Result<bool, PassError> {
        for run in runs {
            if !self.write_zeroes(*run, abandoned).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The bytes that zeroing so many counts for a rate.
    pub(super) fn cost_of_zeroing(&self, bytes: u64) -> u64 {
        if self.target.zeroes_by_writing() { bytes } else { 0 }
    }

    async fn write_zeroes(&self, extent: Extent, abandoned: &impl Fn() -> bool) -> Result<bool, PassError> {
        let _permit = self.write_permit().await;
        if abandoned() {
            return Ok(false);
        }
        let zero = self.stage(Stage::Zero).begin();
        self.target.write_zeroes(extent).await.map_err(PassError::Target)?;
        zero.done(extent.len().0);
        Ok(true)
    }

    async fn write_runs(
        &self,
        extent: Extent,
        runs: &[Extent],
        mut buffer: Buffer,
        abandoned: &impl Fn() -> bool,
    ) -> Result<bool, PassError> {
        for run in runs {
            let _permit = self.write_permit().await;
            if abandoned() {
                return Ok(false);
            }
            let write = self.stage(Stage::Write).begin();
            let from = (run.start() - extent.start()).0 as usize;
            let range = from..from + run.len().0 as usize;
            buffer = self.target.write(run.start(), buffer, range).await.map_err(PassError::Target)?;
            write.done(run.len().0);
        }
        Ok(true)
    }

    async fn digest(&self, bytes: &[u8]) -> Vec<BlockHash> {
        let meter = self.stage(Stage::Digest);
        let request = meter.begin();
        let hashes = digest_in_stretches(bytes, |took| meter.add_cpu(took)).await;
        request.done(bytes.len() as u64);
        hashes
    }

    async fn write_slot(&self) -> Option<SemaphorePermit<'_>> {
        self.progress.meter.waiting(Wait::WriteSlot, self.write_slots.acquire()).await.ok()
    }

    /// For one request; its bytes were budgeted when it was issued.
    async fn write_permit(&self) -> Permit {
        self.progress.meter.waiting(Wait::WriteSlot, self.limits.writes.take(0)).await
    }

    fn stage(&self, stage: Stage) -> &StageMeter {
        self.progress.meter.stage(stage)
    }
}

/// Each block's hash. On the task's own thread, where the bytes are in the cache, and in stretches, so that
/// the runtime's other tasks wait no longer than for one of them; other pieces are digested beside it.
pub(crate) async fn digest(bytes: &[u8]) -> Vec<BlockHash> {
    digest_in_stretches(bytes, |_| {}).await
}

/// `took` receives the time of each stretch.
async fn digest_in_stretches(bytes: &[u8], took: impl Fn(Duration)) -> Vec<BlockHash> {
    let mut hashes = Vec::with_capacity(bytes.len().div_ceil(BLOCK as usize));
    for (at, stretch) in bytes.chunks(DIGEST_STRETCH).enumerate() {
        if at > 0 {
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        hashes.extend(stretch.chunks(BLOCK as usize).map(BlockHash::of));
        took(began.elapsed());
    }
    hashes
}

/// Runs of blocks with the same fate.
fn runs(
    extent: Extent,
    hashes: &[BlockHash],
    expected: &[Option<BlockHash>],
) -> impl Iterator<Item = (BlockAction, Extent)> {
    let fate = |at: usize| match (hashes[at], expected.get(at).copied().flatten()) {
        (hash, Some(held)) if hash == held => BlockAction::Keep,
        (BlockHash::ZERO, _) => BlockAction::Zero,
        _ => BlockAction::Write,
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = fate(*(at < hashes.len()).then_some(&at)?);
        let start = at;
        while at < hashes.len() && fate(at) == first {
            at += 1;
        }
        let place = |block: usize| extent.start() + Length(block as u64 * BLOCK);
        Extent::between(place(start), place(at).min(extent.end())).map(|run| (first, run))
    })
}
