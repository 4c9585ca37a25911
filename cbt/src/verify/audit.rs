//! The audit of change tracking: does the source tell the truth about what did not change?
//!
//! Rule: what is compared was really read. Blocks that the ledger calls settled (not pending after the advance to the
//! open snapshot) must hold in the snapshot what the manifest says; one that does not shows that a change was not told.
//!
//! The walk over the disk goes on where the last one ended, and wraps. A block that the source calls a hole, and that
//! the manifest knows as zeroes, need not be read: it changed neither way, unless the hole lies. So of such blocks one in
//! [`HOLES`] is read all the same, others from round to round. A hole where the manifest knows data is read like data: it is
//! a change that was not told.

use std::sync::{Arc, Mutex, atomic::Ordering::Relaxed};

use super::{VerifyError, VerifyJob, VerifyProgress, hashes, holes::hole_run, part::Part, scan::Scan};
use crate::{
    buffer::BufferPool,
    disk::ReadDisk,
    extents::{CHUNK_BYTES, ExtentSet},
    ledger::Ledger,
    limit::DiskShares,
    manifest::BlockHash,
    stop::StopSignal,
    transfer::LatencyBaseline,
    units::{BLOCK, Extent, Length, Offset},
};

/// Of so many blocks in holes one is read; and the walk passes over at most so many times the budget.
const HOLES: u64 = 16;

/// What to audit, and how.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "disks are trait objects")]
pub struct AuditJob {
    /// Advanced to the snapshot; before it is drained, when the most blocks that are settled were called unchanged.
    pub ledger: Arc<Ledger>,
    /// The snapshot.
    pub source: Arc<dyn ReadDisk>,
    /// Bytes to be read at the most, rounded up to whole blocks.
    pub budget: Length,
    /// Where the walk goes on: [`AuditOutcome::next`] of the last one.
    pub from: Offset,
    /// Which audit of the disk it is: decides on the blocks in holes that are read.
    pub round: u64,
    pub pool: BufferPool,
    /// Bytes in one read.
    pub chunk: usize,
    /// The most reads at once.
    pub in_flight: usize,
    /// When reads take this many times as long as they used to, fewer are made at once; `None` never does so.
    pub read_latency_factor: Option<f64>,
    /// What the source's reads take when all is well; the one of the disk's passes.
    pub baseline: Arc<Mutex<LatencyBaseline>>,
    /// What reads of the source take from.
    pub limits: DiskShares,
    pub stop: StopSignal,
}

/// What an audit found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditOutcome {
    /// Bytes read and compared.
    pub checked: Length,
    /// Bytes passed over because source and manifest agree that they are zeroes.
    pub holes: Length,
    /// The first runs of blocks that changed without the source saying so, at most [`super::MOST_MISMATCHES`].
    pub mismatched: Vec<Extent>,
    /// Bytes of all such blocks.
    pub mismatched_bytes: Length,
    /// Where the next audit goes on.
    pub next: Offset,
    /// Whether all that was chosen was read; false after a stop.
    pub finished: bool,
}

/// Reads settled blocks from the snapshot and compares them with the manifest, as far as the budget goes.
///
/// # Errors
/// [`VerifyError::Source`] if the snapshot cannot be read: then nothing is said of the source's tracking.
pub async fn audit(job: AuditJob) -> Result<AuditOutcome, VerifyError> {
    let size = job.ledger.size();
    let mut chosen = Chosen {
        blocks: ExtentSet::new(size),
        left: job.budget.0.div_ceil(BLOCK),
        steps: job.budget.0.div_ceil(BLOCK).saturating_mul(HOLES),
        holes: 0,
        next: job.from.min(Offset(size.0)),
    };
    let settled = job.ledger.settled();
    let start = chosen.next;
    let mut cut = false;
    let rounds = [Extent::between(start, Offset(size.0)), Extent::between(Offset(0), start)];
    for part in rounds.into_iter().flatten().flat_map(|round| round.split(CHUNK_BYTES)) {
        cut = job.stop.is_stopped();
        if cut || !chosen.walk(&job, &settled, part).await? {
            break;
        }
    }
    let verify = VerifyJob {
        ledger: Arc::clone(&job.ledger),
        part: Part::only(chosen.blocks.clone()),
        pool: job.pool.clone(),
        chunk: job.chunk,
        in_flight: job.in_flight,
        read_latency_factor: job.read_latency_factor,
        baseline: Arc::clone(&job.baseline),
        trust_holes: false,
        progress: Arc::new(VerifyProgress::default()),
        // The source stands where else the target does.
        limits: DiskShares { readbacks: job.limits.reads.clone(), ..DiskShares::default() },
        stop: job.stop.clone(),
    };
    let found = scan(&verify, &job.source).await.map_err(of_source)?;
    let finished = found.finished && !cut;
    // Blocks are read in the disk's order: if it has not gone round, all before this were.
    let read_to = verify.progress.sure_to.load(Relaxed).min(chosen.next.0);
    let cut_at = if chosen.next > start { start.max(Offset(read_to)) } else { start };
    Ok(AuditOutcome {
        holes: Length(chosen.holes),
        finished,
        // What was chosen and not read comes first the next time.
        next: if finished { Offset(chosen.next.0 % size.0.max(1)) } else { cut_at },
        ..found
    })
}

