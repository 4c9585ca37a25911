//! The daemon as a whole: settings, state, migrations, API, and how they end together.
//!
//! Rule: bad settings stop before anything is opened, and the state is opened before any port is.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use warmd_cbt::buffer::BufferPool;
use warmd_core::{clock, control::EndpointInfo};
use warmd_metrics::{Metrics, MetricsServer};
use warmd_migration::{
    audit::AuditAmount,
    context::Engine,
    manager::{Endpoints, Manager, OpenEndpoint},
};
use warmd_store::{Retention, Store};

use crate::{
    config::{self, Config},
    hook_service::GrpcHooks,
    host,
    images::DiskImages,
    report_signer::{self, ReportSigner},
    systemd,
};

/// How long passes get to commit what they have when the daemon is asked to stop.
const DRAIN: Duration = Duration::from_secs(90);

/// The same when the daemon must end: paused work waits for the next start.
const DRAIN_FATAL: Duration = Duration::from_secs(15);

/// How often a deleted reserve is created again, if there is room.
const RESERVE_EVERY: Duration = Duration::from_mins(1);

/// After how many of these the state is thinned out.
const THIN_EVERY: u32 = 10;

/// What closing the state and threads that hang may take after that.
const CLOSE: Duration = Duration::from_secs(20);

/// Runs the daemon with this configuration until a stop is requested.
pub async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let endpoints = open_endpoints(&config)?;
    serve_over(config, endpoints, shutdown).await
}

/// The same over endpoints of any kind that are already open.
pub async fn serve_over(
    config: Config,
    endpoints: Endpoints,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (store, report_key) = report_signer::open_state(config.state_dir.clone()).await?;
    let host = host::open_host(&config, store.clone());
    endpoints.targets.values().for_each(|target| target.handle.on(&host));
    hold_reserve(&store, config.state.reserve).await;
    let bound = warmd_api::Bound::bind(config.listen.clone()).await?;
    if let Some(address) = bound.tcp_address() {
        tracing::info!(%address, "API on TCP");
    }
    let scrapes = match config.metrics {
        Some(address) => Some(MetricsServer::bind(address).await?),
        None => None,
    };
    let settings = config.engine.transfer();
    // Some buffers are for final passes alone: their VMs are off and must not wait.
    let pool = BufferPool::with_reserve(settings.buffers, settings.buffers / 8, settings.chunk);
    let metrics = Metrics::default();
    let audit = AuditAmount { amount: config.engine.audit, at_most: config.engine.audit_max };
    let engine = Engine {
        pool,
        settings,
        limit: config.limits.into(),
        audit,
        images: Arc::new(DiskImages),
        reports: Arc::new(ReportSigner(report_key)),
        hooks: Arc::new(GrpcHooks),
        metrics: Arc::new(metrics.clone()),
    };
    let manager = Manager::start(store.clone(), endpoints, engine, shutdown.child_token()).await?;
    if let Some(scrapes) = scrapes {
        tracing::info!(address = %scrapes.address(), "metrics");
        tokio::spawn(scrapes.serve(metrics, manager.present(), shutdown.clone()));
    }
    let watched = {
        let (manager, shutdown) = (Arc::clone(&manager), shutdown.clone());
        tokio::spawn(async move {
            let why = manager.fatal().await;
            shutdown.cancel();
            why
        })
    };
    let housekeeping = {
        let (store, keep, shutdown) = (store.clone(), config.state.clone(), shutdown.clone());
        async move {
            shutdown.run_until_cancelled(keep_house(&store, &keep)).await;
        }
    };
    // Without thinning the state grows until nothing can be saved; an end of either task is reported.
    manager.supervise("the housekeeping of the state", housekeeping);
    manager.supervise("the poll of the inventories", Arc::clone(&manager).poll_inventories());
    let alive = tokio::spawn(systemd::live(store.clone()));
    systemd::ready();
    tracing::info!(state_dir = %config.state_dir.display(), "ready");
    let served = bound.serve(Arc::clone(&manager) as _, shutdown.clone()).await;

    // Also when the API failed: no operator could control it any more.
    shutdown.cancel();
    systemd::stopping(DRAIN + CLOSE);
    let drain = if watched.is_finished() { DRAIN_FATAL } else { DRAIN };
    if tokio::time::timeout(drain, manager.finish()).await.is_err() {
        tracing::error!(
            late = manager.late(),
            "migrations did not come to rest in time; they go on at the next start"
        );
    }
    alive.abort();
    store.close().await?;
    if watched.is_finished() {
        // A source VM may be off: the next start of the daemon finds the rest of the work in the state.
        anyhow::bail!(
            "{}: start it again (the service manager does), it goes on where it was",
            watched.await?
        );
    }
    watched.abort();
    tracing::info!("stopped");
    Ok(served?)
}

/// Thins the state and keeps its reserve; never ends.
async fn keep_house(store: &Store, keep: &Retention) {
    for round in (0..THIN_EVERY).cycle() {
        tokio::time::sleep(RESERVE_EVERY).await;
        hold_reserve(store, keep.reserve).await;
        if round != 0 {
            continue;
        }
        if let Err(error) = store.thin(keep, clock::now()).await {
            tracing::warn!(%error, "the state is not thinned out now");
        }
    }
}

/// The reserve for saves on a full file system.
async fn hold_reserve(store: &Store, bytes: u64) {
    let store = store.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || store.hold_reserve(bytes)).await {
        tracing::error!(%error, "no room is kept in reserve");
    }
}

fn open_endpoints(config: &Config) -> anyhow::Result<Endpoints> {
    let mut endpoints = Endpoints { quotas: config.quotas.clone(), ..Endpoints::default() };
    for (name, config::EndpointConfig { settings, limits }) in &config.sources {
        let handle = settings.open(name).with_context(|| format!("source {name:?} cannot be set up"))?;
        endpoints.sources.insert(
            name.clone(),
            OpenEndpoint {
                endpoint: endpoint(name, settings.kind(), settings.address()),
                limit: (*limits).into(),
                handle,
            },
        );
    }
    for (name, config::EndpointConfig { settings, limits }) in &config.targets {
        let handle = settings.open(name).with_context(|| format!("target {name:?} cannot be set up"))?;
        endpoints.targets.insert(
            name.clone(),
            OpenEndpoint {
                endpoint: endpoint(name, settings.kind(), settings.address()),
                limit: (*limits).into(),
                handle,
            },
        );
    }
    Ok(endpoints)
}

fn endpoint(name: &str, kind: impl Into<String>, address: impl Into<String>) -> EndpointInfo {
    EndpointInfo { name: name.to_owned(), kind: kind.into(), address: address.into() }
}
