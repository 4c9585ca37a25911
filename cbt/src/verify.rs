//! Proof that the target holds what it must: read again and compared with the manifest, or with the source itself.
//!
//! Rule: it says nothing of a disk that is not drained: while anything is pending, verifying is refused. Whatever both
//! sides call a hole counts as read, if the settings allow it; everything else really is.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::task::JoinSet;

use crate::{
    buffer::{Buffer, BufferPool},
    disk::{Allocation, DiskError, ErrorKind, Operation, ReadDisk},
    extents::CHUNK_BYTES,
    ledger::Ledger,
    manifest::{BlockHash, RootHasher},
    stop::StopSignal,
    store::{DiskId, LedgerStore, StoreError, StoreErrorKind},
    transfer::digest,
    units::{BLOCK, Extent, Length, Offset},
};

/// How to verify.
#[derive(Clone, Debug)]
pub struct VerifyJob {
    pub ledger: Arc<Ledger>,
    /// Memory comes from here; a piece of a comparison holds one buffer at a time.
    pub pool: BufferPool,
    /// Bytes in one read; cut to what the pool's buffers and the disks take.
    pub chunk: usize,
    /// Pieces worked on at once; cut to [`crate::disk::DiskLimits::in_flight`].
    pub in_flight: usize,
    /// Whether a range that the target calls a hole need not be read to count as zero.
    pub trust_holes: bool,
    pub progress: Arc<VerifyProgress>,
    pub stop: StopSignal,
}

/// The live figures of a verification.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Bytes of disk to be checked.
    pub total: AtomicU64,
    /// Bytes of disk checked.
    pub checked: AtomicU64,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOutcome {
    /// Bytes of disk checked; the whole disk unless it was stopped.
    pub checked: Length,
    /// The first runs of blocks that differ, in the disk's order, at most [`MOST_MISMATCHES`].
    pub mismatched: Vec<Extent>,
    /// Bytes of all blocks that differ.
    pub mismatched_bytes: Length,
    /// The manifest's root.
    pub root: String,
    /// Whether all of the disk was checked; false after a stop.
    pub finished: bool,
}

impl VerifyOutcome {
    /// Whether all of the disk was checked, and nothing differs.
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

/// Reads both sides, whole, and compares each block of the target with the source's (by their hashes) and with the manifest.
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
    job.progress.total.store(size.0, Relaxed);
    let mut scan = Scan::new(&job, target, source)?;
    let mut root = RootHasher::new(size);
    let (store, disk) = (job.ledger.store(), job.ledger.disk());
    for part in Extent::whole(size).into_iter().flat_map(|whole| whole.split(CHUNK_BYTES)) {
        let hashes = hashes(&**store, disk, part).await?;
        root.update(&hashes);
        if !scan.part(part, &Arc::new(hashes)).await? {
            return Ok(scan.outcome(manifest_root(&**store, disk, size).await?, false));
        }
    }
    let finished = scan.finish().await?;
    let root = root.finish().ok_or_else(|| corrupt(disk, "blocks are missing".to_owned()))?;
    Ok(scan.outcome(root, finished))
}

/// The pieces in flight, and what they found.
struct Scan {
    pieces: Arc<Pieces>,
    pool: BufferPool,
    chunk: u64,
    in_flight: usize,
    trust_holes: bool,
    progress: Arc<VerifyProgress>,
    stop: StopSignal,
    running: JoinSet<Result<Found, VerifyError>>,
    checked: u64,
    wrong: Vec<Extent>,
    wrong_bytes: u64,
}

struct Pieces {
    target: Arc<dyn ReadDisk>,
    source: Option<Arc<dyn ReadDisk>>,
}

struct Found {
    checked: u64,
    wrong: Vec<Extent>,
}

impl Scan {
    fn new(
        job: &VerifyJob,
        target: Arc<dyn ReadDisk>,
        source: Option<Arc<dyn ReadDisk>>,
    ) -> Result<Self, VerifyError> {
        let limits = source.as_ref().map_or(target.limits(), |source| source.limits());
        let most =
            job.chunk.min(job.pool.capacity()).min(target.limits().max_request).min(limits.max_request);
        let chunk = most as u64 / BLOCK * BLOCK;
        if chunk == 0 {
            let cause = format!("requests of {most} bytes are too small: a block has {BLOCK}");
            let error = DiskError::new(ErrorKind::Refused, Operation::Open, "verification", None, cause);
            return Err(VerifyError::Target(error));
        }
        Ok(Self {
            in_flight: job.in_flight.min(target.limits().in_flight).min(limits.in_flight).max(1),
            pieces: Arc::new(Pieces { target, source }),
            pool: job.pool.clone(),
            chunk,
            trust_holes: job.trust_holes,
            progress: Arc::clone(&job.progress),
            stop: job.stop.clone(),
            running: JoinSet::new(),
            checked: 0,
            wrong: Vec::new(),
            wrong_bytes: 0,
        })
    }

    /// Starts all pieces of one part of the disk whose hashes are these; false if it was stopped.
    async fn part(&mut self, part: Extent, hashes: &Arc<Vec<BlockHash>>) -> Result<bool, VerifyError> {
        let mut at = part.start();
        while let Some(rest) = Extent::between(at, part.end()) {
            let run = self.ask(rest).await?;
            at = run.extent.end();
            for piece in run.extent.split(self.chunk) {
                if self.stop.is_stopped() {
                    return Ok(false);
                }
                let first = (piece.blocks().start - part.blocks().start) as usize;
                let count = piece.blocks().count();
                if run.zero && hashes[first..first + count].iter().all(|hash| *hash == BlockHash::ZERO) {
                    self.take(Found { checked: piece.len().0, wrong: Vec::new() });
                } else {
                    self.start(piece, Arc::clone(hashes), first).await?;
                }
            }
        }
        Ok(true)
    }

