//! A domain's two definitions: that of the running domain, and the persistent one, which its next start uses.
//!
//! Rule: they are never treated as equal. A difference is reported; a disk that is in one of them alone, or
//! is another image in the other, is an obstacle, because the copy would not match the VM once it is
//! off. So is isolation of an interface that is lost with the power.

use std::collections::{BTreeMap, BTreeSet};

use roxmltree::Node;
use warmd_core::model::rule::{Objection, Rule};

use super::{
    LibvirtSource,
    hardware::{self, Hardware},
    plan::is_disk,
    tag::TAG,
};
use crate::libvirt::{
    Disk, DiskSource, DomainId, DomainXml, LibvirtError, LoaderFirmware, XmlForm,
    xml::{self, XmlError},
};

/// Both, and their other hardware.
#[derive(Clone, Debug)]
pub(super) struct Definitions {
    /// That of the running domain; for one that is off the persistent one.
    pub(super) live: DomainXml,
    pub(super) persistent: DomainXml,
    /// The persistent one.
    pub(super) hardware: Hardware,
    pub(super) live_hardware: Hardware,
    /// Disks whose images are described alike and lie on other hosts, or at other addresses.
    pub(super) elsewhere: BTreeSet<String>,
}

impl LibvirtSource {
    /// Reads both.
    pub(super) async fn definitions(&self, domain: DomainId) -> Result<Definitions, LibvirtError> {
        let live = self.libvirt.dump_xml(domain, XmlForm::Current).await?;
        let persistent = self.libvirt.dump_xml(domain, XmlForm::Persistent).await?;
        Definitions::read(&live, &persistent)
            .map_err(|error| LibvirtError::malformed(format!("dumpxml {domain}"), error))
    }
}

impl Definitions {
    fn read(live: &str, persistent: &str) -> Result<Self, XmlError> {
        Ok(Self {
            live: DomainXml::read(live)?,
            persistent: DomainXml::read(persistent)?,
            hardware: hardware::sort(persistent)?,
            live_hardware: hardware::sort(live)?,
            elsewhere: elsewhere(live, persistent)?,
        })
    }

    /// The parts of the persistent definition that are not carried, and the differences of the two.
    pub(super) fn objections(&self) -> Vec<Objection> {
        let mut objections = self.hardware.findings.clone();
        // A domain that warmd started to read its disks is made for that.
        if self.live.tagged(TAG).is_none() {
            objections.extend(self.lost_with_the_power());
            objections.extend(self.differences());
        }
        objections
    }

    /// The parts that the running domain alone has and the plan must accept to lose: the target is made from
    /// the other definition.
    fn lost_with_the_power(&self) -> Vec<Objection> {
        let is_lost = |one: &&Objection| one.rule.can_be_accepted() && !self.hardware.findings.contains(one);
        let mut lost: Vec<_> = self.live_hardware.findings.iter().filter(is_lost).cloned().collect();
        let apart = hardware::isolation_of_running_alone(&self.live_hardware.carried, &self.hardware.carried);
        lost.extend(apart.into_iter().map(|(mac, what)| {
            let found = format!(
                "interface {mac} has {} in the running VM alone, and not in its definition, by which the target is made",
                what.join(", ")
            );
            Objection::new(Rule::IsolationLost, found)
        }));
        lost
    }

    fn differences(&self) -> Vec<Objection> {
        let (live, kept) = (&self.live, &self.persistent);
        let mut objections = self.disks_of_one();
        let mut differ = |what: String, now: String, then: String| {
            if now != then {
                let found = format!("{what}: {now} in the running VM, {then} in its definition");
                objections.push(Objection::new(Rule::DefinitionsDiffer, found));
            }
        };
        differ("memory".to_owned(), mib(live.memory), mib(kept.memory));
        differ("processors".to_owned(), live.vcpus.to_string(), kept.vcpus.to_string());
        differ("firmware".to_owned(), firmware(live), firmware(kept));
        differ("machine type".to_owned(), live.machine.clone(), kept.machine.clone());
        let nics = |of: &DomainXml| {
            let mut nics: Vec<_> =
                of.nics.iter().map(|nic| format!("{} on {} ({})", nic.mac, nic.network, nic.model)).collect();
            nics.sort();
            if nics.is_empty() { "none".to_owned() } else { nics.join(", ") }
        };
        differ("network interfaces".to_owned(), nics(live), nics(kept));
        for one in hardware::differences(&self.live_hardware.carried, &self.hardware.carried) {
            differ(one.what, one.running, one.defined);
        }
        objections
    }

