//! What all the work on one migration needs, and nothing that changes while it lives.

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
    model::{
        boot::BootCheck,
        conversion::Conversion,
        id::{DiskKey, MigrationId, VmId},
        machine::Machine,
        plan::Plan,
        state::State,
        view::EventView,
    },
    sources::Source,
    targets::{DiskSpec, Target},
};
use warmd_metrics::Metrics;
use warmd_schedules::{forecast::Ceiling, rules::Rules, schedule::Problems};
use warmd_store::{Cutover, DiskRow, Store, StoreError};

use super::{
    admission::Admissions,
    audit::AuditAmount,
    groups::Groups,
    limits::{LimitedMigration, Registry},
    overdue::Overdue,
    status_publisher::StatusPublisher,
    steady::Steady,
};

/// The engine's resources, shared by all migrations of the daemon.
#[derive(Clone, Debug)]
pub struct Engine {
    pub pool: BufferPool,
    pub settings: TransferSettings,
    /// Of all reads together, as configured.
    pub limit: Limit,
    /// How much of each disk is read to see whether change tracking tells the truth, unless its plan says.
    pub audit: AuditAmount,
    pub metrics: Metrics,
}

/// One migration's surroundings.
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
    /// With whom it may cut over together.
    pub groups: Arc<Groups>,
    /// The names of the endpoints that it began with.
    endpoint_names: (String, String),
    pub live: Arc<StatusPublisher>,
    cutover: Mutex<Cutover>,
    ledgers: tokio::sync::Mutex<BTreeMap<DiskId, Arc<Ledger>>>,
    baselines: tokio::sync::Mutex<BTreeMap<DiskId, Arc<Mutex<LatencyBaseline>>>>,
    /// When an earlier daemon asked for the target VM's start, if it did in the cutover that was taken up.
    pub start_requested_before_restart: Option<DateTime<Utc>>,
    /// The machine as the source described it last; [`Context::machine`] is as it was when the daemon took it up.
    latest: Mutex<Machine>,
    /// Where its definitions were last seen to differ.
    differences: Mutex<Vec<String>>,
    /// Whether the target's VM was seen to run in this cutover, which may not be saved yet.
    seen_started: AtomicBool,
    /// Whether what an earlier daemon may have left open on the source was ended.
    is_swept: AtomicBool,
    /// Whether the last writer to the target's disks was looked at, and is one that the state knows.
    writer_is_checked: AtomicBool,
    /// How long its last pass is past.
    pub(super) steady: Steady,
    /// Whether its copy is older than is promised.
    pub(super) overdue: Overdue,
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
    /// What the work on each disk takes from.
    pub shares: BTreeMap<DiskKey, DiskShares>,
    pub limits: Arc<Registry>,
    pub groups: Arc<Groups>,
    /// The names of the source and the target.
    pub endpoint_names: (String, String),
    pub live: Arc<StatusPublisher>,
    /// As the store has it.
    pub cutover: Cutover,
}

