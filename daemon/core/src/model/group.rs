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

    /// In words; `None` while it runs.
    pub fn outcome(&self) -> Option<String> {
        self.group.ended.map(|_| outcome(self))
    }
}

/// The names of those of the members.
pub fn names(members: &[GroupMember], which: &[usize]) -> String {
    let names: Vec<_> = which.iter().map(|at| members[*at].vm.as_str()).collect();
    names.join(", ")
}

/// How it ended, in words.
pub fn outcome(view: &GroupView) -> String {
    let of = |is: &dyn Fn(&MemberStatus) -> bool| -> Vec<usize> {
        view.statuses.iter().enumerate().filter(|(_, status)| is(status)).map(|(at, _)| at).collect()
    };
    let moved = of(&|status| *status == MemberStatus::Passed);
    if moved.len() == view.statuses.len() {
        return format!("all of it runs on the target: {}", names(&view.group.members, &moved));
    }
    let parts = [
        ("on the target", moved),
        ("on the target, and not right", of(&|status| matches!(status, MemberStatus::Stuck(_)))),
        ("on the source", of(&|status| !matches!(status, MemberStatus::Passed | MemberStatus::Stuck(_)))),
    ];
    let told = parts.iter().filter(|(_, who)| !who.is_empty());
    let told: Vec<_> =
        told.map(|(what, who)| format!("{what}: {}", names(&view.group.members, who))).collect();
    format!("not all of it moved; {}", told.join("; "))
}
