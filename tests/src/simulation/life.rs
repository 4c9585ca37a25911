//! One life of the daemon: from its start on the durable state to its death, its shutdown or the end of the
//! simulation.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;
use warmd_cbt::{buffer::BufferPool, limit::Limit};
use warmd_core::{clock, hook_service::NoHookServices, images::NoImages, signed_report::NoReportKey};
use warmd_metrics::Metrics;
use warmd_migration::{context::Engine, manager::Manager};
use warmd_store::{Interceptor, Store};

use super::{
    chance::Chance, durable::Durable, people, scenario::Scenario, source::SimulatedSource,
    target::SimulatedTarget, world::SimulationWorld,
};
use crate::endpoints::endpoints;

/// How long drivers may take to stop after the daemon was asked to end.
const REST: Duration = Duration::from_mins(10);

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Died,
    ShutDown,
    /// Everything is done.
    Over,
}

/// The parts that outlive the daemon.
#[derive(Debug)]
pub(super) struct SimulatedLife {
    pub(super) scenario: Scenario,
    pub(super) world: Arc<SimulationWorld>,
    pub(super) durable: Arc<Mutex<Durable>>,
    /// When faults end.
    pub(super) calm_from: DateTime<Utc>,
    /// Decides what operators do.
    pub(super) people: Mutex<Chance>,
    /// Decides their requests for groups, and for later.
    pub(super) together: Mutex<Chance>,
    /// Decides which sources are started after all is done.
    pub(super) holding: Mutex<Chance>,
    /// Decides when the wall clock is set, and by how much.
    pub(super) clocks: Mutex<Chance>,
}

/// Runs one life on its own clock that begins at `now`, and returns the time at its end.
pub(super) fn run(stage: &SimulatedLife, now: DateTime<Utc>) -> (End, DateTime<Utc>) {
    on_a_clock(now, async { (live(stage).await, clock::steady()) })
}

/// The events while there is no daemon, at the moment `now`.
pub(super) fn between(now: DateTime<Utc>, happens: impl FnOnce()) {
    on_a_clock(now, async { happens() });
}

fn on_a_clock<T>(now: DateTime<Utc>, what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without threads and sockets");
    let ended = runtime.block_on(async {
        clock::set(Some(now));
        what.await
    });
    // All tasks of the daemon end in the middle of their work.
    drop(runtime);
    clock::set(None);
    ended
}

async fn live(stage: &SimulatedLife) -> End {
    let (world, durable) = (&stage.world, Arc::clone(&stage.durable));
    let committed = Arc::clone(world);
    let database = durable.lock().unwrap_or_else(PoisonError::into_inner).name.clone();
    let interceptor = Interceptor::default().with_commit(move |commit| {
        durable.lock().unwrap_or_else(PoisonError::into_inner).commit(&committed, commit)
    });
    let store = Store::in_memory(&database, interceptor).expect("the database in memory opens");
    let shutdown = CancellationToken::new();
    let before = world.truth().counts.of("store faults");
    let endpoints =
        endpoints(Arc::new(SimulatedSource(Arc::clone(world))), Arc::new(SimulatedTarget(Arc::clone(world))));
    let started = tokio::select! {
        biased;
        () = stage.world.died.notified() => return End::Died,
        started = Manager::start(store.clone(), endpoints, engine(stage), shutdown.clone()) => started,
    };
    let Ok(manager) = started.inspect_err(|error| stage.world.truth().not_started(before, error)) else {
        tokio::time::sleep(Duration::from_secs(1)).await;
        return End::ShutDown;
    };
    let end = tokio::select! {
        biased;
        () = stage.world.died.notified() => return End::Died,
        end = people::act(stage, &manager) => end,
    };
    stage.world.truth().note(format_args!("==== the daemon ends: {end:?}"));
    shutdown.cancel();
    tokio::select! {
        biased;
        () = stage.world.died.notified() => return End::Died,
        rested = tokio::time::timeout(REST, manager.finish()) => if rested.is_err() {
            let late = manager.late();
            stage.world.truth().violated(format!("{late} owners do not come to rest"));
        }
    }
    drop((manager, store));
    // The writer thread ends without a request.
    tokio::time::sleep(Duration::from_millis(1)).await;
    end
}

fn engine(stage: &SimulatedLife) -> Engine {
    Engine {
        pool: BufferPool::new(stage.scenario.buffers, stage.scenario.settings.chunk),
        settings: stage.scenario.settings,
        limit: Limit::default(),
        audit: stage.scenario.audit,
        images: Arc::new(NoImages),
        reports: Arc::new(NoReportKey),
        hooks: Arc::new(NoHookServices),
        metrics: Arc::new(Metrics::default()),
    }
}
