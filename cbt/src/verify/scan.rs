//! The pieces of a verification: issued in the disk's order, checked many at once.
//!
//! Rule: a stretch that each side calls a hole, and that the manifest knows as zeroes, is skipped in one
//! step, however long it is. A comparison reads of each [`CHUNK_BLOCKS`] one block of such a stretch all the
//! same, from both sides and others from round to round: so wrong answers about holes are detected.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::task::{JoinError, JoinSet};
use tracing::Instrument as _;

use super::{
    MOST_MISMATCHES, VerifyError, VerifyJob, VerifyOutcome, VerifyProgress, chosen::mixed, holes::KnownHoles,
};
use crate::{
    buffer::{Buffer, BufferPool},
    chunk::CHUNK_BLOCKS,
    disk::{DiskError, ErrorKind, Operation, ReadDisk},
    extents::coalesce,
    limit::{DiskShares, Permit, Reservation},
    manifest::BlockHash,
    stop::StopSignal,
    transfer::{QueueDepth, ReadSlot, digest},
    units::{BLOCK, Extent, Length, Offset},
};

/// The pieces in flight, and their results.
pub(super) struct Scan {
    pieces: Arc<Pieces>,
    pool: BufferPool,
    chunk: u64,
    in_flight: usize,
    holes: Option<SidesHoles>,
    round: u64,
    progress: Arc<VerifyProgress>,
    stop: StopSignal,
    running: JoinSet<Result<Found, VerifyError>>,
    /// The starts of the pieces in flight, and the position up to which pieces were begun or are not needed.
    begun: BTreeSet<u64>,
    reached: u64,
    /// Where the first block that differs was found.
    first_wrong: Option<u64>,
    checked: u64,
    wrong: Vec<Extent>,
    wrong_bytes: u64,
}

/// The holes of each side.
struct SidesHoles {
    target: KnownHoles,
    source: Option<KnownHoles>,
}

/// A run of which each side is one kind.
struct UniformRun {
    extent: Extent,
    /// Known to be zero on the target, and on the source if there is one.
    target_zero: bool,
    source_zero: bool,
}

struct Pieces {
    target: Arc<dyn ReadDisk>,
    source: Option<Arc<dyn ReadDisk>>,
    limits: DiskShares,
    /// How many pieces are worked on where the source is read: as many as the source bears, and as raise the
    /// rate.
    depth: Option<Arc<QueueDepth>>,
}

struct Found {
    piece: Extent,
    wrong: Vec<Extent>,
    /// The differing blocks whose content on the source differs from the manifest.
    unreported: Vec<Extent>,
}

impl Scan {
    /// Reads of the target, and of the source too if there is one.
    pub(super) fn new(
        job: &VerifyJob,
        target: Arc<dyn ReadDisk>,
        source: Option<Arc<dyn ReadDisk>>,
    ) -> Result<Self, VerifyError> {
        let is_spared = source.is_some();
        Self::build(job, target, source, is_spared)
    }

    /// Reads of the source alone, in the target's place.
    pub(super) fn of_source(job: &VerifyJob, source: Arc<dyn ReadDisk>) -> Result<Self, VerifyError> {
        Self::build(job, source, None, true)
    }

    fn build(
        job: &VerifyJob,
        target: Arc<dyn ReadDisk>,
        source: Option<Arc<dyn ReadDisk>>,
        is_spared: bool,
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
        let in_flight = job.in_flight.min(target.limits().in_flight).min(limits.in_flight).max(1);
        let depth =
            is_spared.then(|| QueueDepth::new(in_flight, job.read_latency_factor, Arc::clone(&job.baseline)));
        let (total, before) = job.part.bytes(job.ledger.size());
        job.progress.total.store(total, Relaxed);
        job.progress.checked.store(before, Relaxed);
        job.progress.checked_to.store(job.part.from.0, Relaxed);
        let far = job.part.only.is_none();
        let holes = job.trust_holes.then(|| SidesHoles {
            target: KnownHoles::new(Arc::clone(&target), far),
            source: source.as_ref().map(|source| KnownHoles::new(Arc::clone(source), far)),
        });
        Ok(Self {
            // Pieces that the source has answered are still digested when their slots are free again.
            in_flight: if depth.is_some() { 2 * in_flight } else { in_flight },
            pieces: Arc::new(Pieces { target, source, limits: job.limits.clone(), depth }),
            pool: job.pool.clone(),
            chunk,
            holes,
            round: job.round,
            progress: Arc::clone(&job.progress),
            stop: job.stop.clone(),
            running: JoinSet::new(),
            begun: BTreeSet::new(),
            reached: job.part.from.0,
            first_wrong: None,
            checked: before,
            wrong: Vec::new(),
            wrong_bytes: 0,
        })
    }

