//! Figures for Prometheus, in the OpenMetrics text form.
//!
//! Rule: they only inform, are gathered when a client asks, and cost nothing else: passes are measured by the
//! engine anyway. Counters never go back within a process's life, and every label is bounded by what is under
//! way: plans, VMs, disks; those of a finished migration are gone an hour later.
//!
//! ```text
//! pass's meters ─▶ registry (live+ended)┐
//! migrations' views ────────────────────┼─▶ exposition ─▶ GET /metrics, on a loopback address
//! store's commits, this process ────────┘
//! ```
//!
//! Knows the nouns of `core` and the engine's telemetry; not migrations at work, not the state.
#![forbid(unsafe_code)]

mod buckets;
mod exposition;
mod quotas;
mod registry;
mod server;
mod windows;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use prometheus_client::{encoding::text::encode, registry::Registry};
use warmd_cbt::{telemetry::HistogramCounts, transfer::PassProgress};
use warmd_core::model::{
    id::{DiskKey, MigrationId},
    quota::QuotaView,
    view::{MigrationView, PassKind},
};

use self::{exposition::Exposition, registry::PassRegistry};
pub use self::{
    registry::PassName,
    server::{MetricsError, MetricsServer},
    windows::{OverdueView, SloView, WindowView},
};

/// What the daemon has counted since it started. Clones share it.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<PassRegistry>>);

/// The disk whose change tracking was audited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditName {
    pub plan: String,
    pub vm: String,
    pub disk: DiskKey,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PassOutcome {
    /// The target equals the snapshot.
    Drained,
    /// Asked to stop.
    Stopped,
    Failed,
}

/// The other figures, at the time of the scrape.
#[derive(Clone, Debug)]
pub struct Now {
    pub at: DateTime<Utc>,
    /// Of those that are under way, and of some finished ones.
    pub views: Vec<MigrationView>,
    /// How many are finished, by plan and state.
    pub finished: Vec<(String, &'static str, u64)>,
    /// How many source VMs run beside their target VMs, as last seen, by plan.
    pub sources_run: Vec<(String, u64)>,
    /// What quotas allow, and what of it is in use.
    pub quotas: Vec<QuotaView>,
    /// Of the plans of those that are under way.
    pub windows: Vec<WindowView>,
    pub promises: Vec<SloView>,
    /// Of the VMs with an RPO.
    pub overdue: Vec<OverdueView>,
    /// How long the store's durable commits took.
    pub commits: HistogramCounts,
}

/// Gives the present figures for a scrape.
pub type Present = Arc<dyn Fn() -> BoxFuture<'static, Now> + Send + Sync>;

impl Metrics {
    /// A pass begins; it counts as failed if the account is dropped before its end is reported.
    pub fn begin_pass(&self, name: PassName, started: DateTime<Utc>) -> PassAccount {
        let number = self.registry().begin(name, started);
        PassAccount { metrics: self.clone(), number }
    }

    /// So many bytes of a disk were audited, and so many of them had changed without the source reporting it.
    pub fn audited(&self, name: AuditName, checked: u64, mismatched: u64) {
        self.registry().audited([name.plan, name.vm, name.disk.0], checked, mismatched);
    }

    /// A migration is finished: its figures are shown for a while, and then forgotten.
    pub fn finished(&self, id: MigrationId, plan: &str, vm: &str, at: DateTime<Utc>) {
        self.registry().finished(id, [plan.to_owned(), vm.to_owned()], at);
    }

    /// A finished migration is resumed.
    pub fn again(&self, id: MigrationId) {
        self.registry().again(id);
    }

    /// All of it as text.
    pub fn render(&self, now: &Now) -> Result<String, fmt::Error> {
        let exposition = Exposition::new(self.registry().picture(now), now);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(exposition));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }

    fn registry(&self) -> MutexGuard<'_, PassRegistry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// A pass that is counted.
#[derive(Debug)]
pub struct PassAccount {
    metrics: Metrics,
    number: u64,
}

impl PassAccount {
    /// The disks of the pass, which are read from now on.
    pub fn watch(&self, disks: impl IntoIterator<Item = (DiskKey, Arc<PassProgress>)>) {
        self.metrics.registry().watch(self.number, disks);
    }

    /// Says how it ended.
    pub fn end(self, outcome: PassOutcome) {
        self.metrics.registry().end(self.number, outcome);
    }
}

impl Drop for PassAccount {
    fn drop(&mut self) {
        self.metrics.registry().end(self.number, PassOutcome::Failed);
    }
}

fn kind_name(kind: PassKind) -> &'static str {
    match kind {
        PassKind::Full => "full",
        PassKind::Delta => "delta",
        PassKind::Final => "final",
    }
}

fn outcome_name(outcome: PassOutcome) -> &'static str {
    match outcome {
        PassOutcome::Drained => "drained",
        PassOutcome::Stopped => "stopped",
        PassOutcome::Failed => "failed",
    }
}
