//! A daemon without its API that moves a fleet, with its state in memory, for [`super::on_a_clock`].

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use warmd_cbt::{buffer::BufferPool, limit::Limit, transfer::TransferSettings};
use warmd_core::{
    control::{Control, EndpointInfo},
    hook_service::NoHookServices,
    images::NoImages,
    model::{
        plan::Plan,
        quota::ConfiguredQuotas,
        request::{Request, RequestOutcome},
        view::MigrationView,
    },
    signed_report::NoReportKey,
};
use warmd_metrics::Metrics;
use warmd_migration::{
    audit::AuditAmount,
    context::Engine,
    manager::{Endpoints, Manager, OpenEndpoint},
};
use warmd_store::{Interceptor, Store};

use super::{Fleet, FleetSource, FleetTarget};

/// The timeout of waits, on the virtual clock.
const DEADLINE: Duration = Duration::from_hours(48);

/// The daemon over a fleet.
#[derive(Debug)]
pub struct FleetRig {
    pub fleet: Fleet,
    quotas: ConfiguredQuotas,
    database: String,
    /// Keeps the database in memory alive.
    connection: rusqlite::Connection,
    shutdown: CancellationToken,
    pub manager: Arc<Manager>,
    pub metrics: Metrics,
}

impl FleetRig {
    /// Starts it with these quotas, without a plan. The sources are those that the VMs name, the target is
    /// `t`.
    pub async fn start(fleet: Fleet, quotas: ConfiguredQuotas) -> Self {
        static DATABASES: AtomicU64 = AtomicU64::new(0);
        let database = format!("file:/fleet-{}?vfs=memdb", DATABASES.fetch_add(1, Relaxed));
        let connection = rusqlite::Connection::open(&database).expect("a database in memory");
        let (manager, shutdown, metrics) = open(&database, &fleet, &quotas).await;
        Self { fleet, quotas, database, connection, shutdown, manager, metrics }
    }

    /// Applies the plan, which must be valid.
    pub async fn apply(&self, plan: Plan) {
        self.manager.apply_plan(plan, "test").await.expect("the plan is good");
    }

    /// The migration of a VM.
    pub async fn view(&self, vm: &str) -> MigrationView {
        self.manager.migration(vm).await.expect("it has one migration")
    }

    /// Sends the request.
    pub async fn request(&self, vm: &str, request: Request) -> RequestOutcome {
        let id = self.view(vm).await.id;
        self.manager.request(id, request, "test").await.expect("the owner answers")
    }

    /// Waits until the migrations match.
    pub async fn until(&self, what: &str, is_so: impl Fn(&[MigrationView]) -> bool) {
        let begun = tokio::time::Instant::now();
        loop {
            let views = self.manager.migrations(None).await.expect("they are there");
            if is_so(&views) {
                return;
            }
            if begun.elapsed() > DEADLINE {
                let told: Vec<_> = views
                    .iter()
                    .map(|view| format!("{} {} {:?}", view.vm_name, view.state, view.next_pass_why))
                    .collect();
                panic!("{what} did not come within {DEADLINE:?}:\n{}", told.join("\n"));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Checks that no quota is in use and no pass waits.
    pub fn assert_all_given_back(&self) {
        for view in self.manager.gate.views() {
            let used = (view.passes, view.snapshots, view.disks, view.waiting);
            assert_eq!(used, (0, 0, 0, 0), "{}", view.scope);
        }
    }

    /// Runs SQL on the state without the daemon.
    pub fn garble(&self, sql: &str) {
        self.connection.execute_batch(sql).expect("the test's own SQL");
    }

    /// Stops the daemon.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.manager.finish().await;
    }

    /// Starts it again on the same state.
    pub async fn go_on(&mut self) {
        (self.manager, self.shutdown, self.metrics) = open(&self.database, &self.fleet, &self.quotas).await;
    }
}

async fn open(
    database: &str,
    fleet: &Fleet,
    quotas: &ConfiguredQuotas,
) -> (Arc<Manager>, CancellationToken, Metrics) {
    let store = Store::in_memory(database, Interceptor::default()).expect("the store opens");
    let (shutdown, metrics) = (CancellationToken::new(), Metrics::default());
    let settings = TransferSettings { chunk: 1 << 16, ..TransferSettings::default() };
    let engine = Engine {
        pool: BufferPool::new(64, settings.chunk),
        settings,
        limit: Limit::default(),
        audit: AuditAmount::default(),
        images: Arc::new(NoImages),
        reports: Arc::new(NoReportKey),
        hooks: Arc::new(NoHookServices),
        metrics: Arc::new(metrics.clone()),
    };
    let endpoint = |name: &str| EndpointInfo {
        name: name.to_owned(),
        kind: "simulated".to_owned(),
        address: String::new(),
    };
    let mut endpoints = Endpoints { quotas: quotas.clone(), ..Endpoints::default() };
    let limit = Limit::default();
    let names: BTreeSet<String> = fleet.sources();
    for name in names {
        let handle = Arc::new(FleetSource(fleet.clone(), name.clone())) as _;
        endpoints.sources.insert(name.clone(), OpenEndpoint { endpoint: endpoint(&name), limit, handle });
    }
    let handle = Arc::new(FleetTarget(fleet.clone())) as _;
    endpoints.targets.insert("t".to_owned(), OpenEndpoint { endpoint: endpoint("t"), limit, handle });
    let manager = Manager::start(store, endpoints, engine, shutdown.clone()).await.expect("it starts");
    (manager, shutdown, metrics)
}
