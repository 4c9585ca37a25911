//! All migrations of the daemon: starts their owners, finds them by name, passes requests on.
//!
//! Rule: it owns no migration's state. What it answers comes from views and the store; what is asked goes to the owner.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{broadcast, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use warmd_cbt::limit::Limit;

use super::{
    command::Command,
    context::{Context, Engine, Parts},
    control::{ControlError, ControlErrorKind, Endpoint},
    driver::Driver,
    limits::{Member, Registry, Word},
    live::Live,
    restore,
};
use crate::{
    clock,
    metrics::{Now, Present},
    model::{id::MigrationId, plan::Plan, view::MigrationView},
    sources::{self, Source},
    store::{MigrationRow, Store},
    targets::{self, Target},
};

/// Requests that may wait for one migration's owner.
const INBOX: usize = 16;
/// What is said of a pass that has no end of its own.
const CUT_PASS: &str = "it was cut off; what it had drained stays drained";
/// Changes that a slow watcher may lie behind before it misses some.
const CHANGES: usize = 1024;

/// A configured endpoint, opened.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "endpoints have no debug form")]
pub struct Opened<E: ?Sized> {
    pub endpoint: Endpoint,
    /// As configured.
    pub limit: Limit,
    pub handle: Arc<E>,
}

/// The daemon's endpoints, by name.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "endpoints have no debug form")]
pub struct Endpoints {
    pub sources: BTreeMap<String, Opened<dyn Source>>,
    pub targets: BTreeMap<String, Opened<dyn Target>>,
}

/// A migration that lives in this daemon.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) context: Arc<Context>,
    pub(super) inbox: mpsc::Sender<Command>,
}

/// All migrations.
pub struct Manager {
    pub(super) store: Store,
    pub(super) endpoints: Endpoints,
    engine: Engine,
    pub(super) changes: broadcast::Sender<MigrationView>,
    handles: Mutex<BTreeMap<MigrationId, Handle>>,
    /// Held while a plan is applied, so that two at once do not start the same VM twice.
    pub(super) applying: tokio::sync::Mutex<()>,
    pub(super) limits: Registry,
    pub(super) changing_limits: tokio::sync::Mutex<()>,
    shutdown: CancellationToken,
    owners: TaskTracker,
}

impl Manager {
    /// Takes up every migration of the store where it stood.
    pub async fn start(
        store: Store,
        endpoints: Endpoints,
        engine: Engine,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, ControlError> {
        let saved = store.limits().await.map_err(internal)?;
        let limits = Registry::new(saved.limits);
        let global = engine.limit;
        let manager = Arc::new(Self {
            store,
            endpoints,
            engine,
            changes: broadcast::Sender::new(CHANGES),
            handles: Mutex::default(),
            applying: tokio::sync::Mutex::default(),
            limits,
            changing_limits: tokio::sync::Mutex::default(),
            shutdown,
            owners: TaskTracker::new(),
        });
        manager.tell_unreadable(&saved.unreadable).await;
        manager.say_configured(global).await?;
        for row in manager.store.migrations().await.map_err(internal)? {
            // The plan of a finished migration may have been deleted; nothing of it is needed any more.
            let stored = manager.store.plan(&row.plan).await.map_err(internal)?;
            let plan =
                stored.unwrap_or_else(|| Plan::stub(&row.plan, &row.source, &row.target, &row.vm_name));
            let id = row.id;
            if let Err(error) = manager.take_up(row, plan).await {
                // One damaged ledger must not keep the others' sources off in the middle of their cutovers.
                tracing::error!(migration = %id, %error, "not taken up: the state holds it, and nothing drives it");
            }
        }
        Ok(manager)
    }

    /// Starts the owner of a migration that the store holds.
    pub(super) async fn take_up(&self, row: MigrationRow, plan: Plan) -> Result<(), ControlError> {
        // The endpoints are those that the migration began with, whatever the plan says now.
        let source: Arc<dyn Source> = match self.source(&row.source) {
            Ok(source) => Arc::clone(source),
            Err(_) => Arc::new(sources::absent::Absent { name: row.source.clone() }),
        };
        let target: Arc<dyn Target> = match self.target(&row.target) {
            Ok(target) => Arc::clone(target),
            Err(_) => Arc::new(targets::absent::Absent { name: row.target.clone() }),
        };
        if let Err(error) = self.store.end_cut_passes(row.id, CUT_PASS).await {
            // It only informs; a source that is off must not wait for it.
            tracing::error!(migration = %row.id, %error, "the end of a pass that was cut off is not stored");
        }
        let view = restore::view(&self.store, &row).await.map_err(internal)?;
        let disks: Vec<_> = row.machine.disks.iter().map(|disk| disk.key.clone()).collect();
        let mut shares = BTreeMap::new();
        if !row.state.is_final() {
            let words = Word::of_plan(row.id, &row.machine.name, disks.iter(), &plan.limits);
            self.say(words, &format!("plan {}", plan.name)).await?;
            let member = Member { id: row.id, source: &row.source, target: &row.target };
            shares = self.limits.shares_of(&member, &disks);
        }
        let context = Arc::new(Context::new(Parts {
            id: row.id,
            plan,
            vm: row.vm,
            target_name: row.target_name,
            machine: row.machine,
            store: self.store.clone(),
            source,
            target,
            engine: self.engine.clone(),
            shares,
            live: Live::new(view, self.changes.clone()),
            cutover: row.cutover,
        }));
        let (inbox, requests) = mpsc::channel(INBOX);
        let driver = Driver::new(Arc::clone(&context), row.state, requests, self.shutdown.clone());
        self.owners.spawn(driver.run());
        self.lock().insert(row.id, Handle { context, inbox });
        Ok(())
    }

    /// What the metrics tell of the moment in which they are asked for.
    pub fn present(self: &Arc<Self>) -> Present {
        let manager = Arc::clone(self);
        Arc::new(move || Now {
            at: clock::now(),
            views: manager.handles().iter().map(|handle| handle.context.live.view()).collect(),
            commits: manager.store.commits(),
        })
    }

    /// Waits until every owner has come to rest after the shutdown token was cancelled.
    pub async fn finish(&self) {
        self.owners.close();
        self.owners.wait().await;
    }

    /// Owners that have not come to rest yet.
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

    /// What the configuration says of a source.
    pub(super) fn source_endpoint(&self, name: &str) -> Result<&Endpoint, ControlError> {
        Ok(&Self::find(&self.endpoints.sources, "source", name)?.endpoint)
    }

    /// What the configuration says of a target.
    pub(super) fn target_endpoint(&self, name: &str) -> Result<&Endpoint, ControlError> {
        Ok(&Self::find(&self.endpoints.targets, "target", name)?.endpoint)
    }

    fn find<'a, E: ?Sized>(
        among: &'a BTreeMap<String, Opened<E>>,
        what: &str,
        name: &str,
    ) -> Result<&'a Opened<E>, ControlError> {
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

    pub(super) fn handles(&self) -> Vec<Handle> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn handle(&self, id: MigrationId) -> Result<Handle, ControlError> {
        self.lock().get(&id).cloned().ok_or_else(|| {
            ControlError::new(
                ControlErrorKind::NotFound,
                format!("there is no migration {id}: see `migration list`"),
            )
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<MigrationId, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("migrations", &self.lock().len()).finish_non_exhaustive()
    }
}

/// A failure of the daemon itself, with its whole cause.
pub(super) fn internal(error: impl std::fmt::Display) -> ControlError {
    ControlError::new(ControlErrorKind::Internal, error.to_string())
}
