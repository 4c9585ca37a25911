//! What one migration asks of the gate.
//!
//! Rule: a cutover keeps its admission from before its first delta until its last is copied, and whatever ends it
//! gives it back. It waits no longer than its window is open, unless it was forced. One that is taken up with its VM off already waits for nobody.

use std::{
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use warmd_cbt::stop::StopSignal;
use warmd_core::{
    clock,
    model::{phase::Phase, plan::VerifyMode, transition::StateWork},
};
use warmd_schedules::admission_queue::{AdmissionJob, QuotaScope};

use super::{Admission, AdmissionControl, Places};
use crate::{context::Context, failure::WorkError, timing};

/// A migration's dealings with the gate.
#[derive(Debug)]
pub struct Admissions {
    pub(super) gate: Arc<AdmissionControl>,
    pub(in super::super) places: Places,
    /// That of its cutover.
    acquired: Mutex<Option<Arc<Admission>>>,
    /// As what it waits.
    waiting: Mutex<Option<u64>>,
    /// Milliseconds.
    waited: AtomicU64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    PreCopy,
    /// A pass with a comparison, which is not stopped for a cutover.
    Comparison,
    Cutover,
}

impl Admissions {
    /// Those of a migration in these places.
    pub(in super::super) fn new(gate: Arc<AdmissionControl>, places: Places) -> Self {
        let (acquired, waiting, waited) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        Self { gate, places, acquired, waiting, waited }
    }

    /// Why it waits for its turn, if it does.
    pub fn why(&self) -> Option<String> {
        let id = (*lock(&self.waiting))?;
        Some(told(&self.gate.why(id)?))
    }

    /// How long it has waited in all.
    pub(in super::super) fn waited(&self) -> Duration {
        Duration::from_millis(self.waited.load(Relaxed))
    }

    /// What the quotas allow to be read in a second now, with the name of each.
    pub(in super::super) fn ceilings(&self, plan: &str) -> Vec<(String, NonZeroU64)> {
        self.gate.ceilings(&self.places, plan)
    }

    pub(super) fn acquired(&self) -> Option<Arc<Admission>> {
        lock(&self.acquired).clone()
    }

    fn acquire(&self, admission: Option<Admission>) {
        // Given back after the lock is.
        let before = std::mem::replace(&mut *lock(&self.acquired), admission.map(Arc::new));
        drop(before);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn told(why: &str) -> String {
    format!("waits for admission: {why}")
}

fn job(context: &Context, what: For, id: u64) -> AdmissionJob {
    let (plan, places) = (context.plan(), &context.admissions.places);
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

/// Lets it run at once, for what cannot wait.
pub(super) fn at_once(context: &Context) -> Admission {
    context.admissions.gate.let_in(|id| job(context, For::Cutover, id))
}

/// Waits until it is admitted, and shows what it waits for; an error if it is stopped before.
pub(super) async fn wait(context: &Context, what: For, stop: &StopSignal) -> Result<Admission, WorkError> {
    let admissions = &context.admissions;
    let mut asked = admissions.gate.ask(|id| job(context, what, id));
    if asked.is_granted() {
        return Ok(asked.admission);
    }
    let id = asked.admission.id;
    let _waits = Waits::begin(admissions, id);
    let why = admissions.gate.why(id).map(|why| told(&why));
    context.live.update(|view| (view.next_pass, view.next_pass_why) = (None, why));
    tokio::select! {
        biased;
        () = stop.stopped() => Err(WorkError::passing("it was stopped while it waited for its turn")),
        admission = asked.granted() => {
            context.live.update(|view| view.next_pass_why = None);
            Ok(admission)
        }
    }
}

/// Counts how long it waits, also if the wait is dropped.
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

/// Why a cutover ends that has not had its turn when its window closes.
pub(in super::super) const WINDOW_CLOSED: &str =
    "the cutover window closed while the cutover waited for its turn by the quotas";

/// Comes back when no cutover window is open, also if it closed while there was no daemon; never for one that is forced.
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

/// What comes before any work: a cutover waits for its turn while its VM still runs, keeps it as long as it copies, and
/// everything else gives it back.
pub(in super::super) async fn enter(
    context: &Context,
    doing: StateWork,
    stop: &StopSignal,
) -> Result<(), WorkError> {
    let admissions = &context.admissions;
    let is_acquired = admissions.acquired().is_some();
    match doing {
        StateWork::Phase(Phase::CatchUpDelta) if !is_acquired => {
            let admission = tokio::select! {
                biased;
                admission = wait(context, For::Cutover, stop) => admission?,
                () = window_closed(context) => return Err(WorkError::operator(WINDOW_CLOSED)),
            };
            admissions.acquire(Some(admission));
        }
        StateWork::Phase(Phase::StopSource | Phase::FinalDelta) if !is_acquired => {
            admissions.acquire(Some(at_once(context)));
        }
        StateWork::Phase(Phase::CatchUpDelta | Phase::StopSource | Phase::FinalDelta) => {}
        // It reads the source once more.
        StateWork::Phase(Phase::Verify) if context.plan().verify.mode == VerifyMode::Compare => {
            if !is_acquired {
                admissions.acquire(Some(at_once(context)));
            }
        }
        StateWork::Nothing
        | StateWork::AwaitSchedule
        | StateWork::Begin
        | StateWork::Prepare
        | StateWork::Seed
        | StateWork::Sync
        | StateWork::Phase(_)
        | StateWork::Undo(_)
        | StateWork::RollBack
        | StateWork::Clean => admissions.acquire(None),
    }
    Ok(())
}