/// Whether this hole is read in this round: one in [`HOLES`], others from round to round. Which is mixed (by the
/// finalizer of SplitMix64) and not counted up: rounds are numbers of passes, of which a disk among several has only
/// every so manieth.
fn looks_into(block: u64, round: u64) -> bool {
    let mut mixed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    block.wrapping_add(mixed ^ (mixed >> 31)).is_multiple_of(HOLES)
}

/// The blocks that will be read.
struct Chosen {
    blocks: ExtentSet,
    /// Blocks that may still be chosen, and that may still be passed.
    left: u64,
    steps: u64,
    holes: u64,
    next: Offset,
}

impl Chosen {
    /// Chooses from one part of the disk; false when there is enough.
    async fn walk(&mut self, job: &AuditJob, settled: &ExtentSet, part: Extent) -> Result<bool, VerifyError> {
        let mut hashes_of_part = None;
        let runs = settled.extents_from(part.start());
        for run in runs.map_while(|run| run.intersect(&part)) {
            if hashes_of_part.is_none() {
                let aligned = part.align_out(BLOCK, job.ledger.size()).unwrap_or(part);
                hashes_of_part = Some(hashes(&**job.ledger.store(), job.ledger.disk(), aligned).await?);
            }
            let known = hashes_of_part.as_deref().unwrap_or_default();
            let mut at = run.start();
            while let Some(rest) = Extent::between(at, run.end()) {
                let told = hole_run(&*job.source, rest).await.map_err(VerifyError::Source)?;
                for block in told.extent.split(BLOCK) {
                    if self.left == 0 || self.steps == 0 {
                        self.next = block.start();
                        return Ok(false);
                    }
                    let number = block.blocks().start;
                    let hash = known.get((number - part.blocks().start) as usize);
                    self.step(
                        block,
                        told.zero && hash == Some(&BlockHash::ZERO) && !looks_into(number, job.round),
                    );
                }
                at = told.extent.end();
            }
        }
        self.next = part.end();
        Ok(true)
    }

    fn step(&mut self, block: Extent, is_hole: bool) {
        self.steps -= 1;
        if is_hole {
            self.holes += block.len().0;
        } else {
            self.blocks.insert(block);
            self.left -= 1;
        }
    }
}

async fn scan(verify: &VerifyJob, source: &Arc<dyn ReadDisk>) -> Result<AuditOutcome, VerifyError> {
    let mut scan = Scan::of_source(verify, Arc::clone(source))?;
    let (store, disk) = (verify.ledger.store(), verify.ledger.disk());
    let parts = Extent::whole(verify.ledger.size()).into_iter().flat_map(|whole| whole.split(CHUNK_BYTES));
    let mut goes_on = true;
    for part in parts {
        let mut runs = verify.part.runs(part).peekable();
        if !goes_on || runs.peek().is_none() {
            continue;
        }
        let hashes = Arc::new(hashes(&**store, disk, part).await?);
        for run in runs {
            goes_on = goes_on && scan.run(run, &hashes, part.blocks().start).await?;
        }
    }
    let finished = scan.finish().await? && goes_on;
    let found = scan.outcome(String::new(), finished);
    Ok(AuditOutcome {
        checked: found.checked,
        holes: Length(0),
        mismatched: found.mismatched,
        mismatched_bytes: found.mismatched_bytes,
        next: Offset(0),
        finished,
    })
}

fn of_source(error: VerifyError) -> VerifyError {
    match error {
        VerifyError::Target(cause) => VerifyError::Source(cause),
        other => other,
    }
}
