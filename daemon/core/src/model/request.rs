//! Requests to a migration, and whether they are granted.
//!
//! Rule: judging a request is pure and separate from carrying it out. A refusal says why and what to do
//! instead, and is shown unchanged.

use chrono::{DateTime, Utc};

use super::{
    state::{ResumePoint, State},
    verify::VerifyOrder,
};

/// A request to a migration, with its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Copy a delta now.
    Sync,
    Pause,
    Resume,
    /// Move the VM now.
    Cutover(CutoverOptions),
    /// Move the VM later, or not until a further request.
    ScheduleCutover(CutoverSchedule),
    /// Undo a cutover that has not passed the point of no return.
    AbortCutover,
    /// Go back to the source after the target VM was started: what the target VM wrote is lost.
    Rollback,
    /// Cancel the migration.
    Cancel,
    /// Read the target again and compare it with the manifest, or with the source.
    Verify(VerifyOrder),
}

/// The options of a cutover now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutoverOptions {
    /// Also outside the plan's windows, and against its forecast.
    pub force: bool,
    /// Whether the other VMs of its group are asked too: never set by a user.
    pub in_group: bool,
}

/// When a cutover that is not to begin now may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutoverSchedule {
    At {
        at: DateTime<Utc>,
        /// Also outside the plan's windows.
        force: bool,
    },
    /// Stay synced and wait for a further request, also where the plan cuts over automatically.
    Hold,
    /// Lift the hold: the plan decides again.
    Unhold,
}

impl Request {
    /// A cutover now, without options.
    pub fn cutover() -> Self {
        Self::Cutover(CutoverOptions::default())
    }

    /// A readback of all blocks.
    pub fn verify() -> Self {
        Self::Verify(VerifyOrder::default())
    }

    /// Its name in the API, the journal and the CLI.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cutover(_) => "cutover",
            Self::ScheduleCutover(_) => "schedule-cutover",
            Self::AbortCutover => "abort-cutover",
            Self::Rollback => "rollback",
            Self::Cancel => "cancel",
            Self::Verify(_) => "verify",
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
pub fn check_request(state: &State, request: &Request) -> RequestOutcome {
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
        (R::Verify(_), S::Done) => Accepted,
        (R::Rollback, S::Done) => Accepted,
        (request, S::Done) if !matches!(request, R::Cutover(_)) => {
            refused("it is finished, and stays as it is")
        }
        (R::Cutover(_), S::Done) | (R::Cancel, S::Cancelled | S::Cancelling) => NoChange,
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
            R::Sync
            | R::Pause
            | R::Cutover(_)
            | R::ScheduleCutover(_)
            | R::AbortCutover
            | R::Cancel
            | R::Verify(_),
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
        (R::Cutover(_), S::Synced | S::Syncing) => Accepted,
        (R::Cutover(_), S::CuttingOver { .. }) => NoChange,
        (R::Cutover(_), S::Defined | S::Preparing | S::Seeding) => {
            refused("the full pass is not finished; wait until it is synced")
        }
        (R::Cutover(_), S::Undoing { .. }) => {
            refused("the last cutover is being undone; try again when it is synced")
        }
        (R::Cutover(_), S::Paused { .. } | S::Failed { .. }) => {
            refused("resume it first, then wait until it is synced")
        }

        // The clock and the plan's windows decide when it begins.
        (
            R::ScheduleCutover(_),
            S::Defined
            | S::Preparing
            | S::Seeding
            | S::Synced
            | S::Syncing
            | S::Paused { .. }
            | S::Failed { resumable: true, .. },
        ) => Accepted,
        (R::ScheduleCutover(_), S::Failed { .. }) => {
            refused("its failure cannot be resumed; cancel it, or see `migration show`")
        }
        (R::ScheduleCutover(_), S::CuttingOver { .. }) => {
            refused("a cutover runs; abort it with `cutover --abort`")
        }
        (R::ScheduleCutover(_), S::Undoing { .. }) => {
            refused("the last cutover is being undone; try again when it is synced")
        }

        (R::AbortCutover, S::CuttingOver { phase }) if phase.past_no_return() => {
            refused("the target VM was started; to go back, and lose what it wrote since, use `rollback`")
        }
        (R::AbortCutover, S::CuttingOver { phase }) if !phase.spec().can_be_aborted => {
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

        (R::Verify(_), S::Synced) => Accepted,
        (
            R::Verify(_),
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
