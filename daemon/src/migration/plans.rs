//! Plans, judged against their endpoints and made so.
//!
//! Rule: applying is repeatable: what is there already is kept, and a plan with an error changes nothing at all.

use std::collections::BTreeSet;

use serde_json::Value;
use warmd_cbt::units::Length;

use super::{
    control::{ControlError, ControlErrorKind, Finding, Severity},
    manager::Manager,
    program,
};
use crate::{
    clock,
    model::{
        boot::BootCheck,
        id::DiskKey,
        machine::{Machine, PowerState},
        plan::Plan,
    },
    sources::{SourceError, SourceErrorKind},
    targets::{DiskSpec, Target, TargetError, TargetErrorKind},
};

/// What judging a plan found, and the machines that it saw.
#[derive(Debug, Default)]
pub struct Judged {
    pub findings: Vec<Finding>,
    /// Each VM's name in the plan with its machine.
    pub machines: Vec<(String, Machine)>,
}

impl Judged {
    fn add(&mut self, severity: Severity, subject: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding { severity, subject: subject.into(), message: message.into() });
    }

    /// The errors in one text; `None` if there are none.
    pub fn errors(&self) -> Option<String> {
        let errors: Vec<_> = self
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .map(|finding| format!("{}: {}", finding.subject, finding.message))
            .collect();
        (!errors.is_empty()).then(|| errors.join("\n"))
    }
}

/// Judges a plan by itself and against its endpoints.
pub async fn judge(manager: &Manager, plan: &Plan) -> Result<Judged, ControlError> {
    let mut judged = Judged::default();
    for problem in plan.problems() {
        judged.add(Severity::Error, format!("plan {}", plan.name), problem);
    }
    judge_hooks(&mut judged, plan);
    if let Ok(rules) = plan.rules() {
        for dead_end in rules.dead_ends(clock::now()) {
            judged.add(Severity::Warning, format!("plan {}", plan.name), dead_end);
        }
    }
    if let Err(error) = manager.target(&plan.target) {
        judged.add(Severity::Error, format!("target {}", plan.target), error.message);
    } else {
        let target = manager.target(&plan.target)?;
        judge_boot_checks(&mut judged, plan, target.as_ref());
        judge_conversions(&mut judged, plan, target.as_ref()).await;
        if let Err(error) = target.check().await {
            judged.add(Severity::Error, format!("target {}", plan.target), error.to_string());
        }
    }
    let source = match manager.source(&plan.source) {
        Ok(source) => source,
        Err(error) => {
            judged.add(Severity::Error, format!("source {}", plan.source), error.message);
            return Ok(judged);
        }
    };
    for vm in &plan.vms {
        match source.describe(vm).await {
            Ok(machine) => {
                judge_machine(&mut judged, plan, vm, &machine);
                match source.power(&machine.id).await {
                    Ok(PowerState::Paused) => judged.add(
                        Severity::Warning,
                        format!("VM {vm}"),
                        "is paused on the source: no snapshot can be taken until it runs or is off",
                    ),
                    Ok(PowerState::Running | PowerState::Off) => {}
                    Err(error) => judged.add(Severity::Warning, format!("VM {vm}"), error.to_string()),
                }
                judged.machines.push((vm.clone(), machine));
            }
            Err(error) => judged.add(Severity::Error, format!("VM {vm}"), error.to_string()),
        }
    }
    Ok(judged)
}

/// Programs are on the daemon's host: only the daemon can look.
fn judge_hooks(judged: &mut Judged, plan: &Plan) {
    for (at, hook) in plan.hooks.iter().enumerate() {
        if let Err(why) = program::is_executable(hook.program()) {
            judged.add(
                Severity::Error,
                format!("plan {}", plan.name),
                format!("`hooks[{at}].command`: {why}"),
            );
        }
    }
}

fn judge_boot_checks(judged: &mut Judged, plan: &Plan, target: &dyn Target) {
    let overs = plan.vm.values().filter_map(|over| over.boot_check.as_ref());
    if !target.sees_guests() && overs.chain([&plan.cutover.boot_check]).any(BootCheck::needs_target) {
        let message = "cannot look into guests: remove `serial` and `guest_agent` from the boot check";
        judged.add(Severity::Error, format!("target {}", plan.target), message);
    }
}

