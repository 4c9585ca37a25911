//! The plan's VMs as the source describes them.

use futures::{StreamExt, stream};
use warmd_core::{
    control::{ControlError, ControlErrorKind},
    model::{
        machine::{Machine, PowerState},
        plan::Plan,
        rule::{Objection, Rule},
        selection::{SelectedVms, is_pattern, select},
    },
    sources::{Source, SourceError, SourceErrorKind},
};

use super::{CheckedPlan, Subject, plan_of, vm_of};
use crate::manager::Manager;

/// VMs that the source is asked about at the same time.
const PARALLEL: usize = 8;

/// VMs that are listed for a pattern that matches none.
const SHOWN: usize = 10;

/// The source's answer about one VM.
struct Answer {
    machine: Machine,
    power: Result<PowerState, SourceError>,
    objections: Result<Vec<Objection>, SourceError>,
}

/// Asks for each VM of the plan, and keeps the machines that exist.
pub(super) async fn check_machines(
    checked: &mut CheckedPlan,
    manager: &Manager,
    plan: &Plan,
    source: &dyn Source,
) -> Result<(), ControlError> {
    let mut answers = stream::iter(chosen(checked, plan, source).await)
        .map(|chosen| async move {
            let answer = ask(source, &chosen.vm).await;
            (chosen, answer)
        })
        .buffered(PARALLEL);
    while let Some((SelectedVms { vm, pattern }, answer)) = answers.next().await {
        let subject = vm_of(&vm);
        // Where source and target are one host, a pattern would move VMs that have just been moved.
        if let (Some(pattern), Ok(Answer { objections: Ok(objections), .. })) = (&pattern, &answer)
            && let Some(moved) = objections.iter().find(|objection| objection.rule == Rule::VmIsMigrated)
        {
            let found = format!("{}; {pattern:?} does not choose it", moved.found);
            checked.find(Rule::VmIsMigrated, subject, found);
            continue;
        }
        let machine = match answer {
            Ok(answer) => of_machine(checked, plan, &vm, answer),
            Err(error) => {
                checked.find(rule_of(&error), subject, error.to_string());
                continue;
            }
        };
        let migration = match manager.migration_of(plan, &machine).await {
            Ok(migration) => migration,
            Err(error) if error.kind == ControlErrorKind::Refused => {
                checked.find(Rule::VmTaken, subject, error.message);
                None
            }
            Err(error) => return Err(error),
        };
        let name = match migration.and_then(|id| manager.handle(id)) {
            Some(handle) => handle.context.target_name.clone(),
            None => plan.target_name(&vm, &machine),
        };
        checked.machines.push(Subject { vm, pattern, machine, name, migration });
    }
    Ok(())
}

/// The VMs that `vms` selects; with names only, the description of each VM shows whether it exists.
async fn chosen(checked: &mut CheckedPlan, plan: &Plan, source: &dyn Source) -> Vec<SelectedVms> {
    if !plan.vms.iter().any(|entry| is_pattern(entry)) {
        return plan.vms.iter().map(|vm| SelectedVms { vm: vm.clone(), pattern: None }).collect();
    }
    let known: Vec<_> = match source.names().await {
        Ok(known) => known.into_iter().map(|(id, name)| (id.0, name)).collect(),
        Err(error) => {
            checked.find(Rule::SourceUnreachable, format!("source {}", plan.source), error.to_string());
            return Vec::new();
        }
    };
    let selection = select(&plan.vms, &known);
    let mut there: Vec<_> = known.iter().take(SHOWN).map(|(_, name)| name.as_str()).collect();
    if known.len() > SHOWN {
        there.push("…");
    }
    let there = if there.is_empty() { "no VM".to_owned() } else { there.join(", ") };
    for idle in &selection.idle {
        let found = format!("{idle:?} matches nothing; there are: {there}");
        checked.find(Rule::PatternUnmatched, plan_of(plan), found);
    }
    if selection.chosen.is_empty() {
        checked.find(Rule::VmNone, plan_of(plan), format!("no VM is chosen; there are: {there}"));
    }
    selection.chosen
}

async fn ask(source: &dyn Source, vm: &str) -> Result<Answer, SourceError> {
    let machine = source.describe(vm).await?;
    let power = source.power(&machine.id).await;
    let objections = source.objections(&machine.id).await;
    Ok(Answer { machine, power, objections })
}

fn rule_of(error: &SourceError) -> Rule {
    match error.kind {
        SourceErrorKind::NotFound | SourceErrorKind::Refused => Rule::VmUnknown,
        SourceErrorKind::Unreachable | SourceErrorKind::Timeout => Rule::SourceUnreachable,
        SourceErrorKind::Blocked | SourceErrorKind::Failed | SourceErrorKind::StillRunning => {
            Rule::VmUnreadable
        }
    }
}

fn of_machine(checked: &mut CheckedPlan, plan: &Plan, vm: &str, answer: Answer) -> Machine {
    let Answer { machine, power, objections } = answer;
    let subject = vm_of(vm);
    if machine.disks.is_empty() {
        checked.find(Rule::DiskNone, &subject, "it has no disk");
    }
    for disk in &machine.disks {
        if let Some(why) = &disk.untracked {
            checked.find(Rule::TrackingUnavailable, &subject, format!("disk {}: {why}", disk.key));
        }
        if disk.size.0 == 0 {
            checked.find(Rule::DiskUnsupported, &subject, format!("disk {} has no bytes", disk.key));
        }
    }
    match power {
        Ok(PowerState::Paused) => checked.find(Rule::VmPaused, &subject, "it is paused on the source"),
        Ok(PowerState::Running | PowerState::Off) => {}
        Err(error) => checked.find(Rule::VmUnreadable, &subject, error.to_string()),
    }
    match objections {
        Ok(objections) => {
            for Objection { rule, found } in objections {
                checked.find(rule, &subject, found);
            }
        }
        Err(error) => checked.find(Rule::VmUnreadable, &subject, error.to_string()),
    }
    let twice = checked.machines.iter().find(|other| other.machine.id == machine.id);
    if let Some(other) = twice.map(|other| other.vm.clone()) {
        checked.find(Rule::VmTwice, &subject, format!("it is the same VM as {other}"));
    }
    if let Some(over) = plan.override_of(vm, &machine) {
        for key in over.disks.keys().filter(|key| !machine.disks.iter().any(|disk| disk.key.0 == **key)) {
            let disks: Vec<_> = machine.disks.iter().map(|disk| disk.key.0.as_str()).collect();
            let message =
                format!("`[vm.{vm:?}.disks]` names {key}, which it has not; it has {}", disks.join(", "));
            checked.find(Rule::DiskUnknown, &subject, message);
        }
    }
    machine
}