    /// The first run of `rest` that both sides call a hole, or do not; its end is a block's.
    async fn ask(&self, rest: Extent) -> Result<Allocation, VerifyError> {
        let data = Allocation { extent: rest, zero: false };
        if !self.trust_holes {
            return Ok(data);
        }
        let target = hole_run(&*self.pieces.target, rest).await.map_err(VerifyError::Target)?;
        match &self.pieces.source {
            Some(source) if target.zero => {
                let both = hole_run(&**source, target.extent).await.map_err(VerifyError::Source)?;
                Ok(both)
            }
            _ => Ok(target),
        }
    }

    async fn start(
        &mut self,
        piece: Extent,
        hashes: Arc<Vec<BlockHash>>,
        first: usize,
    ) -> Result<(), VerifyError> {
        while self.running.len() >= self.in_flight {
            self.join_one().await?;
        }
        let buffer = self.pool.take(piece.len().0 as usize).await;
        let pieces = Arc::clone(&self.pieces);
        let pool = self.pool.clone();
        self.running.spawn(async move { pieces.check(piece, &hashes[first..], buffer, pool).await });
        Ok(())
    }

    async fn join_one(&mut self) -> Result<bool, VerifyError> {
        let Some(joined) = self.running.join_next().await else { return Ok(false) };
        let found = joined.map_err(|cause| {
            VerifyError::Target(DiskError::new(
                ErrorKind::Protocol,
                Operation::Read,
                "verification",
                None,
                cause,
            ))
        })??;
        self.take(found);
        Ok(true)
    }

    fn take(&mut self, found: Found) {
        self.checked += found.checked;
        self.progress.checked.fetch_add(found.checked, Relaxed);
        self.wrong_bytes += found.wrong.iter().map(|extent| extent.len().0).sum::<u64>();
        self.wrong.extend(found.wrong);
        // Pieces end in any order; a little more is kept than listed, so that the first ones are right nearly always.
        if self.wrong.len() > 16 * MOST_MISMATCHES {
            self.wrong.sort_unstable();
            self.wrong.truncate(8 * MOST_MISMATCHES);
        }
    }

    async fn finish(&mut self) -> Result<bool, VerifyError> {
        while !self.stop.is_stopped() {
            if !self.join_one().await? {
                return Ok(true);
            }
        }
        Ok(self.running.is_empty())
    }

    fn outcome(mut self, root: String, finished: bool) -> VerifyOutcome {
        self.wrong.sort_unstable();
        let mut mismatched: Vec<_> = crate::extents::coalesce(self.wrong, 0).collect();
        mismatched.truncate(MOST_MISMATCHES);
        VerifyOutcome {
            checked: Length(self.checked),
            mismatched,
            mismatched_bytes: Length(self.wrong_bytes),
            root,
            finished,
        }
    }
}

impl Pieces {
    /// Reads the piece, one side after the other through the same buffer, and finds the blocks that differ.
    async fn check(
        &self,
        piece: Extent,
        hashes: &[BlockHash],
        buffer: Buffer,
        _pool: BufferPool,
    ) -> Result<Found, VerifyError> {
        let buffer = self.target.read(piece.start(), buffer).await.map_err(VerifyError::Target)?;
        let held = digest(&buffer).await;
        let mut wrong: Vec<bool> = held.iter().zip(hashes).map(|(held, wanted)| held != wanted).collect();
        if let Some(source) = &self.source {
            let buffer = source.read(piece.start(), buffer).await.map_err(VerifyError::Source)?;
            let read = digest(&buffer).await;
            for (wrong, (held, read)) in wrong.iter_mut().zip(held.iter().zip(&read)) {
                *wrong |= held != read;
            }
        }
        let blocks = piece.split(BLOCK).zip(&wrong).filter(|(_, wrong)| **wrong).map(|(block, _)| block);
        Ok(Found { checked: piece.len().0, wrong: blocks.collect() })
    }
}

/// The first run of whole blocks in `rest` that is a hole, or that is not known to be one.
async fn hole_run(disk: &dyn ReadDisk, rest: Extent) -> Result<Allocation, DiskError> {
    let data = |extent| Allocation { extent, zero: false };
    let answer = match disk.allocation(rest).await {
        Ok(answer) => answer,
        Err(error) if error.kind == ErrorKind::Refused => return Ok(data(rest)),
        Err(error) => return Err(error),
    };
    let mut end = rest.start();
    let mut zero = None;
    for part in answer {
        if part.extent.start() != end || zero.is_some_and(|zero| zero != part.zero) {
            break;
        }
        zero = Some(part.zero);
        end = part.extent.end().min(rest.end());
    }
    let run = Extent::between(rest.start(), end);
    // A hole gives up its broken last block, data takes it in; what is shorter than a block is data.
    let whole = if zero == Some(true) { end.0 / BLOCK * BLOCK } else { end.0.div_ceil(BLOCK) * BLOCK };
    let end = if end == rest.end() { end } else { Offset(whole).min(rest.end()) };
    match (run, Extent::between(rest.start(), end)) {
        (None, _) => Ok(data(rest)),
        (_, Some(extent)) => Ok(Allocation { extent, zero: zero == Some(true) }),
        (_, None) => {
            let block = Offset(rest.start().0 + BLOCK).min(rest.end());
            Ok(data(Extent::between(rest.start(), block).unwrap_or(rest)))
        }
    }
}

async fn hashes(store: &dyn LedgerStore, disk: DiskId, part: Extent) -> Result<Vec<BlockHash>, StoreError> {
    let blocks = part.blocks();
    let hashes = store.hashes(disk, blocks.clone()).await?;
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
