//! Whether each VM of a plan with tiers is in one.

use super::{Judged, plan_of, vm_of};
use crate::model::{plan::Plan, rule::Rule};

pub(super) fn judge(judged: &mut Judged, plan: &Plan) {
    let tiers = plan.cutover.tiers.len();
    if tiers == 0 {
        return;
    }
    let known: Vec<_> = judged
        .machines
        .iter()
        .map(|subject| (subject.machine.id.0.clone(), subject.machine.name.clone()))
        .collect();
    let found = plan.tiers_of(&known);
    let lost: Vec<_> = judged
        .machines
        .iter()
        .zip(&found)
        .filter(|(_, tier)| tier.is_none())
        .map(|(subject, _)| vm_of(&subject.vm))
        .collect();
    for vm in lost {
        judged.find(Rule::TierMissing, vm, "it would not move with the others");
    }
    for tier in (0..tiers).filter(|tier| !found.contains(&Some(*tier))) {
        judged.find(Rule::TierIdle, plan_of(plan), format!("`cutover.tiers[{tier}]` is empty"));
    }
}
