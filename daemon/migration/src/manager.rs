//! All migrations of the daemon: starts their drivers, finds them by key, passes requests on.
//!
//! Rule: the manager owns no migration's state. It answers from views and the store; requests go to the
//! driver. A finished migration has no driver and nothing in memory: it is in the store, and a request to it
//! starts a driver for the time of the request.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicU64},
};

use tokio::sync::{broadcast, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;
use warmd_cbt::limit::Limit;
use warmd_core::{
    clock,
    control::{ControlError, ControlErrorKind, EndpointInfo},
    metrics_view::{CurrentFigures, Present},
    model::{
        decide::MigrationRecord,
        event_kind::EventKind,
        id::MigrationId,
        outcome::PassFailure,
        plan::Plan,
        quota::ConfiguredQuotas,
        view::{MigrationView, PassView},
    },
    sources::{self, Source},
    span,
    targets::{self, Target},
};
use warmd_store::{MigrationRow, Store, Unreadable};

use super::{
    access::Grants,
    admission::{AdmissionControl, Admissions},
    afterwards,
    command::OwnerRequest,
    context::{Context, ContextParts, Engine},
    doing::forget_ledgers,
    driver::Driver,
    failure::{Remedy, WorkError},
    groups::Groups,
    limits::{ConfiguredLimit, LimitedMigration, Registry},
    overdue, restore,
    status_publisher::StatusPublisher,
    supervised::{Supervision, caught},
    unreadable, windows,
};

/// Requests that may wait for one migration's driver.
const INBOX: usize = 16;
/// Changes by which a slow watcher may lag before it misses some.
const CHANGES: usize = 1024;

/// A configured endpoint, opened.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "endpoints have no debug form")]
pub struct OpenEndpoint<E: ?Sized> {
    pub endpoint: EndpointInfo,
    /// The configured limit.
    pub limit: Limit,
    pub handle: Arc<E>,
}

/// The daemon's endpoints, by name.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "endpoints have no debug form")]
pub struct Endpoints {
    pub sources: BTreeMap<String, OpenEndpoint<dyn Source>>,
    pub targets: BTreeMap<String, OpenEndpoint<dyn Target>>,
    /// The quotas of the configuration.
    pub quotas: ConfiguredQuotas,
}

/// A migration that has a driver.
#[derive(Clone, Debug)]
pub(super) struct DriverHandle {
    pub(super) context: Arc<Context>,
    pub(super) inbox: mpsc::Sender<OwnerRequest>,
}

impl DriverHandle {
    /// The present view; the reason for waiting may have changed since the wait began.
    pub(super) fn view(&self) -> MigrationView {
        let mut view = self.context.live.view();
        if let Some(why) = self.context.admissions.why() {
            view.next_pass_why = Some(why);
        }
        view
    }
}

type Handles = Arc<Mutex<BTreeMap<MigrationId, DriverHandle>>>;

/// All migrations.
pub struct Manager {
    pub(super) store: Store,
    pub(super) endpoints: Endpoints,
    pub(super) engine: Engine,
    pub(super) changes: broadcast::Sender<MigrationView>,
    handles: Handles,
    /// Locked while a finished migration gets a driver again, so that it gets one.
    pub(super) taking_up: tokio::sync::Mutex<()>,
    /// Locked while a checked plan is applied, so that two at once do not start the same VM twice.
    pub(super) applying: tokio::sync::Mutex<()>,
    /// Counts changes of what plans are checked against: the lock above was taken for each.
    pub(super) revision: AtomicU64,
    pub(super) limits: Arc<Registry>,
    pub gate: Arc<AdmissionControl>,
    pub(super) changing_limits: tokio::sync::Mutex<()>,
    pub(super) grants: Grants,
    pub(super) shutdown: CancellationToken,
    pub(super) owners: TaskTracker,
    pub(super) groups: Arc<Groups>,
    /// All migrations that were unfinished at the daemon's start are registered.
    all_registered: CancellationToken,
    pub(super) supervision: Supervision,
    /// Locked while a report is built.
    pub(super) reporting: tokio::sync::Mutex<()>,
    /// Migrations in the state that cannot be read.
    pub(super) unreadable: Mutex<BTreeMap<MigrationId, Unreadable>>,
    /// For the tasks that it starts.
    pub(super) self_ref: Weak<Self>,
}

impl Manager {
    /// Resumes every migration of the store where it was.
    pub async fn start(
        store: Store,
        endpoints: Endpoints,
        engine: Engine,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, ControlError> {
        let saved = store.limits().await.map_err(internal)?;
        let limits = Arc::new(Registry::new(saved.limits));
        let global = engine.limit;
        let gate = AdmissionControl::new(limits.rate_limiter(), &endpoints.quotas, shutdown.clone());
        let manager = Arc::new_cyclic(|self_ref| Self {
            store,
            endpoints,
            engine,
            changes: broadcast::Sender::new(CHANGES),
            handles: Handles::default(),
            taking_up: tokio::sync::Mutex::default(),
            applying: tokio::sync::Mutex::default(),
            revision: AtomicU64::default(),
            limits,
            gate,
            changing_limits: tokio::sync::Mutex::default(),
            grants: Grants::default(),
            shutdown,
            owners: TaskTracker::new(),
            groups: Arc::default(),
            all_registered: CancellationToken::new(),
            supervision: Supervision::default(),
            unreadable: Mutex::default(),
            reporting: tokio::sync::Mutex::default(),
            self_ref: self_ref.clone(),
        });
        manager.tell_unreadable(&saved.unreadable).await;
        manager.set_configured_limits(global).await?;
        manager.know_grants().await?;
        manager.know_groups().await?;
        // No driver works before all are registered, on every way out: they would interfere.
        let _begin = manager.all_registered.clone().drop_guard();
        if let Err(error) = manager.store.end_cut_passes().await {
            // For information only; a source that is off must not wait for it.
            tracing::error!(%error, "the ends of passes that were cut off are not stored");
        }
        let (plans, garbage) = manager.store.plans_each().await.map_err(internal)?;
        let mut plans: BTreeMap<_, _> =
            plans.into_iter().map(|plan| (plan.name.clone(), Arc::new(plan))).collect();
        // Unreadable rows must not keep other migrations' sources off in the middle of their cutovers.
        for (name, error) in garbage {
            let text = format!("plan {name} cannot be read: apply it again, or restore the state ({error})");
            manager.tell(None, EventKind::Warning, text).await;
        }
        let found = manager.store.open_each().await.map_err(internal)?;
        for unreadable in found.unreadable {
            manager.know_unreadable(unreadable).await;
        }
        for row in found.rows {
            let plan = match plans.get(&row.plan) {
                Some(plan) => Ok(Arc::clone(plan)),
                None => manager.plan_of(&row).await,
            };
            let plan = match plan {
                Ok(plan) => plan,
                Err(error) => {
                    let why = unreadable::without_plan(&row.plan, &error);
                    manager.know_unread(Unreadable::of(&row, &why), &error).await;
                    continue;
                }
            };
            plans.insert(row.plan.clone(), Arc::clone(&plan));
            let span = span::migration_span(row.id, &row.vm_name);
            if let Err(error) = manager.spawn_driver(row.clone(), plan).await {
                span.in_scope(|| {
                    tracing::error!(%error, "migration not started");
                });
                manager.know_unread(Unreadable::of(&row, &error), &error).await;
            }
        }
        manager.watch_store();
        manager.supervise("the keeper of the quotas", Arc::clone(&manager.gate).keep_time());
        manager.supervise("forgetting ledgers", forget_needless(manager.store.clone()));
        let looking = afterwards::keep_looking(manager.self_ref.clone(), manager.shutdown.clone());
        manager.supervise("looking at sources of finished migrations", looking);
        let ages = overdue::keep_looking(manager.self_ref.clone(), manager.shutdown.clone());
        manager.supervise("looking how old copies are", ages);
        let reading = unreadable::keep_reading(manager.self_ref.clone(), manager.shutdown.clone());
        manager.supervise("reading again what could not be read", reading);
        manager.keep_groups();
        Ok(manager)
    }

    /// The plan of a migration.
    pub(super) async fn plan_of(&self, row: &MigrationRow) -> Result<Arc<Plan>, ControlError> {
        let stored = self.store.plan(&row.plan).await.map_err(unread)?;
        // The plan of a finished migration may be deleted; nothing of it is needed any more.
        let stub = || Plan::stub(&row.plan, &row.source, &row.target, &row.vm_name);
        Ok(Arc::new(stored.unwrap_or_else(stub)))
    }

    /// Starts the driver of a migration from the store.
    pub(super) async fn spawn_driver(
        &self,
        row: MigrationRow,
        plan: Arc<Plan>,
    ) -> Result<DriverHandle, ControlError> {
        let span = span::migration_span(row.id, &row.vm_name);
        self.start_driver(row, plan).instrument(span).await
    }

    async fn start_driver(&self, row: MigrationRow, plan: Arc<Plan>) -> Result<DriverHandle, ControlError> {
        let id = row.id;
        // In a box: it is kept over the wait below, and the futures of callers are large.
        let record = Box::new(MigrationRecord::saved(
            row.state.clone(),
            row.cutover.clone(),
            row.scheduled_cutover.clone(),
        ));
        let context = self.build_context(row, plan, true).await?;
        let (inbox, requests) = mpsc::channel(INBOX);
        let driver = Driver::new(Arc::clone(&context), *record, requests, self.shutdown.clone());
        let handle = DriverHandle { context: Arc::clone(&context), inbox };
        lock(&self.handles).insert(id, handle.clone());
        let (handles, limits) = (Arc::downgrade(&self.handles), Arc::clone(&self.limits));
        let (all_registered, self_ref) = (self.all_registered.clone(), self.self_ref.clone());
        let owner = async move {
            all_registered.cancelled().await;
            match caught(driver.run()).await {
                Ok(true) => {
                    forget(&handles, &context);
                    limits.forget(id);
                }
                Ok(false) => {}
                Err(panic) => {
                    if let Some(manager) = self_ref.upgrade() {
                        manager.restart_driver(context, panic).await;
                    }
                }
            }
        };
        self.owners.spawn(owner.in_current_span());
        Ok(handle)
    }

    /// The environment of a migration's work; only a working migration takes from the limits.
    pub(super) async fn build_context(
        &self,
        row: MigrationRow,
        plan: Arc<Plan>,
        works: bool,
    ) -> Result<Arc<Context>, ControlError> {
        // The endpoints at the migration's start, regardless of the plan now.
        let source: Arc<dyn Source> = match self.source(&row.source) {
            Ok(source) => Arc::clone(source),
            Err(_) => Arc::new(sources::absent::AbsentSource { name: row.source.clone() }),
        };
        let target: Arc<dyn Target> = match self.target(&row.target) {
            Ok(target) => Arc::clone(target),
            Err(_) => Arc::new(targets::absent::AbsentTarget { name: row.target.clone() }),
        };
        let view = restore::view(&self.store, &row).await.map_err(unread)?;
        let disks: Vec<_> = row.machine.disks.iter().map(|disk| disk.key.clone()).collect();
        let mut shares = BTreeMap::new();
        let places = self.gate.places((&row.source, source.as_ref()), &row.target, &row.machine);
        if works {
            self.gate.set_plan_quota(&plan);
            let words = ConfiguredLimit::of_plan(row.id, &row.machine.name, disks.iter(), &plan.limits);
            self.set_configured(words, &format!("plan {}", plan.name)).await?;
            let member = LimitedMigration { id: row.id, source: &row.source, target: &row.target };
            shares =
                self.limits.shares_of(&member, &disks, |disk| self.gate.nodes(&places, &plan.name, disk));
        }
        Ok(Arc::new(Context::new(ContextParts {
            id: row.id,
            plan,
            vm: row.vm,
            target_name: row.target_name,
            machine: row.machine,
            store: self.store.clone(),
            source,
            target,
            engine: self.engine.clone(),
            admissions: Admissions::new(Arc::clone(&self.gate), places),
            shares,
            limits: Arc::clone(&self.limits),
            groups: Arc::clone(&self.groups),
            endpoint_names: (row.source, row.target),
            live: StatusPublisher::new(view, self.changes.clone()),
            state: row.state,
            cutover: row.cutover,
        })))
    }

    /// The present state for the metrics.
    pub fn present(self: &Arc<Self>) -> Present {
        let manager = Arc::clone(self);
        Arc::new(move || {
            let manager = Arc::clone(&manager);
            Box::pin(async move {
                let finished = manager.store.count_finished().await.unwrap_or_else(|error| {
                    tracing::warn!(%error, "cannot count finished migrations");
                    Vec::new()
                });
                let sources_run = manager.store.sources_that_run().await.unwrap_or_else(|error| {
                    tracing::warn!(%error, "sources that run after their cutover are not counted");
                    Vec::new()
                });
                let (at, handles) = (clock::now(), manager.handles());
                let (windows, promises) = windows::views(handles.iter().map(|each| &*each.context), at);
                CurrentFigures {
                    at,
                    views: {
                        let views = handles.iter().map(|handle| handle.context.live.view());
                        views.chain(manager.all_unreadable().iter().map(Unreadable::view)).collect()
                    },
                    finished,
                    sources_run,
                    quotas: manager.gate.views(),
                    windows,
                    promises,
                    overdue: handles.iter().filter_map(overdue::view).collect(),
                    commits: manager.store.commits(),
                }
            })
        })
    }

    /// Waits until every driver has ended after the shutdown token was cancelled.
    pub async fn finish(&self) {
        self.owners.close();
        self.owners.wait().await;
    }

    /// Drivers that have not ended yet.
    pub fn late(&self) -> usize {
        self.owners.len()
    }

    /// The configured source of this name.
    pub(super) fn source(&self, name: &str) -> Result<&Arc<dyn Source>, ControlError> {
        Ok(&Self::find(&self.endpoints.sources, "source", name)?.handle)
    }

    /// The configured target of this name.
    pub(super) fn target(&self, name: &str) -> Result<&Arc<dyn Target>, ControlError> {
        Ok(&Self::find(&self.endpoints.targets, "target", name)?.handle)
    }

    /// The configuration of a source.
    pub(super) fn source_endpoint(&self, name: &str) -> Result<&EndpointInfo, ControlError> {
        Ok(&Self::find(&self.endpoints.sources, "source", name)?.endpoint)
    }

    /// The configuration of a target.
    pub(super) fn target_endpoint(&self, name: &str) -> Result<&EndpointInfo, ControlError> {
        Ok(&Self::find(&self.endpoints.targets, "target", name)?.endpoint)
    }

    fn find<'a, E: ?Sized>(
        among: &'a BTreeMap<String, OpenEndpoint<E>>,
        what: &str,
        name: &str,
    ) -> Result<&'a OpenEndpoint<E>, ControlError> {
        among.get(name).ok_or_else(|| {
            let known: Vec<_> = among.keys().map(String::as_str).collect();
            let message = format!(
                "{what} {name:?} is not in the daemon's configuration, which has {}: add it there and restart, or \
                 correct the name",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            );
            ControlError::new(ControlErrorKind::NotFound, message)
        })
    }

    pub(super) fn handles(&self) -> Vec<DriverHandle> {
        lock(&self.handles).values().cloned().collect()
    }

    /// The migration's handle, if it has a driver.
    pub(super) fn handle(&self, id: MigrationId) -> Option<DriverHandle> {
        lock(&self.handles).get(&id).cloned()
    }
}

