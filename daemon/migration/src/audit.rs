//! The audit of change tracking in a pass: is what the source calls unchanged unchanged?
//!
//! Rule: a source that was found not to tell the truth about a disk is never asked about that disk again: from then on,
//! durably, every pass compares all of it. The pass that finds it out does so too, before it copies anything.

use std::{sync::Arc, time::Duration};

use warmd_cbt::{
    extents::coalesce,
    ledger::Ledger,
    mark::Changed,
    mutant::mutant,
    stop::StopSignal,
    units::{Extent, Length, Offset},
    verify::{AuditJob, AuditOutcome, audit},
};
use warmd_core::{
    clock, crash, format,
    model::{
        state::State,
        verify::Amount,
        view::{AuditView, PassKind},
    },
    sources::Snapshot,
    targets::LastWriter,
};
use warmd_metrics::AuditName;
use warmd_store::DiskRow;

use super::{context::Context, failure::WorkError, pass::rows_at_fault};

/// Reads at once: a little beside what else the source does.
const IN_FLIGHT: usize = 4;
/// How long an audit may take: in a delta, and in a cutover, where it uses up the phases' time and the VM may be down.
const DEADLINE: Duration = Duration::from_mins(5);
const CUTOVER_DEADLINE: Duration = Duration::from_secs(10);
/// How long its end is waited for after that.
const GRACE: Duration = Duration::from_secs(3);
/// Mismatched extents that are listed.
const LISTED: usize = 100;

/// How much of a disk is audited in each delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditAmount {
    pub amount: Amount,
    /// Bytes, whatever `amount` gives.
    pub at_most: u64,
}

impl Default for AuditAmount {
    fn default() -> Self {
        Self { amount: Amount::Share(10_000), at_most: 1 << 30 }
    }
}

impl AuditAmount {
    /// Bytes of a disk of `size` bytes.
    fn of(self, size: Length) -> Length {
        Length(self.amount.of(size.0).min(self.at_most))
    }
}

/// What of a disk is audited, in which pass.
pub(super) struct Audited<'a> {
    pub(super) row: &'a DiskRow,
    pub(super) ledger: &'a Arc<Ledger>,
    /// As the store numbers it.
    pub(super) disk_pass: i64,
}

/// Audits one disk of an open snapshot to which its ledger was advanced, before it is drained. `None` if there is
/// nothing to audit, or it is not wanted.
pub(super) async fn run(
    context: &Context,
    kind: PassKind,
    snapshot: &dyn Snapshot,
    disk: &Audited<'_>,
    stop: &StopSignal,
) -> Result<Option<AuditView>, WorkError> {
    let (row, ledger) = (disk.row, disk.ledger);
    if mutant("audit-skipped")
        || kind == PassKind::Full
        || row.tracking_fault.is_some()
        || ledger.settled().is_empty()
    {
        return Ok(None);
    }
    let plan = context.plan();
    let own = context.engine.audit;
    let budget = AuditAmount { amount: plan.verify.audit.unwrap_or(own.amount), ..own };
    if budget.amount.is_none() {
        let text = "change tracking is not audited: a change that the source does not report will not be found; set \
                    `audit` in [verify] of the plan or in [engine] of the configuration";
        context.warn(text.to_owned()).await;
        return Ok(None);
    }
    let halt = StopSignal::new();
    let job = AuditJob {
        ledger: Arc::clone(ledger),
        source: snapshot.open(&row.key).await?,
        budget: budget.of(row.size),
        from: row.audit_cursor,
        round: disk.disk_pass.unsigned_abs(),
        pool: context.pool(false),
        chunk: context.engine.settings.chunk,
        in_flight: context.engine.settings.reads_in_flight.min(IN_FLIGHT),
        // In the final delta the source is off: sparing it only makes the downtime longer.
        read_latency_factor: context.engine.settings.read_latency_factor.filter(|_| kind != PassKind::Final),
        baseline: context.baseline(row.id).await,
        limits: context.shares(&row.key),
        stop: halt.clone(),
    };
    let cuts_over = matches!(context.live.view().state, State::CuttingOver { .. });
    let deadline = if cuts_over { CUTOVER_DEADLINE } else { DEADLINE };
    let (view, next) = if let Some(found) = within(deadline, audit(job), &halt, stop).await {
        if let Some(error) = &found.failed {
            // The pass reads the same disk, and knows better what its failures mean.
            let text = format!("disk {}: change tracking not audited to the end: {error}", row.key);
            context.log_event("warning", text).await;
        }
        viewed(&found, deadline, stop)
    } else {
        let error = Some("the state does not answer".to_owned());
        (AuditView { error, ..AuditView::default() }, row.audit_cursor)
    };
    let fault = (view.mismatched_bytes > 0).then(|| {
        let what = format!("{} bytes that the source called unchanged had changed", view.mismatched_bytes);
        describe(&what, &view.mismatches)
    });
    context.store.put_audit(row.id, disk.disk_pass, &view, next, fault.clone()).await?;
    crash::point("audit.committed");
    count(context, row, view.checked, view.mismatched_bytes);
    if let Some(fault) = fault {
        tell(context, row, &fault).await;
        compare_all(ledger, &fault).await?;
    }
    Ok(Some(view))
}

