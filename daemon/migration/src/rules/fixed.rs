//! What an existing migration cannot change: its VM's name on the target, and its disks' locations.

use warmd_core::{
    control::ControlError,
    model::{plan::Plan, rule::Rule, storage::in_words},
};

use super::{CheckedPlan, vm_of};
use crate::manager::{Manager, internal};

pub(super) async fn check_fixed(
    checked: &mut CheckedPlan,
    manager: &Manager,
    plan: &Plan,
) -> Result<(), ControlError> {
    for subject in checked.machines.clone() {
        let Some(handle) = subject.migration.and_then(|id| manager.handle(id)) else { continue };
        let context = handle.context;
        if context.state().is_final() {
            continue;
        }
        // By the machine at its start: a VM that was renamed on the source keeps its name on the target.
        let name = plan.target_name(&subject.vm, &context.machine);
        if name != context.target_name {
            let found = format!("it is to be called {name:?}, and moves as {:?} now", context.target_name);
            checked.find(Rule::VmFixed, vm_of(&subject.vm), found);
        }
        let over = plan.override_of(&subject.vm, &context.machine);
        for disk in context.made_disks().await.map_err(internal)? {
            // By its location on the source then.
            let began = context.machine.disks.iter().find(|began| began.key == disk.key);
            let datastore = began.and_then(|began| context.source.datastore(began));
            let wanted = plan.place_of(over, &disk.key, datastore.as_deref());
            if wanted != disk.place {
                let (wanted, is) = (in_words(wanted.as_deref()), in_words(disk.place.as_deref()));
                let found = format!("disk {} is to be at {wanted}, and was made at {is}", disk.key);
                checked.find(Rule::VmFixed, vm_of(&subject.vm), found);
            }
        }
    }
    Ok(())
}
