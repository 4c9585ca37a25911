//! Cutovers of VMs together.

use warmd_core::{
    control::{PlanCutover, PlanRequestOutcome},
    model::{
        coordination::MemberStatus,
        group::{GroupMember, GroupView},
        request::RequestOutcome,
    },
};
use warmd_proto::v1;

use super::timestamp;

/// The outcome of the request for a plan's cutovers.
pub(crate) fn plan_cutover(asked: PlanCutover) -> v1::PlansCutoverResponse {
    let PlanCutover { outcomes, group, already } = asked;
    let answer = if already { v1::RequestOutcome::NoChange } else { v1::RequestOutcome::Accepted };
    let migrations = outcomes.into_iter().map(outcome).collect();
    v1::PlansCutoverResponse { answer: answer.into(), migrations, group: group.map(self::group) }
}

fn outcome(asked: PlanRequestOutcome) -> v1::PlanCutoverAnswer {
    let (answer, refusal) = match asked.outcome {
        RequestOutcome::Accepted => (v1::RequestOutcome::Accepted, String::new()),
        RequestOutcome::NoChange => (v1::RequestOutcome::NoChange, String::new()),
        RequestOutcome::Refused(why) => (v1::RequestOutcome::Unspecified, why),
    };
    let migration_id = asked.migration.to_string();
    v1::PlanCutoverAnswer { migration_id, vm_name: asked.vm, answer: answer.into(), refusal }
}

/// The progress of a group.
pub(crate) fn group(view: GroupView) -> v1::Group {
    let (outcome, done) = (view.outcome().unwrap_or_default(), view.is_done());
    let GroupView { group, statuses } = view;
    let members = group.members.into_iter().zip(statuses).map(|(of, status)| member(of, status));
    v1::Group {
        plan: group.plan,
        by: group.by,
        forced: group.forced,
        all_or_nothing: group.all_or_nothing,
        begun: Some(timestamp(group.begun)),
        ended: group.ended.map(timestamp),
        halted: group.halted.unwrap_or_default(),
        outcome,
        members: members.collect(),
        done,
    }
}

fn member(member: GroupMember, status: MemberStatus) -> v1::GroupMember {
    let (status, why) = match status {
        MemberStatus::Waiting => (v1::MemberStatus::Waiting, None),
        MemberStatus::Moving => (v1::MemberStatus::Moving, None),
        MemberStatus::Arrived => (v1::MemberStatus::Arrived, None),
        MemberStatus::Starting => (v1::MemberStatus::Starting, None),
        MemberStatus::Passed => (v1::MemberStatus::Passed, None),
        MemberStatus::Undoing(why) => (v1::MemberStatus::Undoing, Some(why)),
        MemberStatus::Failed(why) => (v1::MemberStatus::Failed, Some(why)),
        MemberStatus::Stuck(why) => (v1::MemberStatus::Stuck, Some(why)),
    };
    v1::GroupMember {
        migration_id: member.migration.to_string(),
        vm_name: member.vm,
        tier: u32::try_from(member.tier + 1).unwrap_or(u32::MAX),
        status: status.into(),
        why: why.unwrap_or_default(),
    }
}
