//! Each element and attribute of real domains is classified, and none is left out silently.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// The corpus: domains as users' tools define them.
fn corpus() -> Vec<(String, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests/domains");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|kind| kind == "xml"));
    files
        .map(|path| {
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

fn of(name: &str) -> Hardware {
    let (_, text) = corpus().into_iter().find(|(known, _)| known == name).unwrap();
    sort(&text).unwrap()
}

fn found(hardware: &Hardware, rule: Rule) -> String {
    let found = hardware.findings.iter().filter(|finding| finding.rule == rule);
    found.map(|finding| finding.found.as_str()).collect::<Vec<_>>().join("; ")
}

fn told(devices: &str) -> Hardware {
    sort(&format!("<domain type='kvm'><devices>{devices}</devices></domain>")).unwrap()
}

#[test]
fn each_element_and_attribute_of_real_domains_is_classified() {
    let corpus = corpus();
    assert!(corpus.len() >= 6, "the corpus is gone");
    for (name, text) in corpus {
        DomainXml::read(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found(&sort(&text).unwrap(), Rule::HardwareUnclassified), "", "{name}");
    }
}

#[test]
fn what_no_line_names_is_a_finding() {
    let hardware = sort(
        "<domain type='kvm' colour='red'><warp speed='9'/><devices><disk device='disk'><target dev='vda'/><shield/></disk>\
         <controller type='scsi'><field/></controller><teleporter model='x'/></devices></domain>",
    );
    let found = found(&hardware.unwrap(), Rule::HardwareUnclassified);
    for part in ["@colour", "warp", "disk vda: shield", "teleporter x"] {
        assert!(found.contains(part), "{part} is not in {found}");
    }
}

#[test]
fn what_is_carried_is_what_the_guest_sees() {
    let carried = of("proxmox-like").carried;
    let disk = carried.disk("sda").unwrap();
    assert_eq!(disk.part("serial").unwrap().text, "drive-scsi0");
    assert_eq!(disk.part("iotune").unwrap().parts.len(), 2);
    assert_eq!(disk.part("driver").unwrap().attribute("discard"), Some("unmap"));
    let nic = carried.nic("52:54:00:6D:90:06").unwrap();
    assert_eq!(nic.isolation(), ["the network filter \"no-mac-spoofing\"", "a VLAN"]);
    let windows = of("virt-install-windows11").carried;
    assert_eq!(windows.part("clock").unwrap().attribute("offset"), Some("localtime"));
    assert_eq!(windows.part("clock").unwrap().parts.len(), 4);
    assert!(windows.part("features").unwrap().part("hyperv").unwrap().parts.len() > 9);
    assert!(windows.disk("sdb").unwrap().part("source").is_none(), "the medium goes along");
    let old = of("virt-manager-old").carried;
    let isolation = old.nic("52:54:00:6d:90:03").unwrap().isolation();
    assert_eq!(isolation.len(), 6, "{isolation:?}");
    assert!(old.disk("sdb").unwrap().part("readonly").is_some());
}

#[test]
fn no_secret_and_no_path_of_the_host_is_carried() {
    for (name, text) in corpus() {
        let carried = serde_json::to_string(&sort(&text).unwrap().carried).unwrap();
        for secret in
            ["passwd", "geheim", "/var/", "/srv/", "/dev/", "/isos/", "10.0.0.1", "0.0.0.0", "socket\""]
        {
            assert!(!carried.contains(secret), "{name}: {secret} is in {carried}");
        }
    }
}

#[test]
fn what_is_lost_is_told_under_its_rule() {
    let windows = of("virt-install-windows11");
    assert!(found(&windows, Rule::TpmState).contains("BitLocker"));
    let media = found(&windows, Rule::MediumBehind);
    assert!(media.contains("cdrom sdb") && media.contains("floppy fda"), "{media}");
    let old = of("virt-manager-old");
    assert!(found(&old, Rule::EncryptionLost).contains("disk vdc"));
    let changed = found(&old, Rule::HardwareChanged);
    for part in ["numatune", "cputune", "vcpu/@cpuset", "@passwd", "disk hda: driver/@cache", "iommu", "dimm"]
    {
        assert!(changed.contains(part), "{part} is not in {changed}");
    }
    let cloud = of("openstack-like");
    assert!(found(&cloud, Rule::EncryptionLost).contains("disk vdb: encryption"));
    assert!(found(&cloud, Rule::ProtectionLost).contains("launchSecurity"));
    assert!(found(&cloud, Rule::BootLost).contains("os/kernel"));
    let plain = of("virt-install-linux");
    assert_eq!(plain.findings, [], "nothing is lost of it");
}

#[test]
fn warmds_own_metadata_is_not_carried() {
    let text = format!(
        "<domain type='kvm'><metadata><w:target xmlns:w='{}' owner='x'/><m:moved xmlns:m='{}' owner='x'/>\
         <o:a xmlns:o='urn:o' b='1'><o:c>d</o:c></o:a></metadata></domain>",
        DomainXml::TAG_NAMESPACE,
        DomainXml::MOVED_NAMESPACE
    );
    let metadata = sort(&text).unwrap().carried.part("metadata").unwrap().clone();
    assert_eq!(metadata.parts.len(), 1, "{metadata:?}");
    assert_eq!(metadata.parts[0].attribute("xmlns"), Some("urn:o"));
    assert_eq!(metadata.parts[0].part("c").unwrap().text, "d");
}

#[test]
fn the_mark_of_a_move_is_not_carried_to_where_it_moves() {
    let text = format!(
        "<domain type='kvm'><metadata><w:moved xmlns:w='{}' owner='x' to='y'/></metadata></domain>",
        DomainXml::MOVED_NAMESPACE
    );
    let hardware = sort(&text).unwrap();
    let metadata = hardware.carried.part("metadata").map_or(0, |metadata| metadata.parts.len());
    assert_eq!(metadata, 0, "{:?}", hardware.carried);
}

#[test]
fn firmware_from_a_file_of_the_host_is_lost_and_told() {
    let os = |os: &str| {
        let text = format!("<domain type='kvm'>{os}<devices/></domain>");
        found(&sort(&text).unwrap(), Rule::BootLost)
    };
    let rom = os("<os><loader type='rom'>/usr/share/OVMF/OVMF.fd</loader></os>");
    assert!(rom.contains("os/loader") && rom.contains("firmware file"), "{rom}");
    assert!(os("<os><loader>/usr/share/OVMF/OVMF.fd</loader></os>").contains("os/loader"));
    // These name libvirt's own firmware for the machine, or its kind is known.
    assert_eq!(os("<os><loader readonly='yes' type='pflash'>/usr/share/OVMF/CODE.fd</loader></os>"), "");
    assert_eq!(os("<os firmware='efi'><loader secure='no'/></os>"), "");
    assert_eq!(os("<os firmware='efi'><loader type='rom'>/usr/share/OVMF/OVMF.fd</loader></os>"), "");
}

#[test]
fn an_empty_drive_leaves_nothing_behind() {
    let drive = told("<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>");
    assert_eq!(drive.findings, []);
    assert!(drive.carried.disk("sda").is_some());
}

#[test]
fn no_line_of_the_table_is_there_twice() {
    let mut seen = BTreeSet::new();
    for (pattern, _) in TABLE {
        assert!(seen.insert(pattern), "{pattern} is there twice");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(at in 0..6000_usize, cut in 0..60_usize, put in ".{0,8}", which in 0..6_usize) {
        let (_, text) = corpus().swap_remove(which);
        let characters: Vec<char> = text.chars().collect();
        let at = at.min(characters.len());
        let end = (at + cut).min(characters.len());
        let (before, after) = (characters[..at].iter().copied(), characters[end..].iter().copied());
        let broken: String = before.chain(put.chars()).chain(after).collect();
        sort(&broken).ok();
        DomainXml::read(&broken).ok();
    }
}
