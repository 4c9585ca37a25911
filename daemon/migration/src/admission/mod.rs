//! Who may take a snapshot and copy now, and how fast, by the quotas of plans and configuration.
//!
//! Rule: no snapshot is taken without an [`Admission`], and none outlives it: it is given back on every way out, by being
//! dropped. Who waits is woken once, when it is admitted; nobody asks again and again. The lock is never held over an
//! await.
//!
//! ```text
//! pass ── ask ──▶ gate: who waits, who runs ── admitted ──▶ snapshot, copy, release ── dropped ──▶ the next one
//! cutover: asks before its first delta, and keeps what it has until its last one is copied: with its VM off it waits
//!          for nobody. Pre-copies that keep it waiting are stopped, and wait again; what they drained stays drained.
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
    migration_admission::{WINDOW_CLOSED, enter},
    scopes::{Nodes, Places},
};

/// The one gate of the daemon.
pub struct AdmissionControl {
    state: Mutex<State>,
    /// Other quotas than before are to be looked at.
    changed: Notify,
    rates: RateLimiter,
    /// Nobody is admitted any more once the daemon ends.
    shutdown: CancellationToken,
}

#[derive(Default)]
struct State {
    arbiter: AdmissionQueue,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
    /// Of all that wait and run: tells it to make room.
    recalls: BTreeMap<u64, StopSignal>,
    preempted: BTreeSet<u64>,
    scopes: BTreeMap<QuotaScope, Scoped>,
    next: u64,
}

impl AdmissionControl {
    /// With the quotas of the configuration; rates are held by nodes of `rates`.
    pub(super) fn new(
        rates: RateLimiter,
        configured: &ConfiguredQuotas,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let gate = Self { state: Mutex::default(), changed: Notify::new(), rates, shutdown };
        gate.set_configured_quotas(configured);
        Arc::new(gate)
    }

    /// Lets a job wait; it may be admitted at once.
    fn ask(self: &Arc<Self>, job: impl FnOnce(u64) -> AdmissionJob) -> Asked {
        let (admitted, granted) = oneshot::channel();
        let mut state = self.lock();
        let admission = state.enroll(self);
        state.waiting.insert(admission.id, admitted);
        state.arbiter.submit(job(admission.id));
        self.settle(&mut state);
        Asked { granted, admission }
    }

    /// Lets a job run that cannot wait; it counts as any other.
    fn let_in(self: &Arc<Self>, job: impl FnOnce(u64) -> AdmissionJob) -> Admission {
        let mut state = self.lock();
        let admission = state.enroll(self);
        state.arbiter.start_at_once(job(admission.id));
        admission
    }

    /// Why a job waits, in words.
    fn why(&self, id: u64) -> Option<String> {
        self.lock().arbiter.why(id)
    }

    fn leave(&self, id: u64) {
        let mut state = self.lock();
        state.waiting.remove(&id);
        state.recalls.remove(&id);
        state.preempted.remove(&id);
        state.arbiter.remove(id);
        self.settle(&mut state);
    }

    /// Admits who may start now, and lets pre-copies make room for cutovers.
    fn settle(&self, state: &mut State) {
        if self.shutdown.is_cancelled() {
            return;
        }
        for id in state.arbiter.admit() {
            if let Some(waiting) = state.waiting.remove(&id) {
                // Who waits no more gives its admission back by itself.
                waiting.send(()).ok();
            }
        }
        if !state.arbiter.keeps_cutovers_waiting() {
            return;
        }
        for id in state.arbiter.preemptible(&state.preempted) {
            state.preempted.insert(id);
            if let Some(recall) = state.recalls.get(&id) {
                recall.stop();
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
        let (id, recall) = (self.next, StopSignal::new());
        self.recalls.insert(id, recall.clone());
        Admission { gate: Arc::clone(gate), id, recall }
    }
}

/// What is in use while it is held.
#[must_use = "it is given back when it is dropped"]
pub struct Admission {
    gate: Arc<AdmissionControl>,
    id: u64,
    recall: StopSignal,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.gate.leave(self.id);
    }
}

/// An admission that is waited for, or there already. Dropping it loses nothing.
struct Asked {
    granted: oneshot::Receiver<()>,
    admission: Admission,
}

impl Asked {
    /// Whether it need not be waited for.
    fn is_granted(&mut self) -> bool {
        self.granted.try_recv().is_ok()
    }

    async fn granted(self) -> Admission {
        let Self { granted, admission } = self;
        if granted.await.is_err() {
            // Cannot be: the gate forgets who waits only when that is dropped.
            std::future::pending::<()>().await;
        }
        admission
    }
}

impl std::fmt::Debug for AdmissionControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        let running = state.arbiter.running().len();
        f.debug_struct("Gate").field("waiting", &state.waiting.len()).field("running", &running).finish()
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("id", &self.id).finish_non_exhaustive()
    }
}
