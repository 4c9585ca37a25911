//! The way back to the source, and the removal of all that a migration holds.
//!
//! Rule: the target VM is removed with certainty before the source is powered on; the source is powered on
//! before any step that may fail, saving the state included. Each step may be repeated. Never do both VMs
//! run.

use std::time::Duration;

use warmd_core::{
    crash,
    model::{event_kind::EventKind, machine::PowerState, phase::Phase, transition::StateWork},
    sources::{SourceError, SourceErrorKind},
    targets::MachineState,
};

use super::{LOOK_EVERY, let_go, tell, was_running};
use crate::{context::Context, conversion, failure::WorkError, stale_state};

/// How long a source VM that is off waits for the end of its snapshot before it is powered on.
const END_SOON: Duration = Duration::from_mins(1);

/// Makes sure that the target VM is removed, before the source is started. A target that only keeps disks
/// cannot confirm that, which is written to the journal.
pub(crate) async fn discard_seen(context: &Context) -> Result<(), WorkError> {
    if discarded(context).await? == MachineState::NotManaged {
        let text =
            "the target only keeps disks: warmd cannot tell whether another system runs a VM from them";
        context.log_event(EventKind::Warning, text.to_owned()).await;
    }
    Ok(())
}

/// Removes the target VM: the target reports the removal, and then no VM, or that it manages none.
async fn discarded(context: &Context) -> Result<MachineState, WorkError> {
    context.target.discard_machine(context.id).await?;
    match context.target.look(context.id).await? {
        state @ (MachineState::Absent | MachineState::NotManaged) => Ok(state),
        state => Err(WorkError::passing(format!(
            "the target said that it removed the VM, and it is {state:?}: the source is not started before it is gone"
        ))),
    }
}

/// Whether the target VM may exist in a cutover that is undone from a phase. After a restart the phase may be
/// an earlier one again although the VM exists.
pub(crate) fn may_be_made(context: &Context, from: Phase) -> bool {
    from.target_vm_may_exist() || context.cutover().create_requested
}

/// The result of powering the source on: `gone` instead where the VM no longer exists, `elsewhere` where it
/// runs on another host of its source; both are written to the journal.
pub(crate) async fn unless_away<T>(
    context: &Context,
    back: Result<T, SourceError>,
    gone: T,
    elsewhere: T,
) -> Result<T, WorkError> {
    match back {
        Err(error) if error.kind == SourceErrorKind::NotFound => {
            context
                .log_event(EventKind::Warning, format!("there is no source VM to power on: {error}"))
                .await;
            Ok(gone)
        }
        Err(error) if error.runs_elsewhere() => {
            context
                .log_event(EventKind::Error, format!("the source VM is not powered on here: {error}"))
                .await;
            Ok(elsewhere)
        }
        back => Ok(back?),
    }
}

/// Starts the source VM, and checks that it runs.
async fn power_on_seen(context: &Context) -> Result<(), SourceError> {
    context.source.power_on(&context.vm).await?;
    match context.source.power(&context.vm).await? {
        PowerState::Running => Ok(()),
        state => Err(SourceError::new(
            SourceErrorKind::Failed,
            format!("starting VM {}", context.machine.name),
            format!("it was started, and is {state:?}; trying again"),
        )),
    }
}

/// Undoes a cutover: removes the target VM, restores the source. Between the two no call is made that could
/// fail, not even to the state: the rest is done when the source runs, and is repeated after a crash.
pub async fn undo(context: &Context, from: Phase) -> Result<(), WorkError> {
    if may_be_made(context, from) {
        discard_seen(context).await?;
        crash::point("undo.discarded");
    }
    unless_away(context, source_back(context, from).await, (), ()).await?;
    crash::point("undo.powered-on");
    if context.cutover().start_requested_at.is_some() {
        // What the target VM wrote while it ran is in no ledger: all of its disks are copied again.
        for row in context.store.disks(context.id).await? {
            context.ledger(row.id).await?.distrust_all().await?;
        }
        context
            .remember(|cutover| {
                (cutover.start_requested_at, cutover.reclaimed_at) = (None, cutover.handed_over_at);
            })
            .await?;
        let text = "the target VM may have run: its disks are copied again, whole, in the next pass";
        context.log_event(EventKind::Warning, text.to_owned()).await;
    }
    let_go(context).await?;
    if from.spec().undo.is_none_or(|undo| undo.may_be_converted) {
        conversion::give_up(context).await?;
    }
    Ok(())
}

