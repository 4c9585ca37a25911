//! The work that the states mean, as the owner has it done.
//!
//! Rule: all of it may be dropped anywhere and done again from the beginning; the owner alone decides what follows.

use std::time::Duration;

use chrono::{DateTime, Utc};
use warmd_cbt::stop::StopSignal;
use warmd_core::{
    clock,
    format::moment,
    model::{
        hook::HookSide,
        id::MigrationId,
        phase::Phase,
        transition::StateWork,
        verify::VerifyOrder,
        view::{CutoverView, PassKind, PhaseView},
    },
};
use warmd_store::Store;

use super::{
    admission,
    context::Context,
    cutover,
    driver::unsaved,
    failure::{Remedy, WorkError},
    forecast, groups, hooks, prepare,
    retry::Retry,
    rollback,
    snapshot_cleanup::sweep_first,
    stale_state, verify,
    waiting::RetryReporter,
};

/// How often work that failed in passing is tried again before a person is asked.
const ATTEMPTS: u32 = 10;
/// A try that goes on for so long is shown as work again, and not as waiting.
const LASTING: Duration = Duration::from_secs(30);
/// A pass that copied for so long before it failed counts as a new beginning.
const LONG: Duration = Duration::from_mins(5);

/// How often a daemon may be gone in the middle of a phase of one cutover, and the phase is begun again, within its deadline.
const MOST_CUT: u32 = 20;

/// How the outcome of a phase begins that failed.
pub(super) const PHASE_FAILED: &str = "failed: ";

/// Does `doing`, and again while its failures may pass: undo, rollback and clean-up for ever, a phase within its deadline;
/// everything else for ever where something stands in its way that time takes away, else a limited number of times.
pub(super) async fn run_with_retries(
    context: &Context,
    doing: StateWork,
    stop: &StopSignal,
) -> Result<(), WorkError> {
    if matches!(doing, StateWork::Seed | StateWork::Sync | StateWork::Phase(Phase::CatchUpDelta)) {
        sweep_first(context, stop).await?;
    }
    look_first(context, doing, stop).await?;
    admission::enter(context, doing, stop).await?;
    let StateWork::Phase(phase) = doing else { return attempts(context, doing, stop).await };
    // Outside the phase's deadline: each hook has its own.
    if phase == Phase::BootCheck {
        // Where nothing leads back any more: before that the target VM runs, and a failure would be an undo.
        with_hooks(context, (Phase::StartVm, HookSide::After), phase, stop).await?;
    }
    with_hooks(context, (phase, HookSide::Before), phase, stop).await?;
    attempts(context, doing, stop).await?;
    if phase == Phase::StartVm {
        return Ok(());
    }
    with_hooks(context, (phase, HookSide::After), phase, stop).await?;
    if phase == Phase::CreateVm {
        // Outside its deadline: how long it takes is up to others.
        groups::pass(context, stop).await?;
    }
    Ok(())
}

/// Nothing is done by a state that the target has overtaken.
async fn look_first(context: &Context, doing: StateWork, stop: &StopSignal) -> Result<(), WorkError> {
    let mut patience = Patience::new(context, doing);
    loop {
        let Err(error) = stale_state::check(context, doing).await else {
            context.waits_no_more();
            return Ok(());
        };
        if is_final(&error, doing) {
            return Err(error);
        }
        tracing::warn!(migration = %context.id, %error, "not known yet who wrote to the target last");
        patience.wait("looking who wrote to the target last", error, false, stop).await?;
    }
}

/// The hooks of a moment, which are run in the phase `within`; what fails there is that phase's failure.
async fn with_hooks(
    context: &Context,
    (phase, when): (Phase, HookSide),
    within: Phase,
    stop: &StopSignal,
) -> Result<(), WorkError> {
    let mut retry = Retry::times(ATTEMPTS);
    let mut waiting = RetryReporter::new(context);
    let error = loop {
        let Err(error) = hooks::run(context, phase, when, stop).await else { return Ok(()) };
        if error.remedy == Remedy::Operator || stop.is_stopped() {
            break error;
        }
        let Some(pause) = retry.next_pause() else { break error };
        waiting.told(&format!("the hooks {when:?} {phase}"), &error, pause).await;
        tokio::time::sleep(pause).await;
    };
    context.waits_no_more();
    let (attempt, now) = (context.cutover().attempt, clock::now());
    let outcome = format!("{PHASE_FAILED}{error}");
    if when == HookSide::Before || within != phase {
        context.store.begin_phase(context.id, attempt, within, now).await?;
        show_phase(context, PhaseView { phase: within, started: now, ended: None, outcome: None });
    }
    end_phase(context, attempt, within, outcome).await?;
    Err(error)
}

