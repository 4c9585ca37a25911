//! One pass: snapshot, advance, drain, release, over all disks of a migration at one moment.
//!
//! ```text
//! snapshot ─▶ changed? ─▶ advance (committed) ─▶ drain all at once ─▶ release snapshot ─▶ delete old marks
//! ```
//!
//! Rule: no byte is read before every ledger's advance is committed, and the source's old marks are not
//! deleted before that either. On every way out, the snapshot is released before the pass returns: no
//! production VM runs on a snapshot while nothing is copied. An incomplete pass is not repeated: the next
//! pass drains what is still pending.

mod live;
mod observers;
mod order;
mod snapshot_cost;
mod trust;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::{join_all, try_join_all};
use tokio::time::Instant;
use warmd_cbt::{
    ledger::Ledger,
    mark::{ChangeMark, Changed},
    stop::StopSignal,
    store::PassFigures,
    transfer::{LatencyBaseline, PassProgress},
};
use warmd_core::{
    clock, crash,
    model::{
        event_kind::EventKind,
        id::DiskKey,
        view::{DiskPassView, PassKind, PassView},
    },
    pass::{
        DiskAudit, LiveFigures, Observers, PassEvent, PassFailureCause, PassFault, PassLabels, PassObserver,
        PassOrder, PassResult,
    },
    sources::{Snapshot, SnapshotRequest, SourceErrorKind},
    targets::LastWriter,
};
use warmd_store::{DiskRow, NewDiskPass};
use warmd_transfer::drain::{DrainEnd, OpenDisk, drain};

use self::{
    snapshot_cost::CostMeter,
    trust::{distrust, open_target},
};
use super::{
    admission::Admission,
    audit::{self, Audited},
    context::{Context, spec},
    failure::WorkError,
    inspection, machine_changes,
    telemetry::MeasuredDisk,
};

/// The outcome of a pass that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassEnd {
    /// Every disk equals the snapshot.
    Drained,
    /// Stopped on request; what it had drained stays drained.
    Stopped,
}

impl PassEnd {
    /// An error, if the pass was stopped.
    pub fn drained(self) -> Result<(), WorkError> {
        match self {
            Self::Drained => Ok(()),
            Self::Stopped => Err(WorkError::passing("the pass was stopped before its end")),
        }
    }
}

/// A disk in a pass.
pub(super) struct PassDisk {
    pub(super) row: DiskRow,
    pub(super) ledger: Arc<Ledger>,
    pub(super) record: Option<i64>,
    progress: Arc<PassProgress>,
    baseline: Arc<Mutex<LatencyBaseline>>,
    /// Whether the pass learns the baseline: not without the latency backoff.
    is_learnt: bool,
}

impl PassDisk {
    fn measured(&self) -> Option<MeasuredDisk> {
        Some(MeasuredDisk {
            key: self.row.key.clone(),
            disk: self.row.id,
            record: self.record?,
            baseline: self.is_learnt.then(|| Arc::clone(&self.baseline)),
        })
    }
}

/// Work on the snapshot after it is drained and before it is released.
#[async_trait::async_trait]
pub trait OnDrained: Send + Sync {
    async fn run(&self, snapshot: &dyn Snapshot) -> Result<(), WorkError>;
}

