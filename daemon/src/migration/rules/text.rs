//! What the plan says, and what the daemon's host has of it.

use super::{Judged, plan_of};
use crate::{
    clock,
    migration::program,
    model::{plan::Plan, rule::Rule},
};

pub(super) fn judge(judged: &mut Judged, plan: &Plan) {
    for problem in plan.problems() {
        judged.find(Rule::PlanWrong, plan_of(plan), problem);
    }
    // Programs are on the daemon's host: only the daemon can look.
    for (at, hook) in plan.hooks.iter().enumerate() {
        if let Err(why) = program::is_executable(hook.program()) {
            judged.find(Rule::HookMissing, plan_of(plan), format!("`hooks[{at}].command`: {why}"));
        }
    }
    if let Ok(rules) = plan.rules() {
        for dead_end in rules.dead_ends(clock::now()) {
            judged.find(Rule::ScheduleDeadEnd, plan_of(plan), dead_end);
        }
    }
}
