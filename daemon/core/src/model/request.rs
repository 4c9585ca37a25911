//! Requests to a migration, and whether they are granted.
//!
//! Rule: judging a request is pure and separate from carrying it out. A refusal says why and what to do
//! instead, and is shown unchanged.

use serde::{Deserialize, Serialize};

use super::{
    phase::Phase,
    state::{ResumePoint, State},
};

/// A request to a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Copy a delta now.
    Sync,
    Pause,
    Resume,
    /// Move the VM now.
    Cutover,
    /// Move the VM later, or not until a further request.
    ScheduleCutover,
    /// Undo a cutover that has not passed the point of no return.
    AbortCutover,
    /// Go back to the source after the target VM was started: what the target VM wrote is lost.
    Rollback,
    /// Cancel the migration.
    Cancel,
    /// Read the target again and compare it with the manifest, or with the source.
    Verify,
}

impl Request {
    /// Its name in the API, the journal and the CLI.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cutover => "cutover",
            Self::ScheduleCutover => "schedule-cutover",
            Self::AbortCutover => "abort-cutover",
            Self::Rollback => "rollback",
            Self::Cancel => "cancel",
            Self::Verify => "verify",
        }
    }
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    Accepted,
    /// Already so, or in progress.
    NoChange,
    /// Refused: why, and what to do.
    Refused(String),
}

