//! The plan's text, and its programs on the daemon's host.

use warmd_core::{
    clock,
    model::{
        plan::{Plan, schedule_of},
        rule::Rule,
    },
};

use super::{CheckedPlan, plan_of, vm_of};
use crate::{manager::Manager, program};

pub(super) fn check_text(checked: &mut CheckedPlan, manager: &Manager, plan: &Plan) {
    for problem in plan.problems() {
        checked.find(Rule::PlanWrong, plan_of(plan), problem);
    }
    // Programs are on the daemon's host: only the daemon can check them.
    for (at, hook) in plan.hooks.iter().enumerate() {
        if let Some(address) = &hook.grpc {
            if let Err(why) = manager.engine.hooks.check(address, hook) {
                checked.find(
                    Rule::PlanWrong,
                    plan_of(plan),
                    format!("`hooks[{at}].grpc` is {address:?}: {why}"),
                );
            }
            continue;
        }
        if let Err(why) = program::is_executable(hook.program()) {
            checked.find(Rule::HookMissing, plan_of(plan), format!("`hooks[{at}].command`: {why}"));
        }
    }
    dead_ends(checked, plan);
}

fn dead_ends(checked: &mut CheckedPlan, plan: &Plan) {
    let Ok(rules) = plan.rules() else { return };
    let now = clock::now();
    let of_plan = rules.dead_ends("", now);
    for dead_end in rules.dead_ends("schedule.", now) {
        checked.find(Rule::WindowNeverOpens, plan_of(plan), dead_end);
    }
    for (vm, over) in plan.vm.iter().filter(|(_, over)| !over.schedule.is_empty()) {
        let Ok(rules) = plan.schedule.rules_with(&over.schedule) else { continue };
        let told = rules.dead_ends("", now).into_iter().zip(rules.dead_ends(&schedule_of(vm), now));
        // A dead end of the plan itself is reported for the plan.
        for (_, dead_end) in told.filter(|(bare, _)| !of_plan.contains(bare)) {
            checked.find(Rule::WindowNeverOpens, vm_of(vm), dead_end);
        }
    }
}
