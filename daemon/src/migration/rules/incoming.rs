//! What the target has against the machines that are to come.

use super::{Judged, vm_of};
use crate::{
    model::{
        plan::Plan,
        rule::{Objection, Rule},
    },
    targets::{DiskSpec, Incoming, Target},
};

pub(super) async fn judge(judged: &mut Judged, plan: &Plan, target: &dyn Target) {
    let incoming: Vec<_> = judged
        .machines
        .iter()
        .map(|subject| {
            let places = plan.over(&subject.vm, &subject.machine).map(|over| &over.disks);
            let disks = subject.machine.disks.iter().map(|disk| DiskSpec {
                key: disk.key.clone(),
                size: disk.size,
                place: places.and_then(|places| places.get(&disk.key.0)).cloned(),
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
                let subject = of.and_then(|of| judged.machines.get(of));
                let subject =
                    subject.map_or_else(|| format!("target {}", plan.target), |subject| vm_of(&subject.vm));
                judged.find(rule, subject, found);
            }
        }
        Err(error) => {
            judged.find(Rule::TargetUnreachable, format!("target {}", plan.target), error.to_string());
        }
    }
}
