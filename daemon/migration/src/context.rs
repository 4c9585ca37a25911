//! What all work on one migration needs, constant during its life.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use warmd_cbt::{
    buffer::BufferPool,
    ledger::Ledger,
    limit::{DiskShares, Limit},
    store::DiskId,
    transfer::{LatencyBaseline, TransferSettings},
};
use warmd_core::{
    clock,
    hook_service::HookService,
    images::OpenImages,
    model::{
        boot::BootCheck,
        conversion::Conversion,
        cutover_record::CutoverRecord,
        event_kind::EventKind,
        id::{DiskKey, MigrationId, VmId},
        machine::Machine,
        plan::Plan,
        state::State,
        view::EventView,
    },
    pass::TransferObserver,
    signed_report::SignReports,
    sources::Source,
    targets::{DiskSpec, Target},
};
use warmd_schedules::{forecast::Ceiling, rules::Rules, schedule::Problems};
use warmd_store::{DiskRow, Store, StoreError};

use super::{
    admission::Admissions,
    audit::AuditAmount,
    groups::Groups,
    inspection::Inspected,
    limits::{LimitedMigration, Registry},
    monotonic_pass::MonotonicPass,
    overdue::Overdue,
    status_publisher::StatusPublisher,
};

/// The engine's resources, shared by all migrations of the daemon.
#[derive(Clone, Debug)]
pub struct Engine {
    pub pool: BufferPool,
    pub settings: TransferSettings,
    /// The configured limit of all reads together.
    pub limit: Limit,
    /// The amount of each disk to audit, unless its plan sets one.
    pub audit: AuditAmount,
    pub reports: Arc<dyn SignReports>,
    /// Opens images for verifications.
    pub images: Arc<dyn OpenImages>,
    /// Calls hooks that are services.
    pub hooks: Arc<dyn HookService>,
    /// Counts passes and audits.
    pub metrics: Arc<dyn TransferObserver>,
}

#[cfg(test)]
impl Engine {
    /// One without limits, for tests that copy nothing.
    pub(super) fn for_tests() -> Self {
        Self {
            pool: BufferPool::new(8, 1 << 20),
            settings: TransferSettings::default(),
            limit: Limit::default(),
            audit: AuditAmount::default(),
            images: Arc::new(warmd_core::images::NoImages),
            reports: Arc::new(warmd_core::signed_report::NoReportKey),
            hooks: Arc::new(warmd_core::hook_service::NoHookServices),
            metrics: Arc::new(warmd_core::pass::Unobserved),
        }
    }
}

/// The environment of one migration.
pub struct Context {
    pub id: MigrationId,
    plan: watch::Sender<Arc<Plan>>,
    pub vm: VmId,
    pub target_name: String,
    pub machine: Machine,
    pub store: Store,
    pub source: Arc<dyn Source>,
    pub target: Arc<dyn Target>,
    pub engine: Engine,
    pub admissions: Admissions,
    shares: BTreeMap<DiskKey, DiskShares>,
    limits: Arc<Registry>,
    /// The groups of which it may be a member.
    pub groups: Arc<Groups>,
    /// The names of the endpoints at its start.
    endpoint_names: (String, String),
    pub live: Arc<StatusPublisher>,
    /// As saved; the driver alone changes it.
    state: Mutex<State>,
    cutover: Mutex<CutoverRecord>,
    ledgers: tokio::sync::Mutex<BTreeMap<DiskId, Arc<Ledger>>>,
    baselines: tokio::sync::Mutex<BTreeMap<DiskId, Arc<Mutex<LatencyBaseline>>>>,
    /// When an earlier daemon requested the target VM's start, if it did in the resumed cutover.
    pub start_requested_before_restart: Option<DateTime<Utc>>,
    /// The machine as the source described it last; [`Context::machine`] is the description when the driver
    /// started.
    latest: Mutex<Machine>,
    /// Where its definitions last differed.
    differences: Mutex<Vec<String>>,
    /// Whether the target VM was seen running in this cutover, which may not be saved yet.
    seen_started: AtomicBool,
    /// Whether the guest may have been asked to shut down in this cutover; true after a restart, when it is
    /// not known.
    may_have_asked_shutdown: AtomicBool,
    /// Whether leftovers of an earlier daemon on the source were ended.
    is_swept: AtomicBool,
    /// Whether the last writer of the target's disks was checked, and is known to the state.
    writer_is_checked: AtomicBool,
    /// The time since its last pass.
    pub(super) monotonic_pass: MonotonicPass,
    /// Whether its copy is older than the RPO target.
    pub(super) overdue: Overdue,
    /// What the inspection of its guest found.
    pub(super) inspected: Inspected,
}

