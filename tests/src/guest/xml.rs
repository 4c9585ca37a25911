//! The domain XML of a guest, such as an operator would have written it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::disk::{CMDLINE, kit};
use super::{Boot, GuestSpec};

/// The whole `<domain>`. Paths and names are the harness's own and need no escaping.
pub(super) fn domain(spec: &GuestSpec, disks: &[PathBuf], console: &Path) -> Result<String> {
    let boot = match spec.boot {
        Boot::Disk => "<boot dev='hd'/>".to_owned(),
        Boot::Direct => {
            let kit = kit()?;
            format!(
                "<kernel>{0}/vmlinuz</kernel><initrd>{0}/initrd</initrd><cmdline>{CMDLINE}</cmdline>",
                kit.display()
            )
        }
    };
    let uuid = spec.uuid.as_ref().map_or_else(String::new, |u| format!("<uuid>{u}</uuid>"));
    let mut devices = String::new();
    if let Some(emulator) = &spec.emulator {
        writeln!(devices, "<emulator>{}</emulator>", emulator.display())?;
    }
    for (n, (disk, path)) in spec.disks.iter().zip(disks).enumerate() {
        let prefix = match disk.bus {
            "virtio" => "vd",
            "ide" => "hd",
            _ => "sd",
        };
        let letter = char::from(b'a' + n as u8);
        writeln!(
            devices,
            "<disk type='file' device='disk'><driver name='qemu' type='{}' discard='unmap'/>\
             <source file='{}'/><target dev='{prefix}{letter}' bus='{}'/></disk>",
            disk.format.name(),
            path.display(),
            if disk.bus == "pvscsi" { "scsi" } else { disk.bus }
        )?;
    }
    if spec.disks.iter().any(|d| d.bus == "pvscsi") {
        devices.push_str("<controller type='scsi' index='0' model='vmpvscsi'/>\n");
    }
    if spec.disks.iter().any(|d| d.bus == "scsi") {
        devices.push_str("<controller type='scsi' index='0' model='virtio-scsi'/>\n");
    }
    Ok(format!(
        "<domain type='qemu'>
<name>{name}</name>{uuid}
<memory unit='MiB'>{memory}</memory><vcpu>{vcpus}</vcpu>
<os><type arch='x86_64' machine='{machine}'>hvm</type>{boot}</os>
<features><acpi/></features>
<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
<devices>
{devices}<interface type='user'><mac address='{mac}'/><model type='{nic}'/>{slot}</interface>
<serial type='file'><source path='{console}' append='on'/><target port='0'/></serial>
</devices>
</domain>
",
        name = spec.name,
        machine = spec.machine,
        memory = spec.memory_mib,
        vcpus = spec.vcpus,
        mac = spec.mac,
        nic = spec.nic,
        // The guest of an image knows its interface by this place.
        slot = if spec.image.is_some() { "<address type='pci' bus='0x00' slot='0x03'/>" } else { "" },
        console = console.display(),
    ))
}
