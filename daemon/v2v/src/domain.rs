//! The machine as the libvirt XML that virt-v2v reads (`-i libvirtxml`). Pure.
//!
//! Rule: the disks are the overlays, in the machine's boot order; every text is escaped.

use std::fmt::Write as _;

use warmd_core::model::machine::{Firmware, Machine};

use crate::input::InputDisk;

/// Why no XML can be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoDomain(pub(crate) String);

/// The disks in the order in which the machine boots from them.
pub(crate) fn in_order<'a>(machine: &Machine, disks: &'a [InputDisk]) -> Vec<&'a InputDisk> {
    let rank = |disk: &InputDisk| {
        let known = machine.disks.iter().find(|known| known.key == disk.key);
        known.map_or(u32::MAX, |known| known.boot_order)
    };
    let mut disks: Vec<_> = disks.iter().collect();
    disks.sort_by_key(|disk| rank(disk));
    disks
}

/// The domain's XML.
pub(crate) fn xml(machine: &Machine, disks: &[InputDisk]) -> Result<String, NoDomain> {
    let mut devices = String::new();
    for (at, disk) in in_order(machine, disks).into_iter().enumerate() {
        let path = disk.path.to_str().ok_or_else(|| {
            NoDomain(format!("the path of disk {}'s overlay is no UTF-8: {}", disk.key, disk.path.display()))
        })?;
        // virt-v2v names disks in this order, whatever their bus.
        let _ = write!(
            devices,
            "<disk type='file' device='disk'><driver name='qemu' type='{}'/><source file='{}'/>\
             <target dev='sd{}' bus='scsi'/></disk>",
            escape(&disk.format),
            escape(path),
            letters(at),
        );
    }
    for nic in &machine.nics {
        let _ = write!(
            devices,
            "<interface type='network'><mac address='{}'/><source network='{}'/><model type='{}'/></interface>",
            escape(&nic.mac),
            escape(&nic.network),
            escape(&nic.model),
        );
    }
    let firmware = match machine.firmware {
        Firmware::Bios => "",
        Firmware::Uefi | Firmware::UefiSecure => " firmware='efi'",
    };
    Ok(format!(
        "<domain type='kvm'><name>{}</name><memory unit='b'>{}</memory><vcpu>{}</vcpu>\
         <os{firmware}><type arch='{}'>hvm</type></os><features><acpi/></features><devices>{devices}</devices></domain>",
        escape(&machine.name),
        machine.memory.0,
        machine.cpu.vcpus().max(1),
        escape(&machine.architecture),
    ))
}

/// `a` to `z`, then `aa` and so on.
fn letters(mut at: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(b'a' + u8::try_from(at % 26).unwrap_or_default());
        if at < 26 {
            break;
        }
        at = at / 26 - 1;
    }
    letters.into_iter().rev().map(char::from).collect()
}

/// Text for an attribute or an element.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            char if char.is_control() => escaped.push(' '),
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
pub(crate) mod tests {
    use warmd_core::model::id::DiskKey;

    use super::*;

    /// A machine as it comes from VMware, with these disks in another order than that of booting.
    pub(crate) fn machine() -> Machine {
        let disk = |key: &str, boot_order: u32| {
            serde_json::json!({"key": key, "size": 1 << 20, "bus": "scsi", "boot_order": boot_order,
                               "location": "[DS 1] a/a.vmdk", "untracked": null})
        };
        let nic = |mac: &str, model: &str| serde_json::json!({"mac": mac, "network": "VM <Network>", "model": model});
        serde_json::from_value(serde_json::json!({
            "id": "1", "name": "a & 'b'", "uuid": "11111111-2222-4333-8444-555555555555", "firmware": "bios",
            "machine_type": "pc", "architecture": "x86_64", "cpu": {"sockets": 2, "cores": 2, "threads": 1},
            "memory": 512 << 20, "disks": [disk("data", 1), disk("root", 0)],
            "nics": [nic("00:50:56:00:00:01", "vmxnet3"), nic("00:50:56:00:00:02", "e1000")],
        }))
        .unwrap()
    }

    pub(crate) fn overlays() -> Vec<InputDisk> {
        let overlay = |key: &str| InputDisk {
            key: DiskKey(key.to_owned()),
            path: format!("/d/{key} <x>.qcow2").into(),
            format: "qcow2".to_owned(),
        };
        vec![overlay("data"), overlay("root")]
    }

    #[test]
    fn the_boot_disk_is_first_and_nothing_becomes_markup() {
        let text = xml(&machine(), &overlays()).unwrap();
        let document = roxmltree::Document::parse(&text).unwrap();
        let all = |name: &str| {
            document.descendants().filter(move |node| node.has_tag_name(name)).collect::<Vec<_>>()
        };
        assert_eq!(all("name")[0].text(), Some("a & 'b'"));
        let files: Vec<_> = all("source").iter().filter_map(|source| source.attribute("file")).collect();
        assert_eq!(files, ["/d/root <x>.qcow2", "/d/data <x>.qcow2"]);
        let names: Vec<_> = all("target").iter().filter_map(|target| target.attribute("dev")).collect();
        assert_eq!(names, ["sda", "sdb"]);
        let models: Vec<_> = all("model").iter().filter_map(|model| model.attribute("type")).collect();
        assert_eq!(models, ["vmxnet3", "e1000"]);
        assert_eq!(all("vcpu")[0].text(), Some("4"));
        assert_eq!(all("os")[0].attribute("firmware"), None);
        let uefi = xml(&Machine { firmware: Firmware::UefiSecure, ..machine() }, &overlays()).unwrap();
        assert!(uefi.contains("<os firmware='efi'>"), "{uefi}");
    }

    #[test]
    fn letters_go_on_after_z() {
        assert_eq!([0, 25, 26, 27, 701, 702].map(letters), ["a", "z", "aa", "ab", "zz", "aaa"]);
    }
}