    /// Disks that differ between the two.
    fn disks_of_one(&self) -> Vec<Objection> {
        let of = |xml: &DomainXml| -> BTreeMap<String, Disk> {
            let disks = xml.disks.iter().filter(|disk| is_disk(disk));
            disks.map(|disk| (disk.target.clone(), disk.clone())).collect()
        };
        let (live, kept) = (of(&self.live), of(&self.persistent));
        let mut found = Vec::new();
        for (name, disk) in &live {
            let Some(other) = kept.get(name) else {
                found.push(format!(
                    "disk {name} ({}) was attached to the running VM alone: it is gone once the VM is off",
                    disk.source
                ));
                continue;
            };
            let (now, then) = (in_words(disk), in_words(other));
            if now != then || self.elsewhere.contains(name) {
                let place = if now == then { ", and lies elsewhere" } else { "" };
                found.push(format!(
                    "disk {name} is {now} in the running VM and {then}{place} in its definition: what is copied is not \
                     what it has once it is off"
                ));
            }
        }
        for (name, disk) in kept.iter().filter(|(name, _)| !live.contains_key(*name)) {
            found.push(format!(
                "disk {name} ({}) is in the definition alone: the running VM has it not, and it is not copied",
                disk.source
            ));
        }
        found.into_iter().map(|found| Objection::new(Rule::DiskInOneDefinition, found)).collect()
    }
}

/// All values that locate a disk's bytes.
fn in_words(disk: &Disk) -> String {
    format!("{} ({}, {})", disk.source, disk.device, disk.format)
}

fn firmware(of: &DomainXml) -> String {
    match of.firmware {
        LoaderFirmware::Bios => "BIOS",
        LoaderFirmware::Uefi => "UEFI",
        LoaderFirmware::UefiSecure => "UEFI with Secure Boot",
    }
    .to_owned()
}

/// Disks of both whose sources differ in values that [`DiskSource`] does not have.
fn elsewhere(live: &str, persistent: &str) -> Result<BTreeSet<String>, XmlError> {
    let (live, persistent) = (xml::parse(live, "domain")?, xml::parse(persistent, "domain")?);
    let disks = |root| xml::child(root, "devices").into_iter().flat_map(|node| xml::children(node, "disk"));
    let name = |disk| xml::child(disk, "target").and_then(|target: Node<'_, '_>| target.attribute("dev"));
    let mut found = BTreeSet::new();
    for disk in disks(live.root_element()) {
        let Some(target) = name(disk) else { continue };
        let other = disks(persistent.root_element()).find(|other| name(*other) == Some(target));
        if other.is_some_and(|other| !is_same_place(disk, other)) {
            found.insert(target.to_owned());
        }
    }
    Ok(found)
}

