//! Whether the plan's `[storage]` names existing datastores.

use std::collections::BTreeSet;

use warmd_core::model::{
    plan::{ANY, Plan},
    rule::Rule,
};

use super::{CheckedPlan, plan_of};
use crate::manager::Manager;

/// Datastores that are listed for a map that names others.
const SHOWN: usize = 10;

pub(super) fn check_storages(checked: &mut CheckedPlan, manager: &Manager, plan: &Plan) {
    let Ok(source) = manager.source(&plan.source) else { return };
    let disks = checked.machines.iter().flat_map(|subject| &subject.machine.disks);
    let known: BTreeSet<_> = disks.filter_map(|disk| source.datastore(disk)).collect();
    if checked.machines.is_empty() {
        return;
    }
    let mut there: Vec<_> = known.iter().take(SHOWN).map(String::as_str).collect();
    if known.len() > SHOWN {
        there.push("…");
    }
    let there = if there.is_empty() { "nowhere that has a name".to_owned() } else { there.join(", ") };
    for datastore in plan.storage.keys().filter(|key| *key != ANY && !known.contains(*key)) {
        let found =
            format!("`storage.{datastore:?}` is no datastore of these VMs; their disks lie in: {there}");
        checked.find(Rule::StorageUnmatched, plan_of(plan), found);
    }
}