/// Restores the source as before the cutover. It is powered on even if its snapshot cannot be ended now.
pub(crate) async fn source_back(context: &Context, from: Phase) -> Result<(), SourceError> {
    if !from.source_may_be_off() || !was_running(context) {
        return context.source.end_snapshot(&context.vm, context.id).await;
    }
    let asked =
        from.spec().undo.is_some_and(|undo| undo.shutdown_may_follow) && context.may_have_asked_shutdown();
    power_on_and_end_snapshot(context, asked).await
}

/// Powers the source VM on, which is off, and ends its snapshot: before that if it ends soon, else after it.
/// A consolidation of hours, or a task of others, is not waited for while the VM is off.
pub(crate) async fn power_on_and_end_snapshot(
    context: &Context,
    shutdown_may_follow: bool,
) -> Result<(), SourceError> {
    let ended = end_snapshot_soon(context).await;
    if shutdown_may_follow {
        await_asked_shutdown(context).await?;
    }
    power_on_seen(context).await?;
    match ended {
        Some(ended) => ended,
        None => context.source.end_snapshot(&context.vm, context.id).await,
    }
}

/// Ends the snapshot while a VM waits, off, to be powered on. `None` if it has not ended.
async fn end_snapshot_soon(context: &Context) -> Option<Result<(), SourceError>> {
    let ending = context.source.end_snapshot(&context.vm, context.id);
    let ended = tokio::time::timeout(END_SOON, ending).await.ok();
    if ended.is_none() {
        tracing::info!(migration = %context.id, "source VM powered on before its snapshot is ended");
    }
    ended
}

/// A guest's shutdown cannot be withdrawn: the guest gets time to shut down, so that a late shutdown does not
/// follow its power-on.
async fn await_asked_shutdown(context: &Context) -> Result<(), SourceError> {
    let begun = tokio::time::Instant::now();
    // Twice the plan's time: a guest that was nearly off at the deadline must not go off unseen.
    let patience = context.plan().cutover.graceful_shutdown * 2;
    while begun.elapsed() < patience && context.source.power(&context.vm).await? != PowerState::Off {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn is_gone(error: &SourceError) -> bool {
    error.kind == SourceErrorKind::NotFound
}

/// Ends the migration's snapshot, and deletes its marks.
async fn release_marks(context: &Context) -> Result<(), WorkError> {
    match context.source.end_snapshot(&context.vm, context.id).await {
        Err(error) if is_gone(&error) => {
            context.log_event(EventKind::Warning, format!("nothing to release: {error}")).await;
        }
        result => result?,
    }
    match context.source.delete_marks(&context.vm, context.id, &[]).await {
        Err(error) if is_gone(&error) => {
            context.log_event(EventKind::Warning, format!("nothing to release: {error}")).await;
        }
        leftovers => tell(context, leftovers?).await,
    }
    Ok(())
}

/// Removes all that the migration holds on the source and the target.
pub async fn clean(context: &Context) -> Result<(), WorkError> {
    // A cutover that stopped the source, and neither ended nor was undone: the VM waits to be powered on.
    let is_stopped = context.cutover().hold_off.is_some() && was_running(context);
    if is_stopped {
        // Its result is that of `source_back`.
        end_snapshot_soon(context).await;
    } else {
        release_marks(context).await?;
    }
    let noted = context.target.noted_writer(context.id).await?;
    if !stale_state::is_known(&context.cutover(), StateWork::Clean, noted) {
        let text = "a cutover that warmd's state does not know of gave the target's disks to the target VM: it and its disks \
                    are left as they are, and belong to it alone";
        context.log_event(EventKind::Warning, text.to_owned()).await;
        return if is_stopped { release_marks(context).await } else { Ok(()) };
    }
    discarded(context).await?;
    if context.cutover().hold_off.is_some() {
        match source_back(context, Phase::FinalDelta).await {
            Err(error) if is_gone(&error) => {}
            result => result?,
        }
    }
    if is_stopped {
        release_marks(context).await?;
    }
    let_go(context).await?;
    let made = context.made_disks().await?;
    // Without a ledger the disks may still have been created, and not recorded.
    let disks = if made.is_empty() { context.disk_specs() } else { made };
    context.target.discard_disks(context.id, &disks).await?;
    Ok(())
}