async fn attempts(context: &Context, doing: StateWork, stop: &StopSignal) -> Result<(), WorkError> {
    let mut patience = Patience::new(context, doing);
    loop {
        let (begun, waited) = (tokio::time::Instant::now(), context.admissions.waited());
        let mut acting = std::pin::pin!(act(context, doing, stop));
        let result = if let Ok(result) = tokio::time::timeout(LASTING, &mut acting).await {
            result
        } else {
            // What it waited for before is past.
            context.waits_no_more();
            acting.await
        };
        let Err(error) = result else { return Ok(()) };
        let copied = begun.elapsed().saturating_sub(context.admissions.waited().saturating_sub(waited));
        if matches!(doing, StateWork::Seed | StateWork::Sync) && copied > LONG {
            // It came a long way: a full pass of days may meet more than ten short failures.
            patience.begin_anew();
        }
        // Only a target that answers that its VM does not run lets the start be given up: an undo would end a VM that works.
        let may_run = doing == StateWork::Phase(Phase::StartVm) && cutover::may_run(context).await;
        if stop.is_stopped() || (!may_run && (is_final(&error, doing) || unsaved::ends(context, doing))) {
            return Err(error);
        }
        patience.wait(&format!("{doing:?}"), error, may_run, stop).await?;
    }
}

/// How long work is tried again, by what it failed at.
struct Patience<'a> {
    /// For what may pass.
    limited: Retry,
    /// For what only has to be waited out; the same, where there is a deadline.
    endless: Option<Retry>,
    /// While the target VM may run.
    open: Retry,
    waiting: RetryReporter<'a>,
}

impl<'a> Patience<'a> {
    fn new(context: &'a Context, doing: StateWork) -> Self {
        let (limited, endless) = match doing {
            StateWork::Undo(_) | StateWork::RollBack | StateWork::Clean => (Retry::forever(), None),
            StateWork::Phase(phase) => (Retry::until(cutover::deadline(context, phase)), None),
            StateWork::Begin
            | StateWork::Prepare
            | StateWork::Seed
            | StateWork::Sync
            | StateWork::Nothing
            | StateWork::AwaitSchedule => (Retry::times(ATTEMPTS), Some(Retry::forever())),
        };
        Self { limited, endless, open: Retry::forever(), waiting: RetryReporter::new(context) }
    }

    /// What failed before does not count any more.
    fn begin_anew(&mut self) {
        self.limited = Retry::times(ATTEMPTS);
        self.endless = Some(Retry::forever());
        self.waiting.begin_anew();
    }

