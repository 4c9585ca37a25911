//! The work of the states, as run for the driver.
//!
//! Rule: all work may be dropped at any point and repeated from the beginning; the driver alone decides what
//! follows.

use std::time::Duration;

use chrono::{DateTime, Utc};
use warmd_cbt::stop::StopSignal;
use warmd_core::{
    clock,
    format::moment,
    model::{
        event_kind::EventKind,
        hook::HookSide,
        id::MigrationId,
        outcome::PhaseOutcome,
        phase::{HooksAfter, Phase},
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

/// Retries of work that failed temporarily, before the operator must act.
const ATTEMPTS: u32 = 10;
/// A try that lasts this long is shown as work again, not as waiting.
const LASTING: Duration = Duration::from_secs(30);
/// A pass that copied for this long before it failed resets the retries.
const LONG: Duration = Duration::from_mins(5);

/// How often the daemon may end during a phase of one cutover and the phase is repeated, within its deadline.
const MOST_CUT: u32 = 20;

/// Runs `doing` with retries: undo, rollback and clean-up without end, a phase until its deadline; other work
/// without end where a temporary obstacle blocks it, else a limited number of times.
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
    if let Some(before) = phase.previous().filter(|phase| phase.spec().hooks_after == HooksAfter::InTheNext) {
        // Only past the point of no return: before it the target VM runs already, and a failure would cause
        // an undo.
        with_hooks(context, (before, HookSide::After), phase, stop).await?;
    }
    with_hooks(context, (phase, HookSide::Before), phase, stop).await?;
    attempts(context, doing, stop).await?;
    if phase.spec().hooks_after == HooksAfter::AtItsEnd {
        with_hooks(context, (phase, HookSide::After), phase, stop).await?;
    }
    if phase.spec().has_barrier {
        // Outside its deadline: the wait depends on other VMs.
        groups::pass(context, stop).await?;
    }
    Ok(())
}

/// No work is done with a stale state.
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

/// The hooks of a moment, run in the phase `within`; their failure is that phase's failure.
async fn with_hooks(
    context: &Context,
    (phase, when): (Phase, HookSide),
    within: Phase,
    stop: &StopSignal,
) -> Result<(), WorkError> {
    let mut retry = Retry::times(ATTEMPTS);
    let mut waiting = RetryReporter::new(context);
    let error = loop {
        let Err(error) = hooks::run_hooks(context, phase, when, stop).await else { return Ok(()) };
        if matches!(error.remedy, Remedy::Operator | Remedy::NextWindow) || stop.is_stopped() {
            break error;
        }
        let Some(pause) = retry.next_pause() else { break error };
        waiting.report(&format!("the hooks {when:?} {phase}"), &error, pause).await;
        tokio::time::sleep(pause).await;
    };
    context.waits_no_more();
    let (attempt, now) = (context.cutover().attempt, clock::now());
    let outcome = PhaseOutcome::Failed(error.to_string());
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
            // The earlier reason for waiting is gone.
            context.waits_no_more();
            acting.await
        };
        let Err(error) = result else { return Ok(()) };
        let copied = begun.elapsed().saturating_sub(context.admissions.waited().saturating_sub(waited));
        if matches!(doing, StateWork::Seed | StateWork::Sync) && copied > LONG {
            // Much was copied: a full pass of days may meet more than ten short failures.
            patience.begin_again();
        }
        // Only if the target reports that its VM is off may the start be abandoned: an undo would end a
        // working VM.
        let may_run = doing == StateWork::Phase(Phase::StartVm) && cutover::may_run(context).await;
        if stop.is_stopped() || (!may_run && (is_final(&error, doing) || unsaved::ends(context, doing))) {
            return Err(error);
        }
        patience.wait(&format!("{doing:?}"), error, may_run, stop).await?;
    }
}

