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

mod snapshot_cost;
mod trust;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::Utc;
use futures::future::{join_all, try_join_all};
use tokio::time::Instant;
use warmd_cbt::{
    ledger::Ledger,
    mark::{ChangeMark, Changed},
    mutant::mutant,
    stop::StopSignal,
    store::PassFigures,
    transfer::{LatencyBaseline, PassJob, PassProgress, run_pass},
};
use warmd_core::{
    clock, crash,
    model::{
        id::DiskKey,
        view::{DiskPassView, PassKind, PassView},
    },
    sources::{Snapshot, SnapshotRequest, SourceErrorKind},
    targets::LastWriter,
};
use warmd_metrics::{PassAccount, PassName, PassOutcome};
use warmd_store::{DiskRow, NewDiskPass};

use self::{
    snapshot_cost::CostMeter,
    trust::{distrust, open},
};
use super::{
    admission::Admission,
    audit::{self, Audited},
    context::{Context, spec},
    failure::WorkError,
    machine_changes,
    status_publisher::{Followed, Follower},
    telemetry::{MeasuredDisk, PassTelemetry, figures},
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
struct PassDisk {
    row: DiskRow,
    ledger: Arc<Ledger>,
    view: DiskPassView,
    record: Option<i64>,
    progress: Arc<PassProgress>,
    baseline: Arc<Mutex<LatencyBaseline>>,
}

/// Work on the snapshot after it is drained and before it is released.
#[async_trait::async_trait]
pub trait OnDrained: Send + Sync {
    async fn run(&self, snapshot: &dyn Snapshot) -> Result<(), WorkError>;
}

/// Runs one admitted pass. `then` sees the snapshot while it is open and drained.
pub async fn run(
    context: &Context,
    _admitted: &Admission,
    kind: PassKind,
    stop: &StopSignal,
    then: Option<&dyn OnDrained>,
) -> Result<PassEnd, WorkError> {
    // Counts as failed in every case, unless its end is recorded.
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
    if mutant("release-before-commit") {
        let new: Vec<_> = snapshot.disks().iter().map(|disk| disk.mark.clone()).collect();
        context.source.delete_marks(&context.vm, context.id, &new).await?;
    }
    let result = copy(context, kind, stop, then, snapshot.as_ref(), (rows, ledgers), account).await;
    let removing = Instant::now();
    let released = if mutant("snapshot-kept") { Ok(()) } else { snapshot.release().await };
    crash::point("snapshot.released");
    cost.keep(context, released.is_ok().then(|| removing.elapsed())).await;
    if let Err(error) = released {
        if kind == PassKind::Final && error.kind == SourceErrorKind::Refused {
            // The VM was started while its final state was read: the data is not final.
            context.source.end_snapshot(&context.vm, context.id).await.ok();
            return Err(error.into());
        }
        // What was drained counts nevertheless.
        context.log_event("warning", format!("snapshot not released, trying again: {error}")).await;
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
    account: PassAccount,
) -> Result<(PassEnd, Marks), WorkError> {
    let started = clock::now();
    let advanced = advance_all(context, snapshot, rows, ledgers).await?;
    crash::point("advance.committed");
    let (number, pass, mut disks) = record(context, kind, started, advanced).await?;
    let faults = rows_at_fault(disks.iter().map(|disk| &disk.row));
    // From here on the pass is recorded: on every failure, its end is recorded too.
    let noted = context.target.note_writer(context.id, Some(LastWriter::Pass { number, faults })).await;
    account.watch(disks.iter().map(|disk| (disk.row.key.clone(), Arc::clone(&disk.progress))));
    // Where a comparison follows while the VM is down, it finds what an audit would.
    let result = match (noted, then) {
        (Err(error), _) => Err(WorkError::from(error)),
        (Ok(()), Some(_)) if kind == PassKind::Final => Ok(0),
        (Ok(()), _) => audit_all(context, kind, snapshot, &mut disks, stop).await,
    };
    let result = match result {
        // Before any affected block is copied: a state without the audit's result does not know of the fault.
        Ok(found @ 1..) => {
            let writer = LastWriter::Pass { number, faults: faults + found };
            context.target.note_writer(context.id, Some(writer)).await.map_err(WorkError::from)
        }
        result => result.map(|_| ()),
    };
    let measured = disks.iter().filter_map(|disk| measured(disk, kind)).collect();
    let telemetry = Arc::new(PassTelemetry::new(context, pass, measured));
    let keeper = telemetry.keep();
    let result = match result {
        Ok(()) => drain_all(context, kind, snapshot, &disks, stop).await,
        Err(error) => Err(error),
    };
    drop(keeper);
    telemetry.finish().await;
    let result = match (result, then) {
        (Ok(PassEnd::Drained), Some(then)) => then.run(snapshot).await.map(|()| PassEnd::Drained),
        (result, _) => result,
    };
    // The source's reason, not the readers' error that the snapshot does not exist.
    let result = match (result, snapshot.given_up()) {
        (Err(_), Some(why)) => Err(why.into()),
        (result, _) => result,
    };
    let error = match &result {
        Ok(PassEnd::Drained) => None,
        Ok(PassEnd::Stopped) => Some("stopped on request; what was drained stays drained".to_owned()),
        Err(error) => Some(error.to_string()),
    };
    account.end(match &result {
        Ok(PassEnd::Drained) => PassOutcome::Drained,
        Ok(PassEnd::Stopped) => PassOutcome::Stopped,
        Err(_) => PassOutcome::Failed,
    });
    context.store.end_pass(pass, clock::now(), error.clone()).await?;
    finish_view(context, &mut disks, number, kind, started, error);
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
            context.log_event("warning", text).await;
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

async fn record(
    context: &Context,
    kind: PassKind,
    started: chrono::DateTime<Utc>,
    advanced: Vec<(DiskRow, Arc<Ledger>, DiskPassView)>,
) -> Result<(u32, i64, Vec<PassDisk>), WorkError> {
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
    for (row, ledger, view) in advanced {
        disks.push(PassDisk {
            record: begun.disks.iter().find(|(disk, _)| *disk == row.id).map(|(_, record)| *record),
            baseline: context.baseline(row.id).await,
            row,
            ledger,
            view,
            progress: Arc::default(),
        });
    }
    context.live.update(|live| {
        // The reason for waiting is gone.
        live.waiting = None;
        live.pass = Some(PassView {
            number: begun.view.number,
            kind,
            started,
            ended: None,
            error: None,
            cpu: None,
            snapshot: None,
            disks: disks.iter().map(|disk| disk.view.clone()).collect(),
        });
    });
    Ok((begun.view.number, begun.id, disks))
}

fn account(context: &Context, kind: PassKind) -> PassAccount {
    let (plan, vm) = (context.plan().name.clone(), context.machine.name.clone());
    let name = PassName { migration: context.id, plan, vm, kind };
    context.engine.metrics.begin_pass(name, clock::now())
}

fn measured(disk: &PassDisk, kind: PassKind) -> Option<MeasuredDisk> {
    Some(MeasuredDisk {
        key: disk.row.key.clone(),
        disk: disk.row.id,
        record: disk.record?,
        progress: Arc::clone(&disk.progress),
        // Without the latency backoff no baseline is learnt.
        baseline: (kind != PassKind::Final).then(|| Arc::clone(&disk.baseline)),
    })
}

/// The number of disks with a known tracking fault.
pub(super) fn rows_at_fault<'a>(rows: impl IntoIterator<Item = &'a DiskRow>) -> u32 {
    rows.into_iter().filter(|row| row.tracking_fault.is_some()).map(|_| 1).sum()
}

/// Audits all disks at the same time, before anything is copied: a fault counts for this pass already.
/// Returns the number of disks with a new tracking fault.
async fn audit_all(
    context: &Context,
    kind: PassKind,
    snapshot: &dyn Snapshot,
    disks: &mut [PassDisk],
    stop: &StopSignal,
) -> Result<u32, WorkError> {
    let audits = disks.iter().map(|disk| async {
        let Some(disk_pass) = disk.record else { return Ok(None) };
        let audited = Audited { row: &disk.row, ledger: &disk.ledger, disk_pass };
        audit::run(context, kind, snapshot, &audited, stop).await
    });
    let audits = join_all(audits).await;
    let mut found = 0;
    for (disk, audit) in disks.iter_mut().zip(audits) {
        disk.view.audit = audit?;
        found += u32::from(disk.view.audit.as_ref().is_some_and(|audit| audit.mismatched_bytes > 0));
        disk.view.pending = disk.ledger.pending_bytes().0;
    }
    context.live.update(|live| {
        if let Some(pass) = &mut live.pass {
            pass.disks = disks.iter().map(|disk| disk.view.clone()).collect();
        }
    });
    Ok(found)
}

/// Drains all disks at the same time. If one fails, the others still finish: what they drain counts.
async fn drain_all(
    context: &Context,
    kind: PassKind,
    snapshot: &dyn Snapshot,
    disks: &[PassDisk],
    stop: &StopSignal,
) -> Result<PassEnd, WorkError> {
    let keys: Vec<DiskKey> = disks.iter().map(|disk| disk.row.key.clone()).collect();
    let specs = disks.iter().map(|disk| spec(&disk.row)).collect::<Vec<_>>();
    let sources = try_join_all(keys.iter().map(|key| snapshot.open(key))).await?;
    let targets =
        try_join_all(disks.iter().zip(&specs).map(|(disk, spec)| open(context, disk, spec))).await?;
    let followed = disks
        .iter()
        .map(|disk| Followed {
            key: disk.row.key.clone(),
            total: disk.view.pending,
            progress: Arc::clone(&disk.progress),
        })
        .collect();
    let follower = Follower::start(Arc::clone(&context.live), followed);
    let mut settings = context.engine.settings;
    if kind == PassKind::Final {
        // The source is off: a backoff would only prolong the downtime.
        settings.read_latency_factor = None;
    }
    let pool = context.pool(kind == PassKind::Final);
    settings.buffers = settings.buffers.min(pool.fair(disks.len()));
    let passes = disks.iter().zip(sources).zip(targets).map(|((disk, source), target)| {
        run_pass(PassJob {
            ledger: Arc::clone(&disk.ledger),
            source,
            target,
            pool: pool.clone(),
            settings,
            pass: disk.record,
            progress: Arc::clone(&disk.progress),
            limits: context.shares(&disk.row.key),
            baseline: Arc::clone(&disk.baseline),
            stop: stop.clone(),
        })
    });
    let results = join_all(passes).await;
    drop(follower);
    for disk in disks {
        tell_strain(context, &disk.row.key, disk.progress.view().held_back).await;
    }
    let mut end = PassEnd::Drained;
    for result in results {
        if !result?.finished {
            end = PassEnd::Stopped;
        }
    }
    Ok(end)
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
    context.log_event("warning", text).await;
}

fn finish_view(
    context: &Context,
    disks: &mut [PassDisk],
    number: u32,
    kind: PassKind,
    started: chrono::DateTime<Utc>,
    error: Option<String>,
) {
    for disk in disks.iter_mut() {
        disk.view.figures = figures(&disk.progress);
        disk.view.telemetry = Some(disk.progress.meter().view());
    }
    context.live.update(|live| {
        let cpu = live.pass.as_ref().and_then(|pass| pass.cpu);
        for disk in disks.iter() {
            if let Some(view) = live.disks.iter_mut().find(|view| view.key == disk.row.key) {
                view.pending = disk.ledger.pending_bytes().0;
                (view.pass_total, view.pass_drained, view.rate, view.eta) = (0, 0, 0.0, None);
            }
        }
        let disks = disks.iter().map(|disk| disk.view.clone()).collect();
        let ended = Some(clock::now());
        live.pass = Some(PassView { number, kind, started, ended, error, cpu, snapshot: None, disks });
    });
}
