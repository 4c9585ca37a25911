//! The admissions of one migration.
//!
//! Rule: a cutover keeps its admission from before its first delta until its last is copied, and gives it
//! back on every end. It waits no longer than its window is open, unless it is forced. A cutover that resumes
//! with its VM off does not wait.

use std::{
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};
use warmd_cbt::stop::StopSignal;
use warmd_core::{
    clock,
    model::{
        machine::Machine,
        phase::PhaseAdmission,
        plan::VerifyMode,
        transition::{FailureCause, StateWork},
    },
};
use warmd_schedules::admission_queue::{AdmissionJob, QuotaScope};

use super::{Admission, AdmissionControl, QuotaLocations};
use crate::{
    context::Context,
    failure::{Remedy, WorkError},
    timing,
};

/// How long an admission waits for the source to say which host the VM is on.
const PATIENCE: Duration = Duration::from_secs(30);

/// A migration's link to the admission control.
#[derive(Debug)]
pub struct Admissions {
    pub(super) gate: Arc<AdmissionControl>,
    places: Mutex<QuotaLocations>,
    /// The admission of its cutover.
    acquired: Mutex<Option<Arc<Admission>>>,
    /// The id of its waiting job.
    waiting: Mutex<Option<u64>>,
    /// Milliseconds.
    waited: AtomicU64,
}

/// The kind of an admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    PreCopy,
    /// A pass with a comparison, which is not preempted for a cutover.
    Comparison,
    Cutover,
}

impl Admissions {
    /// The admissions of a migration in these places.
    pub(in super::super) fn new(gate: Arc<AdmissionControl>, places: QuotaLocations) -> Self {
        let (acquired, waiting, waited) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        Self { gate, places: Mutex::new(places), acquired, waiting, waited }
    }

    /// Where its disks are.
    pub(in super::super) fn places(&self) -> QuotaLocations {
        lock(&self.places).clone()
    }

    /// Why it waits for its admission, if it does.
    pub fn why(&self) -> Option<String> {
        let id = (*lock(&self.waiting))?;
        Some(waits_text(&self.gate.why(id)?))
    }

    /// The total time that it has waited.
    pub(in super::super) fn waited(&self) -> Duration {
        Duration::from_millis(self.waited.load(Relaxed))
    }

    /// The read rates that the quotas allow now, in bytes per second, with the name of each.
    pub(in super::super) fn ceilings(&self, plan: &str) -> Vec<(String, NonZeroU64)> {
        self.gate.ceilings(&self.places(), plan)
    }

    pub(super) fn acquired(&self) -> Option<Arc<Admission>> {
        lock(&self.acquired).clone()
    }

