//! The names and addresses of the VMs on the target, among those that move there.

use std::collections::BTreeMap;

use warmd_core::model::{
    plan::{Plan, TARGET_NAME, is_target_name},
    rule::Rule,
};

use super::{CheckedPlan, vm_of};
use crate::manager::Manager;

pub(super) fn check_names(checked: &mut CheckedPlan, manager: &Manager, plan: &Plan) {
    let subjects = std::mem::take(&mut checked.machines);
    let (mut names, mut macs) = (BTreeMap::new(), BTreeMap::new());
    // VMs that move to this target for other plans, or were named by this plan before.
    for handle in manager.handles() {
        let (context, theirs) = (&handle.context, handle.context.plan());
        let is_here = subjects.iter().any(|subject| subject.migration == Some(context.id));
        if context.state().is_final() || theirs.target != plan.target || is_here {
            continue;
        }
        let who = format!("VM {} of plan {} (migration {})", context.machine.name, theirs.name, context.id);
        for nic in &context.machine.nics {
            macs.insert(nic.mac.to_ascii_lowercase(), who.clone());
        }
        names.insert(context.target_name.clone(), who);
    }
    for subject in &subjects {
        let (vm, name) = (&subject.vm, &subject.name);
        if !is_target_name(name) {
            let advice = if plan.names.sanitise {
                "`sanitise` leaves nothing of it that can be kept"
            } else {
                "`sanitise = true` in `[names]` makes names fit"
            };
            let why =
                format!("it would be called {name:?} on the target, and a name has {TARGET_NAME}; {advice}");
            checked.find(Rule::NameUnusable, vm_of(vm), why);
        }
        if let Some(other) = names.insert(name.clone(), vm_of(vm)) {
            checked.find(
                Rule::NameTwice,
                vm_of(vm),
                format!("{other} gets the name {name:?} on the target too"),
            );
        }
        for nic in &subject.machine.nics {
            match macs.insert(nic.mac.to_ascii_lowercase(), vm_of(vm)) {
                Some(other) if other != vm_of(vm) => {
                    checked.find(Rule::MacTaken, vm_of(vm), format!("{other} has {} too", nic.mac));
                }
                _ => {}
            }
        }
    }
    checked.machines = subjects;
}