    /// Shows what is waited for, and waits for the next try; the error, if there is to be none. There always is one while
    /// the target VM `may_run`.
    async fn wait(
        &mut self,
        doing: &str,
        error: WorkError,
        may_run: bool,
        stop: &StopSignal,
    ) -> Result<(), WorkError> {
        let retry = match (&mut self.endless, error.remedy) {
            _ if may_run => &mut self.open,
            (Some(endless), Remedy::Wait) => endless,
            _ => &mut self.limited,
        };
        let Some(pause) = retry.next_pause() else { return Err(error) };
        self.waiting.told(doing, &error, pause).await;
        tokio::select! {
            biased;
            () = stop.stopped() => Err(error),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }
}

/// Whether trying again is of no use.
fn is_final(error: &WorkError, doing: StateWork) -> bool {
    match error.remedy {
        Remedy::NeedsDecision => true,
        Remedy::Operator => !matches!(doing, StateWork::Undo(_) | StateWork::RollBack | StateWork::Clean),
        Remedy::Retry | Remedy::Wait => false,
    }
}

async fn act(context: &Context, doing: StateWork, stop: &StopSignal) -> Result<(), WorkError> {
    match doing {
        StateWork::Nothing | StateWork::AwaitSchedule | StateWork::Begin => Ok(()),
        StateWork::Prepare => prepare::prepare(context).await,
        StateWork::Seed => copy(context, PassKind::Full, stop).await,
        StateWork::Sync => copy(context, PassKind::Delta, stop).await,
        StateWork::Phase(phase) => run_phase(context, phase, stop).await,
        StateWork::Undo(phase) => cutover::undo(context, phase).await,
        StateWork::RollBack => cutover::unless_stopped(stop, rollback::roll_back(context)).await,
        StateWork::Clean => cutover::clean(context).await,
    }
}

/// A pass outside of a cutover. The source that a cutover stopped, which neither ended nor was undone (its state was
/// overtaken, and a person decided for the source), is back before that.
async fn copy(context: &Context, kind: PassKind, stop: &StopSignal) -> Result<(), WorkError> {
    if context.cutover().hold_off.is_some() {
        cutover::undo(context, Phase::FinalDelta).await?;
    }
    admission::pass(context, kind, stop, None).await?.drained()
}

/// One attempt at a phase: within its deadline, recorded from its beginning to its end.
async fn run_phase(context: &Context, phase: Phase, stop: &StopSignal) -> Result<(), WorkError> {
    let (attempt, started) = (context.cutover().attempt, clock::now());
    let begun = context.store.begin_phase(context.id, attempt, phase, started).await?;
    show_phase(context, PhaseView { phase, started, ended: None, outcome: None });
    let deadline = cutover::deadline(context, phase);
    let running = async {
        let (began, cut) = begun;
        in_time(phase, (began, clock::age(began)), cut, deadline)?;
        cutover::run(context, phase, stop).await
    };
    let mut running = std::pin::pin!(tokio::time::timeout(deadline, running));
    let result = tokio::select! {
        biased;
        result = &mut running => result,
        why = context.groups.halted(context.id), if phase < Phase::StartVm => {
            stop.stop();
            // What it had begun comes to a clean end, or is cut off where its deadline is.
            running.await.ok();
            Ok(Err(WorkError::operator(why)))
        }
    };
    let result = result.unwrap_or_else(|_| {
        Err(WorkError::operator(format!(
            "phase {phase} was not done within its deadline of {}",
            humantime::format_duration(deadline)
        )))
    });
    let outcome = match &result {
        Ok(note) => note.clone().unwrap_or_else(|| "done".to_owned()),
        Err(error) => format!("{PHASE_FAILED}{error}"),
    };
    end_phase(context, attempt, phase, outcome).await?;
    result.map(|_| ())
}

/// Fails if a phase that a daemon did not survive is not to be begun again: its deadline is over, counted from its first
/// beginning, or that has happened too often, as with a program that takes all memory. The source would stay off for as long
/// as somebody starts the daemon again. Where the target VM may run nothing is taken back for that.
fn in_time(
    phase: Phase,
    (began, age): (DateTime<Utc>, Duration),
    cut: u32,
    deadline: Duration,
) -> Result<(), WorkError> {
    let is_late = age > deadline;
    if cut == 0 || !(is_late || cut > MOST_CUT) || !phase.source_may_be_off() || phase >= Phase::StartVm {
        return Ok(());
    }
    let times = if cut == 1 { "once".to_owned() } else { format!("{cut} times") };
    Err(WorkError::operator(format!(
        "the daemon ended {times} in the middle of phase {phase}, which began at {} UTC and has a deadline of {}: look into \
         its log and the system's why it ended (out of memory?), then cut over again",
        moment(began),
        humantime::format_duration(deadline)
    )))
}

async fn end_phase(context: &Context, attempt: u32, phase: Phase, outcome: String) -> Result<(), WorkError> {
    context.store.end_phase(context.id, attempt, phase, clock::now(), &outcome).await?;
    let downtime = forecast::measured_downtime(&context.cutover());
    context.live.update(|view| {
        if let Some(cutover) = &mut view.cutover {
            (cutover.downtime, cutover.progress) = (downtime, None);
            if let Some(last) = cutover.phases.last_mut() {
                (last.ended, last.outcome) = (Some(clock::now()), Some(outcome));
            }
        }
    });
    Ok(())
}

fn show_phase(context: &Context, phase: PhaseView) {
    context.live.update(|view| {
        let started = phase.started;
        let cutover = view.cutover.get_or_insert_with(|| CutoverView::begun(started));
        // A phase that is tried again is shown once.
        cutover.phases.retain(|shown| shown.phase != phase.phase);
        cutover.phases.push(phase);
    });
}

/// A verification that was asked for by itself, beside the waiting for the next pass.
pub(super) async fn verify_alone(
    context: &Context,
    order: &VerifyOrder,
    stop: &StopSignal,
) -> Result<(), WorkError> {
    verify::show(context, order);
    let result = verify::alone(context, order, stop).await;
    let error = match result {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => "it was stopped before its end; asked for again, it goes on".to_owned(),
        Err(error) => error.to_string(),
    };
    context.log_event("verification", format!("no result: {error}")).await;
    context.live.update(|view| {
        if let Some(verification) = &mut view.verification {
            (verification.ended, verification.error) = (Some(clock::now()), Some(error));
        }
    });
    Ok(())
}

/// What a migration that was given up has of a ledger is true of nothing any more; what cannot be forgotten now is with
/// the next start.
pub(super) async fn forget_ledgers(store: &Store, id: MigrationId) {
    if let Err(error) = store.forget_ledgers(id).await {
        tracing::warn!(migration = %id, %error, "its ledgers stay until the next start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_that_ends_the_daemon_is_not_begun_for_ever() {
        let began = DateTime::from_timestamp(1_000, 0).unwrap();
        for (phase, cut, age, goes_on) in [
            (Phase::Convert, 0, 8_000, true),
            (Phase::Convert, 1, 60, true),
            (Phase::Convert, 1, 61, false),
            (Phase::FinalDelta, MOST_CUT, 1, true),
            (Phase::FinalDelta, MOST_CUT + 1, 1, false),
            // A clock that was set back is nobody's fault.
            (Phase::FinalDelta, 1, 0, true),
            // The source runs, or the target VM may.
            (Phase::CatchUpDelta, 99, 8_000, true),
            (Phase::StartVm, 99, 8_000, true),
            (Phase::BootCheck, 99, 8_000, true),
        ] {
            let judged = in_time(phase, (began, Duration::from_secs(age)), cut, Duration::from_mins(1));
            assert_eq!(judged.is_ok(), goes_on, "{phase} {cut} {age}");
        }
    }
}