impl Context {
    /// Puts the parts together.
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
            cutover,
        } = parts;
        let start_requested_before_restart = cutover.start_requested_at;
        let (plan, cutover) = (watch::Sender::new(plan), Mutex::new(cutover));
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
            cutover,
            ledgers,
            baselines: tokio::sync::Mutex::default(),
            start_requested_before_restart,
            latest,
            differences: Mutex::default(),
            seen_started: AtomicBool::new(false),
            is_swept: AtomicBool::new(false),
            writer_is_checked: AtomicBool::new(false),
            steady: Steady::default(),
            overdue: Overdue::default(),
        }
    }

    /// Whether the target's VM was seen to run in this cutover, which may not be saved yet.
    pub(super) fn is_seen_started(&self) -> bool {
        self.seen_started.load(Ordering::Relaxed)
    }

    /// It was seen to run, or a new one is made.
    pub(super) fn see_started(&self, is_seen: bool) {
        self.seen_started.store(is_seen, Ordering::Relaxed);
    }

    /// Whether a cutover is under way.
    pub(super) fn is_cutting_over(&self) -> bool {
        matches!(self.live.view().state, State::CuttingOver { .. })
    }

    /// Whether what an earlier daemon may have left open on the source was ended since this one came up.
    pub(super) fn is_swept(&self) -> bool {
        self.is_swept.load(Ordering::Relaxed)
    }

    /// It was ended.
    pub(super) fn swept(&self) {
        self.is_swept.store(true, Ordering::Relaxed);
    }

    /// Whether the target was found to be no further than the state, since the daemon came up.
    pub(super) fn writer_checked(&self) -> bool {
        self.writer_is_checked.load(Ordering::Relaxed)
    }

    /// It was found so.
    pub(super) fn set_writer_checked(&self) {
        self.writer_is_checked.store(true, Ordering::Relaxed);
    }

    /// The plan as last applied.
    pub fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.borrow())
    }

    /// Tells when another plan than the present one is put in force.
    pub fn plans(&self) -> watch::Receiver<Arc<Plan>> {
        self.plan.subscribe()
    }

    /// Puts a newly applied plan in force; work that runs keeps the one it began with, all but its copy windows.
    pub fn set_plan(&self, plan: Arc<Plan>) {
        self.plan.send_replace(plan);
    }

    /// What is remembered of the last cutover.
    pub fn cutover(&self) -> Cutover {
        self.cutover.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what a saved step remembers of the cutover.
    pub fn set_cutover(&self, cutover: Cutover) {
        *self.cutover.lock().unwrap_or_else(PoisonError::into_inner) = cutover;
    }

    /// Remembers something of the cutover, durably.
    pub async fn remember(&self, change: impl FnOnce(&mut Cutover)) -> Result<(), StoreError> {
        let mut cutover = self.cutover();
        change(&mut cutover);
        self.store.save_cutover(self.id, cutover.clone()).await?;
        self.set_cutover(cutover);
        Ok(())
    }

    /// The disk's ledger. One for the daemon's life: it keeps a new pass from starting before the last write of an
    /// abandoned one has ended.
    pub async fn ledger(&self, disk: DiskId) -> Result<Arc<Ledger>, StoreError> {
        let mut ledgers = self.ledgers.lock().await;
        if let Some(ledger) = ledgers.get(&disk) {
            return Ok(Arc::clone(ledger));
        }
        let ledger = Arc::new(Ledger::load(Arc::new(self.store.clone()), disk).await?);
        ledgers.insert(disk, Arc::clone(&ledger));
        Ok(ledger)
    }

    /// Waits until nothing that was begun writes to the target any more.
    pub(super) async fn quiet(&self) {
        let ledgers: Vec<_> = self.ledgers.lock().await.values().cloned().collect();
        for ledger in ledgers {
            ledger.quiet().await;
        }
    }

    /// What the disk's reads take when all is well, as far as its passes have seen. That it cannot be read is logged,
    /// and learnt anew.
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

    /// Keeps what was learnt of the disk's source.
    pub async fn keep_baseline(&self, disk: DiskId) {
        let baseline = self.baseline(disk).await.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Err(error) = self.store.save_baseline(disk, &baseline).await {
            tracing::warn!(migration = %self.id, %error, "the source's latencies not stored");
        }
    }

    /// The target's name.
    pub fn target_endpoint(&self) -> &str {
        &self.endpoint_names.1
    }

    /// What the work on a disk takes from.
    pub fn shares(&self, disk: &DiskKey) -> DiskShares {
        self.shares.get(disk).cloned().unwrap_or_default()
    }

    /// The buffers that its work may hold: its target's share, and for what is urgent the reserve as well.
    pub fn pool(&self, is_urgent: bool) -> BufferPool {
        self.engine.pool.share(&self.endpoint_names.1, is_urgent)
    }

    /// What bounds the rate of its passes now.
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
    pub fn journal_entry(&self, by: &str, kind: &str, text: String) -> EventView {
        let (by, kind) = (by.to_owned(), kind.to_owned());
        EventView { at: clock::now(), migration: Some(self.id), by, kind, text }
    }

    /// Writes a line into the journal and the log. A journal that cannot be written now must not stop the work.
    pub async fn log_event(&self, kind: &str, text: String) {
        tracing::info!(migration = %self.id, vm = %self.machine.name, kind, "{text}");
        if let Err(error) = self.store.append_events(vec![self.journal_entry("warmd", kind, text)]).await {
            tracing::error!(migration = %self.id, %error, "journal not written");
        }
    }

    /// A warning that the view shows until the daemon restarts, told once.
    pub async fn warn(&self, text: String) {
        if !self.live.view().warnings.contains(&text) {
            self.live.update(|view| view.warnings.push(text.clone()));
            self.log_event("warning", text).await;
        }
    }

    /// Its schedule as last applied, ready to be asked: whatever is decided for this VM alone is decided by it.
    pub fn rules(&self) -> Result<Rules, Problems> {
        self.plan().rules_of(&self.machine.name, &self.vm)
    }

    /// The disks that were made on the target, where they were made, whatever the plan says now.
    pub async fn made_disks(&self) -> Result<Vec<DiskSpec>, StoreError> {
        Ok(self.store.disks(self.id).await?.iter().map(spec).collect())
    }

    /// The disks to make on the target.
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

    /// What the plan wants to see of the target VM.
    pub fn boot_check(&self) -> BootCheck {
        let plan = self.plan();
        let over = plan.override_by_name(&self.machine.name, &self.vm);
        over.and_then(|over| over.boot_check.clone()).unwrap_or_else(|| plan.cutover.boot_check.clone())
    }

    /// What is done to its disks before the VM is created from them.
    pub fn conversion(&self) -> Conversion {
        let plan = self.plan();
        let over = plan.override_by_name(&self.machine.name, &self.vm);
        over.and_then(|over| over.conversion.clone()).unwrap_or_else(|| plan.conversion.clone())
    }

    /// The machine as the source described it last.
    pub fn latest_machine(&self) -> Machine {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The source describes it so now.
    pub(super) fn set_latest_machine(&self, machine: Machine) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = machine;
    }

    /// Remembers where its definitions differ; where they did before, if that was elsewhere.
    pub(super) fn tell_differences(&self, now: &[String]) -> Option<Vec<String>> {
        let mut known = self.differences.lock().unwrap_or_else(PoisonError::into_inner);
        (*known != now).then(|| std::mem::replace(&mut *known, now.to_vec()))
    }

    /// The machine as it was described last, with the target's networks.
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
