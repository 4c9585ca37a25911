//! A group cutover, as saved and shown.

use chrono::{DateTime, Utc};

use super::{coordination::MemberStatus, id::MigrationId};

/// A group cutover of a plan's VMs that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Counted from 1, over all plans.
    pub id: u64,
    pub plan: String,
    /// Who requested it.
    pub by: String,
    /// Whether windows and forecasts are ignored.
    pub forced: bool,
    pub all_or_nothing: bool,
    pub begun: DateTime<Utc>,
    /// Why the group is halted, if it is.
    pub halted: Option<String>,
    /// When all members had ended.
    pub ended: Option<DateTime<Utc>>,
    /// By tier.
    pub members: Vec<GroupMember>,
}

/// A VM of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    pub migration: MigrationId,
    /// Its name on the source.
    pub vm: String,
    /// From 0.
    pub tier: usize,
    /// The number of its earlier cutovers.
    pub attempt: u32,
}

/// The status of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    pub group: Group,
    /// The status of each member.
    pub statuses: Vec<MemberStatus>,
}

impl Group {
    /// The names of these members.
    pub fn names(&self, which: &[usize]) -> String {
        let names: Vec<_> = which.iter().map(|at| self.members[*at].vm.as_str()).collect();
        names.join(", ")
    }
}

impl GroupView {
    /// Whether all members moved.
    pub fn is_done(&self) -> bool {
        self.statuses.iter().all(|status| *status == MemberStatus::Passed)
    }

    /// The outcome in words; `None` while the group runs.
    pub fn outcome(&self) -> Option<String> {
        self.group.ended.map(|_| self.describe())
    }

    /// Where the members are, in words.
    pub fn describe(&self) -> String {
        let of = |is: &dyn Fn(&MemberStatus) -> bool| -> Vec<usize> {
            self.statuses.iter().enumerate().filter(|(_, status)| is(status)).map(|(at, _)| at).collect()
        };
        let moved = of(&|status| *status == MemberStatus::Passed);
        if self.is_done() {
            return format!("all of it runs on the target: {}", self.group.names(&moved));
        }
        let parts = [
            ("on the target", moved),
            ("on the target, and not right", of(&|status| matches!(status, MemberStatus::Stuck(_)))),
            ("on the source", of(&|status| !matches!(status, MemberStatus::Passed | MemberStatus::Stuck(_)))),
        ];
        let told = parts.iter().filter(|(_, who)| !who.is_empty());
        let told: Vec<_> = told.map(|(what, who)| format!("{what}: {}", self.group.names(who))).collect();
        format!("not all of it moved; {}", told.join("; "))
    }
}
