//! A cutover that is requested for now, for later, or on hold until a further request.
//!
//! Rule: what waits is saved, and only the migration's driver changes it; `migration` decides with the plan's
//! schedule when it may begin.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::request::{CutoverOptions, CutoverSchedule, Request};

/// When a requested cutover begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CutoverTime {
    #[default]
    Now,
    At(DateTime<Utc>),
    /// Stay synced and wait for a further request, also where the plan cuts over automatically.
    Hold,
    /// Lift the hold: the plan decides again.
    Unhold,
}

/// The parameters of a cutover request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutoverOrder {
    pub when: CutoverTime,
    /// Also outside the plan's windows.
    pub force: bool,
    /// Whether the other VMs of its group are asked too: never set by a user.
    pub in_group: bool,
}

impl CutoverOrder {
    /// The request for it.
    pub fn request(self) -> Request {
        let Self { when, force, in_group } = self;
        match when {
            CutoverTime::Now => Request::Cutover(CutoverOptions { force, in_group }),
            CutoverTime::At(at) => Request::ScheduleCutover(CutoverSchedule::At { at, force }),
            CutoverTime::Hold => Request::ScheduleCutover(CutoverSchedule::Hold),
            CutoverTime::Unhold => Request::ScheduleCutover(CutoverSchedule::Unhold),
        }
    }
}

impl Request {
    /// The parameters of a cutover request; `None` for another request.
    pub fn cutover_order(&self) -> Option<CutoverOrder> {
        match *self {
            Self::Cutover(CutoverOptions { force, in_group }) => {
                Some(CutoverOrder { when: CutoverTime::Now, force, in_group })
            }
            Self::ScheduleCutover(schedule) => {
                let (when, force) = match schedule {
                    CutoverSchedule::At { at, force } => (CutoverTime::At(at), force),
                    CutoverSchedule::Hold => (CutoverTime::Hold, false),
                    CutoverSchedule::Unhold => (CutoverTime::Unhold, false),
                };
                Some(CutoverOrder { when, force, in_group: false })
            }
            Self::Sync
            | Self::Pause
            | Self::Resume
            | Self::AbortCutover
            | Self::Rollback
            | Self::Cancel
            | Self::Verify(_) => None,
        }
    }
}

/// A saved request that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ScheduledCutover {
    /// A cutover begins at this time.
    At { at: DateTime<Utc>, force: bool, by: String },
    /// No cutover begins until a cutover is requested or the hold is lifted.
    #[serde(alias = "hold")]
    OnHold { why: String },
}

/// The view of a cutover that has not begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledCutoverView {
    pub mode: ScheduledCutoverMode,
    /// When it begins, if known.
    pub begins: Option<DateTime<Utc>>,
    /// Why not before, or why never.
    pub why: String,
    /// Whether it begins also outside the plan's windows.
    pub force: bool,
}

impl ScheduledCutoverView {
    /// The time at which an operator requested its start.
    pub fn asked_for(&self) -> Option<DateTime<Utc>> {
        self.begins.filter(|_| self.mode == ScheduledCutoverMode::At)
    }
}

/// Why a cutover is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduledCutoverMode {
    /// An operator requested it.
    At,
    /// No cutover begins until an operator requests one, or lifts the hold.
    OnHold,
    /// The plan requests it.
    Auto,
}
