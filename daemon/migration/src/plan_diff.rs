//! The changes of applying a plan, in words: the same for the journal, a dry run, and the answer.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use warmd_core::{
    control::{PlanChange, PlanChangeKind},
    model::plan::Plan,
};

use super::{manager::Manager, rules::Subject};

/// The changes of applying `now`, where `before` is the present plan of that name.
pub(super) fn diff_plans(
    manager: &Manager,
    before: Option<&Plan>,
    now: &Plan,
    subjects: &[Subject],
) -> Vec<PlanChange> {
    let line = |kind, text| PlanChange { kind, vm: None, migration: None, text };
    let mut changes = match before {
        None => vec![line(PlanChangeKind::New, format!("plan {} is new", now.name))],
        Some(before) => {
            settings(before, now).into_iter().map(|text| line(PlanChangeKind::Setting, text)).collect()
        }
    };
    for Subject { vm, name, migration, pattern, .. } in subjects {
        let by = pattern.as_ref().map_or_else(String::new, |pattern| format!(" (by {pattern:?})"));
        let (kind, text) = match migration {
            None => (PlanChangeKind::Start, format!("VM {vm}{by}, to {} as {name}", now.target)),
            Some(id) => match manager.handle(*id).map(|handle| handle.context.state()) {
                Some(state) if !state.is_final() => (PlanChangeKind::Keep, format!("VM {vm}{by}, {state}")),
                _ => (PlanChangeKind::Keep, format!("VM {vm}{by}, moved already")),
            },
        };
        changes.push(PlanChange { kind, vm: Some(vm.clone()), migration: *migration, text });
    }
    for handle in manager.handles() {
        let (context, state) = (&handle.context, handle.context.state());
        let is_named = subjects.iter().any(|subject| subject.migration == Some(context.id));
        if context.plan().name == now.name && !state.is_final() && !is_named {
            let name = &context.machine.name;
            let text =
                format!("VM {name}, {state}: not named any more, and it goes on until it is cancelled");
            let (vm, migration) = (Some(name.clone()), Some(context.id));
            changes.push(PlanChange { kind: PlanChangeKind::Leave, vm, migration, text });
        }
    }
    changes
}

/// The effect of applying a plan again on one of its migrations.
pub(super) fn applied_again(before: &Plan, now: &Plan) -> String {
    let name = &now.name;
    match settings(before, now).as_slice() {
        [] => format!("plan {name} applied again, unchanged"),
        changes => format!("plan {name} applied again: {}", changes.join("; ")),
    }
}

/// The changed keys, each with its old and new value.
fn settings(before: &Plan, now: &Plan) -> Vec<String> {
    let mut changes = Vec::new();
    let named = |plan: &Plan| plan.vms.iter().cloned().collect::<BTreeSet<_>>();
    let (had, has) = (named(before), named(now));
    changes.extend(has.difference(&had).map(|vm| format!("vms has {vm:?} now")));
    changes.extend(had.difference(&has).map(|vm| format!("vms has {vm:?} no more")));
    let (before, now) = (leaves(before), leaves(now));
    let keys: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let shown = |key: &str, value: Option<&Value>| match value {
        Some(value) => value.to_string(),
        None if key.starts_with(OF_VM) => "the plan's".to_owned(),
        None => "nothing".to_owned(),
    };
    changes.extend(
        keys.into_iter()
            .map(|key| (key, before.get(key), now.get(key)))
            .filter(|(_, before, now)| before != now)
            .map(|(key, before, now)| format!("{key} was {} and is {}", shown(key, before), shown(key, now))),
    );
    changes
}

/// The beginning of a key of a VM's own schedule: `schedule of VM web-1: every`.
const OF_VM: &str = "schedule of VM ";

/// Each value of the plan by its key in the file, `cutover.max_downtime`; without `vms`.
fn leaves(plan: &Plan) -> BTreeMap<String, Value> {
    let mut leaves = BTreeMap::new();
    let mut plan = plan.clone();
    for (vm, over) in &mut plan.vm {
        if let Ok(Value::Object(fields)) = serde_json::to_value(std::mem::take(&mut over.schedule)) {
            for (key, value) in fields {
                gather(format!("{OF_VM}{vm}: {key}"), value, &mut leaves);
            }
        }
    }
    // A plan that cannot be serialised could not have been saved either.
    if let Ok(Value::Object(fields)) = serde_json::to_value(&plan) {
        for (key, value) in fields.into_iter().filter(|(key, _)| key != "vms") {
            gather(key, value, &mut leaves);
        }
    }
    leaves
}

fn gather(key: String, value: Value, leaves: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (inner, value) in fields {
                let is_plain = inner.chars().all(|each| each.is_ascii_alphanumeric() || each == '_');
                let inner = if is_plain { inner } else { format!("{inner:?}") };
                gather(format!("{key}.{inner}"), value, leaves);
            }
        }
        Value::Null => {}
        value => drop(leaves.insert(key, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rest: &str) -> Plan {
        toml::from_str(&format!("name = \"p\"\nsource = \"s\"\ntarget = \"t\"\n{rest}")).unwrap()
    }

    #[test]
    fn each_key_is_told_with_both_values() {
        let before = plan("vms = [\"a\", \"b\"]\n[schedule]\nevery = \"15m\"\n[networks]\n\"lan 1\" = \"x\"");
        let now = plan("vms = [\"b\", \"c\"]\n[schedule]\nevery = \"5m\"\n[limits]\nrate = \"1MiB/s\"");
        assert_eq!(settings(&before, &before), Vec::<String>::new());
        assert_eq!(
            settings(&before, &now),
            [
                "vms has \"c\" now",
                "vms has \"a\" no more",
                "limits.rate was nothing and is \"1MiB/s\"",
                "networks.\"lan 1\" was \"x\" and is nothing",
                "schedule.every was \"15m\" and is \"5m\"",
            ]
        );
        let reordered =
            plan("vms = [\"b\", \"a\"]\n[schedule]\nevery = \"15m\"\n[networks]\n\"lan 1\" = \"x\"");
        assert_eq!(applied_again(&before, &reordered), "plan p applied again, unchanged");
    }

    #[test]
    fn a_vms_own_schedule_is_told_by_its_name() {
        let before = plan(
            "vms = [\"a\"]\n[vm.\"a\".schedule]\nevery = \"1h\"\n[vm.\"a\".schedule.copy]\nwindows = []",
        );
        let now = plan("vms = [\"a\"]\n[vm.\"a\"]\nname = \"b\"\n[vm.\"a\".schedule]\nevery = \"2h\"");
        assert_eq!(
            settings(&before, &now),
            [
                "schedule of VM a: copy.windows was [] and is the plan's",
                "schedule of VM a: every was \"1h\" and is \"2h\"",
                "vm.a.name was nothing and is \"b\"",
            ]
        );
    }
}