fn is_same_place(live: Node<'_, '_>, kept: Node<'_, '_>) -> bool {
    // For the others the path or the volume is enough.
    if !matches!(DiskSource::read(live), DiskSource::Network { .. } | DiskSource::Other(_)) {
        return true;
    }
    let (Some(live), Some(kept)) = (xml::child(live, "source"), xml::child(kept, "source")) else {
        return true;
    };
    // Values that the running domain gets from libvirt's settings, or for itself.
    let is_own = |name: &str| matches!(name, "index" | "startupPolicy" | "tls" | "tlsHostname");
    let attributes = |node: Node<'_, '_>| -> BTreeMap<String, String> {
        let attributes = node.attributes().filter(|attribute| !is_own(attribute.name()));
        attributes.map(|attribute| (attribute.name().to_owned(), attribute.value().to_owned())).collect()
    };
    let address = |node| xml::child(node, "address").map(attributes);
    let hosts = |node| xml::children(node, "host").map(attributes).collect::<Vec<_>>();
    let is_same_host = |(live, kept): (&BTreeMap<String, String>, &BTreeMap<String, String>)| {
        let same = |name: &str| live.get(name) == kept.get(name);
        // libvirt fills in the usual port.
        let usual = !(live.contains_key("port") && kept.contains_key("port"));
        same("name") && same("socket") && (usual || same("port"))
    };
    let (now, then) = (hosts(live), hosts(kept));
    attributes(live) == attributes(kept)
        && address(live) == address(kept)
        && now.len() == then.len()
        && now.iter().zip(&then).all(is_same_host)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(devices: &str, vcpus: u32) -> String {
        format!(
            "<domain><name>x</name><uuid>u</uuid><memory>4096</memory><vcpu>{vcpus}</vcpu>\
             <os><type arch='x86_64'>hvm</type></os><devices>{devices}</devices></domain>"
        )
    }

    fn of(live: &str, kept: &str) -> Vec<Objection> {
        Definitions::read(live, kept).unwrap().objections()
    }

    fn rules(objections: &[Objection]) -> Vec<Rule> {
        objections.iter().map(|objection| objection.rule).collect()
    }

    #[test]
    fn where_the_two_differ_is_told() {
        let disk = |name: &str| {
            format!("<disk type='file' device='disk'><source file='/{name}'/><target dev='{name}'/></disk>")
        };
        let nic = |mac: &str| {
            format!("<interface type='network'><mac address='{mac}'/><source network='lan'/></interface>")
        };
        let live = domain(&(disk("vda") + &disk("vdb") + &nic("52:54:00:00:00:01")), 1);
        let kept = domain(&(disk("vda") + &disk("vdc") + &nic("52:54:00:00:00:02")), 2);
        assert_eq!(of(&live, &live), []);
        let objections = of(&live, &kept);
        let (differ, in_one) = (Rule::DefinitionsDiffer, Rule::DiskInOneDefinition);
        assert_eq!(rules(&objections), [in_one, in_one, differ, differ], "{objections:?}");
        let told: Vec<_> = objections.iter().map(|objection| objection.found.as_str()).collect();
        assert!(told[0].contains("vdb") && told[1].contains("vdc"), "{told:?}");
        assert!(told[2].contains("processors") && told[3].contains("52:54:00:00:00:02"), "{told:?}");
    }

    #[test]
    fn disk_with_another_image_in_the_definition_is_an_obstacle() {
        let disk = |kind: &str, device: &str, format: &str, source: &str| {
            let disk = format!(
                "<disk type='{kind}' device='{device}'><driver type='{format}'/><source {source}</source>\
                 <target dev='vda'/></disk>"
            );
            domain(&disk, 1)
        };
        let file = |path: &str| disk("file", "disk", "raw", &format!("file='{path}'>"));
        let rbd = |host: &str| disk("network", "disk", "raw", &format!("protocol='rbd' name='p/i'>{host}"));
        let nvme = |bus: &str| disk("nvme", "disk", "raw", &format!("type='pci'><address bus='{bus}'/>"));
        let new = file("/x/new");
        for (live, kept) in [
            (&new, file("/x/old")),
            (&new, disk("file", "disk", "qcow2", "file='/x/new'>")),
            (&new, disk("file", "lun", "raw", "file='/x/new'>")),
            (&rbd("<host name='a'/>"), rbd("<host name='b'/>")),
            (&rbd("<host name='a' port='1'/>"), rbd("<host name='a' port='2'/>")),
            (&nvme("1"), nvme("2")),
        ] {
            let objections = of(live, &kept);
            assert_eq!(rules(&objections), [Rule::DiskInOneDefinition], "{live} {kept}: {objections:?}");
            assert!(objections[0].found.contains("disk vda"), "{objections:?}");
        }
        // Values that libvirt fills in at the start.
        let live = disk("file", "disk", "raw", "file='/x/new' index='1'>");
        assert_eq!(of(&live, &new), []);
        assert_eq!(of(&rbd("<host name='a' port='6789'/>"), &rbd("<host name='a'/>")), []);
    }

    #[test]
    fn a_domain_that_was_just_started_is_what_its_definition_says() {
        // As libvirt itself wrote them.
        let read = |name: &str| {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests/domains/running");
            std::fs::read_to_string(format!("{folder}/{name}.xml")).unwrap()
        };
        let (live, kept) = (read("live"), read("persistent"));
        assert_eq!(of(&live, &kept), of(&kept, &kept));
        // `virsh domif-setlink` without `--config`.
        let mac = "<mac address='52:54:00:00:00:01'/>";
        let down = live.replace(mac, &format!("{mac}<link state='down'/>"));
        let rules = rules(&of(&down, &kept));
        assert!(
            rules.contains(&Rule::IsolationLost) && rules.contains(&Rule::DefinitionsDiffer),
            "{rules:?}"
        );
    }

    #[test]
    fn settings_of_the_running_vm_alone_must_be_accepted() {
        let nic = |inside: &str| {
            let nic = format!(
                "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan'/>{inside}</interface>"
            );
            domain(&nic, 1)
        };
        let objections = of(&nic("<link state='down'/>"), &nic(""));
        assert!(rules(&objections).contains(&Rule::IsolationLost), "{objections:?}");
        assert!(objections[0].found.contains("52:54:00:00:00:01"), "{objections:?}");
        let disk = |inside: &str| {
            let disk =
                format!("<disk><driver type='raw'/><source file='/x'/><target dev='vda'/>{inside}</disk>");
            domain(&disk, 1)
        };
        let objections = of(&disk("<encryption format='luks'/>"), &disk(""));
        assert_eq!(rules(&objections), [Rule::EncryptionLost], "{objections:?}");
    }
}