/// Whether what is to be converted can be: the program is on the daemon's host, and the target keeps its writes apart.
async fn judge_conversions(judged: &mut Judged, plan: &Plan, target: &dyn Target) {
    let overs = || plan.vm.iter().filter_map(|(vm, over)| Some((vm, over.conversion.as_ref()?)));
    let all = overs().map(|(vm, conversion)| (format!("[vm.{vm:?}] conversion"), conversion));
    let all = [("conversion".to_owned(), &plan.conversion)].into_iter().chain(all);
    let all: Vec<_> = all.filter_map(|(name, conversion)| Some((name, conversion.converter()?))).collect();
    for (name, converter) in &all {
        if let Err(why) = program::is_executable(converter.program()) {
            let subject = format!("plan {}", plan.name);
            judged.add(Severity::Error, subject, format!("`{name}.command`: {why}"));
        }
    }
    if all.is_empty() {
        return;
    }
    let subject = format!("target {}", plan.target);
    let guard = match target.guard().await {
        Ok(Some(guard)) => guard,
        Ok(None) => {
            let message = "cannot keep a conversion's writes apart: set `conversion = \"none\"`";
            return judged.add(Severity::Error, subject, message);
        }
        Err(error) => return judged.add(Severity::Error, subject, error.to_string()),
    };
    if let Err(error) = guard.check().await {
        judged.add(Severity::Error, subject, format!("a conversion needs qemu-img: {error}"));
    }
    for (vm, over) in &plan.vm {
        if over.conversion.as_ref().unwrap_or(&plan.conversion).is_none() {
            continue;
        }
        for (key, place) in &over.disks {
            let (key, place) = (DiskKey(key.clone()), Some(place.clone()));
            let refusal = guard.refusal(&DiskSpec { key: key.clone(), size: Length(0), place });
            if let Some(why) = refusal {
                judged.add(Severity::Error, format!("VM {vm}"), format!("disk {key}: {why}"));
            }
        }
    }
}

fn judge_machine(judged: &mut Judged, plan: &Plan, vm: &str, machine: &Machine) {
    let subject = format!("VM {vm}");
    if machine.disks.is_empty() {
        judged.add(Severity::Error, &subject, "has no disks that can be copied: remove it from the plan");
    }
    for disk in &machine.disks {
        if let Some(why) = &disk.untracked {
            let message = format!(
                "disk {}: changes cannot be tracked ({why}); every pass compares the whole disk",
                disk.key
            );
            judged.add(Severity::Warning, &subject, message);
        }
        if disk.size.0 == 0 {
            judged.add(Severity::Error, &subject, format!("disk {} has no bytes: detach it", disk.key));
        }
    }
    let twice =
        judged.machines.iter().find(|(_, other)| other.id == machine.id).map(|(other, _)| other.clone());
    if let Some(other) = twice {
        judged.add(Severity::Error, &subject, format!("is the same VM as {other}: remove one"));
    }
    let name = plan.target_name(vm);
    if !crate::model::plan::is_target_name(name) {
        judged.add(
            Severity::Error,
            &subject,
            format!("its name cannot be used on the target: set `[vm.{vm:?}] name` to letters, digits, dots, dashes and underscores"),
        );
    }
    if let Some(over) = plan.vm.get(vm) {
        for key in over.disks.keys().filter(|key| !machine.disks.iter().any(|disk| disk.key.0 == **key)) {
            let disks: Vec<_> = machine.disks.iter().map(|disk| disk.key.0.as_str()).collect();
            let message =
                format!("`[vm.{vm:?}.disks]` names {key}, which it has not; it has {}", disks.join(", "));
            judged.add(Severity::Error, &subject, message);
        }
    }
}

/// What applying a plan again means for a migration that it moves: what of it is another than before, from what to what.
pub fn applied_again(before: &Plan, now: &Plan) -> String {
    let fields = |plan: &Plan| match serde_json::to_value(plan) {
        Ok(Value::Object(fields)) => fields,
        // A plan that cannot be written could not have been saved either.
        _ => serde_json::Map::new(),
    };
    let (before, now, name) = (fields(before), fields(now), &now.name);
    let names: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let changes: Vec<_> = names
        .into_iter()
        .map(|field| (field, before.get(field), now.get(field)))
        .filter(|(_, before, now)| before != now)
        .map(|(field, before, now)| format!("{field} was {} and is {}", shown(before), shown(now)))
        .collect();
    match changes.as_slice() {
        [] => format!("plan {name} applied again, unchanged"),
        changes => format!("plan {name} applied again: {}", changes.join("; ")),
    }
}

impl From<SourceError> for ControlError {
    fn from(error: SourceError) -> Self {
        let kind = match error.kind {
            SourceErrorKind::Unreachable | SourceErrorKind::Timeout => ControlErrorKind::Unavailable,
            SourceErrorKind::NotFound => ControlErrorKind::NotFound,
            SourceErrorKind::Refused | SourceErrorKind::StillRunning => ControlErrorKind::Refused,
            SourceErrorKind::Failed => ControlErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<TargetError> for ControlError {
    fn from(error: TargetError) -> Self {
        let kind = match error.kind {
            TargetErrorKind::Unreachable | TargetErrorKind::Timeout => ControlErrorKind::Unavailable,
            TargetErrorKind::NotFound => ControlErrorKind::NotFound,
            TargetErrorKind::Conflict | TargetErrorKind::NoSpace | TargetErrorKind::Refused => {
                ControlErrorKind::Refused
            }
            TargetErrorKind::Failed => ControlErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
