//! Verification of the target: read again and compared with the manifest, or with the source itself.
//!
//! Rule: a disk must be drained: while a block is pending, verifying is refused. A range that both
//! sides call a hole counts as read, if the settings allow it; all others are really read. A source is read
//! as in a pass: as many requests as raise the rate, and fewer when it is strained.
//!
//! The audit of change tracking ([`audit`]) works alike: it reads the source where the source says that
//! nothing changed, and compares that with the manifest.

mod audit;
mod chosen;
mod holes;
mod part;
mod sample;
mod scan;

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicU64};

use tokio::sync::Notify;

use self::scan::Scan;
pub use self::{
    audit::{AuditJob, AuditOutcome, audit},
    part::VerifyPart,
    sample::Sample,
};
use crate::{
    buffer::BufferPool,
    disk::{DiskError, ErrorKind, Operation, ReadDisk},
    extents::CHUNK_BYTES,
    ledger::Ledger,
    limit::DiskShares,
    manifest::{BlockHash, RootHasher},
    stop::StopSignal,
    store::{DiskId, LedgerStore, StoreError, StoreErrorKind},
    transfer::LatencyBaseline,
    units::{Extent, Length},
};

/// The inputs of a verification.
#[derive(Clone, Debug)]
pub struct VerifyJob {
    pub ledger: Arc<Ledger>,
    /// The part of the disk to check.
    pub part: VerifyPart,
    /// Memory comes from here; a piece of a comparison uses one buffer at a time.
    pub pool: BufferPool,
    /// Bytes in one read; cut to the limits of the pool's buffers and the disks.
    pub chunk: usize,
    /// Pieces worked on at once; cut to [`crate::disk::DiskLimits::in_flight`].
    pub in_flight: usize,
    /// When reads of the source take this many times as long as they used to, fewer pieces run at once;
    /// `None` never does.
    pub read_latency_factor: Option<f64>,
    /// The source's usual latencies; shared with the disk's passes.
    pub baseline: Arc<Mutex<LatencyBaseline>>,
    /// Whether a range counts as zero without a read where each compared side calls it a hole, and the
    /// manifest knows it as zeroes.
    pub trust_holes: bool,
    /// Which verification of the disk it is: decides which blocks in holes a comparison reads all the same.
    pub round: u64,
    pub progress: Arc<VerifyProgress>,
    /// The limits of reads of the target, and of the source.
    pub limits: DiskShares,
    pub stop: StopSignal,
}

/// The live figures of a verification.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Bytes of disk to check.
    pub total: AtomicU64,
    /// Bytes of disk checked.
    pub checked: AtomicU64,
    /// Milliseconds for which reads were delayed to spare a strained source.
    pub held_back: AtomicU64,
    /// All blocks to check before this byte were checked, and are equal: a later run may begin here.
    pub checked_to: AtomicU64,
    wrong: Mutex<Vec<Extent>>,
    unreported: Mutex<Vec<Extent>>,
    found: Notify,
}

impl VerifyProgress {
    /// Waits until blocks were found that differ. They are reported while the verification still runs, so
    /// that they are not lost if it never ends.
    pub async fn found(&self) {
        self.found.notified().await;
    }

    /// The blocks that differ and were not taken before; all of a disk of `size` bytes if they are too many
    /// to list.
    pub fn take_wrong(&self, size: Length) -> Vec<Extent> {
        let wrong = std::mem::take(&mut *self.wrong.lock().unwrap_or_else(PoisonError::into_inner));
        if wrong.len() > MOST_MISMATCHES { Extent::whole(size).into_iter().collect() } else { wrong }
    }

    /// The differing blocks whose content on the source differs from the manifest: an unreported
    /// change. Not taken before, and not all if they are very many.
    pub fn take_unreported(&self) -> Vec<Extent> {
        std::mem::take(&mut *self.unreported.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn report(&self, wrong: &[Extent], unreported: &[Extent]) {
        if wrong.is_empty() {
            return;
        }
        for (told, new) in [(&self.unreported, unreported), (&self.wrong, wrong)] {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            let room = (MOST_MISMATCHES + 1).saturating_sub(told.len());
            told.extend(new.iter().take(room));
        }
        self.found.notify_one();
    }
}

/// The result of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOutcome {
    /// Bytes of disk checked: all requested ones unless it was stopped.
    pub checked: Length,
    /// The first runs of blocks that differ, in the disk's order, at most [`MOST_MISMATCHES`].
    pub mismatched: Vec<Extent>,
    /// Bytes of all blocks that differ.
    pub mismatched_bytes: Length,
    /// The manifest's root; empty if it was stopped before the whole manifest was read.
    pub root: String,
    /// Whether all requested blocks were checked; false after a stop.
    pub finished: bool,
}

impl VerifyOutcome {
    /// No block was checked.
    fn none() -> Self {
        Self {
            checked: Length(0),
            mismatched: Vec::new(),
            mismatched_bytes: Length(0),
            root: String::new(),
            finished: false,
        }
    }

