//! The next step of a group cutover: a pure function of the members' statuses.
//!
//! Rule: no VM of a tier is started on the target before all VMs of the tier are at the barrier, copied and
//! verified. A tier begins when the tiers before it have passed their boot checks. With `all_or_nothing` all
//! tiers begin at once, and no VM is started before all are at the barrier. If one fails, no other begins or
//! is started, and those not started are undone. A started VM continues: only an operator rolls back a target
//! VM that may have written.
//!
//! ```text
//! waiting ─ begin ─▶ moving ─▶ arrived ─ open ─▶ starting ─▶ passed
//!                       └── undoing ◀──┘ (halted)     └─▶ stuck
//! ```

/// The status of a VM of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberStatus {
    /// Its cutover has not begun.
    Waiting,
    /// Its cutover runs, and has not reached the barrier.
    Moving,
    /// Copied, verified and created on the target; waits for its start.
    Arrived,
    /// The barrier was opened for it, or its start was requested.
    Starting,
    /// Runs on the target and has passed its boot checks; or was off and was not to be started.
    Passed,
    /// Its cutover is being undone, and why.
    Undoing(String),
    /// Stays on the source, and why.
    Failed(String),
    /// Was started on the target and failed there, and why.
    Stuck(String),
}

impl MemberStatus {
    /// Whether the VM may run, or may have run, on the target.
    fn is_gone(&self) -> bool {
        matches!(self, Self::Starting | Self::Passed | Self::Stuck(_))
    }

    /// Whether no work on the VM is in progress.
    fn rests(&self) -> bool {
        !matches!(self, Self::Moving | Self::Arrived | Self::Starting | Self::Undoing(_))
    }
}

impl std::fmt::Display for MemberStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Waiting => f.write_str("waits for its tier"),
            Self::Moving => f.write_str("is copied"),
            Self::Arrived => f.write_str("waits at the barrier"),
            Self::Starting => f.write_str("is started"),
            Self::Passed => f.write_str("runs on the target"),
            Self::Undoing(why) => write!(f, "is being undone: {why}"),
            Self::Failed(why) => write!(f, "stays on the source: {why}"),
            Self::Stuck(why) => write!(f, "is on the target, and not right: {why}"),
        }
    }
}

/// A VM of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupVm {
    /// Its name, for messages.
    pub vm: String,
    /// From 0.
    pub tier: usize,
    pub status: MemberStatus,
}

/// The next actions. Indices are those of the seats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupDecision {
    /// Members whose cutovers begin.
    pub begin: Vec<usize>,
    /// Members for which the barrier opens.
    pub open: Vec<usize>,
    /// Why the group is halted from now on.
    pub halted: Option<String>,
    /// The group is finished.
    pub is_finished: bool,
}

