//! Stale state: a state that was restored from an older copy, and does not know that a cutover has continued
//! since. The target's disks belong to the target VM by now.
//!
//! Rule: nothing is copied over what a target VM may have written, no target VM is removed and no source VM
//! is started, unless this state handed the disks to that VM itself, or an operator has decided. The check
//! precedes a daemon's first work on a migration: while the daemon runs no other process changes its state.

use chrono::{DateTime, SubsecRound as _, Utc};
use warmd_core::{
    clock, format,
    model::{cutover_record::CutoverRecord, phase::Phase, transition::StateWork},
    targets::LastWriter,
};

use super::{
    context::Context,
    failure::{Remedy, WorkError},
};

/// Checks the target's last writer, before the first work; [`Remedy::NeedsDecision`] if that is a target VM
/// that this state does not know.
pub(super) async fn check(context: &Context, doing: StateWork) -> Result<(), WorkError> {
    let nothing_to_do = match doing {
        StateWork::Nothing | StateWork::AwaitSchedule | StateWork::Begin | StateWork::Clean => true,
        StateWork::Undo(from) => !from.source_may_be_off() && !from.target_vm_may_exist(),
        StateWork::Prepare
        | StateWork::Seed
        | StateWork::Sync
        | StateWork::Phase(_)
        | StateWork::RollBack => false,
    };
    if nothing_to_do || context.writer_checked() {
        return Ok(());
    }
    let noted = context.target.noted_writer(context.id).await?;
    refuse(context, doing, noted)?;
    context.set_writer_checked();
    Ok(())
}

/// Fails if the state does not know the noted last writer.
pub(super) fn refuse(
    context: &Context,
    doing: StateWork,
    noted: Option<LastWriter>,
) -> Result<(), WorkError> {
    if is_known(&context.cutover(), doing, noted) { Ok(()) } else { Err(why(noted, doing)) }
}

/// The moment of a hand-over to a target VM, in the precision in which it is saved.
pub(super) fn moment() -> DateTime<Utc> {
    clock::now().trunc_subsecs(6)
}

/// Whether a state with this record of its last cutover, and about to do this work, knows the last writer.
pub(super) fn is_known(cutover: &CutoverRecord, doing: StateWork, noted: Option<LastWriter>) -> bool {
    match (noted, doing) {
        // warmd has to check the target VM, but a pass came after it: it was rolled back.
        (
            Some(LastWriter::Pass { .. } | LastWriter::Conversion(_)),
            StateWork::Phase(Phase::BootCheck | Phase::Cleanup),
        ) => cutover.target_running.is_none(),
        (None | Some(LastWriter::Pass { .. } | LastWriter::Conversion(_)), _) => true,
        // An operator has decided for any writer; or there is only forward.
        (
            Some(LastWriter::Unknown),
            StateWork::RollBack | StateWork::Phase(Phase::BootCheck | Phase::Cleanup),
        ) => true,
        (Some(LastWriter::Unknown), _) => false,
        // There is only forward, or an operator decided about this VM.
        (Some(LastWriter::Machine { since, .. }), StateWork::RollBack) => {
            cutover.handed_over_at == Some(since)
        }
        (Some(LastWriter::Machine { .. }), StateWork::Phase(Phase::BootCheck | Phase::Cleanup)) => true,
        (Some(LastWriter::Machine { since, confirmed_running }), _) => {
            let in_between = cutover.handed_over_at == Some(since)
                && (!confirmed_running || cutover.target_running.is_some());
            in_between || cutover.reclaimed_at == Some(since)
        }
    }
}

fn why(noted: Option<LastWriter>, doing: StateWork) -> WorkError {
    if let (Some(LastWriter::Pass { .. } | LastWriter::Conversion(_)), StateWork::Phase(_)) = (noted, doing) {
        return WorkError::operator(
            "warmd's state says that the target VM was started, and the target that it was copied to since: was the \
             state put back from an older copy? If the source VM is the one that counts, go back to it with `rollback`",
        );
    }
    let by = match noted {
        Some(LastWriter::Machine { since, .. }) => format!(
            "a cutover that warmd's state does not know of gave the target's disks to the target VM, at {} UTC",
            format::moment(since)
        ),
        _ => "who wrote to the target's disks last is not known: the note beside them cannot be read"
            .to_owned(),
    };
    let cause = format!(
        "{by}. Was the state put back from an older copy? Nothing is copied over what that VM wrote, and no VM is started \
         or stopped, before you decide: if the VM on the target counts, `cancel` (it and its disks are left as they are); \
         if the source VM does, `rollback` (the target VM is removed, what it wrote is lost)"
    );
    WorkError { remedy: Remedy::NeedsDecision, cause: cause.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(second, 0)
    }

    fn machine(second: i64, confirmed_running: bool) -> Option<LastWriter> {
        at(second).map(|since| LastWriter::Machine { since, confirmed_running })
    }

    #[test]
    fn a_target_vm_of_another_cutover_is_not_known() {
        let pass = Some(LastWriter::Pass { number: 9, faults: 0 });
        let never = CutoverRecord::default();
        let given = CutoverRecord { handed_over_at: at(1), ..never.clone() };
        let seen = CutoverRecord { target_running: at(2), ..given.clone() };
        let back = CutoverRecord { reclaimed_at: at(1), ..never.clone() };
        let sync = StateWork::Sync;
        for (cutover, doing, noted, known) in [
            (&never, sync, None, true),
            (&never, sync, pass, true),
            (&never, sync, machine(1, false), false),
            (&never, sync, Some(LastWriter::Unknown), false),
            (&never, StateWork::Undo(Phase::FinalDelta), machine(1, false), false),
            (&given, StateWork::Undo(Phase::StartVm), machine(1, false), true),
            (&given, StateWork::Undo(Phase::StartVm), machine(1, true), false),
            (&given, StateWork::Phase(Phase::StartVm), machine(3, false), false),
            (&seen, StateWork::Undo(Phase::StartVm), machine(1, true), true),
            (&back, sync, machine(1, true), true),
            (&back, sync, machine(3, true), false),
            (&seen, StateWork::Phase(Phase::BootCheck), machine(1, true), true),
            (&seen, StateWork::Phase(Phase::BootCheck), pass, false),
            // The VM was off, and stays off.
            (&never, StateWork::Phase(Phase::Cleanup), pass, true),
            (&seen, StateWork::RollBack, machine(1, true), true),
            (&seen, StateWork::RollBack, machine(3, true), false),
            (&never, StateWork::RollBack, Some(LastWriter::Unknown), true),
            (&seen, StateWork::Phase(Phase::BootCheck), Some(LastWriter::Unknown), true),
        ] {
            assert_eq!(is_known(cutover, doing, noted), known, "{cutover:?} {doing:?} {noted:?}");
        }
    }
}
