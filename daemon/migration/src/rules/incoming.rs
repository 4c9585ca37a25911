//! The target's objections to the machines that are to be moved.

use warmd_core::{
    model::{
        plan::Plan,
        rule::{Objection, Rule},
    },
    targets::{DiskSpec, Incoming, Target},
};

use super::{CheckedPlan, vm_of};
use crate::manager::Manager;

pub(super) async fn check_incoming(
    checked: &mut CheckedPlan,
    manager: &Manager,
    plan: &Plan,
    target: &dyn Target,
) {
    let source = manager.source(&plan.source).ok();
    let incoming: Vec<_> = checked
        .machines
        .iter()
        .map(|subject| {
            let over = plan.override_of(&subject.vm, &subject.machine);
            let handle = subject.migration.and_then(|id| manager.handle(id));
            // A disk that was moved on the source meanwhile stays where it was created.
            let began = handle.as_ref().map_or(&subject.machine, |handle| &handle.context.machine);
            let disks = subject.machine.disks.iter().map(|disk| {
                let lay = began.disks.iter().find(|began| began.key == disk.key).unwrap_or(disk);
                let datastore = source.and_then(|source| source.datastore(lay));
                let place = plan.place_of(over, &disk.key, datastore.as_deref());
                DiskSpec { key: disk.key.clone(), size: disk.size, place }
            });
            Incoming {
                owner: subject.migration,
                name: subject.name.clone(),
                disks: disks.collect(),
                machine: plan.mapped(subject.machine.clone()),
            }
        })
        .collect();
    match target.objections(&incoming).await {
        Ok(objections) => {
            for (of, Objection { rule, found }) in objections {
                let subject = of.and_then(|of| checked.machines.get(of));
                let subject =
                    subject.map_or_else(|| format!("target {}", plan.target), |subject| vm_of(&subject.vm));
                checked.find(rule, subject, found);
            }
        }
        Err(error) => {
            checked.find(Rule::TargetUnreachable, format!("target {}", plan.target), error.to_string());
        }
    }
}
