//! What inspections found in the guests that are already being copied.

use warmd_core::model::plan::Plan;

use super::{CheckedPlan, vm_of};
use crate::manager::Manager;

pub(super) fn check_guests(checked: &mut CheckedPlan, manager: &Manager, plan: &Plan) {
    let mut found = Vec::new();
    for subject in &checked.machines {
        let Some(handle) = subject.migration.and_then(|id| manager.handle(id)) else { continue };
        let over = plan.override_of(&subject.vm, &subject.machine);
        let conversion = over.and_then(|over| over.conversion.as_ref()).unwrap_or(&plan.conversion);
        let concerns = handle.context.inspected.concerns(conversion);
        found.extend(concerns.into_iter().map(|concern| (vm_of(&subject.vm), concern)));
    }
    for (subject, concern) in found {
        checked.find(concern.rule, subject, concern.found);
    }
}