/// The parts of a [`Context`].
#[expect(missing_debug_implementations, reason = "it is taken apart at once")]
pub struct ContextParts {
    pub id: MigrationId,
    pub plan: Arc<Plan>,
    pub vm: VmId,
    pub target_name: String,
    pub machine: Machine,
    pub store: Store,
    pub source: Arc<dyn Source>,
    pub target: Arc<dyn Target>,
    pub engine: Engine,
    pub admissions: Admissions,
    /// The shares of each disk's work.
    pub shares: BTreeMap<DiskKey, DiskShares>,
    pub limits: Arc<Registry>,
    pub groups: Arc<Groups>,
    /// The names of the source and the target.
    pub endpoint_names: (String, String),
    pub live: Arc<StatusPublisher>,
    /// As in the store.
    pub state: State,
    pub cutover: CutoverRecord,
}

impl Context {
    /// Creates a context of the parts.
    pub fn new(parts: ContextParts) -> Self {
        let ContextParts {
            id,
            plan,
            vm,
            target_name,
            machine,
            store,
            source,
            target,
            engine,
            admissions,
            shares,
            limits,
            groups,
            endpoint_names,
            live,
            state,
            cutover,
        } = parts;
        let start_requested_before_restart = cutover.start_requested_at;
        let (plan, state, cutover) = (watch::Sender::new(plan), Mutex::new(state), Mutex::new(cutover));
        let ledgers = tokio::sync::Mutex::default();
        let latest = Mutex::new(machine.clone());
        Self {
            id,
            plan,
            vm,
            target_name,
            machine,
            store,
            source,
            target,
            engine,
            admissions,
            shares,
            limits,
            groups,
            endpoint_names,
            live,
            state,
            cutover,
            ledgers,
            baselines: tokio::sync::Mutex::default(),
            start_requested_before_restart,
            latest,
            differences: Mutex::default(),
            seen_started: AtomicBool::new(false),
            may_have_asked_shutdown: AtomicBool::new(true),
            is_swept: AtomicBool::new(false),
            writer_is_checked: AtomicBool::new(false),
            monotonic_pass: MonotonicPass::default(),
            overdue: Overdue::default(),
            inspected: Inspected::default(),
        }
    }

    /// Whether the target VM was seen running in this cutover, which may not be saved yet.
    pub(super) fn is_seen_started(&self) -> bool {
        self.seen_started.load(Ordering::Relaxed)
    }

    /// Records that the target VM was seen running, or that a new one is created.
    pub(super) fn see_started(&self, is_seen: bool) {
        self.seen_started.store(is_seen, Ordering::Relaxed);
    }

    /// Whether a cutover is in progress.
    pub(super) fn is_cutting_over(&self) -> bool {
        matches!(self.state(), State::CuttingOver { .. })
    }

    /// Whether the guest may have been asked to shut down in this cutover: then it may go off late.
    pub(super) fn may_have_asked_shutdown(&self) -> bool {
        self.may_have_asked_shutdown.load(Ordering::Relaxed)
    }

    /// Records that the guest is asked to shut down from now on, or that a cutover begins and nothing was
    /// asked yet.
    pub(super) fn set_asks_shutdown(&self, asks: bool) {
        self.may_have_asked_shutdown.store(asks, Ordering::Relaxed);
    }

    /// Whether leftovers of an earlier daemon on the source were ended since the start.
    pub(super) fn is_swept(&self) -> bool {
        self.is_swept.load(Ordering::Relaxed)
    }

    /// Records that they were ended.
    pub(super) fn swept(&self) {
        self.is_swept.store(true, Ordering::Relaxed);
    }

    /// Whether the target was found to be no newer than the state, since the daemon's start.
    pub(super) fn writer_checked(&self) -> bool {
        self.writer_is_checked.load(Ordering::Relaxed)
    }