    /// Whether all requested blocks were checked, and none differs.
    pub fn is_equal(&self) -> bool {
        self.finished && self.mismatched_bytes == Length(0)
    }
}

/// The most listed runs of differing blocks.
pub const MOST_MISMATCHES: usize = 1000;

/// Why a verification failed. A difference is not an error but an outcome.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The disk is not drained, so it cannot equal its manifest.
    #[error("cannot verify: {0} bytes are still pending")]
    Pending(Length),
    #[error("source: {0}")]
    Source(#[source] DiskError),
    #[error("target: {0}")]
    Target(#[source] DiskError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads the target and compares each block's hash with the manifest.
pub async fn readback(job: VerifyJob, target: Arc<dyn ReadDisk>) -> Result<VerifyOutcome, VerifyError> {
    verify(job, target, None).await
}

/// Reads both sides and compares each block of the target with the source's (by their hashes) and with the
/// manifest.
pub async fn compare(
    job: VerifyJob,
    source: Arc<dyn ReadDisk>,
    target: Arc<dyn ReadDisk>,
) -> Result<VerifyOutcome, VerifyError> {
    verify(job, target, Some(source)).await
}

/// The root over a disk's manifest as it is stored.
pub async fn manifest_root(
    store: &dyn LedgerStore,
    disk: DiskId,
    size: Length,
) -> Result<String, StoreError> {
    let mut root = RootHasher::new(size);
    for part in Extent::whole(size).into_iter().flat_map(|whole| whole.split(CHUNK_BYTES)) {
        root.update(&hashes(store, disk, part).await?);
    }
    root.finish().ok_or_else(|| corrupt(disk, "blocks are missing".to_owned()))
}

async fn verify(
    job: VerifyJob,
    target: Arc<dyn ReadDisk>,
    source: Option<Arc<dyn ReadDisk>>,
) -> Result<VerifyOutcome, VerifyError> {
    let size = job.ledger.size();
    if !job.ledger.is_done() {
        return Err(VerifyError::Pending(job.ledger.pending_bytes()));
    }
    if let Some(source) = source.as_ref().filter(|source| source.size() != size) {
        return Err(VerifyError::Source(wrong_size(source.size(), size)));
    }
    if target.size() < size {
        return Err(VerifyError::Target(wrong_size(target.size(), size)));
    }
    let mut scan = Scan::new(&job, target, source)?;
    let mut root = RootHasher::new(size);
    let (store, disk) = (job.ledger.store(), job.ledger.disk());
    for part in Extent::whole(size).into_iter().flat_map(|whole| whole.split(CHUNK_BYTES)) {
        let hashes = hashes(&**store, disk, part).await?;
        root.update(&hashes);
        let hashes = Arc::new(hashes);
        for run in job.part.runs(part) {
            if !scan.run(run, &hashes, part.blocks().start).await? {
                // The root of a disk that was not checked to its end is of no use.
                return Ok(scan.outcome(String::new(), false));
            }
        }
    }
    let finished = scan.finish().await?;
    let root = root.finish().ok_or_else(|| corrupt(disk, "blocks are missing".to_owned()))?;
    Ok(scan.outcome(root, finished))
}

async fn hashes(store: &dyn LedgerStore, disk: DiskId, part: Extent) -> Result<Vec<BlockHash>, StoreError> {
    let blocks = part.blocks();
    let hashes = store.hashes(disk, std::slice::from_ref(&blocks)).await?;
    if hashes.len() as u64 != blocks.end - blocks.start {
        return Err(corrupt(disk, format!("{} hashes for {part}", hashes.len())));
    }
    Ok(hashes)
}

fn corrupt(disk: DiskId, cause: String) -> StoreError {
    StoreError {
        kind: StoreErrorKind::Corrupt,
        context: format!("the manifest of disk {}", disk.0),
        cause: cause.into(),
    }
}

fn wrong_size(has: Length, wanted: Length) -> DiskError {
    let cause = format!("it has {has} bytes, the ledger {wanted}");
    DiskError::new(ErrorKind::Refused, Operation::Open, "verification", None, cause)
}
