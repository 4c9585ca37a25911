//! The audit of one disk's change tracking: are the blocks that the source reports as unchanged really
//! unchanged?
//!
//! Rule: it has a deadline, also where the source or the state hangs; what it read until then counts.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use warmd_cbt::{
    buffer::BufferPool,
    disk::ReadDisk,
    ledger::Ledger,
    limit::DiskShares,
    stop::StopSignal,
    transfer::{LatencyBaseline, TransferSettings},
    units::Offset,
    verify::{AuditJob, AuditOutcome, audit},
};
use warmd_core::{format, model::view::AuditView, pass::AuditOrder};

/// Reads at once: few beside the source's other work.
const IN_FLIGHT: usize = 4;
/// How long its end is awaited after the deadline.
const GRACE: Duration = Duration::from_secs(3);
/// Mismatched extents that are listed.
const LISTED: usize = 100;

/// The disk to audit, opened: its ledger was advanced to the snapshot, and is not drained yet.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "disks are trait objects")]
pub struct AuditDisk {
    pub ledger: Arc<Ledger>,
    /// The snapshot.
    pub source: Arc<dyn ReadDisk>,
    pub limits: DiskShares,
    pub baseline: Arc<Mutex<LatencyBaseline>>,
}

/// The end of an audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEnd {
    pub view: AuditView,
    /// Where the next one begins.
    pub next: Offset,
    /// Why the disk could not be read, if it could not.
    pub failed: Option<String>,
}

/// Audits the disk as ordered.
pub async fn audit_disk(
    order: &AuditOrder,
    disk: AuditDisk,
    settings: &TransferSettings,
    pool: BufferPool,
    stop: &StopSignal,
) -> AuditEnd {
    let halt = StopSignal::new();
    let job = AuditJob {
        ledger: disk.ledger,
        source: disk.source,
        budget: order.budget,
        from: order.from,
        round: order.round,
        pool,
        chunk: settings.chunk,
        in_flight: settings.reads_in_flight.min(IN_FLIGHT),
        read_latency_factor: settings.read_latency_factor,
        baseline: disk.baseline,
        limits: disk.limits,
        stop: halt.clone(),
    };
    let Some(found) = within(order.deadline, audit(job), &halt, stop).await else {
        let error = Some("the state does not answer".to_owned());
        return AuditEnd {
            view: AuditView { error, ..AuditView::default() },
            next: order.from,
            failed: None,
        };
    };
    ended(&found, order.deadline, stop)
}

/// Ends the audit at its deadline or when the pass must stop.
async fn within(
    deadline: Duration,
    audit: impl Future<Output = AuditOutcome>,
    halt: &StopSignal,
    stop: &StopSignal,
) -> Option<AuditOutcome> {
    tokio::pin!(audit);
    tokio::select! {
        biased;
        found = &mut audit => return Some(found),
        () = stop.stopped() => {}
        () = tokio::time::sleep(deadline) => {}
    }
    halt.stop();
    tokio::time::timeout(GRACE, audit).await.ok()
}

fn ended(found: &AuditOutcome, deadline: Duration, stop: &StopSignal) -> AuditEnd {
    let failed = found.failed.as_ref().map(ToString::to_string);
    let error = match (&failed, found.finished, stop.is_stopped()) {
        (Some(failed), ..) => Some(failed.clone()),
        (None, true, _) => None,
        (None, false, true) => Some("the pass was stopped".to_owned()),
        (None, false, false) => {
            Some(format!("more than {} was not granted", format::span(deadline.as_secs_f64())))
        }
    };
    let listed = found.mismatched.iter().take(LISTED);
    let view = AuditView {
        checked: found.checked.0,
        holes: found.holes.0,
        mismatched_bytes: found.mismatched_bytes.0,
        mismatches: listed.map(|extent| (extent.start().0, extent.len().0)).collect(),
        error,
    };
    AuditEnd { view, next: found.next, failed }
}
