//! A cutover that is asked for now, for later, or not until somebody says so.
//!
//! Rule: what waits is saved, and belongs to the migration's owner alone; when it may begin is judged by
//! `migration` with the plan's schedule.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::request::Request;

/// When a cutover is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CutoverTime {
    #[default]
    Now,
    At(DateTime<Utc>),
    /// Stay synced and wait for another word, also where the plan would cut over by itself.
    Hold,
    /// Wait no longer: as the plan says.
    Unhold,
}

/// What is asked of a cutover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutoverOrder {
    pub when: CutoverTime,
    /// Also outside the plan's windows.
    pub force: bool,
    /// The VMs of its plan that move together are asked too: never said by a person.
    pub in_group: bool,
}

impl CutoverOrder {
    /// How it is judged.
    pub fn request(self) -> Request {
        match self.when {
            CutoverTime::Now => Request::Cutover,
            CutoverTime::At(_) | CutoverTime::Hold | CutoverTime::Unhold => Request::ScheduleCutover,
        }
    }
}

/// What was asked for and waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ScheduledCutover {
    /// A cutover is to begin at a time.
    At { at: DateTime<Utc>, force: bool, by: String },
    /// No cutover begins until one is asked for, or the hold is lifted.
    #[serde(alias = "hold")]
    OnHold { why: String },
}

/// What the view shows of a cutover that has not begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledCutoverView {
    pub mode: ScheduledCutoverMode,
    /// When it begins, as far as that is known.
    pub begins: Option<DateTime<Utc>>,
    /// Why not before, or why not at all.
    pub why: String,
    /// Whether it begins also outside the plan's windows.
    pub force: bool,
}

impl ScheduledCutoverView {
    /// The time at which a person asked it to begin.
    pub fn asked_for(&self) -> Option<DateTime<Utc>> {
        self.begins.filter(|_| self.mode == ScheduledCutoverMode::At)
    }
}

/// Why a cutover is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduledCutoverMode {
    /// A person asked for it.
    At,
    /// No cutover begins until a person asks for one, or lifts the hold.
    OnHold,
    /// The plan asks for it.
    Auto,
}
