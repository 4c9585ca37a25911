//! Admission: which passes may take a snapshot and copy now, and how fast, by the quotas of plans and
//! configuration.
//!
//! Rule: no snapshot is taken without an [`Admission`], and none outlives it: dropping the admission gives it
//! back on every way out. A waiting job is woken once, when it is admitted, and never polls. The lock is
//! never kept across an await.
//!
//! ```text
//! pass ── ask ──▶ waiting, running ── admitted ──▶ snapshot, copy, release ── dropped ──▶ the next pass
//! cutover: asks before its first delta, and keeps its admission until its last is copied: with its VM off it
//!          never waits. Pre-copies that block it stop, and queue again; what they drained stays drained.
//! ```

mod admitted_pass;
mod migration_admission;
mod scopes;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use warmd_cbt::{limit::RateLimiter, stop::StopSignal};
use warmd_core::model::quota::ConfiguredQuotas;
use warmd_schedules::admission_queue::{AdmissionJob, AdmissionQueue, QuotaScope};

pub use self::migration_admission::Admissions;
use self::scopes::Scoped;
pub(super) use self::{
    admitted_pass::pass,
    migration_admission::enter,
    scopes::{QuotaLocations, RateNodes},
};

/// The daemon's one admission control.
pub struct AdmissionControl {
    state: Mutex<State>,
    /// The quotas have changed.
    changed: Notify,
    rates: RateLimiter,
    /// No job is admitted once the daemon ends.
    shutdown: CancellationToken,
}

#[derive(Default)]
struct State {
    queue: AdmissionQueue,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
    /// The stop signals of all waiting and running jobs, for preemption.
    stop_signals: BTreeMap<u64, StopSignal>,
    preempted: BTreeSet<u64>,
    scopes: BTreeMap<QuotaScope, Scoped>,
    next: u64,
}

impl AdmissionControl {
    /// With the quotas of the configuration; nodes of `rates` limit the rates.
    pub(super) fn new(
        rates: RateLimiter,
        configured: &ConfiguredQuotas,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let gate = Self { state: Mutex::default(), changed: Notify::new(), rates, shutdown };
        gate.set_configured_quotas(configured);
        Arc::new(gate)
    }

    /// Queues a job; it may be admitted at once.
    fn ask(self: &Arc<Self>, job: impl FnOnce(u64) -> AdmissionJob) -> PendingAdmission {
        let (admitted, granted) = oneshot::channel();
        let mut state = self.lock();
        let admission = state.enroll(self);
        state.waiting.insert(admission.id, admitted);
        state.queue.submit(job(admission.id));
        self.settle(&mut state);
        PendingAdmission { granted, admission }
    }

    /// Admits a job that cannot wait; it counts like any other.
    fn admit_at_once(self: &Arc<Self>, job: impl FnOnce(u64) -> AdmissionJob) -> Admission {
        let mut state = self.lock();
        let admission = state.enroll(self);
        state.queue.start_at_once(job(admission.id));
        admission
    }

    /// Why a job waits, in words.
    fn why(&self, id: u64) -> Option<String> {
        self.lock().queue.why(id)
    }

    fn leave(&self, id: u64) {
        let mut state = self.lock();
        state.waiting.remove(&id);
        state.stop_signals.remove(&id);
        state.preempted.remove(&id);
        state.queue.remove(id);
        self.settle(&mut state);
    }

    /// Admits the jobs that may start now, and preempts pre-copies for cutovers.
    fn settle(&self, state: &mut State) {
        if self.shutdown.is_cancelled() {
            return;
        }
        for id in state.queue.admit() {
            if let Some(waiting) = state.waiting.remove(&id) {
                // A job that was dropped gives its admission back on drop.
                waiting.send(()).ok();
            }
        }
        if !state.queue.keeps_cutovers_waiting() {
            return;
        }
        for id in state.queue.preemptible(&state.preempted) {
            state.preempted.insert(id);
            if let Some(stop_signal) = state.stop_signals.get(&id) {
                stop_signal.stop();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enroll(&mut self, gate: &Arc<AdmissionControl>) -> Admission {
        self.next += 1;
        let (id, stop_signal) = (self.next, StopSignal::new());
        self.stop_signals.insert(id, stop_signal.clone());
        Admission { gate: Arc::clone(gate), id, stop_signal }
    }
}

/// The resources of an admitted job.
#[must_use = "it is given back when it is dropped"]
pub struct Admission {
    gate: Arc<AdmissionControl>,
    id: u64,
    stop_signal: StopSignal,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.gate.leave(self.id);
    }
}

/// An admission that is pending or granted. Dropping it loses nothing.
struct PendingAdmission {
    granted: oneshot::Receiver<()>,
    admission: Admission,
}

impl PendingAdmission {
    /// Whether it is granted already.
    fn is_granted(&mut self) -> bool {
        self.granted.try_recv().is_ok()
    }

    async fn granted(self) -> Admission {
        let Self { granted, admission } = self;
        if granted.await.is_err() {
            // Cannot happen: the job is removed only when this is dropped.
            std::future::pending::<()>().await;
        }
        admission
    }
}

impl std::fmt::Debug for AdmissionControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        let running = state.queue.running().len();
        f.debug_struct("Gate").field("waiting", &state.waiting.len()).field("running", &running).finish()
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("id", &self.id).finish_non_exhaustive()
    }
}