/// The next actions of a group; `is_halted` if it was halted before.
pub fn decide(all_or_nothing: bool, is_halted: bool, seats: &[GroupVm]) -> GroupDecision {
    let failure = seats.iter().find_map(|seat| match &seat.status {
        MemberStatus::Undoing(why) | MemberStatus::Failed(why) => Some(format!("VM {}: {why}", seat.vm)),
        MemberStatus::Stuck(why) => Some(format!("VM {} on the target: {why}", seat.vm)),
        _ => None,
    });
    if is_halted || failure.is_some() {
        let is_finished = seats.iter().all(|seat| seat.status.rests());
        let halted = if is_halted { None } else { failure };
        return GroupDecision { halted, is_finished, ..GroupDecision::default() };
    }
    let passed_before = |tier: usize| {
        seats.iter().filter(|seat| seat.tier < tier).all(|seat| seat.status == MemberStatus::Passed)
    };
    let may_begin = |seat: &GroupVm| all_or_nothing || passed_before(seat.tier);
    let may_start = |seat: &GroupVm| {
        let with = |other: &&GroupVm| all_or_nothing || other.tier == seat.tier;
        let mut together = seats.iter().filter(with);
        let all_here =
            together.clone().all(|other| other.status == MemberStatus::Arrived || other.status.is_gone());
        // A VM may already run on the target since before a restart: the group can only go forward, but a VM
        // that has not arrived is not started.
        let is_committed = together.any(|other| other.status.is_gone());
        (all_here || is_committed) && passed_before(seat.tier)
    };
    let of = |status: &MemberStatus, may: &dyn Fn(&GroupVm) -> bool| -> Vec<usize> {
        let those = seats.iter().enumerate().filter(|(_, seat)| seat.status == *status && may(seat));
        those.map(|(at, _)| at).collect()
    };
    GroupDecision {
        begin: of(&MemberStatus::Waiting, &may_begin),
        open: of(&MemberStatus::Arrived, &may_start),
        halted: None,
        is_finished: seats.iter().all(|seat| seat.status == MemberStatus::Passed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seats(of: &[(usize, MemberStatus)]) -> Vec<GroupVm> {
        let seat = |(at, (tier, status)): (usize, &(usize, MemberStatus))| GroupVm {
            vm: format!("vm{at}"),
            tier: *tier,
            status: status.clone(),
        };
        of.iter().enumerate().map(seat).collect()
    }

    #[test]
    fn each_step_of_a_group() {
        use MemberStatus::{Arrived, Failed, Moving, Passed, Starting, Stuck, Undoing, Waiting};
        let why = || "x".to_owned();
        // (all or nothing, statuses, begin, open, whether it is halted, whether it is finished)
        for (all, statuses, begin, open, halted, over) in [
            (false, vec![(0, Waiting), (0, Waiting), (1, Waiting)], vec![0, 1], vec![], false, false),
            (true, vec![(0, Waiting), (1, Waiting)], vec![0, 1], vec![], false, false),
            (false, vec![(0, Arrived), (0, Moving), (1, Waiting)], vec![], vec![], false, false),
            (false, vec![(0, Arrived), (0, Arrived), (1, Waiting)], vec![], vec![0, 1], false, false),
            (true, vec![(0, Arrived), (0, Arrived), (1, Moving)], vec![], vec![], false, false),
            (true, vec![(0, Arrived), (1, Arrived)], vec![], vec![0], false, false),
            (true, vec![(0, Starting), (1, Arrived)], vec![], vec![], false, false),
            (true, vec![(0, Passed), (1, Arrived)], vec![], vec![1], false, false),
            (false, vec![(0, Starting), (1, Waiting)], vec![], vec![], false, false),
            (false, vec![(0, Passed), (1, Waiting)], vec![1], vec![], false, false),
            // After a crash in which one of them was being started.
            (true, vec![(0, Starting), (0, Moving), (1, Moving)], vec![], vec![], false, false),
            (true, vec![(0, Starting), (0, Arrived), (1, Moving)], vec![], vec![1], false, false),
            (false, vec![(0, Arrived), (0, Failed(why())), (1, Waiting)], vec![], vec![], true, false),
            (false, vec![(0, Undoing(why())), (0, Failed(why()))], vec![], vec![], true, false),
            (false, vec![(0, Failed(why())), (1, Waiting)], vec![], vec![], true, true),
            (true, vec![(0, Stuck(why())), (1, Arrived)], vec![], vec![], true, false),
            (false, vec![(0, Passed), (1, Stuck(why())), (2, Waiting)], vec![], vec![], true, true),
            (false, vec![(0, Passed), (1, Passed)], vec![], vec![], false, true),
        ] {
            let decision = decide(all, false, &seats(&statuses));
            let found = (decision.begin, decision.open, decision.halted.is_some(), decision.is_finished);
            assert_eq!(found, (begin, open, halted, over), "{all} {statuses:?}");
        }
    }

    #[test]
    fn a_broken_group_begins_and_starts_nobody() {
        let statuses = [(0, MemberStatus::Arrived), (0, MemberStatus::Waiting)];
        let decision = decide(false, true, &seats(&statuses));
        assert_eq!(decision, GroupDecision::default());
        assert!(decide(false, true, &seats(&statuses[1..])).is_finished);
    }

    proptest! {
        /// Any group, with any outcome of its VMs in any order: the barrier holds.
        #[test]
        fn the_barrier_holds(
            tiers in prop::collection::vec(0..3_usize, 1..6),
            all in any::<bool>(),
            happens in prop::collection::vec((0..6_usize, 0..10_u8), 0..60),
        ) {
            let waiting: Vec<_> = tiers.iter().map(|tier| (*tier, MemberStatus::Waiting)).collect();
            let mut seats = seats(&waiting);
            let (mut halted, mut arrived) = (false, vec![false; seats.len()]);
            for (who, what) in happens {
                let decision = decide(all, halted, &seats);
                halted |= decision.halted.is_some();
                prop_assert!(!halted || decision.begin.is_empty() && decision.open.is_empty());
                for at in &decision.begin {
                    let tier = seats[*at].tier;
                    let is_clear = |seat: &GroupVm| seat.tier >= tier || seat.status == MemberStatus::Passed;
                    prop_assert!(all || seats.iter().all(is_clear));
                }
                for at in &decision.open {
                    let tier = seats[*at].tier;
                    for (other, has_arrived) in seats.iter().zip(&arrived) {
                        prop_assert!(other.tier != tier && !all || *has_arrived, "{seats:?}");
                        prop_assert!(other.tier >= tier || other.status == MemberStatus::Passed, "{seats:?}");
                    }
                }
                for at in decision.begin {
                    seats[at].status = MemberStatus::Moving;
                }
                for at in decision.open {
                    seats[at].status = MemberStatus::Starting;
                }
                let who = who % seats.len();
                let seat = &mut seats[who];
                seat.status = match (seat.status.clone(), what) {
                    (MemberStatus::Moving, 0..7) => {
                        arrived[who] = true;
                        MemberStatus::Arrived
                    }
                    (MemberStatus::Moving | MemberStatus::Arrived, 9) => MemberStatus::Undoing("x".to_owned()),
                    (MemberStatus::Undoing(why), _) => MemberStatus::Failed(why),
                    (MemberStatus::Starting, 0..8) => MemberStatus::Passed,
                    (MemberStatus::Starting, 8) => MemberStatus::Undoing("x".to_owned()),
                    (MemberStatus::Starting, _) => MemberStatus::Stuck("x".to_owned()),
                    (status, _) => status,
                };
            }
        }
    }
}
