//! The order of a pass: the next piece, its resources, and its start.
//!
//! Rule: scarce resources are waited for here, one piece at a time, so that passes which share a pool take
//! turns; and a buffer is waited for last, before only a request's turn, so that a disk holds at most one
//! idle.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::Instrument as _;

use super::{
    PassError, TransferSettings,
    copy::{FinishedPiece, PassShared, Piece},
    planning::{PieceWork, Planner},
    queue_depth::QueueDepth,
};
use crate::{
    buffer::BufferPool,
    ledger::WriteGate,
    limit::Reservation,
    stop::StopSignal,
    telemetry::Wait,
    units::{BLOCK, Extent},
};

/// A piece's answer. A missing answer counts as lost.
pub(super) type PieceResult = Result<FinishedPiece, PassError>;

/// Hands out the pieces of one pass.
pub(super) struct Issuer {
    pub(super) planner: Planner,
    pub(super) sides: Arc<PassShared>,
    pub(super) pool: BufferPool,
    pub(super) gate: WriteGate,
    pub(super) answers: mpsc::Sender<PieceResult>,
    /// Blocks that may yet be moved before a batch must have been committed.
    pub(super) room: Arc<Semaphore>,
    pub(super) reads: Arc<QueueDepth>,
    /// Bytes in one piece that is copied.
    pub(super) chunk: u64,
    /// The rest of a hole that is zeroed in parts.
    pub(super) zeroes_left: Option<Extent>,
    pub(super) buffers: Arc<Semaphore>,
    /// The caller's stop.
    pub(super) stop: StopSignal,
    /// The stop of the pass's first failure.
    pub(super) halt: StopSignal,
}

/// Slots for a pass with these settings: buffers, blocks of uncommitted work.
pub(super) fn slots(settings: &TransferSettings) -> [Arc<Semaphore>; 2] {
    // Two batches: one being flushed and committed, one being filled.
    let room = (2 * settings.batch_bytes / BLOCK).min(u64::from(u32::MAX)) as usize;
    [settings.buffers, room].map(|count| Arc::new(Semaphore::new(count)))
}

impl Issuer {
    /// Issues pieces until there are no more, or a stop is requested. Gives the number issued.
    pub(super) async fn run(mut self) -> u64 {
        let issued = self.issue().await;
        self.planner.close().await;
        issued
    }

    async fn issue(&mut self) -> u64 {
        let mut issued = 0;
        let (stop, halt) = (self.stop.clone(), self.halt.clone());
        loop {
            let next = tokio::select! {
                biased;
                () = stop.stopped() => None,
                () = halt.stopped() => None,
                next = self.next() => next,
            };
            let Some(next) = next else { return issued };
            issued += 1;
            match next {
                Ok((piece, slots)) => self.spawn(piece, slots),
                Err(error) => {
                    // Fails only if no task waits for the answer.
                    let _ = self.answers.send(Err(error)).await;
                    return issued;
                }
            }
        }
    }

    async fn next(&mut self) -> Option<Result<(Piece, Slots), PassError>> {
        let meter = &self.sides.progress.meter;
        let work = match self.zeroes_left.take() {
            Some(extent) => PieceWork::Zero(extent),
            None => match meter.waiting(Wait::Plan, self.planner.next()).await {
                Ok(work) => work?,
                Err(error) => return Some(Err(error)),
            },
        };
        Some(match work {
            PieceWork::Skip(extent) => Ok((Piece::Skip(extent), Slots::default())),
            PieceWork::Zero(whole) => {
                let extent = self.zeroes_at_once(whole);
                self.zeroes_left = Extent::between(extent.end(), whole.end());
                let room = meter.waiting(Wait::Room, acquire(&self.room, blocks(&extent))).await?;
                let quota = meter.waiting(Wait::Buffer, acquire(&self.buffers, 1)).await?;
                let cost = self.sides.cost_of_zeroing(extent.len().0);
                let budget = meter.waiting(Wait::Limit, self.sides.limits.writes.budget(cost)).await;
                room.forget();
                Ok((Piece::Zero { extent, budget }, Slots { _quota: Some(quota) }))
            }
            PieceWork::Copy { extent, expected } => {
                let room = meter.waiting(Wait::Room, acquire(&self.room, blocks(&extent))).await?;
                let slot = meter.waiting(Wait::ReadSlot, self.reads.enter()).await;
                let quota = meter.waiting(Wait::Buffer, acquire(&self.buffers, 1)).await?;
                meter.waiting(Wait::Limit, self.reads.calm()).await;
                let (reads, writes) = meter.waiting(Wait::Limit, self.rates(extent.len().0)).await;
                let buffer = meter.waiting(Wait::Memory, self.pool.take(extent.len().0 as usize)).await;
                // After the buffer: a holder of a turn must never wait for memory, which may be in use by
                // tasks that wait for a turn. Only this one buffer of the disk is idle meanwhile.
                let permit = meter.waiting(Wait::Limit, self.sides.limits.reads.take(0)).await;
                reads.spend(extent.len().0);
                room.forget();
                Ok((
                    Piece::Copy { extent, expected, slot: (slot, permit), budget: writes, buffer },
                    Slots { _quota: Some(quota) },
                ))
            }
        })
    }

    /// The first part of a hole that is to be zeroed in one request: where zeroes are written, no more than
    /// data is.
    fn zeroes_at_once(&self, hole: Extent) -> Extent {
        let most = if self.sides.target.zeroes_by_writing() { self.chunk } else { u64::MAX };
        hole.split(most).next().unwrap_or(hole)
    }

    /// Both sides' rates. Writes are paid for here too: data that was read must not wait for a rate, in a
    /// buffer that others need.
    async fn rates(&self, bytes: u64) -> (Reservation, Reservation) {
        let writes = self.sides.limits.writes.budget(bytes).await;
        (self.sides.limits.reads.budget(bytes).await, writes)
    }

    fn spawn(&self, piece: Piece, slots: Slots) {
        let (sides, gate, answers) = (Arc::clone(&self.sides), Arc::clone(&self.gate), self.answers.clone());
        let running = async move {
            let answer = sides.run(piece, || answers.is_closed()).await;
            drop((gate, slots));
            if let Some(answer) = answer.transpose() {
                // Fails only if no task waits for the answer.
                let _ = answers.send(answer).await;
            }
        };
        tokio::spawn(running.in_current_span());
    }
}

/// The part of the disk's quota that a piece in flight uses.
#[derive(Default)]
struct Slots {
    _quota: Option<OwnedSemaphorePermit>,
}

/// None of the semaphores is ever closed.
async fn acquire(slots: &Arc<Semaphore>, count: u32) -> Option<OwnedSemaphorePermit> {
    Arc::clone(slots).acquire_many_owned(count).await.ok()
}

/// Blocks of room that an extent uses.
fn blocks(extent: &Extent) -> u32 {
    let blocks = extent.blocks();
    (blocks.end - blocks.start) as u32
}