/// Judges `request` of a migration in `state`.
pub fn judge(state: &State, request: Request) -> RequestOutcome {
    use Request as R;
    use RequestOutcome::{Accepted, NoChange};
    use State as S;
    let refused = |why: &str| {
        RequestOutcome::Refused(format!(
            "{} is refused while the migration is {state}: {why}",
            request.name()
        ))
    };

    match (request, state) {
        // Objections to this are known to the target only.
        (R::Verify, S::Done) => Accepted,
        (R::Rollback, S::Done) => Accepted,
        (_, S::Done) if request != R::Cutover => refused("it is finished, and stays as it is"),
        (R::Cutover, S::Done) | (R::Cancel, S::Cancelled | S::Cancelling) => NoChange,
        (_, S::Cancelled | S::Cancelling) => {
            refused("it was cancelled; apply the plan again for a new migration")
        }

        (R::Rollback, S::CuttingOver { phase }) if phase.past_no_return() => Accepted,
        (R::Rollback, S::Failed { from, .. }) if from.past_no_return() => Accepted,
        (R::Rollback, S::Failed { from: ResumePoint::StaleState, .. }) => Accepted,
        (R::Rollback | R::Resume, S::RollingBack) => NoChange,
        (R::Rollback, S::CuttingOver { .. }) => {
            refused("the target VM was not started yet; abort the cutover with `cutover --abort`")
        }
        (R::Rollback, S::Undoing { .. }) => refused("the cutover is being undone already"),
        (
            R::Rollback,
            S::Defined
            | S::Preparing
            | S::Seeding
            | S::Synced
            | S::Syncing
            | S::Paused { .. }
            | S::Failed { .. },
        ) => refused("no target VM was started, so there is nothing to go back from"),
        (
            R::Sync | R::Pause | R::Cutover | R::ScheduleCutover | R::AbortCutover | R::Cancel | R::Verify,
            S::RollingBack,
        ) => refused("it goes back to the source; wait until it is paused, then resume or cancel it"),

        (R::Sync, S::Synced) => Accepted,
        (R::Sync, S::Seeding | S::Syncing) => NoChange,
        (R::Sync, S::Defined | S::Preparing) => {
            refused("its disks are not ready; the full pass starts automatically")
        }
        (R::Sync, S::CuttingOver { .. } | S::Undoing { .. }) => {
            refused("a cutover runs; it also copies what changed")
        }
        (R::Sync, S::Paused { .. } | S::Failed { .. }) => refused("resume it first"),

        (R::Pause, S::Seeding | S::Syncing | S::Synced) => Accepted,
        (R::Pause, S::Paused { .. }) => NoChange,
        (R::Pause, S::Defined | S::Preparing) => {
            refused("its disks are being made; wait for the full pass to start")
        }
        (R::Pause, S::CuttingOver { .. } | S::Undoing { .. }) => {
            refused("a cutover runs; abort it with `cutover --abort`")
        }
        (R::Pause, S::Failed { .. }) => refused("it stands still already; resume or cancel it"),

        (R::Resume, S::Paused { .. } | S::Failed { resumable: true, .. }) => Accepted,
        (R::Resume, S::Failed { .. }) => {
            refused("its failure cannot be resumed; cancel it, or see `migration show`")
        }
        (
            R::Resume,
            S::Defined
            | S::Preparing
            | S::Seeding
            | S::Synced
            | S::Syncing
            | S::CuttingOver { .. }
            | S::Undoing { .. },
        ) => NoChange,

        // A pass that runs is cut short: what it drained stays drained.
        (R::Cutover, S::Synced | S::Syncing) => Accepted,
        (R::Cutover, S::CuttingOver { .. }) => NoChange,
        (R::Cutover, S::Defined | S::Preparing | S::Seeding) => {
            refused("the full pass is not finished; wait until it is synced")
        }
        (R::Cutover, S::Undoing { .. }) => {
            refused("the last cutover is being undone; try again when it is synced")
        }
        (R::Cutover, S::Paused { .. } | S::Failed { .. }) => {
            refused("resume it first, then wait until it is synced")
        }

        // The clock and the plan's windows decide when it begins.
        (
            R::ScheduleCutover,
            S::Defined
            | S::Preparing
            | S::Seeding
            | S::Synced
            | S::Syncing
            | S::Paused { .. }
            | S::Failed { resumable: true, .. },
        ) => Accepted,
        (R::ScheduleCutover, S::Failed { .. }) => {
            refused("its failure cannot be resumed; cancel it, or see `migration show`")
        }
        (R::ScheduleCutover, S::CuttingOver { .. }) => {
            refused("a cutover runs; abort it with `cutover --abort`")
        }
        (R::ScheduleCutover, S::Undoing { .. }) => {
            refused("the last cutover is being undone; try again when it is synced")
        }

        (R::AbortCutover, S::CuttingOver { phase }) if phase.past_no_return() => {
            refused("the target VM was started; to go back, and lose what it wrote since, use `rollback`")
        }
        (R::AbortCutover, S::CuttingOver { phase: Phase::StartVm }) => {
            refused("the target VM is being started; if that fails, the cutover is undone automatically")
        }
        (R::AbortCutover, S::CuttingOver { .. }) => Accepted,
        (R::AbortCutover, S::Undoing { .. }) => NoChange,
        (
            R::AbortCutover,
            S::Defined
            | S::Preparing
            | S::Seeding
            | S::Synced
            | S::Syncing
            | S::Paused { .. }
            | S::Failed { .. },
        ) => refused("no cutover runs"),

        (R::Cancel, S::CuttingOver { .. } | S::Undoing { .. }) => {
            refused("a cutover runs; abort it with `cutover --abort`, then cancel")
        }
        (R::Cancel, S::Failed { from, .. }) if from.past_no_return() => {
            refused("the target VM was started; resume goes on from here, and `rollback` back to the source")
        }
        (
            R::Cancel,
            S::Defined
            | S::Preparing
            | S::Seeding
            | S::Synced
            | S::Syncing
            | S::Paused { .. }
            | S::Failed { .. },
        ) => Accepted,

        (R::Verify, S::Synced) => Accepted,
        (
            R::Verify,
            S::Defined
            | S::Preparing
            | S::Seeding
            | S::Syncing
            | S::CuttingOver { .. }
            | S::Undoing { .. }
            | S::Paused { .. }
            | S::Failed { .. },
        ) => refused(
            "the target is only at rest while it is synced, and after it is done until its VM is started",
        ),

        // Unreachable: conditional arms above take every request of a finished migration.
        (_, S::Done) => refused("it is finished"),
    }
}
