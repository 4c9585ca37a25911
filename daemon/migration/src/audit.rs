//! The audit of change tracking in a pass: are the blocks that the source reports as unchanged really
//! unchanged?
//!
//! Rule: after a tracking fault the source's reports about that disk are never used again: from then on,
//! durably, every pass compares the whole disk. So does the pass that finds the fault, before it copies
//! anything.

use std::{sync::Arc, time::Duration};

use warmd_cbt::{
    extents::coalesce,
    ledger::Ledger,
    mark::Changed,
    stop::StopSignal,
    transfer::TransferSettings,
    units::{Extent, Length, Offset},
};
use warmd_core::{
    clock, crash, format,
    model::{
        event_kind::EventKind,
        state::State,
        verify::Amount,
        view::{AuditView, PassKind},
    },
    pass::AuditOrder,
    sources::Snapshot,
    targets::LastWriter,
};
use warmd_store::DiskRow;
use warmd_transfer::audit::{AuditDisk, AuditEnd, audit_disk};

use super::{
    context::Context,
    failure::WorkError,
    pass::{PassDisk, rows_at_fault},
};

/// How long an audit may take: in a delta, and in a cutover, where the phase's time passes and the VM may be
/// down.
const DEADLINE: Duration = Duration::from_mins(5);
const CUTOVER_DEADLINE: Duration = Duration::from_secs(10);

/// The amount of a disk that each delta audits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditAmount {
    pub amount: Amount,
    /// Upper bound in bytes, for any `amount`.
    pub at_most: u64,
}

impl Default for AuditAmount {
    fn default() -> Self {
        Self { amount: Amount::Share(10_000), at_most: 1 << 30 }
    }
}

impl AuditAmount {
    /// The bytes to audit of a disk of `size` bytes.
    fn of(self, size: Length) -> Length {
        Length(self.amount.of(size.0).min(self.at_most))
    }
}

/// The audited disk and pass.
pub(super) struct Audited<'a> {
    pub(super) row: &'a DiskRow,
    pub(super) ledger: &'a Arc<Ledger>,
    /// The store's number.
    pub(super) disk_pass: i64,
}

/// The audit of a disk in a pass; `None` if there is nothing to audit, or no audit is wanted.
pub(super) async fn order(context: &Context, kind: PassKind, disk: &PassDisk) -> Option<AuditOrder> {
    let row = &disk.row;
    if kind == PassKind::Full || row.tracking_fault.is_some() || disk.ledger.settled().is_empty() {
        return None;
    }
    let round = disk.record?.unsigned_abs();
    let plan = context.plan();
    let own = context.engine.audit;
    let budget = AuditAmount { amount: plan.verify.audit.unwrap_or(own.amount), ..own };
    if budget.amount.is_none() {
        let text = "change tracking is not audited: a change that the source does not report will not be found; set \
                    `audit` in [verify] of the plan or in [engine] of the configuration";
        context.warn(text.to_owned()).await;
        return None;
    }
    let cuts_over = matches!(context.state(), State::CuttingOver { .. });
    let deadline = if cuts_over { CUTOVER_DEADLINE } else { DEADLINE };
    Some(AuditOrder { budget: budget.of(row.size), from: row.audit_cursor, round, deadline })
}

/// Audits one disk of an open snapshot, after its ledger was advanced to it and before it is drained: what it
/// found, and where the next audit begins.
pub(super) async fn run_audit(
    context: &Context,
    (order, settings): (&AuditOrder, &TransferSettings),
    snapshot: &dyn Snapshot,
    disk: &Audited<'_>,
    stop: &StopSignal,
) -> Result<(AuditView, Offset), WorkError> {
    let (row, ledger) = (disk.row, disk.ledger);
    let open = AuditDisk {
        ledger: Arc::clone(ledger),
        source: snapshot.open(&row.key).await?,
        limits: context.shares(&row.key),
        baseline: context.baseline(row.id).await,
    };
    let AuditEnd { view, next, failed } = audit_disk(order, open, settings, context.pool(false), stop).await;
    if let Some(error) = failed {
        // The pass reads the same disk and classifies its failures better.
        let text = format!("disk {}: change tracking not audited to the end: {error}", row.key);
        context.log_event(EventKind::Warning, text).await;
    }
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
    Ok((view, next))
}

/// The finding with its first positions.
fn describe(what: &str, places: &[(u64, u64)]) -> String {
    let first: Vec<_> = places.iter().take(8).map(|(at, len)| format!("{at}+{len}")).collect();
    let more = if places.len() > first.len() { ", …" } else { "" };
    format!("on {} UTC, {what}, at {}{more}", format::moment(clock::now()), first.join(", "))
}

/// Records that a comparison found blocks of an open, drained snapshot that differ from what warmd copied by
/// change tracking.
pub(super) async fn found_out(
    context: &Context,
    row: &DiskRow,
    unreported: &[Extent],
) -> Result<(), WorkError> {
    let mut unreported = unreported.to_vec();
    // Pieces of a comparison finish in any order.
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

/// Notes one more tracking fault beside the disks, before the state records it: a state restored from an
/// earlier copy trusts the source, which would be wrong.
async fn note_beside(context: &Context, row: &DiskRow) -> Result<(), WorkError> {
    // Disks are compared in parallel, and each update counts from the noted number.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let rows = context.store.disks(context.id).await?;
    let is_known = rows.iter().any(|each| each.id == row.id && each.tracking_fault.is_some());
    if is_known {
        return Ok(());
    }
    let Some(LastWriter::Pass { number, faults }) = context.target.noted_writer(context.id).await? else {
        // What a conversion or a target VM wrote is not trusted anyway.
        return Ok(());
    };
    let writer = LastWriter::Pass { number, faults: faults.max(rows_at_fault(&rows)) + 1 };
    Ok(context.target.note_writer(context.id, Some(writer)).await?)
}

/// Counts the bytes checked, and those that the source did not report.
pub(super) fn count(context: &Context, row: &DiskRow, checked: u64, unreported: u64) {
    let (plan, vm) = (context.plan(), &context.machine.name);
    context.engine.metrics.audited(&plan.name, vm, &row.key, checked, unreported);
}

/// Reports the fault in the journal, the log and the view.
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
    context.log_event(EventKind::TrackingFault, text).await;
}

/// Makes the pass compare the whole disk: the snapshot stays, and with it the mark.
async fn compare_all(ledger: &Ledger, fault: &str) -> Result<(), WorkError> {
    if let Some(mark) = ledger.anchor() {
        ledger.advance(mark, &unknown(fault)).await?;
    }
    Ok(())
}

/// The changes reported by a source that is not trusted.
pub(super) fn unknown(fault: &str) -> Changed {
    Changed::Unknown(format!("its change tracking cannot be trusted: {fault}"))
}
