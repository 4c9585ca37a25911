//! Proof that the target holds what it must: read again and compared with the manifest, or with the source itself.
//!
//! Rule: it says nothing of a disk that is not drained: while anything is pending, verifying is refused. Whatever both
//! sides call a hole counts as read, if the settings allow it; everything else really is. A source is read like in a
//! pass: as much at once as pays, and less when it is strained.
//!
//! The audit of change tracking ([`audit`]) goes the same way: it reads the source where the source says that nothing
//! changed, and compares that with the manifest.

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

/// How to verify.
#[derive(Clone, Debug)]
pub struct VerifyJob {
    pub ledger: Arc<Ledger>,
    /// What of the disk is checked.
    pub part: VerifyPart,
    /// Memory comes from here; a piece of a comparison holds one buffer at a time.
    pub pool: BufferPool,
    /// Bytes in one read; cut to what the pool's buffers and the disks take.
    pub chunk: usize,
    /// Pieces worked on at once; cut to [`crate::disk::DiskLimits::in_flight`].
    pub in_flight: usize,
    /// When reads of the source take this many times as long as they used to, less is compared at once; `None` never
    /// does.
    pub read_latency_factor: Option<f64>,
    /// What the source's reads take when all is well; the one of the disk's passes.
    pub baseline: Arc<Mutex<LatencyBaseline>>,
    /// Whether a range need not be read to count as zero that each side which is read calls a hole, and the manifest knows
    /// as zeroes.
    pub trust_holes: bool,
    /// Which verification of the disk it is: decides on the blocks in holes that a comparison reads all the same.
    pub round: u64,
    pub progress: Arc<VerifyProgress>,
    /// What reads of the target, and of the source, take from.
    pub limits: DiskShares,
    pub stop: StopSignal,
}

/// The live figures of a verification.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Bytes of disk to be checked.
    pub total: AtomicU64,
    /// Bytes of disk checked.
    pub checked: AtomicU64,
    /// Milliseconds for which reads were delayed to spare a strained source.
    pub held_back: AtomicU64,
    /// Everything before this byte that was to be checked was checked, and is equal: where a later run may go on.
    pub checked_to: AtomicU64,
    wrong: Mutex<Vec<Extent>>,
    unreported: Mutex<Vec<Extent>>,
    found: Notify,
}

impl VerifyProgress {
    /// Waits until blocks were found that differ. They are reported while the verification still runs, so
    /// that they are not forgotten should it never come to its end.
    pub async fn found(&self) {
        self.found.notified().await;
    }

    /// The blocks that differ and were not taken before; all of a disk of `size` bytes if they are too many to list.
    pub fn take_wrong(&self, size: Length) -> Vec<Extent> {
        let wrong = std::mem::take(&mut *self.wrong.lock().unwrap_or_else(PoisonError::into_inner));
        if wrong.len() > MOST_MISMATCHES { Extent::whole(size).into_iter().collect() } else { wrong }
    }

    /// Those of the blocks that differ of which the source holds something else than the manifest says: a change that
    /// the source did not tell of. Not taken before, and not all if they are very many.
    pub fn take_untold(&self) -> Vec<Extent> {
        std::mem::take(&mut *self.unreported.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell(&self, wrong: &[Extent], unreported: &[Extent]) {
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

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOutcome {
    /// Bytes of disk checked: all that were to be unless it was stopped.
    pub checked: Length,
    /// The first runs of blocks that differ, in the disk's order, at most [`MOST_MISMATCHES`].
    pub mismatched: Vec<Extent>,
    /// Bytes of all blocks that differ.
    pub mismatched_bytes: Length,
    /// The manifest's root; empty if it was stopped before the whole manifest was read.
    pub root: String,
    /// Whether all that was to be checked was; false after a stop.
    pub finished: bool,
}

impl VerifyOutcome {
    /// Nothing was looked at.
    fn none() -> Self {
        Self {
            checked: Length(0),
            mismatched: Vec::new(),
            mismatched_bytes: Length(0),
            root: String::new(),
            finished: false,
        }
    }

    /// Whether all that was to be checked was, and nothing differs.
    pub fn is_equal(&self) -> bool {
        self.finished && self.mismatched_bytes == Length(0)
    }
}

/// Runs of differing blocks that are listed.
pub const MOST_MISMATCHES: usize = 1000;

/// Why a verification could not be made. A difference is no error but an outcome.
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

/// Reads both sides and compares each block of the target with the source's (by their hashes) and with the manifest.
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