    /// Records that the writer was checked.
    pub(super) fn set_writer_checked(&self) {
        self.writer_is_checked.store(true, Ordering::Relaxed);
    }

    /// The plan as last applied.
    pub fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.borrow())
    }

    /// Notifies when a new plan takes effect.
    pub fn plans(&self) -> watch::Receiver<Arc<Plan>> {
        self.plan.subscribe()
    }

    /// Puts a newly applied plan into effect; running work keeps its plan, except for the copy windows.
    pub fn set_plan(&self, plan: Arc<Plan>) {
        self.plan.send_replace(plan);
    }

    /// The state, as last saved.
    pub fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over the state of a saved step.
    pub(super) fn set_state(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The record of the last cutover.
    pub fn cutover(&self) -> CutoverRecord {
        self.cutover.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over the cutover record of a saved step.
    pub fn set_cutover(&self, cutover: CutoverRecord) {
        *self.cutover.lock().unwrap_or_else(PoisonError::into_inner) = cutover;
    }

    /// Changes the cutover record, durably: the record is exactly what is saved. A step that is saved
    /// meanwhile (a rollback that is accepted) changes the record too; then the change is made to that one,
    /// and saved again.
    pub async fn remember(&self, change: impl Fn(&mut CutoverRecord)) -> Result<(), StoreError> {
        loop {
            let before = self.cutover();
            let mut after = before.clone();
            change(&mut after);
            self.store.save_cutover(self.id, after.clone()).await?;
            let mut now = self.cutover.lock().unwrap_or_else(PoisonError::into_inner);
            if *now == before {
                *now = after;
                return Ok(());
            }
        }
    }

    /// The disk's ledger. One for the daemon's life: it prevents a new pass from starting before the last
    /// write of an abandoned one has ended.
    pub async fn ledger(&self, disk: DiskId) -> Result<Arc<Ledger>, StoreError> {
        let mut ledgers = self.ledgers.lock().await;
        if let Some(ledger) = ledgers.get(&disk) {
            return Ok(Arc::clone(ledger));
        }
        let ledger = Arc::new(Ledger::load(Arc::new(self.store.clone()), disk).await?);
        ledgers.insert(disk, Arc::clone(&ledger));
        Ok(ledger)
    }

    /// Waits until all started writes to the target have ended.
    pub(super) async fn quiet(&self) {
        let ledgers: Vec<_> = self.ledgers.lock().await.values().cloned().collect();
        for ledger in ledgers {
            ledger.quiet().await;
        }
    }

    /// The latency baseline of the disk's reads from its passes. An unreadable baseline is logged and learnt
    /// again.
    pub async fn baseline(&self, disk: DiskId) -> Arc<Mutex<LatencyBaseline>> {
        let mut baselines = self.baselines.lock().await;
        if let Some(baseline) = baselines.get(&disk) {
            return Arc::clone(baseline);
        }
        let stored = self.store.baseline(disk).await.unwrap_or_else(|error| {
            tracing::warn!(migration = %self.id, %error, "the source's latencies not read");
            LatencyBaseline::default()
        });
        Arc::clone(baselines.entry(disk).or_insert_with(|| Arc::new(Mutex::new(stored))))
    }

    /// Saves the disk's latency baseline.
    pub async fn keep_baseline(&self, disk: DiskId) {
        let baseline = self.baseline(disk).await.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Err(error) = self.store.save_baseline(disk, &baseline).await {
            tracing::warn!(migration = %self.id, %error, "the source's latencies not stored");
        }
    }

    /// The source with the plan's policy for snapshots.
    pub fn planned_source(&self) -> Arc<dyn Source> {
        let policy = self.plan().snapshots;
        let planned = if policy.is_default() { None } else { self.source.with_policy(policy) };
        planned.unwrap_or_else(|| Arc::clone(&self.source))
    }

    /// The names of source and target.
    pub(super) fn endpoint_names(&self) -> (&str, &str) {
        (&self.endpoint_names.0, &self.endpoint_names.1)
    }

    /// The target's name.
    pub fn target_endpoint(&self) -> &str {
        &self.endpoint_names.1
    }

    /// The shares of a disk's work.
    pub fn shares(&self, disk: &DiskKey) -> DiskShares {
        self.shares.get(disk).cloned().unwrap_or_default()
    }

    /// The buffers for its work: its target's share, and for urgent work also the reserve.
    pub fn pool(&self, is_urgent: bool) -> BufferPool {
        self.engine.pool.share(&self.endpoint_names.1, is_urgent)
    }

    /// The bounds of the rate of its passes now.
    pub fn ceilings(&self) -> Vec<Ceiling> {
        let mut ceilings = self.limits.ceilings(&LimitedMigration {
            id: self.id,
            source: &self.endpoint_names.0,
            target: &self.endpoint_names.1,
        });
        let quotas = self.admissions.ceilings(&self.plan().name).into_iter();
        ceilings.extend(quotas.map(|(name, rate)| Ceiling { name, bytes_per_second: rate.get() as f64 }));
        ceilings
    }

    /// A line of this migration's journal.
    pub fn journal_entry(&self, by: &str, kind: EventKind, text: String) -> EventView {
        EventView { at: clock::now(), migration: Some(self.id), by: by.to_owned(), kind, text }
    }

    /// Writes a line to the journal and the log. A journal that cannot be written must not stop the work.
    pub async fn log_event(&self, kind: EventKind, text: String) {
        tracing::info!(migration = %self.id, vm = %self.machine.name, kind = kind.as_str(), "{text}");
        if let Err(error) = self.store.append_events(vec![self.journal_entry("warmd", kind, text)]).await {
            tracing::error!(migration = %self.id, %error, "journal not written");
        }
    }

    /// A warning that the view shows until the daemon restarts, logged once.
    pub async fn warn(&self, text: String) {
        if !self.live.view().warnings.contains(&text) {
            self.live.update(|view| view.warnings.push(text.clone()));
            self.log_event(EventKind::Warning, text).await;
        }
    }

    /// Its schedule as last applied, ready for decisions: every decision about this VM alone uses it.
    pub fn rules(&self) -> Result<Rules, Problems> {
        self.plan().rules_of(&self.machine.name, &self.vm)
    }

    /// The disks that were created on the target, at their locations then, regardless of the plan now.
    pub async fn made_disks(&self) -> Result<Vec<DiskSpec>, StoreError> {
        Ok(self.store.disks(self.id).await?.iter().map(spec).collect())
    }

    /// The disks to create on the target.
    pub fn disk_specs(&self) -> Vec<DiskSpec> {
        let plan = self.plan();
        let over = plan.override_by_name(&self.machine.name, &self.vm);
        self.machine
            .disks
            .iter()
            .map(|disk| DiskSpec {
                key: disk.key.clone(),
                size: disk.size,
                place: plan.place_of(over, &disk.key, self.source.datastore(disk).as_deref()),
            })
            .collect()
    }

    /// The plan's boot check of the target VM.
    pub fn boot_check(&self) -> BootCheck {
        let plan = self.plan();
        let over = plan.override_by_name(&self.machine.name, &self.vm);
        over.and_then(|over| over.boot_check.clone()).unwrap_or_else(|| plan.cutover.boot_check.clone())
    }

    /// The conversion of its disks before the VM is created from them.
    pub fn conversion(&self) -> Conversion {
        let plan = self.plan();
        let over = plan.override_by_name(&self.machine.name, &self.vm);
        over.and_then(|over| over.conversion.clone()).unwrap_or_else(|| plan.conversion.clone())
    }

    /// The machine as the source described it last.
    pub fn latest_machine(&self) -> Machine {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the present description of the source.
    pub(super) fn set_latest_machine(&self, machine: Machine) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = machine;
    }

    /// Records where its definitions differ; returns the earlier differences if they were others.
    pub(super) fn tell_differences(&self, now: &[String]) -> Option<Vec<String>> {
        let mut known = self.differences.lock().unwrap_or_else(PoisonError::into_inner);
        (*known != now).then(|| std::mem::replace(&mut *known, now.to_vec()))
    }

    /// The machine as described last, with the target's networks.
    pub fn mapped_machine(&self) -> Machine {
        self.plan().mapped(self.latest_machine())
    }
}

/// A stored disk as the target knows it.
pub fn spec(row: &DiskRow) -> DiskSpec {
    DiskSpec { key: row.key.clone(), size: row.size, place: row.requested_location.clone() }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.id)
            .field("vm", &self.machine.name)
            .finish_non_exhaustive()
    }
}
