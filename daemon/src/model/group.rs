//! A cutover of VMs together, as it is kept and shown.

use chrono::{DateTime, Utc};

use super::{coordination::MemberStatus, id::MigrationId};

/// A cutover of a plan's VMs together that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Counted from 1, over all plans.
    pub id: u64,
    pub plan: String,
    /// Who asked for it.
    pub by: String,
    /// Whatever windows and forecasts say.
    pub forced: bool,
    pub all_or_nothing: bool,
    pub begun: DateTime<Utc>,
    /// Why it goes no further, if it does not.
    pub halted: Option<String>,
    /// When nothing of it happened any more.
    pub ended: Option<DateTime<Utc>>,
    /// By tier.
    pub members: Vec<GroupMember>,
}

/// A VM of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    pub migration: MigrationId,
    /// Its name on the source.
    pub vm: String,
    /// From 0.
    pub tier: usize,
    /// How many cutovers it had before.
    pub attempt: u32,
}

/// How it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    pub group: Group,
    /// Of each of its members.
    pub statuses: Vec<MemberStatus>,
}

impl GroupView {
    /// Whether all of it moved.
    pub fn is_done(&self) -> bool {
        self.statuses.iter().all(|status| *status == MemberStatus::Passed)
    }
}