/// Runs one admitted pass. `then` sees the snapshot while it is open and drained.
pub async fn perform_pass(
    context: &Context,
    _admitted: &Admission,
    kind: PassKind,
    stop: &StopSignal,
    then: Option<&dyn OnDrained>,
) -> Result<PassEnd, WorkError> {
    // Counts as failed in every case, unless its end is observed.
    let account = account(context, kind);
    let rows = context.store.disks(context.id).await?;
    if rows.is_empty() && !context.machine.disks.is_empty() {
        // Without disks everything would count as copied.
        let why = "the state knows of no disk on the target: cancel, and apply the plan again";
        return Err(WorkError::operator(why));
    }
    // A cutover has checked the machine just before: the target VM is created from that description.
    if kind != PassKind::Final && !context.is_cutting_over() {
        machine_changes::look(context).await;
    }
    let ledgers = try_join_all(rows.iter().map(|row| context.ledger(row.id))).await?;
    distrust(context, &rows, &ledgers).await?;
    let request = SnapshotRequest {
        owner: context.id,
        vm: context.vm.clone(),
        disks: rows.iter().zip(&ledgers).map(|(row, ledger)| (row.key.clone(), ledger.anchor())).collect(),
        is_final: kind == PassKind::Final,
    };
    let snapshot = context.planned_source().snapshot(&request).await?;
    let cost = CostMeter::of(snapshot.as_ref());
    crash::point("snapshot.taken");
    let result = copy(context, kind, stop, then, snapshot.as_ref(), (rows, ledgers), account).await;
    let removing = Instant::now();
    let released = snapshot.release().await;
    crash::point("snapshot.released");
    cost.keep(context, released.is_ok().then(|| removing.elapsed())).await;
    if let Err(error) = released {
        if kind == PassKind::Final && error.kind == SourceErrorKind::Refused {
            // The VM was started while its final state was read: the data is not final.
            context.source.end_snapshot(&context.vm, context.id).await.ok();
            return Err(error.into());
        }
        // What was drained counts nevertheless.
        context.log_event(EventKind::Warning, format!("snapshot not released, trying again: {error}")).await;
        let again = context.source.end_snapshot(&context.vm, context.id).await;
        if result.is_ok() {
            again?;
        }
    }
    let (end, marks) = result?;
    // Clean-up: leftovers are retried with the next snapshot, and the pass is done nevertheless.
    match context.source.delete_marks(&context.vm, context.id, &marks).await {
        Ok(leftovers) => {
            for leftover in leftovers {
                tracing::warn!(migration = %context.id, %leftover, "trying again after the next pass");
            }
        }
        Err(error) => {
            tracing::warn!(migration = %context.id, %error, "older marks not deleted, trying again after the next pass");
        }
    }
    crash::point("marks.released");
    if end == PassEnd::Drained && kind != PassKind::Final && !context.is_cutting_over() {
        inspection::look(context, stop).await;
    }
    Ok(end)
}

type Marks = Vec<ChangeMark>;

async fn copy(
    context: &Context,
    kind: PassKind,
    stop: &StopSignal,
    then: Option<&dyn OnDrained>,
    snapshot: &dyn Snapshot,
    (rows, ledgers): (Vec<DiskRow>, Vec<Arc<Ledger>>),
    account: Box<dyn PassObserver>,
) -> Result<(PassEnd, Marks), WorkError> {
    let started = clock::now();
    let advanced = advance_all(context, snapshot, rows, ledgers).await?;
    crash::point("advance.committed");
    let (pass, begun, disks) = record(context, kind, started, advanced).await?;
    let number = begun.number;
    let observers = observers::of(context, account, pass, &disks);
    observers.observe(&PassEvent::Began(begun.clone())).await?;
    let faults = rows_at_fault(disks.iter().map(|disk| &disk.row));
    // From here on the pass is recorded: on every failure, its end is recorded too.
    let noted = context.target.note_writer(context.id, Some(LastWriter::Pass { number, faults })).await;
    let meters = disks.iter().map(|disk| (disk.row.key.clone(), Arc::clone(&disk.progress)));
    let meters: Arc<dyn LiveFigures> = Arc::new(meters.collect::<Vec<_>>());
    observers.follow(&meters);
    // Where a comparison follows while the VM is down, it finds what an audit would.
    let is_audited = noted.is_ok() && !(kind == PassKind::Final && then.is_some());
    let order = order::of(context, &begun, &disks, is_audited).await;
    let result = match noted {
        Err(error) => Err(WorkError::from(error)),
        Ok(()) if !is_audited => Ok(0),
        Ok(()) => audit_all(context, &order, snapshot, &disks, stop, &observers).await,
    };
    let result = match result {
        // Before any affected block is copied: a state without the audit's result does not know of the fault.
        Ok(found @ 1..) => {
            let writer = LastWriter::Pass { number, faults: faults + found };
            context.target.note_writer(context.id, Some(writer)).await.map_err(WorkError::from)
        }
        result => result.map(|_| ()),
    };
    let mut failed = PassFailureCause::Other;
    let result = match result {
        Ok(()) => drain_all(context, &order, snapshot, &disks, stop, &observers, &mut failed).await,
        Err(error) => Err(error),
    };
    let result = match observers.observe(&PassEvent::Measured).await {
        Ok(()) => result,
        Err(error) => Err(error.into()),
    };
    let result = match (result, then) {
        (Ok(PassEnd::Drained), Some(then)) => then.run(snapshot).await.map(|()| PassEnd::Drained),
        (result, _) => result,
    };
    // The source's reason, not the readers' error that the snapshot does not exist.
    let result = match (result, snapshot.ended_early()) {
        (Err(_), Some(why)) => {
            failed = PassFailureCause::Other;
            Err(why.into())
        }
        (result, _) => result,
    };
    let outcome = outcome(&result, failed);
    observers.observe(&PassEvent::Ended { at: clock::now(), outcome }).await?;
    let marks = disks.iter().filter_map(|disk| disk.ledger.anchor()).collect();
    Ok((result?, marks))
}

