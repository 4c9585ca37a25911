//! Translates what vSphere describes into machines, list entries and objections.
//!
//! Rule: pure; what vSphere does not say is never guessed to be harmless.

use warmd_cbt::units::Length;
use warmd_core::{
    model::{
        id::{DiskKey, VmId},
        machine::{CpuTopology, Firmware, Machine, MachineDisk, Nic, PowerState, VmSummary},
        rule::{Objection, Rule},
    },
    sources::{SourceError, SourceErrorKind},
};

use crate::{
    Owner, Settings,
    hold_off::{Starters, held_off},
    inventory::{self, Connection, Controller, Power, Tools, VirtualDisk, Vm},
    settings::Quiesce,
    tracking,
};

/// A VM's id: the instance UUID, or the server's own where it has none.
pub(super) fn vm_id(vm: &Vm) -> VmId {
    VmId(vm.instance_uuid.clone().unwrap_or_else(|| vm.of.id.clone()))
}

/// A disk's key: its backing's UUID. A disk without one is an obstacle (`tracking::obstacle`).
pub(super) fn disk_key(disk: &VirtualDisk) -> DiskKey {
    DiskKey(disk.uuid.clone().unwrap_or_else(|| format!("device-{}", disk.key)))
}

pub(super) fn power(power: Power) -> PowerState {
    match power {
        Power::On => PowerState::Running,
        Power::Off => PowerState::Off,
        Power::Suspended => PowerState::Paused,
    }
}

/// The datastore in `[datastore] folder/name.vmdk`.
pub(super) fn datastore(location: &str) -> Option<String> {
    let (name, _) = location.strip_prefix('[')?.split_once(']')?;
    Some(name.to_owned())
}

/// The bus of the controller's disks: of a SCSI controller its model, since a guest has drivers for models.
fn bus(controller: &Controller) -> &str {
    match controller.model.as_str() {
        model @ ("pvscsi" | "lsilogic" | "lsisas" | "buslogic") => model,
        _ => &controller.bus,
    }
}

/// Why the disk's changes cannot be tracked.
fn untracked(vm: &Vm, disk: &VirtualDisk, may_track: bool) -> Option<String> {
    if let Some(obstacle) = tracking::obstacle(disk) {
        return Some(format!("{}; {}", obstacle.why, obstacle.remedy));
    }
    if vm.tracking_enabled {
        return None;
    }
    if !may_track {
        let why =
            "changed-block tracking is off on the VM: switch it on, or allow it (`enable_change_tracking`)";
        return Some(why.to_owned());
    }
    tracking::may_switch_on(vm).err()
}

/// The VM's hardware.
pub(super) fn machine(vm: &Vm, may_track: bool) -> Result<Machine, SourceError> {
    let lacks = |what: &str| {
        let why = format!("the server does not say its {what}: see that the user may read the VM");
        SourceError::new(SourceErrorKind::Failed, format!("VM {}: reading its hardware", vm.name), why)
    };
    let cpus = vm.cpus.filter(|cpus| *cpus > 0).ok_or_else(|| lacks("processors"))?;
    let cores = vm.cores_per_socket.filter(|cores| cpus.is_multiple_of(*cores)).unwrap_or(1);
    let efi = vm.firmware == inventory::VmFirmware::Efi;
    let mut disks: Vec<&VirtualDisk> = vm.disks.iter().collect();
    // Those that it boots from first, in their order; the others keep theirs.
    let rank =
        |disk: &&VirtualDisk| vm.boot_disks.iter().position(|key| *key == disk.key).unwrap_or(usize::MAX);
    disks.sort_by_key(rank);
    Ok(Machine {
        id: vm_id(vm),
        name: vm.name.clone(),
        uuid: vm.uuid.clone().ok_or_else(|| lacks("UUID"))?,
        firmware: match (efi, vm.secure_boot) {
            (false, _) => Firmware::Bios,
            (true, false) => Firmware::Uefi,
            (true, true) => Firmware::UefiSecure,
        },
        // Its BIOS machines have a 440BX, as `pc` has: devices keep their slots, and interfaces their names.
        machine_type: if efi { "q35" } else { "pc" }.to_owned(),
        architecture: if vm.guest_id.as_deref().is_some_and(|guest| guest.starts_with("arm")) {
            "aarch64"
        } else {
            "x86_64"
        }
        .to_owned(),
        cpu: CpuTopology { sockets: cpus / cores, cores, threads: 1 },
        memory: Length(vm.memory_mib.ok_or_else(|| lacks("memory"))? << 20),
        disks: (0..)
            .zip(&disks)
            .map(|(boot_order, disk)| MachineDisk {
                key: disk_key(disk),
                size: disk.capacity,
                bus: bus(&disk.controller).to_owned(),
                boot_order,
                location: disk.backing.file.clone(),
                untracked: untracked(vm, disk, may_track),
            })
            .collect(),
        nics: vm
            .nics
            .iter()
            .map(|nic| Nic { mac: nic.mac.clone(), network: nic.network.clone(), model: nic.model.clone() })
            .collect(),
        hardware: None,
        host: vm.host.clone(),
    })
}

