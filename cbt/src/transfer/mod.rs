//! One pass over one disk: pending blocks are read, digested, written, flushed and drained from the ledger.
//!
//! Rule: when [`run_pass`] returns, none of its requests is in flight. When its future is dropped instead,
//! the writes that were begun end on their own, none is begun after, and the ledger lets no new pass in
//! before that.
//!
//! ```text
//! issue: plan ─▶ room in the batch ─▶ read slot ─▶ limits ─▶ buffer ─▶ spawn ┐  (the order of the disk)
//! copy:  read ─▶ digest ─▶ write data / zeroes / nothing ────────────────────┤  (many at once, any order)
//! commit: batch ◀─────────────────────────────────────────────────────────────┘
//!          └─ by bytes or time ─▶ flush ─▶ ledger.drain                     (one at a time, beside the rest)
//! ```

mod commit;
mod copy;
mod issue;
mod planning;
mod progress;
mod queue_depth;
mod settings;

use std::sync::{Arc, Mutex, atomic::Ordering::Relaxed};

use tokio::sync::{Semaphore, mpsc};

use self::{commit::Committer, copy::PassShared, issue::Issuer, planning::Planner};
pub(crate) use self::{
    copy::digest,
    queue_depth::{QueueDepth, ReadSlot},
};
pub use self::{
    progress::{PassProgress, ProgressView},
    queue_depth::LatencyBaseline,
    settings::TransferSettings,
};
use crate::{
    buffer::BufferPool,
    disk::{DiskError, ErrorKind, Operation, ReadDisk, WriteDisk},
    ledger::Ledger,
    limit::DiskShares,
    stop::StopSignal,
    store::{PassFigures, StoreError},
    telemetry::Wait,
};

/// The inputs of a pass.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "disks are trait objects")]
pub struct PassJob {
    pub ledger: Arc<Ledger>,
    /// The snapshot that the ledger's anchor names; as large as the ledger's disk.
    pub source: Arc<dyn ReadDisk>,
    /// At least as large as the ledger's disk.
    pub target: Arc<dyn WriteDisk>,
    /// May be shared by many passes: no pass holds a buffer while it waits for another.
    pub pool: BufferPool,
    pub settings: TransferSettings,
    /// The pass in the store that the figures belong to.
    pub pass: Option<i64>,
    pub progress: Arc<PassProgress>,
    /// The limits of reads of the source and writes to the target.
    pub limits: DiskShares,
    /// The source's usual latencies; to be kept for the disk's next pass.
    pub baseline: Arc<Mutex<LatencyBaseline>>,
    pub stop: StopSignal,
}

/// The result of a pass that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskPassResult {
    /// The committed work of this run.
    pub figures: PassFigures,
    /// Whether no block is pending any more; false after a stop.
    pub finished: bool,
}

/// Why a pass ended early, and on which side. Its finished work is committed as far as possible; the
/// rest is still pending.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error("source: {0}")]
    Source(#[source] DiskError),
    #[error("target: {0}")]
    Target(#[source] DiskError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Finished pieces that may wait for a batch.
const ANSWERS: usize = 64;

/// Copies the pending blocks from the snapshot to the target, until none is left or `stop` is given.
pub async fn run_pass(job: PassJob) -> Result<DiskPassResult, PassError> {
    let gate = job.ledger.enter().await?;
    check_sizes(&job)?;
    let settings = job
        .settings
        .fit(job.pool.capacity(), job.source.limits(), job.target.limits())
        .map_err(PassError::Target)?;
    job.progress.total.store(job.ledger.pending_bytes().0, Relaxed);
    let progress = Arc::clone(&job.progress);
    let _running = progress.meter.run();
    let sides = Arc::new(PassShared {
        source: Arc::clone(&job.source),
        target: job.target,
        write_slots: Semaphore::new(settings.writes_in_flight),
        progress: job.progress,
        limits: job.limits,
    });
    let (answers, inbox) = mpsc::channel(ANSWERS);
    let [buffers, room] = issue::slots(&settings);
    let reads = QueueDepth::new(settings.reads_in_flight, settings.read_latency_factor, job.baseline);
    let halt = StopSignal::new();
    let issuer = Issuer {
        planner: Planner::new(
            Arc::clone(&job.ledger),
            job.source,
            settings,
            Arc::clone(&gate),
            Arc::clone(&progress),
        ),
        sides: Arc::clone(&sides),
        pool: job.pool,
        gate,
        answers,
        room: Arc::clone(&room),
        reads: Arc::clone(&reads),
        chunk: settings.chunk as u64,
        zeroes_left: None,
        buffers,
        stop: job.stop,
        halt: halt.clone(),
    };
    let committer = Committer::new(Arc::clone(&job.ledger), sides, settings, job.pass, room, halt);
    let issuing = async { (issuer.run().await, progress.meter.wait(Wait::LastPieces).begin()) };
    let ((issued, last_pieces), committer) = futures::join!(issuing, committer.gather(inbox));
    drop(last_pieces);
    let committed = progress.meter.waiting(Wait::LastBatch, committer.close()).await;
    progress.held_back.store(reads.held_back().as_millis() as u64, Relaxed);
    match committed.failure {
        Some(failure) => Err(failure),
        None if committed.answered < issued => Err(lost(issued - committed.answered)),
        None => Ok(DiskPassResult { figures: committed.figures, finished: job.ledger.is_done() }),
    }
}

/// Refuses disks whose size the ledger does not know: a grown source would be cut, a small target overrun.
fn check_sizes(job: &PassJob) -> Result<(), PassError> {
    let ledger = job.ledger.size();
    let refuse = |name: &str, size| {
        let cause = format!("the {name} has {size} bytes, the ledger says {ledger}");
        DiskError::new(ErrorKind::Refused, Operation::Open, name, None, cause)
    };
    if job.source.size() != ledger {
        return Err(PassError::Source(refuse("source", job.source.size())));
    }
    if job.target.size() < ledger {
        return Err(PassError::Target(refuse("target", job.target.size())));
    }
    Ok(())
}

/// Only a panic in a disk's code can do it; the pieces are still pending.
fn lost(pieces: u64) -> PassError {
    let cause = format!("{pieces} pieces of work ended without an answer");
    PassError::Target(DiskError::new(ErrorKind::Protocol, Operation::Write, "transfer", None, cause))
}
