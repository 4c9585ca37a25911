//! The phases of a cutover; `before_stop.rs` checks, `back.rs` undoes one, `hold.rs` holds the source off.
//!
//! Rule: every phase may be repeated from its beginning. Until the target VM's start is requested, any
//! failure leads to [`undo`]; after that only a target that reports that its VM does not run does. Never do
//! both VMs run.

mod back;
mod before_stop;
mod hold;

use std::time::Duration;

use chrono::TimeDelta;
use warmd_cbt::{stop::StopSignal, verify::manifest_root};
use warmd_core::{
    clock, crash,
    model::{
        conversion::ConversionView,
        event_kind::EventKind,
        machine::PowerState,
        outcome::PhaseOutcome,
        phase::{Phase, PhaseDeadline},
        plan::VerifyMode,
        view::{PassKind, VerifyResult},
    },
    sources::{HowStopped, Leftover, ShutdownPolicy},
    targets::{CreateMachine, LastWriter, MachineState, TargetErrorKind},
};
use warmd_store::RecordedRoot;

pub use self::back::{clean, undo};
pub(super) use self::{
    back::{discard_seen, may_be_made, power_on_and_end_snapshot, source_back, unless_away},
    hold::{give_starters_back, let_go},
};
use self::{
    before_stop::{can_finish, same_disks},
    hold::hold_off,
};
use super::{
    admission, afterwards,
    boot_check::BootChecks,
    context::Context,
    conversion,
    failure::WorkError,
    machine_changes, stale_state,
    verify::{self, CompareSnapshot},
};

/// Extra time for powering the source off or on, beyond the plan's time for the guest.
const POWER_MARGIN: Duration = Duration::from_mins(1);
/// The deadline for removing leftovers from the source.
const RELEASE_DEADLINE: Duration = Duration::from_mins(5);
/// Extra time for the last looks of a boot check.
const BOOT_MARGIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The time limit for the target's answer whether its VM runs.
const ANSWER: Duration = Duration::from_secs(30);

/// The deadline of `phase`.
pub fn deadline(context: &Context, phase: Phase) -> Duration {
    let plan = context.plan();
    let policy = &plan.cutover;
    match phase.spec().deadline {
        PhaseDeadline::Delta => policy.delta_deadline,
        PhaseDeadline::Shutdown => policy.graceful_shutdown + POWER_MARGIN,
        PhaseDeadline::Verify => policy.verify_deadline,
        PhaseDeadline::Conversion => conversion::deadline(context),
        PhaseDeadline::Create => policy.create_deadline,
        PhaseDeadline::BootCheck => {
            policy.min_uptime + policy.create_deadline + context.boot_check().deadline + BOOT_MARGIN
        }
        PhaseDeadline::Cleanup => RELEASE_DEADLINE,
    }
}

/// Runs one phase; returns its outcome.
pub async fn run_phase(
    context: &Context,
    phase: Phase,
    stop: &StopSignal,
) -> Result<PhaseOutcome, WorkError> {
    crash::point(&format!("phase.{phase}.begin"));
    let outcome = match phase {
        Phase::CatchUpDelta => catch_up_delta(context, stop).await,
        Phase::StopSource => unless_stopped(stop, stop_source(context)).await,
        Phase::FinalDelta => final_delta(context, stop).await,
        Phase::Verify => verify_phase(context, stop).await,
        Phase::Convert => Box::pin(conversion::run_conversion(context, stop)).await,
        Phase::CreateVm => create(context).await,
        Phase::StartVm => start(context).await,
        Phase::BootCheck => unless_stopped(stop, watch(context)).await,
        Phase::Cleanup => release(context).await,
    }?;
    crash::point(&format!("phase.{phase}.end"));
    Ok(outcome)
}

/// Ends a wait early that may be cut off anywhere.
pub(super) async fn unless_stopped<T>(
    stop: &StopSignal,
    waiting: impl Future<Output = Result<T, WorkError>>,
) -> Result<T, WorkError> {
    tokio::select! {
        biased;
        result = waiting => result,
        () = stop.stopped() => Err(WorkError::passing("it was stopped on request")),
    }
}

async fn catch_up_delta(context: &Context, stop: &StopSignal) -> Result<PhaseOutcome, WorkError> {
    // Recorded before anything is stopped: an undo restores this, and the target VM stays off if the source
    // VM was off.
    let power = context.source.power(&context.vm).await?;
    context.remember(|cutover| cutover.was_running = Some(power == PowerState::Running)).await?;
    context.set_asks_shutdown(false);
    same_disks(context).await?;
    machine_changes::before_stop(context).await?;
    can_finish(context).await?;
    conversion::check(context).await?;
    admission::pass(context, PassKind::Delta, stop, None).await?.drained()?;
    Ok(PhaseOutcome::Done)
}

