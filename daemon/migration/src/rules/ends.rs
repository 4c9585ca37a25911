//! The plan's source and target: configured, reachable, and unchanged for migrations that depend on them.

use warmd_core::{
    model::{boot::BootCheck, plan::Plan, rule::Rule},
    sources::Source,
    targets::Target,
};

use super::{CheckedPlan, conversions, plan_of};
use crate::manager::Manager;

/// A plan that moves VMs cannot change its source and target: their marks and disks are there.
pub(super) fn judge_changed(checked: &mut CheckedPlan, manager: &Manager, plan: &Plan) {
    for handle in manager.handles() {
        let old = handle.context.plan();
        let open = !handle.context.state().is_final();
        if open && old.name == plan.name && (old.source != plan.source || old.target != plan.target) {
            let vm = &handle.context.machine.name;
            let message = format!("it moves VM {vm} from {} to {} now", old.source, old.target);
            checked.find(Rule::EndpointFixed, plan_of(plan), message);
            // One finding is enough; hundreds would hide all others.
            return;
        }
    }
}

/// The source, if it exists and answers.
pub(super) async fn source<'a>(
    checked: &mut CheckedPlan,
    manager: &'a Manager,
    plan: &Plan,
) -> Option<&'a dyn Source> {
    let subject = format!("source {}", plan.source);
    let source = match manager.source(&plan.source) {
        Ok(source) => source.as_ref(),
        Err(error) => {
            checked.find(Rule::SourceUnknown, subject, error.message);
            return None;
        }
    };
    match source.check().await {
        Ok(_) => Some(source),
        Err(error) => {
            checked.find(Rule::SourceUnreachable, subject, error.to_string());
            None
        }
    }
}

/// The target, if it exists and answers.
pub(super) async fn target<'a>(
    checked: &mut CheckedPlan,
    manager: &'a Manager,
    plan: &Plan,
) -> Option<&'a dyn Target> {
    let subject = format!("target {}", plan.target);
    let target = match manager.target(&plan.target) {
        Ok(target) => target.as_ref(),
        Err(error) => {
            checked.find(Rule::TargetUnknown, subject, error.message);
            return None;
        }
    };
    let overs = plan.vm.values().filter_map(|over| over.boot_check.as_ref());
    if !target.sees_guests() && overs.chain([&plan.cutover.boot_check]).any(BootCheck::needs_target) {
        checked.find(Rule::BootCheckUnsupported, &subject, "it cannot look into guests");
    }
    conversions::check_conversions(checked, plan, target).await;
    match target.check().await {
        Ok(_) => Some(target),
        Err(error) => {
            checked.find(Rule::TargetUnreachable, subject, error.to_string());
            None
        }
    }
}
