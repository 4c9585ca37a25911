//! Whether VMs that move together can: each is in a tier, and there is a time at which all may begin.

use std::collections::BTreeSet;

use warmd_core::{
    clock,
    model::{plan::Plan, rule::Rule},
};
use warmd_schedules::calendar::{self, Calendar};

use super::{CheckedPlan, Subject, plan_of, vm_of, windows::AHEAD};

pub(super) fn check_tiers(checked: &mut CheckedPlan, plan: &Plan) {
    if plan.is_grouped() {
        windows_meet(checked, plan);
    }
    let tiers = plan.cutover.tiers.len();
    if tiers == 0 {
        return;
    }
    let known: Vec<_> = checked
        .machines
        .iter()
        .map(|subject| (subject.machine.id.0.clone(), subject.machine.name.clone()))
        .collect();
    let found = plan.tiers_of(&known);
    let lost: Vec<_> = checked
        .machines
        .iter()
        .zip(&found)
        .filter(|(_, tier)| tier.is_none())
        .map(|(subject, _)| vm_of(&subject.vm))
        .collect();
    for vm in lost {
        checked.find(Rule::TierMissing, vm, "it would not move with the others");
    }
    for tier in (0..tiers).filter(|tier| !found.contains(&Some(*tier))) {
        checked.find(Rule::TierUnmatched, plan_of(plan), format!("`cutover.tiers[{tier}]` is empty"));
    }
}

/// Whether the windows of all VMs are ever open at one moment: before that their group does not begin.
fn windows_meet(checked: &mut CheckedPlan, plan: &Plan) {
    let own = |subject: &Subject| {
        let names = [&subject.machine.name, &subject.machine.id.0];
        let found = names.into_iter().find_map(|name| plan.vm.get_key_value(name));
        found.filter(|(_, over)| over.schedule.moves_windows()).map(|(vm, _)| vm.as_str())
    };
    let whose: BTreeSet<_> = checked.machines.iter().map(own).collect();
    let of = |vm: Option<&str>| match vm.and_then(|vm| plan.vm.get(vm)) {
        Some(over) => plan.schedule.rules_with(&over.schedule),
        None => plan.rules(),
    };
    // A problem of one VM alone is reported for that VM.
    let Ok(rules) = whose.iter().copied().map(of).collect::<Result<Vec<_>, _>>() else { return };
    let calendars: Vec<&Calendar> = rules.iter().map(|rules| &rules.cutover).collect();
    let now = clock::now();
    if calendars.iter().any(|each| each.next_open(now).is_err()) {
        return;
    }
    if calendar::meet(&calendars, now, now + AHEAD).is_none() {
        let names: Vec<_> = whose.into_iter().flatten().collect();
        let found = format!("windows of their own have {}", names.join(", "));
        checked.find(Rule::NoCommonWindow, plan_of(plan), found);
    }
}
