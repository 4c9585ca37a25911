//! Whether the plan's conversions are possible: the program is on the daemon's host and not restricted there,
//! and the target has overlays.

use std::{io, time::Duration};

use tokio::time::timeout;
use warmd_cbt::units::Length;
use warmd_core::{
    model::{conversion::VirtV2v, id::DiskKey, plan::Plan, rule::Rule},
    targets::{DiskSpec, Target},
};

use super::{CheckedPlan, plan_of, vm_of};
use crate::{confined::Confinement, conversion_program::ConversionProgram};

/// How long a file may take to open: it may be on a mount that hangs.
const LOOK: Duration = Duration::from_secs(10);

/// The files of the settings that the daemon cannot read. A pipe or a device is not opened: that may wait
/// without an end, or do something.
async fn absent_files(options: &VirtV2v) -> Vec<String> {
    let mut absent = Vec::new();
    for file in options.keys.values().chain(&options.first_boot) {
        let open = async {
            if !tokio::fs::metadata(file).await?.is_file() {
                return Err(io::Error::other("it is not a regular file"));
            }
            tokio::fs::File::open(file).await.map(drop)
        };
        let opened = timeout(LOOK, open).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(why) = opened {
            absent.push(format!("{} cannot be read on the daemon's host: {why}", file.display()));
        }
    }
    absent
}

pub(super) async fn check_conversions(checked: &mut CheckedPlan, plan: &Plan, target: &dyn Target) {
    let overs = plan.vm.iter().filter_map(|(vm, over)| Some((vm, over.conversion.as_ref()?)));
    let overs = overs.map(|(vm, conversion)| (format!("[vm.{vm:?}] conversion"), conversion));
    let all = [("conversion".to_owned(), &plan.conversion)].into_iter().chain(overs);
    let with_program = |(name, conversion)| Some((name, conversion, ConversionProgram::of(conversion)?));
    let all: Vec<_> = all.filter_map(with_program).collect();
    if all.is_empty() {
        return;
    }
    for (name, conversion, program) in &all {
        let name = if conversion.virt_v2v().is_some() { name.clone() } else { format!("{name}.command") };
        let absent = match conversion.virt_v2v() {
            Some(options) => absent_files(options).await,
            None => Vec::new(),
        };
        for why in program.missing().await.into_iter().chain(absent) {
            checked.find(Rule::ConversionMissing, plan_of(plan), format!("`{name}`: {why}"));
        }
    }
    // warmd's own child needs less than a command that is not prepared for it.
    let are_commands = all.iter().any(|(_, conversion, _)| conversion.converter().is_some());
    let confinement = Confinement::look();
    if confinement.binds() && (are_commands || confinement.kills_virt_v2v()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_regular_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (script, pipe) = (dir.path().join("script"), dir.path().join("pipe"));
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let options = |files: &[&std::path::Path]| VirtV2v {
            first_boot: files.iter().map(|&file| file.to_owned()).collect(),
            ..VirtV2v::default()
        };
        assert_eq!(absent_files(&options(&[&script])).await, Vec::<String>::new());
        // Opening it would wait for a writer.
        let absent = absent_files(&options(&[&pipe, &dir.path().join("none"), dir.path()])).await;
        assert_eq!(absent.len(), 3, "{absent:?}");
        assert!(absent[0].contains("not a regular file") && absent[1].contains("none"), "{absent:?}");
    }
}
