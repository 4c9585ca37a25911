//! The controllers and network cards of another platform's machine, as QEMU has them. Pure.
//!
//! Rule: a guest that is not converted gets the devices whose drivers it has, where QEMU has them; what it
//! does not have is reported before.

use warmd_core::model::{machine::Machine, rule::Rule};

/// libvirt's name of the controller for a disk's bus; `None` if the bus is none of SCSI, or QEMU lacks the
/// controller.
fn controller(bus: &str) -> Option<&'static str> {
    match bus {
        "scsi" => Some("virtio-scsi"),
        "pvscsi" => Some("vmpvscsi"),
        "lsisas" => Some("lsisas1068"),
        _ => None,
    }
}

/// Whether disks on this bus come to a SCSI controller.
pub(super) fn is_scsi(bus: &str) -> bool {
    controller(bus).is_some()
}

/// The model of the machine's SCSI controller: that of the first disk, whose driver is in the guest's
/// initramfs.
pub(super) fn scsi_model(machine: &Machine) -> &'static str {
    let on_scsi = machine.disks.iter().filter_map(|disk| Some((disk.boot_order, controller(&disk.bus)?)));
    on_scsi.min_by_key(|(order, _)| *order).map_or("virtio-scsi", |(_, model)| model)
}

/// The network card for one of that name on another platform.
pub(super) fn nic_model(model: &str) -> &'static str {
    match model {
        "vmxnet3" => "vmxnet3",
        "e1000e" => "e1000e",
        "e1000" => "e1000",
        "pcnet32" | "pcnet" | "vlance" => "pcnet",
        "rtl8139" => "rtl8139",
        _ => "virtio",
    }
}

/// What the machine loses of its platform's devices.
pub(super) fn findings(machine: &Machine) -> Vec<(Rule, String)> {
    let lost =
        machine.disks.iter().filter(|disk| ["lsilogic", "buslogic", "nvme"].contains(&disk.bus.as_str()));
    let all = lost.map(|disk| {
        let found = format!(
            "disk {} is on {}, which a libvirt domain does not have: it gets the bus virtio, and the guest needs its \
             drivers (`conversion = \"virt-v2v\"`)",
            disk.key, disk.bus
        );
        (Rule::HardwareChanged, found)
    });
    all.collect()
}
