//! The daemon's migrations over simulated endpoints, with a real store in its own directory.

use std::{
    path::PathBuf,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use warmd_cbt::{buffer::BufferPool, limit::Limit, transfer::TransferSettings};
use warmd_core::{
    clock,
    control::Control,
    model::{
        plan::{Plan, VerifyMode},
        request::{Request, RequestOutcome},
        state::State,
        view::MigrationView,
    },
};
use warmd_daemon::{hook_service::GrpcHooks, images::DiskImages, report_signer::ReportSigner};
use warmd_metrics::Metrics;
use warmd_migration::{audit::AuditAmount, context::Engine, manager::Manager};
use warmd_report::signing::ReportKey;
use warmd_store::{Interceptor, Store};

use super::{
    source::{SimulatedSource, VM},
    target::SimulatedTarget,
    world::SimulatedWorld,
};
use crate::endpoints::endpoints;

/// The timeout of waits: longer than any deadline of the daemon that a test waits for. `RIG_DEADLINE`, in
/// seconds, replaces it where waits in vain are expected: with a bug of `tests/mutants`.
static DEADLINE: LazyLock<Duration> = LazyLock::new(|| {
    let set = std::env::var("RIG_DEADLINE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(set.unwrap_or(90))
});

/// Where the daemon's state is.
#[derive(Debug)]
enum StateLocation {
    Folder(TempDir),
    /// In memory, for as long as this connection is open.
    Memory(String, #[expect(dead_code, reason = "it keeps the database in being")] rusqlite::Connection),
}

/// A daemon without its API.
#[derive(Debug)]
pub struct Rig {
    pub world: SimulatedWorld,
    place: StateLocation,
    store: Store,
    shutdown: CancellationToken,
    pub manager: Arc<Manager>,
    /// The metrics of the present daemon.
    pub metrics: Metrics,
}

impl Rig {
    /// Starts it over `world`, without a plan.
    pub async fn start(world: SimulatedWorld) -> Self {
        Self::start_in(StateLocation::Folder(TempDir::new().expect("a temporary folder")), world).await
    }

    /// The same with all of its state in memory and without threads, for [`on_a_clock`].
    pub async fn start_on_a_clock(world: SimulatedWorld) -> Self {
        static DATABASES: AtomicU64 = AtomicU64::new(0);
        let name = format!("file:/rig-{}?vfs=memdb", DATABASES.fetch_add(1, Relaxed));
        let connection = rusqlite::Connection::open(&name).expect("a database in memory");
        Self::start_in(StateLocation::Memory(name, connection), world).await
    }

    async fn start_in(place: StateLocation, world: SimulatedWorld) -> Self {
        let (store, manager, shutdown, metrics) = open(&place, &world).await;
        Self { world, place, store, shutdown, manager, metrics }
    }

    /// A plan that only copies on request, with short deadlines.
    pub fn plan(verify: VerifyMode) -> Plan {
        let text = format!(
            "name = \"plan\"\nsource = \"s\"\ntarget = \"t\"\nvms = [\"{VM}\"]\n[schedule]\ninterval = \"1h\"\n\
             [cutover]\ngraceful_shutdown = \"1s\"\ndelta_deadline = \"2s\"\nverify_deadline = \"2s\"\n\
             create_deadline = \"2s\"\nmin_uptime = \"50ms\"\n"
        );
        let mut plan: Plan = toml::from_str(&text).expect("the rig's own plan");
        plan.verify.mode = verify;
        plan
    }

    /// Applies the plan and waits for the full pass.
    pub async fn seed(&self, plan: Plan) {
        self.manager_applies(plan).await;
        self.until("synced", |view| view.state == State::Synced).await;
    }

    /// Applies the plan, which must be valid.
    pub async fn manager_applies(&self, plan: Plan) {
        self.manager.apply_plan(plan, "test").await.expect("the plan is good");
    }

    /// The daemon's state.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The one migration.
    pub async fn view(&self) -> MigrationView {
        self.manager.migration(VM).await.expect("there is one migration")
    }

    /// Sends the request, which must be accepted.
    pub async fn ask(&self, request: Request) {
        assert_eq!(self.request(request.clone()).await, RequestOutcome::Accepted, "{request:?}");
    }

    /// Sends the request.
    pub async fn request(&self, request: Request) -> RequestOutcome {
        let id = self.view().await.id;
        self.manager.request(id, request, "test").await.expect("the owner answers")
    }

    /// Copies a delta now and waits for its end.
    pub async fn sync(&self) {
        let before = self.passes().await;
        self.ask(Request::Sync).await;
        self.until("a further pass", |view| {
            view.state == State::Synced && view.pass.as_ref().is_some_and(|pass| pass.number > before)
        })
        .await;
    }

    /// Copies a delta, and returns for each disk the audited bytes and whether it has a tracking fault.
    pub async fn audit(&self) -> Vec<(u64, bool)> {
        self.sync().await;
        let view = self.view().await;
        let audits = view.pass.expect("a pass has ended").disks;
        let audits = audits.iter().map(|disk| disk.audit.as_ref().map_or(0, |audit| audit.checked));
        audits.zip(view.disks.iter().map(|disk| disk.tracking_fault.is_some())).collect()
    }

    /// Passes so far.
    pub async fn passes(&self) -> u32 {
        self.view().await.pass.map_or(0, |pass| pass.number)
    }

    /// Cuts over and waits until the migration is done, undone or failed.
    pub async fn cutover(&self) -> MigrationView {
        self.ask(Request::cutover()).await;
        self.until("the end of the cutover", |view| {
            matches!(view.state, State::Done | State::Synced | State::Failed { .. })
        })
        .await
    }

    /// Waits until the view matches.
    pub async fn until(&self, what: &str, is_so: impl Fn(&MigrationView) -> bool) -> MigrationView {
        let begun = Instant::now();
        loop {
            let view = self.view().await;
            if is_so(&view) {
                return view;
            }
            if begun.elapsed() > *DEADLINE {
                let journal = self.journal().await;
                panic!("{what} did not come within {:?}; it is {}:\n{journal}", *DEADLINE, view.state);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The journal in lines.
    pub async fn journal(&self) -> String {
        let events = self.manager.events(None, None, 1000).await.expect("the journal is read").lines;
        let lines: Vec<_> =
            events.iter().map(|event| format!("{} {}: {}", event.by, event.kind, event.text)).collect();
        lines.join("\n")
    }

    /// The database with all of its state.
    pub fn state_file(&self) -> PathBuf {
        self.store.file().to_owned()
    }

    /// Stops the daemon and starts it again on the same state.
    pub async fn restart(&mut self) {
        self.restart_after(|_| {}).await;
    }

    /// Stops the daemon, changes the world, and starts the daemon again.
    pub async fn restart_after(&mut self, meanwhile: impl FnOnce(&SimulatedWorld)) {
        self.stop().await;
        meanwhile(&self.world);
        self.go_on().await;
    }

    /// Stops the daemon.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.manager.finish().await;
        if let StateLocation::Folder(_) = self.place {
            self.store.close().await.expect("the store closes");
        }
    }

    /// Starts it again on the same state.
    pub async fn go_on(&mut self) {
        (self.store, self.manager, self.shutdown, self.metrics) = open(&self.place, &self.world).await;
    }
}

/// Runs a test at `now` on a clock that stops while there is work and jumps to the next timer: for
/// [`Rig::start_on_a_clock`].
pub fn on_a_clock<T>(now: &str, test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without threads and sockets");
    let ended = runtime.block_on(async {
        clock::set(Some(now.parse().expect("the test's own time")));
        test.await
    });
    clock::set(None);
    ended
}

async fn open(
    place: &StateLocation,
    world: &SimulatedWorld,
) -> (Store, Arc<Manager>, CancellationToken, Metrics) {
    let (commits, reads) = (world.faults.clone(), world.faults.clone());
    let failed = |code| Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
    let interceptor = Interceptor::default().with_reads(move |what| {
        if reads.strikes_read(what) { failed(rusqlite::ffi::SQLITE_IOERR_READ) } else { Ok(()) }
    });
    let store = match place {
        StateLocation::Folder(dir) => Store::open_intercepted(dir.path(), interceptor),
        StateLocation::Memory(name, _) => Store::in_memory(
            name,
            interceptor.with_commit(move |commit| {
                if commits.holds("store.commit") { failed(rusqlite::ffi::SQLITE_FULL) } else { commit() }
            }),
        ),
    };
    let store = store.expect("the store opens");
    let shutdown = CancellationToken::new();
    let settings = TransferSettings::default();
    let metrics = Metrics::default();
    let engine = Engine {
        pool: BufferPool::new(8, 1 << 20),
        settings,
        limit: Limit::default(),
        audit: AuditAmount::default(),
        images: Arc::new(DiskImages),
        reports: Arc::new(ReportSigner(ReportKey::from_secret(&[7; 32]))),
        hooks: Arc::new(GrpcHooks),
        metrics: Arc::new(metrics.clone()),
    };
    let endpoints =
        endpoints(Arc::new(SimulatedSource(world.clone())), Arc::new(SimulatedTarget(world.clone())));
    let manager =
        Manager::start(store.clone(), endpoints, engine, shutdown.clone()).await.expect("it starts");
    (store, manager, shutdown, metrics)
}
