//! The steps from state to state that a migration may take.
//!
//! Rule: it is written from the design's diagram. From the daemon it takes only the order of the phases, not
//! the possible steps.

use warmd_core::model::{
    phase::Phase,
    state::{ResumePoint, State},
};

/// Whether the diagram of the design has this step.
pub(super) fn is_legal(before: &State, now: &State) -> bool {
    use State as S;
    let abandons = matches!(now, S::Cancelling);
    match (before, now) {
        (S::Defined, S::Preparing) | (S::Preparing, S::Seeding) | (S::Seeding | S::Syncing, S::Synced) => {
            true
        }
        (S::Defined | S::Preparing, S::Failed { from: ResumePoint::Preparing, .. }) => true,
        (
            S::Seeding,
            S::Failed { from: ResumePoint::Seeding, .. } | S::Paused { from: ResumePoint::Seeding },
        ) => true,
        (S::Synced, S::Syncing | S::Paused { from: ResumePoint::Synced }) => true,
        (
            S::Syncing,
            S::Failed { from: ResumePoint::Synced, .. } | S::Paused { from: ResumePoint::Synced },
        ) => true,
        (S::Synced | S::Syncing, S::CuttingOver { phase: Phase::CatchUpDelta }) => true,
        (S::CuttingOver { phase }, S::CuttingOver { phase: then }) => {
            // The source was not watched while there was no daemon: the final delta is taken again.
            let again = matches!(phase, Phase::Verify | Phase::Convert | Phase::CreateVm | Phase::StartVm)
                && *then == Phase::FinalDelta;
            phase.next() == Some(*then) || again
        }
        (S::CuttingOver { phase: Phase::Cleanup }, S::Done) => true,
        (S::CuttingOver { phase: Phase::BootCheck }, S::Failed { from: ResumePoint::BootCheck, .. }) => true,
        (S::CuttingOver { phase: Phase::Cleanup }, S::Failed { from: ResumePoint::Cleanup, .. }) => true,
        (S::CuttingOver { phase }, S::Undoing { phase: of, .. }) => phase == of && *phase <= Phase::StartVm,
        (S::Undoing { .. }, S::Synced) => true,
        // The state was restored from an older copy.
        (
            S::Preparing
            | S::Seeding
            | S::Syncing
            | S::CuttingOver { .. }
            | S::Undoing { .. }
            | S::RollingBack,
            S::Failed { from: ResumePoint::StaleState, .. },
        ) => true,
        (S::Done | S::CuttingOver { phase: Phase::BootCheck | Phase::Cleanup }, S::RollingBack) => true,
        (S::RollingBack, S::Paused { from: ResumePoint::Synced }) => true,
        (S::Paused { from } | S::Failed { from, .. }, now) => match (from, now) {
            (ResumePoint::Preparing, S::Preparing)
            | (ResumePoint::Seeding, S::Seeding)
            | (ResumePoint::Synced, S::Syncing)
            | (ResumePoint::BootCheck, S::CuttingOver { phase: Phase::BootCheck })
            | (ResumePoint::Cleanup, S::CuttingOver { phase: Phase::Cleanup }) => true,
            (ResumePoint::BootCheck | ResumePoint::Cleanup | ResumePoint::StaleState, S::RollingBack) => true,
            (ResumePoint::StaleState, S::Syncing) => true,
            (ResumePoint::BootCheck | ResumePoint::Cleanup, _) => false,
            _ => abandons,
        },
        (S::Defined | S::Preparing | S::Seeding | S::Synced | S::Syncing, S::Cancelling) => true,
        (S::Cancelling, S::Cancelled) => true,
        _ => false,
    }
}
