//! A state that was put back from an older copy, and does not know that a cutover has gone on since: the target's disks
//! are the target VM's by now.
//!
//! Rule: nothing is copied over what a target VM may have written, no target VM is removed and no source VM is started,
//! unless this state gave the disks to that VM itself, or a person has decided. It is found out before a daemon does its
//! first work on a migration: under a daemon that runs nobody changes its state.

use chrono::{DateTime, SubsecRound as _, Utc};
use warmd_cbt::mutant::mutant;

use super::{
    context::Context,
    failure::{Remedy, WorkError},
};
use crate::{
    clock, human,
    model::{phase::Phase, transition::Work},
    store::Cutover,
    targets::Writer,
};

/// Looks who wrote to the target last, before the first work; [`Remedy::Decide`] if that is a target VM that this state
/// knows nothing of.
pub(super) async fn check(context: &Context, doing: Work) -> Result<(), WorkError> {
    let nothing_to_do = match doing {
        Work::Nothing | Work::AwaitSchedule | Work::Begin | Work::Clean => true,
        Work::Undo(from) => !from.source_may_be_off() && from < Phase::CreateVm,
        Work::Prepare | Work::Seed | Work::Sync | Work::Phase(_) | Work::RollBack => false,
    };
    if nothing_to_do || context.is_known_of() {
        return Ok(());
    }
    let noted = context.target.noted_writer(context.id).await?;
    refuse(context, doing, noted)?;
    context.known_of();
    Ok(())
}

/// Fails if the state does not know of the last writer that is noted.
pub(super) fn refuse(context: &Context, doing: Work, noted: Option<Writer>) -> Result<(), WorkError> {
    if is_known(&context.cutover(), doing, noted) { Ok(()) } else { Err(why(noted, doing)) }
}

/// The moment by which disks are given to a target VM, as precisely as it is kept.
pub(super) fn moment() -> DateTime<Utc> {
    clock::now().trunc_subsecs(6)
}

/// Whether a state that remembers this of its last cutover, and is about to do this, knows of the last writer.
pub(super) fn is_known(cutover: &Cutover, doing: Work, noted: Option<Writer>) -> bool {
    if mutant("overtaken-unseen") {
        return true;
    }
    match (noted, doing) {
        // The machine is warmd's to look after, and a pass came after it: it was gone back from.
        (Some(Writer::Pass { .. } | Writer::Conversion(_)), Work::Phase(Phase::Watch | Phase::Release)) => {
            cutover.target_running.is_none()
        }
        (None | Some(Writer::Pass { .. } | Writer::Conversion(_)), _) => true,
        // A person has decided about whoever it is; or there is only forward.
        (Some(Writer::Unknown), Work::RollBack | Work::Phase(Phase::Watch | Phase::Release)) => true,
        (Some(Writer::Unknown), _) => false,
        // There is only forward, or it was decided about this one.
        (Some(Writer::Machine { since, .. }), Work::RollBack) => cutover.given_over == Some(since),
        (Some(Writer::Machine { .. }), Work::Phase(Phase::Watch | Phase::Release)) => true,
        (Some(Writer::Machine { since, over }), _) => {
            let in_between = cutover.given_over == Some(since) && (!over || cutover.target_running.is_some());
            in_between || cutover.taken_back == Some(since)
        }
    }
}

fn why(noted: Option<Writer>, doing: Work) -> WorkError {
    if let (Some(Writer::Pass { .. } | Writer::Conversion(_)), Work::Phase(_)) = (noted, doing) {
        return WorkError::operator(
            "warmd's state says that the target VM was started, and the target that it was copied to since: was the \
             state put back from an older copy? If the source VM is the one that counts, go back to it with `rollback`",
        );
    }
    let by = match noted {
        Some(Writer::Machine { since, .. }) => format!(
            "a cutover that warmd's state does not know of gave the target's disks to the target VM, at {} UTC",
            human::moment(since)
        ),
        _ => "who wrote to the target's disks last is not known: the note beside them cannot be read"
            .to_owned(),
    };
    let cause = format!(
        "{by}. Was the state put back from an older copy? Nothing is copied over what that VM wrote, and no VM is started \
         or stopped, before you decide: if the VM on the target counts, `cancel` (it and its disks are left as they are); \
         if the source VM does, `rollback` (the target VM is removed, what it wrote is lost)"
    );
    WorkError { remedy: Remedy::Decide, cause: cause.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(second, 0)
    }

    fn machine(second: i64, over: bool) -> Option<Writer> {
        at(second).map(|since| Writer::Machine { since, over })
    }

    #[test]
    fn a_target_vm_of_another_cutover_is_not_known() {
        let pass = Some(Writer::Pass { number: 9, faults: 0 });
        let never = Cutover::default();
        let given = Cutover { given_over: at(1), ..never.clone() };
        let seen = Cutover { target_running: at(2), ..given.clone() };
        let back = Cutover { taken_back: at(1), ..never.clone() };
        let sync = Work::Sync;
        for (cutover, doing, noted, known) in [
            (&never, sync, None, true),
            (&never, sync, pass, true),
            (&never, sync, machine(1, false), false),
            (&never, sync, Some(Writer::Unknown), false),
            (&never, Work::Undo(Phase::FinalDelta), machine(1, false), false),
            (&given, Work::Undo(Phase::StartVm), machine(1, false), true),
            (&given, Work::Undo(Phase::StartVm), machine(1, true), false),
            (&given, Work::Phase(Phase::StartVm), machine(3, false), false),
            (&seen, Work::Undo(Phase::StartVm), machine(1, true), true),
            (&back, sync, machine(1, true), true),
            (&back, sync, machine(3, true), false),
            (&seen, Work::Phase(Phase::Watch), machine(1, true), true),
            (&seen, Work::Phase(Phase::Watch), pass, false),
            // The VM was off, and stays so.
            (&never, Work::Phase(Phase::Release), pass, true),
            (&seen, Work::RollBack, machine(1, true), true),
            (&seen, Work::RollBack, machine(3, true), false),
            (&never, Work::RollBack, Some(Writer::Unknown), true),
            (&seen, Work::Phase(Phase::Watch), Some(Writer::Unknown), true),
        ] {
            assert_eq!(is_known(cutover, doing, noted), known, "{cutover:?} {doing:?} {noted:?}");
        }
    }
}