async fn stop_source(context: &Context) -> Result<PhaseOutcome, WorkError> {
    machine_changes::room_to_stop(context).await?;
    let policy = ShutdownPolicy {
        graceful: context.plan().cutover.graceful_shutdown,
        force: context.plan().cutover.force_power_off,
    };
    // The VM may have been started since the cutover began; then an undo restores that. A VM that is off is
    // not asked: a start from now on is not warmd's, and the fence detects it.
    let power = context.source.power(&context.vm).await?;
    if power == PowerState::Running {
        context.remember(|cutover| cutover.was_running = Some(true)).await?;
    }
    let how = match power {
        PowerState::Off => HowStopped::WasOff,
        PowerState::Running | PowerState::Paused => {
            // Again: the catch-up delta and hooks took their time, and a backup may have begun meanwhile.
            same_disks(context).await?;
            can_finish(context).await?;
            context.set_asks_shutdown(true);
            context.source.shut_down(&context.vm, policy).await?
        }
    };
    // The first time is kept if the phase is repeated after a restart.
    context
        .remember(|cutover| {
            cutover.source_stopped.get_or_insert_with(clock::now);
        })
        .await?;
    hold_off(context).await?;
    Ok(PhaseOutcome::DoneWith(how.to_string()))
}

async fn final_delta(context: &Context, stop: &StopSignal) -> Result<PhaseOutcome, WorkError> {
    // A crash may have left the VM started for reading only; end that, so that it does not count as a foreign
    // start.
    context.source.end_snapshot(&context.vm, context.id).await?;
    fence(context).await?;
    // Again: while saving failed, the hold-off may have been lifted and autostart set again.
    hold_off(context).await?;
    same_disks(context).await?;
    // The overlays of a conversion that a crash cut off.
    conversion::remove_overlays(context).await?;
    admission::pass(context, PassKind::Final, stop, None).await?.drained()?;
    Ok(PhaseOutcome::Done)
}

async fn verify_phase(context: &Context, stop: &StopSignal) -> Result<PhaseOutcome, WorkError> {
    context.source.end_snapshot(&context.vm, context.id).await?;
    fence(context).await?;
    let order = verify::owed(context).await?;
    let result = match order.mode {
        VerifyMode::None => {
            done_by_ledger(context).await?;
            record_roots(context, None).await?;
            return Ok(PhaseOutcome::NotInPlan);
        }
        VerifyMode::Readback => {
            done_by_ledger(context).await?;
            verify::run_readback(context, &order, stop).await?
        }
        VerifyMode::Compare => {
            let compare = CompareSnapshot::new(context, &order, stop, false);
            admission::pass(context, PassKind::Final, stop, Some(&compare)).await?.drained()?;
            compare.into_result()
        }
    };
    match result {
        None => Err(WorkError::passing("verification was stopped before its end")),
        Some(result) if result.passed() => {
            record_roots(context, Some(&result)).await?;
            Ok(PhaseOutcome::DoneWith(verify::describe_success(&result)))
        }
        Some(result) => Err(WorkError::operator(format!(
            "the target does not hold what the source held: {}; these extents will be copied again in the next pass",
            verify::mismatches(&result)
        ))),
    }
}

/// Records the present manifest roots: later steps may change the disks on purpose, and the report documents
/// the copy.
async fn record_roots(context: &Context, result: Option<&VerifyResult>) -> Result<(), WorkError> {
    let (at, attempt) = (clock::now(), context.cutover().attempt);
    let verified_by = result.map_or_else(|| VerifyMode::None.to_string(), VerifyResult::what);
    let mut recorded_roots = Vec::new();
    for row in context.store.disks(context.id).await? {
        // The verification has just computed it from the same manifest.
        let known = result.and_then(|result| result.disks.iter().find(|disk| disk.key == row.key));
        let root = match known {
            Some(disk) => disk.root.clone(),
            None => manifest_root(&context.store, row.id, row.size).await?,
        };
        recorded_roots.push(RecordedRoot {
            disk: row.id,
            attempt,
            root,
            verified_by: Some(verified_by.clone()),
            at,
        });
    }
    context.store.record_roots(recorded_roots).await?;
    crash::point("root.recorded");
    Ok(())
}

async fn create(context: &Context) -> Result<PhaseOutcome, WorkError> {
    fence(context).await?;
    done_by_ledger(context).await?;
    let converted = conversion::in_force(context).await?.and_then(|conversion| conversion.machine);
    let request = CreateMachine {
        owner: context.id,
        name: context.target_name.clone(),
        machine: converted.unwrap_or_else(|| context.mapped_machine()),
        disks: context.made_disks().await?,
    };
    // Recorded before the request: an undo after a restart removes the VM, in any phase of the cutover.
    context.remember(|cutover| cutover.create_requested = true).await?;
    context.see_started(false);
    context.target.create(&request).await?;
    Ok(PhaseOutcome::Done)
}