/// Ends the audit when its time is over or the pass is to stop; what it had read until then counts.
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

fn viewed(found: &AuditOutcome, deadline: Duration, stop: &StopSignal) -> (AuditView, Offset) {
    let error = match (&found.failed, found.finished, stop.is_stopped()) {
        (Some(failed), ..) => Some(failed.to_string()),
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
    (view, found.next)
}

/// When what was found where, the first places of it.
fn describe(what: &str, places: &[(u64, u64)]) -> String {
    let first: Vec<_> = places.iter().take(8).map(|(at, len)| format!("{at}+{len}")).collect();
    let more = if places.len() > first.len() { ", …" } else { "" };
    format!("on {} UTC, {what}, at {}{more}", format::moment(clock::now()), first.join(", "))
}

/// Takes note that a comparison found blocks of an open snapshot, drained to the target, that hold something else than
/// change tracking had warmd copy.
pub(super) async fn found_out(
    context: &Context,
    row: &DiskRow,
    unreported: &[Extent],
) -> Result<(), WorkError> {
    let mut unreported = unreported.to_vec();
    // Pieces of a comparison end in any order.
    unreported.sort_unstable();
    let bytes: u64 = unreported.iter().map(|extent| extent.len().0).sum();
    let places: Vec<_> = coalesce(unreported, 0).map(|extent| (extent.start().0, extent.len().0)).collect();
    let fault = describe(
        &format!("a comparison found {bytes} bytes that had changed without the source having said so"),
        &places,
    );
    note_beside(context, row).await?;
    if context.store.put_tracking_fault(row.id, fault.clone()).await? {
        tell(context, row, &fault).await;
    }
    Ok(())
}

/// Notes beside the disks that one more is at fault, before the state knows: one that is put back from a copy from before
/// that believes the source, and is not to be believed.
async fn note_beside(context: &Context, row: &DiskRow) -> Result<(), WorkError> {
    // Disks are compared side by side, and each counts from what is noted.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let rows = context.store.disks(context.id).await?;
    let is_known = rows.iter().any(|each| each.id == row.id && each.tracking_fault.is_some());
    if is_known || mutant("comparison-not-noted") {
        return Ok(());
    }
    let Some(LastWriter::Pass { number, faults }) = context.target.noted_writer(context.id).await? else {
        // Of what a conversion or a target VM wrote nothing is believed anyway.
        return Ok(());
    };
    let writer = LastWriter::Pass { number, faults: faults.max(rows_at_fault(&rows)) + 1 };
    Ok(context.target.note_writer(context.id, Some(writer)).await?)
}

/// Counts bytes that were looked at, and those of which the source had not told.
pub(super) fn count(context: &Context, row: &DiskRow, checked: u64, unreported: u64) {
    let plan = context.plan().name.clone();
    let name = AuditName { plan, vm: context.machine.name.clone(), disk: row.key.clone() };
    context.engine.metrics.audited(name, checked, unreported);
}

/// Says it wherever somebody may look.
async fn tell(context: &Context, row: &DiskRow, fault: &str) {
    context.live.update(|live| {
        if let Some(view) = live.disks.iter_mut().find(|view| view.key == row.key) {
            view.tracking_fault = Some(fault.to_owned());
        }
    });
    let text = format!(
        "CHANGE TRACKING OF DISK {} CANNOT BE TRUSTED: {fault}; from now on every pass compares all of the disk, and a \
         cutover needs a full compare; look for what wrote past the hypervisor, or for a fault of it",
        row.key
    );
    tracing::error!(migration = %context.id, vm = %context.machine.name, "{text}");
    context.log_event("tracking-fault", text).await;
}

/// Makes the pass one that compares all of the disk: the snapshot stays, and with it the mark.
async fn compare_all(ledger: &Ledger, fault: &str) -> Result<(), WorkError> {
    if let Some(mark) = ledger.anchor() {
        ledger.advance(mark, &unknown(fault)).await?;
    }
    Ok(())
}

/// What a source that cannot be trusted says.
pub(super) fn unknown(fault: &str) -> Changed {
    Changed::Unknown(format!("its change tracking cannot be trusted: {fault}"))
}
