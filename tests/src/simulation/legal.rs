//! The steps from state to state that a migration may take.
//!
//! Rule: it is written down from the diagram of the design. Of the daemon it asks the order of the phases only, not which
//! steps there are.

use warmd_daemon::model::{
    phase::Phase,
    state::{Resting, State},
};

/// Whether the diagram of the design has this step.
pub(super) fn is_legal(before: &State, now: &State) -> bool {
    use State as S;
    let abandons = matches!(now, S::Cancelling);
    match (before, now) {
        (S::Defined, S::Preparing) | (S::Preparing, S::Seeding) | (S::Seeding | S::Syncing, S::Synced) => {
            true
        }
        (S::Defined | S::Preparing, S::Failed { from: Resting::Preparing, .. }) => true,
        (S::Seeding, S::Failed { from: Resting::Seeding, .. } | S::Paused { from: Resting::Seeding }) => true,
        (S::Synced, S::Syncing | S::Paused { from: Resting::Synced }) => true,
        (S::Syncing, S::Failed { from: Resting::Synced, .. } | S::Paused { from: Resting::Synced }) => true,
        (S::Synced | S::Syncing, S::CuttingOver { phase: Phase::LastDelta }) => true,
        (S::CuttingOver { phase }, S::CuttingOver { phase: then }) => {
            // Nobody watched the source while there was no daemon: it takes the final delta again.
            let again = matches!(phase, Phase::Verify | Phase::Convert | Phase::CreateVm | Phase::StartVm)
                && *then == Phase::FinalDelta;
            phase.next() == Some(*then) || again
        }
        (S::CuttingOver { phase: Phase::Release }, S::Done) => true,
        (S::CuttingOver { phase: Phase::Watch }, S::Failed { from: Resting::Watch, .. }) => true,
        (S::CuttingOver { phase: Phase::Release }, S::Failed { from: Resting::Release, .. }) => true,
        (S::CuttingOver { phase }, S::Undoing { phase: of, .. }) => phase == of && *phase <= Phase::StartVm,
        (S::Undoing { .. }, S::Synced) => true,
        // The state was put back from an older copy.
        (
            S::Preparing
            | S::Seeding
            | S::Syncing
            | S::CuttingOver { .. }
            | S::Undoing { .. }
            | S::RollingBack,
            S::Failed { from: Resting::Overtaken, .. },
        ) => true,
        (S::Done | S::CuttingOver { phase: Phase::Watch | Phase::Release }, S::RollingBack) => true,
        (S::RollingBack, S::Paused { from: Resting::Synced }) => true,
        (S::Paused { from } | S::Failed { from, .. }, now) => match (from, now) {
            (Resting::Preparing, S::Preparing)
            | (Resting::Seeding, S::Seeding)
            | (Resting::Synced, S::Syncing)
            | (Resting::Watch, S::CuttingOver { phase: Phase::Watch })
            | (Resting::Release, S::CuttingOver { phase: Phase::Release }) => true,
            (Resting::Watch | Resting::Release | Resting::Overtaken, S::RollingBack) => true,
            (Resting::Overtaken, S::Syncing) => true,
            (Resting::Watch | Resting::Release, _) => false,
            _ => abandons,
        },
        (S::Defined | S::Preparing | S::Seeding | S::Synced | S::Syncing, S::Cancelling) => true,
        (S::Cancelling, S::Cancelled) => true,
        _ => false,
    }
}