async fn start(context: &Context) -> Result<PhaseOutcome, WorkError> {
    if !was_running(context) {
        return Ok(PhaseOutcome::NotStarted);
    }
    // The VM was seen running before a restart: `boot-check` reports its state since, and there is only
    // forward.
    if context.cutover().target_running.is_some() {
        return Ok(PhaseOutcome::DoneWith("it ran already".to_owned()));
    }
    // After a restart the VM may run already: then there is only forward, regardless of other findings.
    if matches!(context.target.look(context.id).await?, MachineState::Running | MachineState::Starting) {
        remember_running(context).await?;
        return Ok(PhaseOutcome::DoneWith("it ran already".to_owned()));
    }
    // The daemon ended during the start, and the target VM does not run. Whether it or the source VM ran
    // meanwhile is unknown: the disks are not handed over in that state.
    let asked = context.cutover().start_requested_at;
    if asked.is_some() && asked == context.start_requested_before_restart {
        return Err(WorkError::operator(
            "the daemon ended while the target VM was being started, and the target VM does not run now: the \
             source was not watched meanwhile, so nothing is handed over; cut over again",
        ));
    }
    fence(context).await?;
    hold_off(context).await?;
    done_by_ledger(context).await?;
    crash::point("target.start");
    let noted = context.target.noted_writer(context.id).await?;
    let handed_over_at = context.cutover().handed_over_at;
    // Recorded before the request: a daemon that finds no record knows that the target VM never ran.
    context
        .remember(|cutover| {
            cutover.start_requested_at.get_or_insert_with(clock::now);
        })
        .await?;
    // From here on the target VM may change the disks, which no state restored from a copy knows.
    hand_over(context, false).await?;
    let outcome = match context.target.start(context.id).await {
        Ok(()) => PhaseOutcome::Done,
        Err(error) if error.kind == TargetErrorKind::Refused => {
            context.target.note_writer(context.id, noted).await?;
            context
                .remember(|cutover| {
                    (cutover.start_requested_at, cutover.handed_over_at) = (asked, handed_over_at);
                })
                .await?;
            return Err(error.into());
        }
        // Whether the VM runs decides between forward and undo, so the answer of `start` alone is not enough.
        Err(error) => match context.target.look(context.id).await {
            Ok(MachineState::Running | MachineState::Starting) => {
                PhaseOutcome::DoneWith(format!("runs, though: {error}"))
            }
            _ => return Err(error.into()),
        },
    };
    remember_running(context).await?;
    Ok(outcome)
}

/// Whether the target VM may run after its start was requested: it was seen running, or the target does not
/// report that it is off. Then nothing is undone.
pub(super) async fn may_run(context: &Context) -> bool {
    if context.cutover().start_requested_at.is_none() {
        return false;
    }
    if context.is_seen_started() {
        return true;
    }
    match tokio::time::timeout(ANSWER, context.target.look(context.id)).await {
        Ok(Ok(state)) => matches!(state, MachineState::Running | MachineState::Starting),
        Ok(Err(_)) | Err(_) => true,
    }
}

/// Notes beside the disks that they belong to the target VM of this cutover, after the state has recorded it;
/// and whether the VM is confirmed running, so that no state without that record may undo it.
async fn hand_over(context: &Context, confirmed_running: bool) -> Result<(), WorkError> {
    context
        .remember(|cutover| {
            cutover.handed_over_at.get_or_insert_with(stale_state::moment);
        })
        .await?;
    note_machine(context, confirmed_running).await
}

/// Notes beside the disks that they belong to the target VM since the recorded moment.
pub(super) async fn note_machine(context: &Context, confirmed_running: bool) -> Result<(), WorkError> {
    if let Some(since) = context.cutover().handed_over_at {
        context
            .target
            .note_writer(context.id, Some(LastWriter::Machine { since, confirmed_running }))
            .await?;
    }
    Ok(())
}

async fn remember_running(context: &Context) -> Result<(), WorkError> {
    context.see_started(true);
    context
        .remember(|cutover| {
            cutover.target_running.get_or_insert_with(clock::now);
        })
        .await?;
    Ok(())
}

