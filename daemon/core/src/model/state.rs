//! The states of a migration.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::phase::Phase;

/// A migration's state. Saved as JSON in the store: variants may be added; a renamed one keeps its old name
/// as an alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum State {
    /// Known, nothing done yet.
    Defined,
    /// Disks are being created on the target.
    Preparing,
    /// The full pass runs.
    Seeding,
    /// Every disk equalled a snapshot at the end of the last pass; waiting for the next.
    Synced,
    /// A delta pass runs.
    Syncing,
    /// A cutover is in this phase.
    CuttingOver { phase: Phase },
    /// A cutover failed or was aborted, and is being undone: the target VM is removed, then the source VM
    /// powered on.
    Undoing { phase: Phase, reason: String },
    /// An operator requested a rollback after the target VM was started: the target VM is being removed, then
    /// the source VM powered on.
    RollingBack,
    /// Stopped by a request; continues at the resume point.
    Paused { from: ResumePoint },
    /// Stopped by a failure.
    Failed { reason: String, resumable: bool, from: ResumePoint },
    /// Cancelled by a request; what it left on the source and the target is being removed.
    Cancelling,
    /// The VM runs on the target, and the source is off.
    Done,
    /// Cancelled: nothing of it is left on the source.
    Cancelled,
}

/// Where a stopped migration continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResumePoint {
    Preparing,
    Seeding,
    Synced,
    /// Past the point of no return: only forward.
    #[serde(alias = "watch")]
    BootCheck,
    /// Past the point of no return: only forward.
    #[serde(alias = "release")]
    Cleanup,
    /// By a cutover that this state does not know, the target VM owns the target's disks. An operator decides
    /// between that VM and the source VM.
    #[serde(alias = "overtaken")]
    StaleState,
}

impl ResumePoint {
    /// Whether the target VM was started: from here on there is no undo, only forward.
    pub fn past_no_return(self) -> bool {
        match self {
            Self::BootCheck | Self::Cleanup => true,
            Self::Preparing | Self::Seeding | Self::Synced | Self::StaleState => false,
        }
    }
}

impl State {
    /// Its name in the API and the CLI.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Defined => "defined",
            Self::Preparing => "preparing",
            Self::Seeding => "seeding",
            Self::Synced => "synced",
            Self::Syncing => "syncing",
            Self::CuttingOver { .. } => "cutting-over",
            Self::Undoing { .. } => "undoing",
            Self::RollingBack => "rolling-back",
            Self::Paused { .. } => "paused",
            Self::Failed { .. } => "failed",
            Self::Cancelling => "cancelling",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the target VM was started and the migration is idle.
    pub fn rests_past_no_return(&self) -> bool {
        match self {
            Self::Done => true,
            Self::Failed { from, .. } => from.past_no_return(),
            _ => false,
        }
    }

    /// Whether the copy was verified and handed over to the target: from here on the content of its disks may
    /// change.
    pub fn is_handed_over(&self) -> bool {
        match self {
            Self::Done => true,
            Self::CuttingOver { phase } => *phase > Phase::Verify,
            Self::Paused { from } | Self::Failed { from, .. } => {
                from.past_no_return() || *from == ResumePoint::StaleState
            }
            Self::Defined
            | Self::Preparing
            | Self::Seeding
            | Self::Synced
            | Self::Syncing
            | Self::Undoing { .. }
            | Self::RollingBack
            | Self::Cancelling
            | Self::Cancelled => false,
        }
    }

    /// Whether a cutover can be scheduled: none runs, none has ended well, and the migration is not
    /// cancelled.
    pub fn is_before_cutover(&self) -> bool {
        match self {
            Self::Defined
            | Self::Preparing
            | Self::Seeding
            | Self::Synced
            | Self::Syncing
            | Self::Paused { .. }
            | Self::Failed { .. } => true,
            Self::CuttingOver { .. }
            | Self::Undoing { .. }
            | Self::RollingBack
            | Self::Cancelling
            | Self::Cancelled
            | Self::Done => false,
        }
    }

    /// Whether the state is final; only a rollback leads out of `Done`.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Done | Self::Cancelled)
    }

    /// Whether warmd works on it now.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Preparing
            | Self::Seeding
            | Self::Syncing
            | Self::CuttingOver { .. }
            | Self::Undoing { .. }
            | Self::RollingBack
            | Self::Cancelling => true,
            Self::Defined
            | Self::Synced
            | Self::Paused { .. }
            | Self::Failed { .. }
            | Self::Done
            | Self::Cancelled => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::CuttingOver { phase } => write!(f, "({phase})"),
            Self::Undoing { phase, reason } => write!(f, "({phase}: {reason})"),
            Self::Failed { reason, .. } => write!(f, "({reason})"),
            _ => Ok(()),
        }
    }
}
