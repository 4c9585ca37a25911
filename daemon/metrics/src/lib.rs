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

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use prometheus_client::{encoding::text::encode, registry::Registry};
use warmd_cbt::store::StoreError;
use warmd_core::{
    metrics_view::CurrentFigures,
    model::{
        id::{DiskKey, MigrationId},
        view::PassKind,
    },
    pass::{LiveFigures, PassEvent, PassLabels, PassObserver, PassResult, TransferObserver},
};

pub use self::server::{MetricsError, MetricsServer};
use self::{
    exposition::Exposition,
    registry::{DRAINED, PassRegistry},
};

/// What the daemon has counted since it started. Clones share it.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<PassRegistry>>);

impl Metrics {
    /// All of it as text.
    pub fn render(&self, now: &CurrentFigures) -> Result<String, fmt::Error> {
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

impl TransferObserver for Metrics {
    /// The pass counts as failed if its observer is dropped before its end.
    fn begin_pass(&self, name: PassLabels, started: DateTime<Utc>) -> Box<dyn PassObserver> {
        let number = self.registry().begin(name, started);
        Box::new(PassAccount { metrics: self.clone(), number })
    }

    fn audited(&self, plan: &str, vm: &str, disk: &DiskKey, checked: u64, unreported: u64) {
        self.registry().audited([plan.to_owned(), vm.to_owned(), disk.0.clone()], checked, unreported);
    }

    /// Its figures are shown for a while, and then forgotten.
    fn finished(&self, id: MigrationId, plan: &str, vm: &str, at: DateTime<Utc>) {
        self.registry().finished(id, [plan.to_owned(), vm.to_owned()], at);
    }

    fn again(&self, id: MigrationId) {
        self.registry().again(id);
    }
}

/// A pass that is counted.
struct PassAccount {
    metrics: Metrics,
    number: u64,
}

#[async_trait]
impl PassObserver for PassAccount {
    async fn observe(&self, event: &PassEvent) -> Result<(), StoreError> {
        if let PassEvent::Ended { outcome, .. } = event {
            self.metrics.registry().end(self.number, outcome_name(outcome));
        }
        Ok(())
    }

    fn follow(&self, figures: &Arc<dyn LiveFigures>) {
        self.metrics.registry().watch(self.number, Arc::clone(figures));
    }
}

impl Drop for PassAccount {
    fn drop(&mut self) {
        self.metrics.registry().end(self.number, FAILED);
    }
}

const FAILED: &str = "failed";

fn kind_name(kind: PassKind) -> &'static str {
    match kind {
        PassKind::Full => "full",
        PassKind::Delta => "delta",
        PassKind::Final => "final",
    }
}

fn outcome_name(outcome: &PassResult) -> &'static str {
    match outcome {
        PassResult::Drained => DRAINED,
        PassResult::Stopped => "stopped",
        PassResult::Failed(_) => FAILED,
    }
}
