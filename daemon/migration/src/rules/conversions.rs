//! Whether the plan's conversions are possible: the program is on the daemon's host and not restricted there,
//! and the target has overlays.

use warmd_cbt::units::Length;
use warmd_core::{
    model::{id::DiskKey, plan::Plan, rule::Rule},
    targets::{DiskSpec, Target},
};

use super::{CheckedPlan, plan_of, vm_of};
use crate::{confined::Confinement, program};

pub(super) async fn check_conversions(checked: &mut CheckedPlan, plan: &Plan, target: &dyn Target) {
    let overs = plan.vm.iter().filter_map(|(vm, over)| Some((vm, over.conversion.as_ref()?)));
    let overs = overs.map(|(vm, conversion)| (format!("[vm.{vm:?}] conversion"), conversion));
    let all = [("conversion".to_owned(), &plan.conversion)].into_iter().chain(overs);
    let all: Vec<_> = all.filter_map(|(name, conversion)| Some((name, conversion.converter()?))).collect();
    if all.is_empty() {
        return;
    }
    for (name, converter) in all {
        if let Err(why) = program::is_executable(converter.program()) {
            checked.find(Rule::ConversionMissing, plan_of(plan), format!("`{name}.command`: {why}"));
        }
    }
    let confinement = Confinement::look();
    if confinement.binds() {
        let found = format!("a conversion shares the sandbox of the daemon's service: {confinement}");
        checked.find(Rule::ConversionConfined, plan_of(plan), found);
    }
    let subject = format!("target {}", plan.target);
    let overlay = match target.conversion_overlay().await {
        Ok(Some(overlay)) => overlay,
        Ok(None) => {
            let found = "it cannot keep a conversion's writes apart";
            return checked.find(Rule::ConversionNoOverlay, subject, found);
        }
        Err(error) => return checked.find(Rule::ConversionNoOverlay, subject, error.to_string()),
    };
    if let Err(error) = overlay.check().await {
        let found = format!("a conversion needs qemu-img: {error}");
        checked.find(Rule::ConversionNoOverlay, subject, found);
    }
    for (vm, over) in &plan.vm {
        if over.conversion.as_ref().unwrap_or(&plan.conversion).is_none() {
            continue;
        }
        for (key, place) in &over.disks {
            let (key, place) = (DiskKey(key.clone()), Some(place.clone()));
            if let Some(why) = overlay.refusal(&DiskSpec { key: key.clone(), size: Length(0), place }) {
                checked.find(Rule::ConversionLocation, vm_of(vm), format!("disk {key}: {why}"));
            }
        }
    }
}