/// The retries of work, by the kind of its failure.
struct Patience<'a> {
    /// For temporary failures.
    limited: Retry,
    /// For failures that only need waiting; the same, where there is a deadline.
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

    /// Resets the count of earlier failures.
    fn begin_again(&mut self) {
        self.limited = Retry::times(ATTEMPTS);
        self.endless = Some(Retry::forever());
        self.waiting.begin_again();
    }

    /// Shows the reason for waiting, and waits for the next try; returns the error if there is none left.
    /// There always is one while the target VM `may_run`.
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
        self.waiting.report(doing, &error, pause).await;
        tokio::select! {
            biased;
            () = stop.stopped() => Err(error),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }
}

/// Whether a retry is useless.
fn is_final(error: &WorkError, doing: StateWork) -> bool {
    match error.remedy {
        Remedy::NeedsDecision => true,
        Remedy::Operator | Remedy::NextWindow => {
            !matches!(doing, StateWork::Undo(_) | StateWork::RollBack | StateWork::Clean)
        }
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

/// A pass outside of a cutover. A source that was stopped by a cutover, which neither ended nor was undone
/// (its state was stale, and an operator chose the source), is restored first.
async fn copy(context: &Context, kind: PassKind, stop: &StopSignal) -> Result<(), WorkError> {
    if context.cutover().hold_off.is_some() {
        cutover::undo(context, Phase::FinalDelta).await?;
    }
    admission::pass(context, kind, stop, None).await?.drained()
}

/// One attempt at a phase: within its deadline, recorded from beginning to end.
async fn run_phase(context: &Context, phase: Phase, stop: &StopSignal) -> Result<(), WorkError> {
    let (attempt, started) = (context.cutover().attempt, clock::now());
    let begun = context.store.begin_phase(context.id, attempt, phase, started).await?;
    show_phase(context, PhaseView { phase, started, ended: None, outcome: None });
    let deadline = cutover::deadline(context, phase);
    let running = async {
        let (began, cut) = begun;
        in_time(phase, (began, clock::age(began)), cut, deadline)?;
        cutover::run_phase(context, phase, stop).await
    };
    let mut running = std::pin::pin!(tokio::time::timeout(deadline, running));
    let result = tokio::select! {
        biased;
        result = &mut running => result,
        why = context.groups.halted(context.id), if phase.spec().can_be_aborted => {
            stop.stop();
            // The work that it started ends cleanly, or is cut off at its deadline.
            running.await.ok();
            Ok(Err(WorkError::halted(why)))
        }
    };
    let result = result.unwrap_or_else(|_| {
        Err(WorkError::operator(format!(
            "phase {phase} was not done within its deadline of {}",
            humantime::format_duration(deadline)
        )))
    });
    let outcome = match &result {
        Ok(outcome) => outcome.clone(),
        Err(error) => PhaseOutcome::Failed(error.to_string()),
    };
    end_phase(context, attempt, phase, outcome).await?;
    result.map(|_| ())
}

/// Fails if a phase must not be repeated after the daemon ended in it: the deadline since its first beginning
/// has passed, or the daemon ended too often, as with a program that takes all memory. The source would stay
/// off for as long as the service manager restarts the daemon. Where the target VM may run this causes no
/// undo.
fn in_time(
    phase: Phase,
    (began, age): (DateTime<Utc>, Duration),
    cut: u32,
    deadline: Duration,
) -> Result<(), WorkError> {
    let is_late = age > deadline;
    let can_end = phase.source_may_be_off() && phase.spec().can_be_aborted;
    if cut == 0 || !(is_late || cut > MOST_CUT) || !can_end {
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

async fn end_phase(
    context: &Context,
    attempt: u32,
    phase: Phase,
    outcome: PhaseOutcome,
) -> Result<(), WorkError> {
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
        // A repeated phase is shown once.
        cutover.phases.retain(|shown| shown.phase != phase.phase);
        cutover.phases.push(phase);
    });
}

/// A verification that was requested alone, while the migration waits for the next pass.
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
    context.log_event(EventKind::Verification, format!("no result: {error}")).await;
    context.live.update(|view| {
        if let Some(verification) = &mut view.verification {
            (verification.ended, verification.error) = (Some(clock::now()), Some(error));
        }
    });
    Ok(())
}

/// Deletes a cancelled migration's ledgers, whose content is no longer valid; what cannot be deleted now is
/// deleted at the next start.
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
            // A clock that was set back does not count as lateness.
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