    /// Starts all pieces of one run of the disk; these are the hashes of the blocks from `base` on. False if
    /// it was stopped.
    pub(super) async fn run(
        &mut self,
        whole: Extent,
        hashes: &Arc<Vec<BlockHash>>,
        base: u64,
    ) -> Result<bool, VerifyError> {
        let mut at = whole.start();
        while let Some(rest) = Extent::between(at, whole.end()) {
            let told = self.ask(rest).await?;
            at = told.extent.end();
            for (stretch, is_known) in self.stretches(&told, hashes, base) {
                if self.stop.is_stopped() {
                    return Ok(false);
                }
                if is_known && told.target_zero {
                    self.begin(stretch);
                    self.take(Found { piece: stretch, wrong: Vec::new(), unreported: Vec::new() });
                    continue;
                }
                for piece in stretch.split(self.chunk) {
                    let hashes = (Arc::clone(hashes), (piece.blocks().start - base) as usize);
                    if !self.start(piece, hashes, !is_known).await? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// The run from the start of `rest` on which both sides' answers stay the same; it ends at a block's end.
    async fn ask(&mut self, rest: Extent) -> Result<UniformRun, VerifyError> {
        let Some(holes) = &mut self.holes else {
            return Ok(UniformRun { extent: rest, target_zero: false, source_zero: false });
        };
        let target = holes.target.run(rest).await.map_err(VerifyError::Target)?;
        let told = UniformRun { extent: target.extent, target_zero: target.zero, source_zero: target.zero };
        let Some(source) = &mut holes.source else { return Ok(told) };
        let source = source.run(target.extent).await.map_err(VerifyError::Source)?;
        Ok(UniformRun { extent: source.extent, source_zero: source.zero, ..told })
    }

    /// The run cut into stretches that are known to be zero, by the source where there is one and by the
    /// manifest, and into others.
    fn stretches(&self, told: &UniformRun, hashes: &[BlockHash], base: u64) -> Vec<(Extent, bool)> {
        if !told.source_zero {
            return vec![(told.extent, false)];
        }
        let blocks = told.extent.blocks();
        let probe = self.probed(blocks.start);
        let is_known =
            |block: u64| hashes[(block - base) as usize] == BlockHash::ZERO && probe != Some(block);
        let mut stretches = Vec::new();
        let mut first = blocks.start;
        while first < blocks.end {
            let known = is_known(first);
            let end = (first + 1..blocks.end).find(|block| is_known(*block) != known).unwrap_or(blocks.end);
            let end_of = Offset(end * BLOCK).min(told.extent.end());
            stretches.extend(Extent::between(Offset(first * BLOCK), end_of).map(|run| (run, known)));
            first = end;
        }
        stretches
    }

    /// The block of this one's chunk that a comparison reads even where it is a hole. A run is within one
    /// chunk.
    fn probed(&self, block: u64) -> Option<u64> {
        let chunk = block / CHUNK_BLOCKS;
        self.pieces
            .source
            .is_some()
            .then(|| chunk * CHUNK_BLOCKS + mixed(mixed(self.round) ^ chunk) % CHUNK_BLOCKS)
    }

    async fn start(
        &mut self,
        piece: Extent,
        (hashes, first): (Arc<Vec<BlockHash>>, usize),
        asks_source: bool,
    ) -> Result<bool, VerifyError> {
        while let Some(joined) = self.running.try_join_next() {
            self.joined(joined)?;
        }
        while self.running.len() >= self.in_flight {
            self.join_one().await?;
        }
        let pieces = Arc::clone(&self.pieces);
        let (slot, turns, buffer) = tokio::select! {
            biased;
            () = self.stop.stopped() => return Ok(false),
            ready = pieces.ready(piece.len().0, &self.pool, asks_source) => ready,
        };
        self.begin(piece);
        let checking = async move {
            let held = (slot, turns);
            pieces.check(piece, &hashes[first..], held, buffer, asks_source).await
        };
        self.running.spawn(checking.in_current_span());
        Ok(true)
    }

    async fn join_one(&mut self) -> Result<bool, VerifyError> {
        let Some(joined) = self.running.join_next().await else { return Ok(false) };
        self.joined(joined)?;
        Ok(true)
    }

    fn joined(&mut self, joined: Result<Result<Found, VerifyError>, JoinError>) -> Result<(), VerifyError> {
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
        Ok(())
    }

    fn begin(&mut self, piece: Extent) {
        self.begun.insert(piece.start().0);
        self.reached = piece.end().0;
    }

    fn take(&mut self, found: Found) {
        if let Some(depth) = &self.pieces.depth {
            self.progress.held_back.store(depth.held_back().as_millis() as u64, Relaxed);
        }
        self.progress.report(&found.wrong, &found.unreported);
        let bytes = found.piece.len().0;
        self.checked += bytes;
        self.progress.checked.fetch_add(bytes, Relaxed);
        self.begun.remove(&found.piece.start().0);
        let wrong = found.wrong.iter().map(|extent| extent.start().0).chain(self.first_wrong);
        self.first_wrong = wrong.min();
        // Never past a difference: a later run from here must find it again.
        let sure =
            self.begun.first().copied().into_iter().chain(self.first_wrong).fold(self.reached, u64::min);
        self.progress.checked_to.store(sure, Relaxed);
        self.wrong_bytes += found.wrong.iter().map(|extent| extent.len().0).sum::<u64>();
        self.wrong.extend(found.wrong);
        // Pieces end in any order; a few more are kept than listed, so that the listed ones are nearly always
        // the first.
        if self.wrong.len() > 16 * MOST_MISMATCHES {
            self.wrong.sort_unstable();
            self.wrong.truncate(8 * MOST_MISMATCHES);
        }
    }

    /// Waits for the pieces in flight after a failure: their results count. Further failures add nothing.
    pub(super) async fn settle(&mut self) {
        while let Some(joined) = self.running.join_next().await {
            self.joined(joined).ok();
        }
    }

    /// The position up to which pieces were begun, or are not needed.
    pub(super) fn reached(&self) -> Offset {
        Offset(self.reached)
    }

    pub(super) async fn finish(&mut self) -> Result<bool, VerifyError> {
        while !self.stop.is_stopped() {
            if !self.join_one().await? {
                return Ok(true);
            }
        }
        Ok(self.running.is_empty())
    }

    pub(super) fn outcome(mut self, root: String, finished: bool) -> VerifyOutcome {
        self.wrong.sort_unstable();
        let mut mismatched: Vec<_> = coalesce(self.wrong, 0).collect();
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
    /// Both sides' rates before a buffer is taken: the source's bytes are read later, but paid for here. The
    /// turn comes after the buffer: a holder of a turn must never wait for memory, which may be in use by
    /// tasks that wait for a turn.
    async fn ready(
        &self,
        bytes: u64,
        pool: &BufferPool,
        asks_source: bool,
    ) -> (Option<ReadSlot>, (Permit, Reservation), Buffer) {
        let asks_source = asks_source && self.source.is_some();
        let depth = self.depth.as_ref().filter(|_| asks_source || self.source.is_none());
        let slot = match depth {
            Some(depth) => {
                let slot = depth.enter().await;
                depth.calm().await;
                Some(slot)
            }
            None => None,
        };
        let reads = self.limits.reads.budget(if asks_source { bytes } else { 0 }).await;
        let readback = self.limits.readbacks.budget(bytes).await;
        let buffer = pool.take(bytes as usize).await;
        let permit = self.limits.readbacks.take(0).await;
        readback.spend(bytes);
        (slot, (permit, reads), buffer)
    }

    /// Reads the piece, one side after the other through the same buffer, and finds the blocks that differ. A
    /// source that is known to match the manifest is not read.
    async fn check(
        &self,
        piece: Extent,
        hashes: &[BlockHash],
        (mut slot, (permit, budget)): (Option<ReadSlot>, (Permit, Reservation)),
        buffer: Buffer,
        asks_source: bool,
    ) -> Result<Found, VerifyError> {
        let begun = if self.source.is_none() { slot.take().map(ReadSlot::begun) } else { None };
        let buffer = self.target.read(piece.start(), buffer).await.map_err(VerifyError::Target)?;
        if let Some(read) = begun {
            read.done(buffer.len());
        }
        drop(permit);
        let held = digest(&buffer).await;
        let mut wrong: Vec<bool> = held.iter().zip(hashes).map(|(held, wanted)| held != wanted).collect();
        let mut unreported = Vec::new();
        if let Some(source) = self.source.as_ref().filter(|_| asks_source) {
            let permit = self.limits.reads.take(0).await;
            budget.spend(piece.len().0);
            let begun = slot.map(ReadSlot::begun);
            let buffer = source.read(piece.start(), buffer).await.map_err(VerifyError::Source)?;
            if let Some(read) = begun {
                read.done(buffer.len());
            }
            drop(permit);
            let read = digest(&buffer).await;
            for (wrong, (held, read)) in wrong.iter_mut().zip(held.iter().zip(&read)) {
                *wrong |= held != read;
            }
            let differ = |(_, (wanted, read)): &(Extent, (&BlockHash, &BlockHash))| wanted != read;
            let blocks = piece.split(BLOCK).zip(hashes.iter().zip(&read)).filter(differ);
            unreported.extend(blocks.map(|(block, _)| block));
        }
        let blocks = piece.split(BLOCK).zip(&wrong).filter(|(_, wrong)| **wrong).map(|(block, _)| block);
        Ok(Found { piece, wrong: blocks.collect(), unreported })
    }
}