async fn watch(context: &Context) -> Result<PhaseOutcome, WorkError> {
    if !was_running(context) {
        return Ok(PhaseOutcome::Done);
    }
    hand_over(context, true).await?;
    let mut running_since = None;
    let begun = tokio::time::Instant::now();
    let wanted = context.boot_check();
    let mut checks = BootChecks::new(&wanted);
    loop {
        afterwards::source_is_off(context).await?;
        match context.target.look(context.id).await {
            Ok(MachineState::NotManaged) => return Ok(PhaseOutcome::StartedOutside),
            Ok(MachineState::Running) => {
                let since = *running_since.get_or_insert_with(tokio::time::Instant::now);
                checks.look(context).await;
                if checks.all_seen() {
                    if since.elapsed() >= context.plan().cutover.min_uptime {
                        let span = humantime::format_duration(context.plan().cutover.min_uptime);
                        return Ok(PhaseOutcome::DoneWith(checks.seen(format!("ran for {span}"))));
                    }
                } else if begun.elapsed() >= wanted.deadline {
                    return Err(WorkError::operator(format!(
                        "the boot check failed: {} within {}; the target VM runs and the source stays off: look at it \
                         there, then resume, which checks again, or go back to the source with `rollback`",
                        checks.missing(),
                        humantime::format_duration(wanted.deadline)
                    )));
                }
            }
            Ok(MachineState::Starting) => running_since = None,
            Ok(state @ (MachineState::Absent | MachineState::Stopped | MachineState::Failed(_))) => {
                return Err(WorkError::operator(format!(
                    "the target VM was started and is {state:?} now; look at it on the target, start it there, \
                     then resume; the source stays off, unless you go back to it with `rollback`"
                )));
            }
            Err(error)
                if begun.elapsed()
                    < context.plan().cutover.min_uptime + context.plan().cutover.create_deadline =>
            {
                tracing::warn!(migration = %context.id, %error, "target VM not seen");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn release(context: &Context) -> Result<PhaseOutcome, WorkError> {
    // First, regardless of the source's host: the target VM must start with its own host.
    if context.cutover().hold_off.is_some_and(|was| was.autostart) {
        context.target.set_autostart(context.id, true).await?;
        if !context.target.keeps_autostart() {
            let text = "the source VM was started together with its host, and whether the target VM is, the target does not \
                        keep: set that where it runs";
            context.log_event(EventKind::Warning, text.to_owned()).await;
        }
    }
    if !afterwards::source_is_off(context).await? {
        return Err(WorkError::passing(
            "its source does not say whether the source VM is off: nothing is released before that is known",
        ));
    }
    afterwards::source_was_off(context).await?;
    let span = TimeDelta::from_std(context.plan().cutover.monitor_source).unwrap_or(TimeDelta::MAX);
    let until = (span > TimeDelta::zero()).then(|| clock::now().checked_add_signed(span)).flatten();
    context.remember(|cutover| cutover.monitor_until = until).await?;
    context.source.end_snapshot(&context.vm, context.id).await?;
    let leftovers = context.source.delete_marks(&context.vm, context.id, &[]).await?;
    tell(context, leftovers).await;
    // Also the disks of a VM that was off and was not started: it can be started without warmd.
    hand_over(context, true).await?;
    if let Err(error) = context.target.tidy(context.id).await {
        tracing::warn!(migration = %context.id, %error, "what earlier target VMs left beside the disks is still there");
    }
    Ok(PhaseOutcome::Done)
}

/// Reports leftovers that stay on the source permanently.
async fn tell(context: &Context, leftovers: Vec<Leftover>) {
    let left: Vec<_> = leftovers.iter().map(ToString::to_string).collect();
    context.live.update(|view| view.left_behind.clone_from(&left));
    for text in left {
        context.log_event(EventKind::Warning, text).await;
    }
}

/// The fence: the source must be off, and stay off, from the final delta on.
pub(super) async fn fence(context: &Context) -> Result<(), WorkError> {
    match context.source.power(&context.vm).await? {
        PowerState::Off => Ok(()),
        PowerState::Running | PowerState::Paused => Err(WorkError::operator(
            "the source VM was started again during the cutover: what it writes now would be lost; find out who \
             starts it (autostart, high availability, a person), then cut over again",
        )),
    }
}

/// The ledger's fourth rule, checked against the store. Blocks that a conversion changed are pending.
async fn done_by_ledger(context: &Context) -> Result<(), WorkError> {
    drained_by_ledger(context, conversion::in_force(context).await?.as_ref()).await
}

/// The same for disks with this conversion on them.
pub(super) async fn drained_by_ledger(
    context: &Context,
    converted: Option<&ConversionView>,
) -> Result<(), WorkError> {
    for row in context.store.disks(context.id).await? {
        let ledger = context.ledger(row.id).await?;
        let changed = converted.map_or(0, |converted| converted.changed(&row.key));
        if ledger.anchor().is_none() || ledger.pending_bytes().0 != changed {
            return Err(WorkError::operator(format!(
                "disk {} has {} bytes pending: the target must not be used yet; cut over again",
                row.key,
                ledger.pending_bytes()
            )));
        }
    }
    Ok(())
}

/// Whether the source ran when the cutover began. Unknown means that nothing was stopped yet.
fn was_running(context: &Context) -> bool {
    context.cutover().was_running == Some(true)
}