    fn acquire(&self, admission: Option<Admission>) {
        // Given back after the lock is released.
        let before = std::mem::replace(&mut *lock(&self.acquired), admission.map(Arc::new));
        drop(before);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn waits_text(why: &str) -> String {
    format!("waits for admission: {why}")
}

fn job(context: &Context, what: For, id: u64) -> AdmissionJob {
    let (plan, places) = (context.plan(), context.admissions.places());
    let disks = count(context.machine.disks.len());
    let job = AdmissionJob::pass(id, &plan.name, disks)
        .with_priority(plan.schedule.priority.unwrap_or(1))
        .on(&QuotaScope::Source(places.source.clone()), disks)
        .on(&QuotaScope::Target(places.target.clone()), disks);
    let job = places.others.iter().fold(job, |job, (scope, disks)| job.on(scope, count(disks.len())));
    match what {
        For::PreCopy => job,
        For::Comparison => job.that_stays(),
        For::Cutover => job.of_cutover(),
    }
}

fn count(disks: usize) -> u32 {
    u32::try_from(disks).unwrap_or(u32::MAX)
}

/// Admits at once, for work that cannot wait.
pub(super) fn at_once(context: &Context) -> Admission {
    context.admissions.gate.admit_at_once(|id| job(context, For::Cutover, id))
}

/// Follows the VM to the host that it is on now, whose quotas then count. The known host stays if the source
/// cannot say.
async fn follow_host(context: &Context) {
    let host = match timeout(PATIENCE, context.source.current_host(&context.vm)).await {
        Ok(Ok(Some(host))) => host,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::warn!(migration = %context.id, %error, "host of the VM not known"),
        Err(_) => return tracing::warn!(migration = %context.id, "host of the VM not known: no answer"),
    };
    let machine = Machine { host: Some(host), ..context.latest_machine() };
    let (admissions, (source, target)) = (&context.admissions, context.endpoint_names());
    let places = admissions.gate.places((source, context.source.as_ref()), target, &machine);
    *lock(&admissions.places) = places;
}

/// Waits until admitted at the VM's host, and shows the reason; an error if stopped before.
pub(super) async fn wait(context: &Context, what: For, stop: &StopSignal) -> Result<Admission, WorkError> {
    unless_stopped(stop, follow_host(context)).await?;
    admitted(context, what, stop).await
}

/// The same, for a VM whose host was just looked at: free quotas admit at once.
async fn admitted(context: &Context, what: For, stop: &StopSignal) -> Result<Admission, WorkError> {
    let admissions = &context.admissions;
    loop {
        let mut asked = admissions.gate.ask(|id| job(context, what, id));
        if asked.is_granted() {
            return Ok(asked.admission);
        }
        let (id, places) = (asked.admission.id, admissions.places());
        let waits = Waits::begin(admissions, id);
        let why = admissions.gate.why(id).map(|why| waits_text(&why));
        context.live.update(|view| (view.next_pass, view.next_pass_why) = (None, why));
        let admission = unless_stopped(stop, asked.granted()).await?;
        drop(waits);
        context.live.update(|view| view.next_pass_why = None);
        unless_stopped(stop, follow_host(context)).await?;
        if admissions.places() == places {
            return Ok(admission);
        }
        // The VM has moved to another host meanwhile, whose quotas are others.
    }
}

async fn unless_stopped<T>(stop: &StopSignal, work: impl Future<Output = T>) -> Result<T, WorkError> {
    tokio::select! {
        biased;
        () = stop.stopped() => Err(WorkError::passing("it was stopped while it waited for its turn")),
        done = work => Ok(done),
    }
}

/// Measures the wait, also if it is dropped.
struct Waits<'a> {
    admissions: &'a Admissions,
    begun: Instant,
}

impl<'a> Waits<'a> {
    fn begin(admissions: &'a Admissions, id: u64) -> Self {
        *lock(&admissions.waiting) = Some(id);
        Self { admissions, begun: Instant::now() }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        *lock(&self.admissions.waiting) = None;
        let waited = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.admissions.waited.fetch_add(waited, Relaxed);
    }
}

/// The end of a cutover that was not admitted before its window closed.
fn not_admitted() -> WorkError {
    WorkError { remedy: Remedy::NextWindow, cause: FailureCause::WINDOW_CLOSED.into() }
}

/// Returns when no cutover window is open, also if it closed while the daemon was down; never for a forced
/// cutover.
async fn window_closed(context: &Context) {
    let mut plans = context.plans();
    while !context.cutover().forced
        && let Ok(rules) = context.rules()
    {
        let now = clock::now();
        if !rules.cutover.is_open(now) {
            return;
        }
        timing::until(&mut plans, rules.cutover.next_close(now).map(|answer| answer.at)).await;
    }
    std::future::pending::<()>().await;
}

/// Runs before any work: a cutover waits for its admission while its VM still runs, and keeps it while it
/// copies; all other work gives it back.
pub(in super::super) async fn enter(
    context: &Context,
    doing: StateWork,
    stop: &StopSignal,
) -> Result<(), WorkError> {
    let admissions = &context.admissions;
    let needed = match doing {
        StateWork::Phase(phase) => phase.spec().admission,
        StateWork::Nothing
        | StateWork::AwaitSchedule
        | StateWork::Begin
        | StateWork::Prepare
        | StateWork::Seed
        | StateWork::Sync
        | StateWork::Undo(_)
        | StateWork::RollBack
        | StateWork::Clean => PhaseAdmission::Needless,
    };
    let is_needless = match needed {
        PhaseAdmission::Needless => true,
        // The phase reads the source once more.
        PhaseAdmission::AtOnceToCompare => context.plan().verify.mode != VerifyMode::Compare,
        PhaseAdmission::Wait | PhaseAdmission::AtOnce => false,
    };
    if is_needless {
        admissions.acquire(None);
        return Ok(());
    }
    if admissions.acquired().is_some() {
        return Ok(());
    }
    let admission = match needed {
        PhaseAdmission::Wait => {
            // Not in the race with the window: a cutover that quotas admit at once goes on.
            unless_stopped(stop, follow_host(context)).await?;
            tokio::select! {
                biased;
                admission = admitted(context, For::Cutover, stop) => admission?,
                () = window_closed(context) => return Err(not_admitted()),
            }
        }
        PhaseAdmission::AtOnce | PhaseAdmission::AtOnceToCompare | PhaseAdmission::Needless => {
            at_once(context)
        }
    };
    admissions.acquire(Some(admission));
    Ok(())
}
