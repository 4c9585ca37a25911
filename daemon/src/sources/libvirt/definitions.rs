//! A domain's two definitions: that of the running domain, and the persistent one, by which it starts the next time.
//!
//! Rule: they are never taken for the same. Where they differ it is told; a disk that is in one of them alone stands in the
//! way, because it is either not there to be copied or not there once the VM is off.

use super::{
    LibvirtSource,
    hardware::{self, Hardware},
    plan::is_disk,
    tag::TAG,
};
use crate::{
    libvirt::{Disk, DomainId, DomainXml, LibvirtError, XmlForm, xml::XmlError},
    model::rule::{Objection, Rule},
};

/// Both, and what the persistent one has beside.
#[derive(Clone, Debug)]
pub(super) struct Definitions {
    /// Of the running domain; of one that is off the persistent one.
    pub(super) live: DomainXml,
    pub(super) persistent: DomainXml,
    pub(super) hardware: Hardware,
}

impl LibvirtSource {
    /// Reads both.
    pub(super) async fn definitions(&self, domain: DomainId) -> Result<Definitions, LibvirtError> {
        let live = self.libvirt.domain(domain).await?;
        let text = self.libvirt.dump_xml(domain, XmlForm::Persistent).await?;
        let malformed =
            |error: XmlError| LibvirtError::malformed(format!("dumpxml --inactive {domain}"), error);
        let persistent = DomainXml::read(&text).map_err(malformed)?;
        let hardware = hardware::sort(&text).map_err(malformed)?;
        Ok(Definitions { live, persistent, hardware })
    }
}

impl Definitions {
    /// What the persistent definition has that is not carried, and where the two differ.
    pub(super) fn objections(&self) -> Vec<Objection> {
        let mut objections = self.hardware.findings.clone();
        // What warmd started to read its disks is made for that.
        if self.live.tagged(TAG).is_none() {
            objections.extend(self.differences());
        }
        objections
    }

    fn differences(&self) -> Vec<Objection> {
        let (live, kept) = (&self.live, &self.persistent);
        let mut objections = Vec::new();
        let mut object = |rule, found: String| objections.push(Objection::new(rule, found));
        let named = |of: &DomainXml, disk: &Disk| {
            of.disks.iter().any(|other| is_disk(other) && other.target == disk.target)
        };
        for disk in live.disks.iter().filter(|disk| is_disk(disk) && !named(kept, disk)) {
            let found = format!(
                "disk {} ({}) was attached to the running VM alone: it is gone once the VM is off",
                disk.target, disk.source
            );
            object(Rule::DiskInOneDefinition, found);
        }
        for disk in kept.disks.iter().filter(|disk| is_disk(disk) && !named(live, disk)) {
            let found = format!(
                "disk {} ({}) is in the definition alone: the running VM has it not, and it is not copied",
                disk.target, disk.source
            );
            object(Rule::DiskInOneDefinition, found);
        }
        let mut differ = |what: String, now: String, then: String| {
            if now != then {
                object(
                    Rule::DefinitionsDiffer,
                    format!("{what}: {now} in the running VM, {then} in its definition"),
                );
            }
        };
        differ("memory".to_owned(), mib(live.memory), mib(kept.memory));
        differ("processors".to_owned(), live.vcpus.to_string(), kept.vcpus.to_string());
        let nics = |of: &DomainXml| {
            let mut nics: Vec<_> =
                of.nics.iter().map(|nic| format!("{} on {} ({})", nic.mac, nic.network, nic.model)).collect();
            nics.sort();
            if nics.is_empty() { "none".to_owned() } else { nics.join(", ") }
        };
        differ("network interfaces".to_owned(), nics(live), nics(kept));
        for disk in live.disks.iter().filter(|disk| is_disk(disk)) {
            if let Some(other) = kept.disks.iter().find(|other| other.target == disk.target) {
                differ(format!("disk {}", disk.target), disk.source.to_string(), other.source.to_string());
            }
        }
        objections
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(devices: &str, vcpus: u32) -> DomainXml {
        let text = format!(
            "<domain><name>x</name><uuid>u</uuid><memory>4096</memory><vcpu>{vcpus}</vcpu>\
             <os><type arch='x86_64'>hvm</type></os><devices>{devices}</devices></domain>"
        );
        DomainXml::read(&text).unwrap()
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
        let of = |live: &DomainXml, kept: &DomainXml| {
            Definitions { live: live.clone(), persistent: kept.clone(), hardware: Hardware::default() }
                .objections()
        };
        assert_eq!(of(&live, &live), []);
        let objections = of(&live, &kept);
        let rules: Vec<_> = objections.iter().map(|objection| objection.rule).collect();
        use Rule::{DefinitionsDiffer as Differ, DiskInOneDefinition as InOne};
        assert_eq!(rules, [InOne, InOne, Differ, Differ], "{objections:?}");
        let told: Vec<_> = objections.iter().map(|objection| objection.found.as_str()).collect();
        assert!(told[0].contains("vdb") && told[1].contains("vdc"), "{told:?}");
        assert!(told[2].contains("processors") && told[3].contains("52:54:00:00:00:02"), "{told:?}");
    }
}
