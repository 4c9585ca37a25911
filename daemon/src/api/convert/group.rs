//! Cutovers of VMs together.

use warmd_proto::v1;

use super::timestamp;
use crate::{
    migration::groups::{PlanCutover, PlanVerdict},
    model::{
        coordination::Standing,
        group::{GroupView, Member},
        request::Verdict,
    },
};

/// What became of asking for the cutovers of a plan.
pub(in crate::api) fn plan_cutover(asked: PlanCutover) -> v1::PlansCutoverResponse {
    let PlanCutover { verdicts, group, already } = asked;
    let answer = if already { v1::Answer::AlreadySo } else { v1::Answer::Accepted };
    let migrations = verdicts.into_iter().map(verdict).collect();
    v1::PlansCutoverResponse { answer: answer.into(), migrations, group: group.map(self::group) }
}

fn verdict(asked: PlanVerdict) -> v1::PlanCutoverAnswer {
    let (answer, refusal) = match asked.verdict {
        Verdict::Accepted => (v1::Answer::Accepted, String::new()),
        Verdict::AlreadySo => (v1::Answer::AlreadySo, String::new()),
        Verdict::Refused(why) => (v1::Answer::Unspecified, why),
    };
    let migration_id = asked.migration.to_string();
    v1::PlanCutoverAnswer { migration_id, vm_name: asked.vm, answer: answer.into(), refusal }
}

/// How a group goes.
pub(in crate::api) fn group(view: GroupView) -> v1::Group {
    let (outcome, done) = (view.outcome().unwrap_or_default(), view.is_done());
    let GroupView { group, standings } = view;
    let members = group.members.into_iter().zip(standings).map(|(of, standing)| member(of, standing));
    v1::Group {
        plan: group.plan,
        by: group.by,
        forced: group.forced,
        all_or_nothing: group.all_or_nothing,
        begun: Some(timestamp(group.begun)),
        ended: group.ended.map(timestamp),
        broken: group.broken.unwrap_or_default(),
        outcome,
        members: members.collect(),
        done,
    }
}

fn member(member: Member, standing: Standing) -> v1::GroupMember {
    let (standing, why) = match standing {
        Standing::Waiting => (v1::GroupStanding::Waiting, None),
        Standing::Moving => (v1::GroupStanding::Moving, None),
        Standing::Arrived => (v1::GroupStanding::Arrived, None),
        Standing::Starting => (v1::GroupStanding::Starting, None),
        Standing::Passed => (v1::GroupStanding::Passed, None),
        Standing::Undoing(why) => (v1::GroupStanding::Undoing, Some(why)),
        Standing::Failed(why) => (v1::GroupStanding::Failed, Some(why)),
        Standing::Stuck(why) => (v1::GroupStanding::Stuck, Some(why)),
    };
    v1::GroupMember {
        migration_id: member.migration.to_string(),
        vm_name: member.vm,
        tier: u32::try_from(member.tier + 1).unwrap_or(u32::MAX),
        standing: standing.into(),
        why: why.unwrap_or_default(),
    }
}