/// Advances every ledger to the snapshot, each in its own transaction.
async fn advance_all(
    context: &Context,
    snapshot: &dyn Snapshot,
    rows: Vec<DiskRow>,
    ledgers: Vec<Arc<Ledger>>,
) -> Result<Vec<(DiskRow, Arc<Ledger>, DiskPassView)>, WorkError> {
    let mut advanced = Vec::with_capacity(rows.len());
    for (row, ledger) in rows.into_iter().zip(ledgers) {
        let there = snapshot.disks().iter().find(|disk| disk.key == row.key).ok_or_else(|| {
            WorkError::operator(format!(
                "disk {} is not on the source VM any more: cancel, and apply the plan again",
                row.key
            ))
        })?;
        if there.size != row.size {
            return Err(WorkError::operator(format!(
                "disk {} has {} bytes on the source now and {} on the target: cancel, and apply the plan again",
                row.key, there.size, row.size
            )));
        }
        let first = ledger.anchor().is_none();
        let changed = match &row.tracking_fault {
            Some(fault) => audit::unknown(fault),
            None => snapshot.changed(&row.key).await?,
        };
        ledger.advance(there.mark.clone(), &changed).await?;
        let (changed, unknown) = match changed {
            Changed::Known(blocks) => (blocks.bytes().0, None),
            Changed::Unknown(why) => (row.size.0, Some(why)),
        };
        if let Some(why) = &unknown
            && !first
        {
            let text =
                format!("disk {}: the source cannot say what changed ({why}); comparing all of it", row.key);
            context.log_event(EventKind::Warning, text).await;
        }
        let view = DiskPassView {
            key: row.key.clone(),
            pending: ledger.pending_bytes().0,
            changed,
            extents: ledger.pending_extents(),
            unknown: unknown.filter(|_| !first),
            mark: there.mark.0.clone(),
            figures: PassFigures::default(),
            telemetry: None,
            audit: None,
        };
        advanced.push((row, ledger, view));
    }
    Ok(advanced)
}

fn outcome(result: &Result<PassEnd, WorkError>, cause: PassFailureCause) -> PassResult {
    match result {
        Ok(PassEnd::Drained) => PassResult::Drained,
        Ok(PassEnd::Stopped) => PassResult::Stopped,
        Err(error) => PassResult::Failed(PassFault { cause, text: error.to_string() }),
    }
}

/// Records the pass in the state: its number there, and its view.
async fn record(
    context: &Context,
    kind: PassKind,
    started: chrono::DateTime<chrono::Utc>,
    advanced: Vec<(DiskRow, Arc<Ledger>, DiskPassView)>,
) -> Result<(i64, PassView, Vec<PassDisk>), WorkError> {
    let news = advanced
        .iter()
        .map(|(row, _, view)| NewDiskPass {
            disk: row.id,
            pending: view.pending,
            changed: view.changed,
            extents: view.extents,
            unknown: view.unknown.clone(),
            mark: ChangeMark(view.mark.clone()),
        })
        .collect();
    let begun = context.store.begin_pass(context.id, kind, started, news).await?;
    let mut disks = Vec::with_capacity(advanced.len());
    let mut views = Vec::with_capacity(advanced.len());
    for (row, ledger, view) in advanced {
        disks.push(PassDisk {
            record: begun.disks.iter().find(|(disk, _)| *disk == row.id).map(|(_, record)| *record),
            baseline: context.baseline(row.id).await,
            is_learnt: kind != PassKind::Final,
            row,
            ledger,
            progress: Arc::default(),
        });
        views.push(view);
    }
    let number = begun.view.number;
    let view =
        PassView { number, kind, started, ended: None, error: None, cpu: None, snapshot: None, disks: views };
    Ok((begun.id, view, disks))
}

