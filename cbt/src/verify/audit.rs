//! The audit of change tracking: does the source report unchanged blocks correctly?
//!
//! Rule: every compared block was really read. Blocks that the ledger calls settled (not pending after the
//! advance to the open snapshot) must match the manifest in the snapshot; a block that does not shows an
//! unreported change.
//!
//! The walk over the disk begins where the last one ended, and wraps. A block that the source calls a hole,
//! and that the manifest knows as zeroes, need not be read: it did not change, unless the hole is wrong. So
//! of such blocks one in [`HOLES`] is read all the same, others from round to round. A hole where the
//! manifest knows data is read like data: it is an unreported change.
//!
//! An unreadable block ends an audit, and the next one skips it; earlier findings count.

use std::sync::{Arc, Mutex, atomic::Ordering::Relaxed};

use super::{
    MOST_MISMATCHES, VerifyError, VerifyJob, VerifyOutcome, VerifyProgress, chosen::AuditSelection, hashes,
    part::VerifyPart, scan::Scan,
};
use crate::{
    buffer::BufferPool,
    disk::ReadDisk,
    extents::{CHUNK_BYTES, ExtentSet},
    ledger::Ledger,
    limit::DiskShares,
    stop::StopSignal,
    transfer::LatencyBaseline,
    units::{Extent, Length, Offset},
};

/// The inputs of an audit.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "disks are trait objects")]
pub struct AuditJob {
    /// Advanced to the snapshot; before it is drained, when most settled blocks were reported as unchanged.
    pub ledger: Arc<Ledger>,
    /// The snapshot.
    pub source: Arc<dyn ReadDisk>,
    /// The most bytes to read, rounded up to whole blocks.
    pub budget: Length,
    /// Where the walk begins: [`AuditOutcome::next`] of the last one.
    pub from: Offset,
    /// Which audit of the disk it is: decides which blocks in holes are read.
    pub round: u64,
    pub pool: BufferPool,
    /// Bytes in one read.
    pub chunk: usize,
    /// The most reads at once.
    pub in_flight: usize,
    /// When reads take this many times as long as they used to, fewer run at once; `None` never does so.
    pub read_latency_factor: Option<f64>,
    /// The source's usual latencies; shared with the disk's passes.
    pub baseline: Arc<Mutex<LatencyBaseline>>,
    /// The limits of reads of the source.
    pub limits: DiskShares,
    pub stop: StopSignal,
}

/// The result of an audit.
#[derive(Debug)]
pub struct AuditOutcome {
    /// Bytes read and compared.
    pub checked: Length,
    /// Bytes skipped because source and manifest agree that they are zeroes.
    pub holes: Length,
    /// The first runs of blocks that changed without the source reporting it, at most
    /// [`super::MOST_MISMATCHES`].
    pub mismatched: Vec<Extent>,
    /// Bytes of all such blocks.
    pub mismatched_bytes: Length,
    /// Where the next audit begins: after a stop, with the first unread block; after a failure, past the
    /// failed one.
    pub next: Offset,
    /// Whether all chosen blocks were read; false after a stop, and after a failure.
    pub finished: bool,
    /// Why it ended early, if it failed. Unread blocks are not covered.
    pub failed: Option<VerifyError>,
}

/// Reads settled blocks from the snapshot and compares them with the manifest, as far as the budget goes. A
/// stop ends it at once.
pub async fn audit(job: AuditJob) -> AuditOutcome {
    let size = job.ledger.size();
    let mut chosen = AuditSelection::new(&job);
    let start = chosen.next();
    let walked = tokio::select! {
        biased;
        () = job.stop.stopped() => Ok(false),
        walked = chosen.walk(&job) => walked.map(|()| true),
    };
    let mut outcome = AuditOutcome {
        checked: Length(0),
        holes: chosen.holes(),
        mismatched: Vec::new(),
        mismatched_bytes: Length(0),
        next: if matches!(walked, Ok(false)) { start } else { chosen.next() },
        finished: matches!(walked, Ok(true)),
        failed: walked.err(),
    };
    // In the order of the walk, so that the position of an early end shows which blocks were read.
    let rounds = [Extent::between(start, Offset(size.0)), Extent::between(Offset(0), start)];
    for round in rounds.into_iter().flatten() {
        let read = read(&job, chosen.blocks(), round).await;
        outcome.checked += read.found.checked;
        outcome.mismatched_bytes += read.found.mismatched_bytes;
        outcome.mismatched.extend(read.found.mismatched);
        if !read.found.finished {
            (outcome.finished, outcome.next) = (false, read.next);
            outcome.failed = outcome.failed.or(read.failed);
            break;
        }
    }
    outcome.mismatched.sort_unstable();
    outcome.mismatched.truncate(MOST_MISMATCHES);
    outcome.next = Offset(outcome.next.0 % size.0.max(1));
    outcome
}

/// The result of reading the blocks of one round.
struct Read {
    found: VerifyOutcome,
    next: Offset,
    failed: Option<VerifyError>,
}

async fn read(job: &AuditJob, blocks: &ExtentSet, round: Extent) -> Read {
    let mut of_round = ExtentSet::of(blocks.size(), [round]);
    of_round.intersect(blocks);
    let verify = VerifyJob {
        ledger: Arc::clone(&job.ledger),
        part: VerifyPart { only: Some(Arc::new(of_round)), from: round.start() },
        pool: job.pool.clone(),
        chunk: job.chunk,
        in_flight: job.in_flight,
        read_latency_factor: job.read_latency_factor,
        baseline: Arc::clone(&job.baseline),
        trust_holes: false,
        round: job.round,
        progress: Arc::new(VerifyProgress::default()),
        // The source takes the target's place here.
        limits: DiskShares { readbacks: job.limits.reads.clone(), ..DiskShares::default() },
        stop: job.stop.clone(),
    };
    let mut scan = match Scan::of_source(&verify, Arc::clone(&job.source)) {
        Ok(scan) => scan,
        Err(error) => {
            return Read {
                found: VerifyOutcome::none(),
                next: round.start(),
                failed: Some(of_source(error)),
            };
        }
    };
    let scanned = tokio::select! {
        biased;
        () = job.stop.stopped() => Ok(false),
        scanned = scan_all(&mut scan, &verify, round) => scanned,
    };
    if scanned.is_err() {
        tokio::select! {
            biased;
            () = job.stop.stopped() => {}
            () = scan.settle() => {}
        }
    }
    let next = match &scanned {
        Ok(_) => Offset(verify.progress.checked_to.load(Relaxed)),
        Err(_) => scan.reached(),
    };
    let found = scan.outcome(String::new(), matches!(scanned, Ok(true)));
    Read { found, next, failed: scanned.err().map(of_source) }
}

async fn scan_all(scan: &mut Scan, verify: &VerifyJob, round: Extent) -> Result<bool, VerifyError> {
    let (store, disk) = (verify.ledger.store(), verify.ledger.disk());
    let whole = Extent::whole(verify.ledger.size()).into_iter().flat_map(|whole| whole.split(CHUNK_BYTES));
    for part in whole.filter(|part| part.intersect(&round).is_some()) {
        let mut runs = verify.part.runs(part).peekable();
        if runs.peek().is_none() {
            continue;
        }
        let hashes = Arc::new(hashes(&**store, disk, part).await?);
        for run in runs {
            if !scan.run(run, &hashes, part.blocks().start).await? {
                return Ok(false);
            }
        }
    }
    scan.finish().await
}

fn of_source(error: VerifyError) -> VerifyError {
    match error {
        VerifyError::Target(cause) => VerifyError::Source(cause),
        other => other,
    }
}