fn lock(handles: &Handles) -> std::sync::MutexGuard<'_, BTreeMap<MigrationId, DriverHandle>> {
    handles.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a migration from memory when its driver has ended, unless it has a new driver already.
fn forget(handles: &Weak<Mutex<BTreeMap<MigrationId, DriverHandle>>>, context: &Arc<Context>) {
    let Some(handles) = handles.upgrade() else { return };
    let mut handles = lock(&handles);
    if handles.get(&context.id).is_some_and(|handle| Arc::ptr_eq(&handle.context, context)) {
        handles.remove(&context.id);
    }
}

/// Deletes ledgers of cancelled migrations that remain from older versions or from an interrupted deletion.
async fn forget_needless(store: Store) {
    match store.with_needless_ledgers().await {
        Ok(ids) => {
            for id in ids {
                forget_ledgers(&store, id).await;
            }
        }
        Err(error) => tracing::warn!(%error, "ledgers that are no longer needed stay until the next start"),
    }
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("migrations", &lock(&self.handles).len()).finish_non_exhaustive()
    }
}

/// Whether a pass got its end after the daemon that ran it had ended.
pub(super) fn was_cut(pass: &PassView) -> bool {
    pass.error == Some(PassFailure::CutOff)
}

/// The error of a state that was not read: temporary, or because it is invalid.
pub(super) fn unread(error: impl Into<WorkError>) -> ControlError {
    let error = error.into();
    match error.remedy {
        Remedy::Wait | Remedy::Retry => ControlError::new(ControlErrorKind::Unavailable, error.to_string()),
        Remedy::Operator | Remedy::NextWindow | Remedy::NeedsDecision => internal(error),
    }
}

/// An internal error of the daemon, with its whole cause.
pub(super) fn internal(error: impl std::fmt::Display) -> ControlError {
    ControlError::new(ControlErrorKind::Internal, error.to_string())
}
