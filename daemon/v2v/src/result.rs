//! What virt-v2v made of the machine. Pure.
//!
//! Rule: only what virt-v2v says is taken over: the machine that it wrote, or else its sentence about the
//! drivers. Without either the conversion has failed, because nothing says on which bus the guest boots.

use roxmltree::{Document, Node};
use warmd_core::model::machine::{Firmware, Machine};

const HAS_VIRTIO: &str = "This guest has virtio drivers installed";
const LACKS_VIRTIO: &str = "This guest does not have virtio drivers installed";

/// Whether a line of virt-v2v's output says that the guest has virtio drivers; `None` if it says neither.
pub(crate) fn has_virtio(line: &str) -> Option<bool> {
    if line.contains(LACKS_VIRTIO) { Some(false) } else { line.contains(HAS_VIRTIO).then_some(true) }
}

/// The machine for a guest that has virtio drivers, or has none.
pub(crate) fn by_drivers(machine: &Machine, has_virtio: bool) -> Machine {
    let mut converted = machine.clone();
    let (bus, model) = match (has_virtio, machine.machine_type.contains("q35")) {
        (true, _) => ("virtio", "virtio"),
        (false, true) => ("sata", "e1000"),
        (false, false) => ("ide", "e1000"),
    };
    converted.disks.iter_mut().for_each(|disk| bus.clone_into(&mut disk.bus));
    converted.nics.iter_mut().for_each(|nic| model.clone_into(&mut nic.model));
    converted
}

/// The machine as virt-v2v's XML describes it; `keys` are the disks in the order of the XML.
pub(crate) fn by_xml(
    machine: &Machine,
    keys: &[&warmd_core::model::id::DiskKey],
    text: &str,
) -> Result<Machine, String> {
    let document = Document::parse(text).map_err(|error| format!("virt-v2v's machine is no XML: {error}"))?;
    let all = |name: &'static str| document.descendants().filter(move |node| node.has_tag_name(name));
    let part = |node: Node<'_, '_>, name: &str, attribute: &str| {
        node.children().find(|part| part.has_tag_name(name))?.attribute(attribute).map(str::to_owned)
    };
    let mut converted = machine.clone();
    let disks: Vec<_> =
        all("disk").filter(|disk| disk.attribute("device").is_none_or(|device| device == "disk")).collect();
    if disks.len() != keys.len() {
        return Err(format!("virt-v2v's machine has {} disks, and had {}", disks.len(), keys.len()));
    }
    for (key, disk) in keys.iter().zip(disks) {
        let bus =
            part(disk, "target", "bus").ok_or_else(|| format!("virt-v2v names no bus of disk {key}"))?;
        if let Some(known) = converted.disks.iter_mut().find(|known| known.key == **key) {
            known.bus = bus;
        }
    }
    let nics: Vec<_> = all("interface").collect();
    for nic in &mut converted.nics {
        let is_it = |node: &&Node<'_, '_>| {
            part(**node, "mac", "address").is_some_and(|mac| mac.eq_ignore_ascii_case(&nic.mac))
        };
        let found = nics.iter().find(is_it);
        let found =
            found.ok_or_else(|| format!("virt-v2v's machine has no network interface {}", nic.mac))?;
        nic.model = part(*found, "model", "type")
            .ok_or_else(|| format!("virt-v2v names no model of network interface {}", nic.mac))?;
    }
    // The chipset only where the firmware needs another: it names the guest's devices.
    let chipset = all("type").find_map(|kind| kind.attribute("machine"));
    if machine.firmware != Firmware::Bios && chipset.is_some_and(|chipset| chipset.contains("q35")) {
        "q35".clone_into(&mut converted.machine_type);
    }
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tests::machine;

    #[test]
    fn the_sentence_about_drivers_decides() {
        assert_eq!(has_virtio("[  80.1] virt-v2v: This guest has virtio drivers installed."), Some(true));
        assert_eq!(has_virtio("This guest does not have virtio drivers installed."), Some(false));
        assert_eq!(has_virtio("Converting the guest to run on KVM"), None);
        let with = by_drivers(&machine(), true);
        assert!(with.disks.iter().all(|disk| disk.bus == "virtio"));
        assert!(with.nics.iter().all(|nic| nic.model == "virtio"));
        let without = by_drivers(&machine(), false);
        assert_eq!((without.disks[0].bus.as_str(), without.nics[0].model.as_str()), ("ide", "e1000"));
        let modern = Machine { machine_type: "q35".to_owned(), ..machine() };
        assert_eq!(by_drivers(&modern, false).disks[0].bus, "sata");
    }

    #[test]
    fn the_written_machine_is_taken_disk_by_disk() {
        let machine = machine();
        let keys = [&machine.disks[1].key, &machine.disks[0].key];
        let text = "<domain><os><type machine='q35'>hvm</type></os><devices>\
            <disk device='cdrom'><target bus='sata'/></disk>\
            <disk device='disk'><target dev='vda' bus='virtio'/></disk>\
            <disk><target dev='sda' bus='scsi'/></disk>\
            <interface><mac address='00:50:56:00:00:02'/><model type='e1000'/></interface>\
            <interface><mac address='00:50:56:00:00:01'/><model type='virtio'/></interface></devices></domain>";
        let back = by_xml(&machine, &keys, text).unwrap();
        let buses: Vec<_> = back.disks.iter().map(|disk| (disk.key.0.as_str(), disk.bus.as_str())).collect();
        assert_eq!(buses, [("data", "scsi"), ("root", "virtio")]);
        let models: Vec<_> = back.nics.iter().map(|nic| nic.model.as_str()).collect();
        assert_eq!((models, back.machine_type.as_str()), (vec!["virtio", "e1000"], "pc"));
        let uefi = Machine { firmware: Firmware::Uefi, ..machine.clone() };
        assert_eq!(by_xml(&uefi, &keys, text).unwrap().machine_type, "q35");
        for (cut, why) in [
            ("<disk><target dev='sda' bus='scsi'/></disk>", "has 1 disks, and had 2"),
            (" bus='virtio'", "no bus of disk root"),
            ("<mac address='00:50:56:00:00:01'/>", "no network interface 00:50:56:00:00:01"),
            ("<model type='virtio'/>", "no model of network interface"),
            ("</domain>", "no XML"),
        ] {
            let error = by_xml(&machine, &keys, &text.replace(cut, "")).unwrap_err();
            assert!(error.contains(why), "{error} for {why}");
        }
    }
}