/// One line of the list.
pub(super) fn summary(vm: &Vm, settings: &Settings) -> VmSummary {
    let may_track = settings.enable_change_tracking;
    let mut warnings = Vec::new();
    let is_connected = vm.connection == Some(Connection::Connected) && vm.host_connected != Some(false);
    if !is_connected {
        warnings.push("vCenter does not reach it or its host: what the list shows of it is old".to_owned());
    }
    warnings.extend(held_off(vm));
    let objections = objections(vm, &Starters::default(), settings);
    // That tracking will be switched on is no news in a list.
    let objections = objections.into_iter().filter(|objection| objection.rule != Rule::TrackingSwitchedOn);
    warnings.extend(objections.map(|objection| match objection.rule {
        Rule::ForeignSnapshots | Rule::VmHasSnapshots => format!("it has snapshots: {}", objection.found),
        _ => objection.found,
    }));
    let tracked = vm.disks.iter().filter(|disk| untracked(vm, disk, may_track).is_none());
    VmSummary {
        id: vm_id(vm),
        name: vm.name.clone(),
        // What is not known is not off.
        power: vm.power.filter(|_| is_connected).map_or(PowerState::Paused, power),
        disks: count(vm.disks.len()),
        bytes: vm.disks.iter().map(|disk| disk.capacity).sum(),
        tracked: count(tracked.count()),
        snapshots: count(vm.snapshots.len()),
        warnings,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn tools(tools: Tools) -> &'static str {
    match tools {
        Tools::Running => "they run",
        Tools::NotRunning => "they do not run in the guest",
        Tools::NotInstalled => "they are not installed in the guest",
        Tools::Unknown => "vSphere does not say whether they run",
    }
}

/// The names of the VM's snapshots that are not warmd's, whose own come and go with the passes; `None`
/// without any.
pub(super) fn foreign_snapshots(vm: &Vm) -> Option<String> {
    let others = tracking::snapshots_of_others(vm, |node| Owner::of(node).is_some());
    let names: Vec<_> = others.iter().map(|node| format!("{:?}", node.name)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Why a VM with two disks of one backing UUID is not copied.
pub(super) fn same_uuid(uuid: &str) -> String {
    format!(
        "two of its disks have the same UUID {uuid}, and cannot be told apart: give one of them another UUID \
         (vmkfstools -J setuuid), or remove it"
    )
}

/// What stands in the way, or is to be known before.
pub(super) fn objections(vm: &Vm, starters: &Starters, settings: &Settings) -> Vec<Objection> {
    let may_track = settings.enable_change_tracking;
    let mut found = Vec::new();
    let mut object = |rule, text: String| found.push(Objection::new(rule, text));
    for disk in &vm.disks {
        if let Some(obstacle) = tracking::obstacle(disk) {
            object(Rule::DiskUnsupported, format!("{}: {}; {}", disk.label, obstacle.why, obstacle.remedy));
        }
        if disk.backing.encrypted {
            object(
                Rule::EncryptionLost,
                format!("{}: it is encrypted, and is written in plain text", disk.label),
            );
        }
    }
    if let Some(uuid) = vm.shared_uuid() {
        object(Rule::DiskUnsupported, same_uuid(uuid));
    }
    if vm.encrypted {
        object(Rule::EncryptionLost, "the VM is encrypted, and its copy is not".to_owned());
    }
    if vm.tpm {
        let text =
            "the TPM and its keys stay behind: disks that it seals (BitLocker) ask for their recovery key";
        object(Rule::TpmState, text.to_owned());
    }
    for device in &vm.passed_through {
        object(
            Rule::DeviceUnmapped,
            format!("{device}: it is a device of the source's host, and stays behind"),
        );
    }
    if let Some(names) = foreign_snapshots(vm) {
        // What is not known is not off.
        let rule = if vm.power == Some(Power::Off) { Rule::VmHasSnapshots } else { Rule::ForeignSnapshots };
        object(rule, names);
    }
    if vm.consolidation_needed {
        object(Rule::ConsolidationNeeded, "vSphere says that its disks need consolidation".to_owned());
    }
    if may_track && !vm.tracking_enabled && tracking::may_switch_on(vm).is_ok() {
        object(Rule::TrackingSwitchedOn, "its `changeTrackingEnabled` is off".to_owned());
    }
    if settings.quiesce == Quiesce::Try && vm.power != Some(Power::Off) && vm.tools != Tools::Running {
        object(Rule::QuiesceUnavailable, format!("VMware Tools: {}", tools(vm.tools)));
    }
    if let Some(question) = &vm.question {
        object(
            Rule::VmBusy,
            format!("it waits for an answer to a question, answer it in vSphere: {question:?}"),
        );
    }
    if starters.autostart {
        object(Rule::VmAutostart, "its ESXi host starts it when the host starts".to_owned());
    }
    for named in &starters.named {
        object(Rule::VmAutostart, named.clone());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datastore_is_in_a_disks_location() {
        assert_eq!(datastore("[SAN 2] web1/web1.vmdk").as_deref(), Some("SAN 2"));
        assert_eq!(datastore("/vmfs/volumes/x"), None);
    }

    #[test]
    fn a_scsi_disk_has_its_controllers_model_as_bus() {
        let on = |bus: &str, model: &str| {
            let controller = Controller { bus: bus.into(), model: model.into(), ..Controller::default() };
            self::bus(&controller).to_owned()
        };
        assert_eq!(on("scsi", "pvscsi"), "pvscsi");
        assert_eq!(on("scsi", "lsisas"), "lsisas");
        assert_eq!(on("scsi", "VirtualNewSCSIController"), "scsi");
        assert_eq!((on("sata", "ahci"), on("ide", "ide")), ("sata".to_owned(), "ide".to_owned()));
    }

    #[test]
    fn suspended_is_not_off() {
        assert_eq!(power(Power::Suspended), PowerState::Paused);
        assert_eq!(power(Power::Off), PowerState::Off);
    }
}