/// Counts the pass, as failed if it is dropped before the pass's end.
fn account(context: &Context, kind: PassKind) -> Box<dyn PassObserver> {
    let (plan, vm) = (context.plan().name.clone(), context.machine.name.clone());
    let name = PassLabels { migration: context.id, plan, vm, kind };
    context.engine.metrics.begin_pass(name, clock::now())
}

/// The number of disks with a known tracking fault.
pub(super) fn rows_at_fault<'a>(rows: impl IntoIterator<Item = &'a DiskRow>) -> u32 {
    rows.into_iter().filter(|row| row.tracking_fault.is_some()).map(|_| 1).sum()
}

/// Audits all disks at the same time, before anything is copied: a fault counts for this pass already.
/// Returns the number of disks with a new tracking fault.
async fn audit_all(
    context: &Context,
    order: &PassOrder,
    snapshot: &dyn Snapshot,
    disks: &[PassDisk],
    stop: &StopSignal,
    observers: &Observers<'_>,
) -> Result<u32, WorkError> {
    let audits = order.disks.iter().zip(disks).map(|(ordered, disk)| async {
        let (Some(disk_pass), Some(audit)) = (disk.record, &ordered.audit) else { return Ok(None) };
        let audited = Audited { row: &disk.row, ledger: &disk.ledger, disk_pass };
        audit::run_audit(context, (audit, &order.settings), snapshot, &audited, stop).await.map(Some)
    });
    let (mut audited, mut failed) = (Vec::with_capacity(disks.len()), None);
    for (disk, found) in disks.iter().zip(join_all(audits).await) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                failed = failed.or(Some(error));
                continue;
            }
        };
        let (audit, next) = found.map_or((None, disk.row.audit_cursor), |(view, next)| (Some(view), next));
        let (key, pending) = (disk.row.key.clone(), disk.ledger.pending_bytes().0);
        audited.push(DiskAudit { key, audit, pending, next });
    }
    let is_fault =
        |audited: &&DiskAudit| audited.audit.as_ref().is_some_and(|view| view.mismatched_bytes > 0);
    let found = audited.iter().filter(is_fault).map(|_| 1).sum();
    // Also if an audit failed: the others' results are shown.
    observers.observe(&PassEvent::Audited(audited)).await?;
    failed.map_or(Ok(found), Err)
}

/// Opens all disks on both sides, and drains them. If a disk fails, `failed` says which part of it.
async fn drain_all(
    context: &Context,
    order: &PassOrder,
    snapshot: &dyn Snapshot,
    disks: &[PassDisk],
    stop: &StopSignal,
    observers: &Observers<'_>,
    failed: &mut PassFailureCause,
) -> Result<PassEnd, WorkError> {
    observers.observe(&PassEvent::Draining).await?;
    let keys: Vec<DiskKey> = disks.iter().map(|disk| disk.row.key.clone()).collect();
    let specs = disks.iter().map(|disk| spec(&disk.row)).collect::<Vec<_>>();
    let sources = try_join_all(keys.iter().map(|key| snapshot.open(key))).await?;
    let targets =
        try_join_all(disks.iter().zip(&specs).map(|(disk, spec)| open_target(context, disk, spec))).await?;
    let opened = disks.iter().zip(sources).zip(targets).map(|((disk, source), target)| OpenDisk {
        key: disk.row.key.clone(),
        record: disk.record,
        ledger: Arc::clone(&disk.ledger),
        source,
        target,
        limits: context.shares(&disk.row.key),
        baseline: Arc::clone(&disk.baseline),
        progress: Arc::clone(&disk.progress),
    });
    let pool = context.pool(order.pass.kind == PassKind::Final);
    match drain(order, opened.collect(), &pool, observers, stop).await {
        Ok(DrainEnd::Drained) => Ok(PassEnd::Drained),
        Ok(DrainEnd::Stopped) => Ok(PassEnd::Stopped),
        Err(error) => {
            *failed = PassFault::from(&error).cause;
            Err(error.into())
        }
    }
}

/// Reports for how many milliseconds reads of a disk were delayed, if they were.
pub(super) async fn tell_strain(context: &Context, disk: &DiskKey, held_back: u64) {
    if held_back == 0 {
        return;
    }
    let text = format!(
        "disk {disk}: reads took much longer than they used to: to spare the source, they were held back for {}",
        humantime::format_duration(Duration::from_millis(held_back))
    );
    context.log_event(EventKind::Warning, text).await;
}
