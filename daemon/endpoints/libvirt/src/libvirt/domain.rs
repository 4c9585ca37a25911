//! A domain's XML, read.
//!
//! Rule: libvirt's text is untrusted. A missing or impossible value is an error that names the element; no
//! code here decides how warmd uses it.

use roxmltree::Node;
use warmd_core::model::conversion::is_mac;

use super::{
    disk::Disk,
    xml::{self, XmlError},
};

const MAX_VCPUS: u64 = 65_536;

/// The parts of a domain's XML that warmd reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainXml {
    /// As libvirt writes it: lower case with hyphens.
    pub uuid: String,
    pub name: String,
    /// `kvm`, `qemu`.
    pub kind: String,
    /// In the kernel's spelling.
    pub architecture: String,
    /// As libvirt has it: `pc-q35-7.2`.
    pub machine: String,
    pub firmware: LoaderFirmware,
    /// Virtual processors that are plugged in.
    pub vcpus: u32,
    /// Sockets, cores, threads; `None` if libvirt makes every processor a socket.
    pub topology: Option<(u32, u32, u32)>,
    /// In bytes.
    pub memory: u64,
    pub disks: Vec<Disk>,
    pub nics: Vec<NetworkInterface>,
    /// Kinds of devices whose state or hardware stays behind: `hostdev`, `filesystem` and the like.
    pub bound: Vec<String>,
    /// What happens when the guest powers off: `destroy`, `restart`, …
    pub on_poweroff: String,
    /// User and group of the running QEMU, where libvirt reports them.
    pub runs_as: Option<(u32, u32)>,
    /// warmd's entries in its metadata, for this domain: element and `owner`. Entries that a clone copied are
    /// not here.
    pub tags: Vec<(String, String)>,
    /// Its target, if warmd keeps it from starting. A clone of such a domain has none.
    pub moved: Option<MovedMark>,
}

/// warmd's mark in the persistent definition of a domain that it moved away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedMark {
    /// The migration's id.
    pub owner: String,
    /// The target's name.
    pub to: String,
    /// Its autostart was on before.
    pub autostart: bool,
}

/// The domain's firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoaderFirmware {
    Bios,
    Uefi,
    UefiSecure,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInterface {
    /// Six bytes in lower-case hexadecimal with colons.
    pub mac: String,
    /// The network, bridge or host device that it is on; else its type.
    pub network: String,
    pub model: String,
}

impl DomainXml {
    /// The XML namespace of warmd's entries in a domain's `<metadata>`: elements with the attributes `owner`,
    /// the migration's id, and `domain`, the UUID of the domain that it was written for.
    pub const TAG_NAMESPACE: &str = "urn:warmd:domain:1";

    /// The element in that namespace which marks a domain that warmd made.
    pub const MOVED_HERE: &str = "target";

    /// The XML namespace of the mark of a domain that was moved away: its own, because libvirt keeps one
    /// element of each.
    pub const MOVED_NAMESPACE: &str = "urn:warmd:moved:1";

    /// Reads the output of `virsh dumpxml`.
    pub fn read(text: &str) -> Result<Self, XmlError> {
        let document = xml::parse(text, "domain")?;
        let root = document.root_element();
        let os = xml::child(root, "os").ok_or(XmlError::Missing("os"))?;
        let os_type = xml::child(os, "type").ok_or(XmlError::Missing("os type"))?;
        let devices = xml::child(root, "devices").ok_or(XmlError::Missing("devices"))?;
        let vcpu = number(root, "vcpu", 1)?;
        let current = match xml::child(root, "vcpu").and_then(|node| node.attribute("current")) {
            Some(digits) => in_range("vcpu", digits, MAX_VCPUS)?,
            None => vcpu,
        };
        Ok(Self {
            uuid: xml::text(root, "uuid").ok_or(XmlError::Missing("uuid"))?.to_owned(),
            name: xml::child(root, "name")
                .and_then(|node| node.text())
                .ok_or(XmlError::Missing("name"))?
                .to_owned(),
            kind: root.attribute("type").unwrap_or_default().to_owned(),
            architecture: os_type.attribute("arch").ok_or(XmlError::Missing("os type arch"))?.to_owned(),
            machine: os_type.attribute("machine").unwrap_or_default().to_owned(),
            firmware: firmware(os),
            vcpus: current,
            topology: topology(root, vcpu)?.filter(|_| current == vcpu),
            memory: memory(root)?,
            disks: xml::children(devices, "disk").map(Disk::read).collect::<Result<_, _>>()?,
            nics: xml::children(devices, "interface").map(nic).collect::<Result<_, _>>()?,
            bound: bound(devices),
            on_poweroff: xml::text(root, "on_poweroff").unwrap_or("destroy").to_owned(),
            runs_as: runs_as(root),
            tags: tags(root),
            moved: moved(root),
        })
    }

    /// The owner in its tag of this element, if it is tagged.
    pub fn tagged(&self, element: &str) -> Option<&str> {
        self.tags.iter().find(|(name, _)| name == element).map(|(_, owner)| owner.as_str())
    }
}

fn in_range(element: &'static str, digits: &str, most: u64) -> Result<u32, XmlError> {
    let wrong = || XmlError::Value { element, value: digits.to_owned() };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    if number == 0 || number > most {
        return Err(wrong());
    }
    u32::try_from(number).map_err(|_| wrong())
}

fn number(node: Node<'_, '_>, name: &'static str, default: u32) -> Result<u32, XmlError> {
    xml::text(node, name).map_or(Ok(default), |digits| in_range(name, digits, MAX_VCPUS))
}

fn firmware(os: Node<'_, '_>) -> LoaderFirmware {
    let loader = xml::child(os, "loader");
    let is_yes = |value: Option<&str>| value == Some("yes");
    let efi = os.attribute("firmware") == Some("efi")
        || xml::child(os, "nvram").is_some()
        || loader.is_some_and(|loader| loader.attribute("type") == Some("pflash"));
    let feature = xml::child(os, "firmware").is_some_and(|firmware| {
        xml::children(firmware, "feature").any(|feature| {
            feature.attribute("name") == Some("secure-boot") && is_yes(feature.attribute("enabled"))
        })
    });
    let secure = feature || loader.is_some_and(|loader| is_yes(loader.attribute("secure")));
    match (efi, secure) {
        (false, _) => LoaderFirmware::Bios,
        (true, false) => LoaderFirmware::Uefi,
        (true, true) => LoaderFirmware::UefiSecure,
    }
}

/// `<cpu><topology>`, dies and clusters counted as cores; only if it makes `vcpus`.
fn topology(root: Node<'_, '_>, vcpus: u32) -> Result<Option<(u32, u32, u32)>, XmlError> {
    let Some(node) = xml::descend(root, &["cpu", "topology"]) else { return Ok(None) };
    let factor = |name: &str| {
        node.attribute(name).map_or(Ok(1), |digits| in_range("topology", digits, MAX_VCPUS)).map(u64::from)
    };
    let sockets = factor("sockets")?;
    let cores = factor("cores")?.saturating_mul(factor("dies")?).saturating_mul(factor("clusters")?);
    let threads = factor("threads")?;
    let all = sockets.saturating_mul(cores).saturating_mul(threads);
    Ok((all == u64::from(vcpus)).then_some((sockets as u32, cores as u32, threads as u32)))
}

/// A domain's memory in bytes.
pub(crate) fn memory(root: Node<'_, '_>) -> Result<u64, XmlError> {
    let digits = xml::text(root, "memory").ok_or(XmlError::Missing("memory"))?;
    let unit = xml::child(root, "memory").and_then(|node| node.attribute("unit")).unwrap_or("KiB");
    let wrong = || XmlError::Value { element: "memory", value: format!("{digits} {unit}") };
    let factor: u64 = match unit {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

fn nic(node: Node<'_, '_>) -> Result<NetworkInterface, XmlError> {
    let kind = node.attribute("type").unwrap_or("user");
    let mac = xml::child(node, "mac")
        .and_then(|mac| mac.attribute("address"))
        .ok_or(XmlError::Missing("mac address"))?;
    if !is_mac(mac) {
        return Err(XmlError::Value { element: "mac", value: mac.to_owned() });
    }
    let source = xml::child(node, "source");
    let network = source.and_then(|source| {
        ["network", "bridge", "dev"].iter().find_map(|attribute| source.attribute(*attribute))
    });
    let model = xml::child(node, "model").and_then(|model| model.attribute("type"));
    Ok(NetworkInterface {
        mac: mac.to_ascii_lowercase(),
        network: network.unwrap_or(kind).to_owned(),
        model: model.unwrap_or("default").to_owned(),
    })
}

fn bound(devices: Node<'_, '_>) -> Vec<String> {
    let mut found: Vec<String> = ["hostdev", "filesystem", "redirdev", "shmem", "smartcard"]
        .into_iter()
        .filter(|name| xml::child(devices, name).is_some())
        .map(str::to_owned)
        .collect();
    if xml::children(devices, "interface").any(|nic| nic.attribute("type") == Some("hostdev")) {
        found.push("hostdev interface".to_owned());
    }
    found
}

/// `<seclabel model='dac'><label>+64055:+64055</label></seclabel>`, present while it runs.
fn runs_as(root: Node<'_, '_>) -> Option<(u32, u32)> {
    let label = xml::children(root, "seclabel").find(|label| label.attribute("model") == Some("dac"))?;
    let (user, group) = xml::text(label, "label")?.split_once(':')?;
    Some((user.trim_start_matches('+').parse().ok()?, group.trim_start_matches('+').parse().ok()?))
}

fn moved(root: Node<'_, '_>) -> Option<MovedMark> {
    let metadata = xml::child(root, "metadata")?;
    let mark = metadata
        .children()
        .find(|node| node.is_element() && node.tag_name().namespace() == Some(DomainXml::MOVED_NAMESPACE))
        .filter(|mark| is_of_this_domain(root, *mark, true))?;
    let text = |name| mark.attribute(name).unwrap_or_default().to_owned();
    Some(MovedMark {
        owner: text("owner"),
        to: text("to"),
        autostart: mark.attribute("autostart") == Some("yes"),
    })
}

fn tags(root: Node<'_, '_>) -> Vec<(String, String)> {
    let Some(metadata) = xml::child(root, "metadata") else { return Vec::new() };
    metadata
        .children()
        .filter(|node| node.is_element() && node.tag_name().namespace() == Some(DomainXml::TAG_NAMESPACE))
        // It has always named its domain; the other tag and the mark did not in earlier versions.
        .filter(|tag| is_of_this_domain(root, *tag, tag.tag_name().name() != DomainXml::MOVED_HERE))
        .filter_map(|node| Some((node.tag_name().name().to_owned(), node.attribute("owner")?.to_owned())))
        .collect()
}

/// Whether warmd's entry was written for this domain: a clone that others make copies all metadata.
fn is_of_this_domain(root: Node<'_, '_>, written: Node<'_, '_>, or_unsaid: bool) -> bool {
    let id = |text: &str| text.trim().parse::<uuid::Uuid>().ok();
    match written.attribute("domain") {
        Some(named) => id(named).is_some_and(|named| xml::text(root, "uuid").and_then(id) == Some(named)),
        None => or_unsaid,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::disk::DiskSource;
    use super::*;

    const FULL: &str = r"<domain type='kvm' id='7'>
  <name>--help</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <metadata>
    <other:thing xmlns:other='urn:other' owner='nobody'/>
    <warmd:snapshot xmlns:warmd='urn:warmd:domain:1' owner='me'/>
  </metadata>
  <memory unit='GiB'>2</memory>
  <vcpu placement='static'>8</vcpu>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' secure='yes' type='pflash'>/x.fd</loader></os>
  <cpu mode='host-model'><topology sockets='1' dies='2' cores='2' threads='2'/></cpu>
  <on_poweroff>restart</on_poweroff>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/d/../a &amp; b.qcow2'/>
      <target dev='vda' bus='virtio'/><boot order='2'/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/lv'/>
      <target dev='sda' bus='scsi'/><shareable/></disk>
    <disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/i'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:AA:BB:CC'/><source network='lan'/><model type='virtio'/></interface>
    <interface type='bridge'><mac address='52:54:00:aa:bb:cd'/><source bridge='br0'/></interface>
    <interface type='user'><mac address='52:54:00:aa:bb:ce'/></interface>
    <hostdev mode='subsystem' type='pci'/>
  </devices>
  <seclabel type='dynamic' model='selinux'><label>x</label></seclabel>
  <seclabel type='dynamic' model='dac'><label>+64055:+108</label></seclabel>
</domain>";

    const LEAST: &str = "<domain><name>x</name><uuid>u</uuid><memory>1</memory>\
        <os><type arch='x86_64'>hvm</type></os><devices/></domain>";

    #[test]
    fn a_full_domain_is_read() {
        let domain = DomainXml::read(FULL).unwrap();
        assert_eq!((domain.name.as_str(), domain.kind.as_str()), ("--help", "kvm"));
        assert_eq!((domain.memory, domain.vcpus, domain.topology), (2 << 30, 8, Some((1, 4, 2))));
        assert_eq!(domain.firmware, LoaderFirmware::UefiSecure);
        assert_eq!((domain.machine.as_str(), domain.on_poweroff.as_str()), ("pc-q35-7.2", "restart"));
        assert_eq!(domain.runs_as, Some((64055, 108)));
        assert_eq!((domain.tagged("snapshot"), domain.tagged("thing")), (Some("me"), None));
        assert_eq!(domain.bound, ["hostdev"]);
        let nics: Vec<_> = domain.nics.iter().map(|nic| (nic.network.as_str(), nic.model.as_str())).collect();
        assert_eq!(nics, [("lan", "virtio"), ("br0", "default"), ("user", "default")]);
        assert_eq!(domain.nics[0].mac, "52:54:00:aa:bb:cc");
    }

    #[test]
    fn disks_say_where_they_are_and_whether_they_can_be_tracked() {
        let disks = DomainXml::read(FULL).unwrap().disks;
        let sources: Vec<_> = disks.iter().map(|disk| disk.source.to_string()).collect();
        assert_eq!(sources, ["/d/../a & b.qcow2", "/dev/vg/lv", "rbd:p/i", "(no medium)"]);
        assert_eq!(disks[0].source, DiskSource::File("/d/../a & b.qcow2".to_owned()));
        let tracked: Vec<_> = disks.iter().map(|disk| disk.untracked().is_none()).collect();
        assert_eq!(tracked, [true, false, false, false]);
        assert_eq!((disks[0].boot_order, disks[3].device.as_str()), (Some(2), "cdrom"));
    }

    #[test]
    fn a_clone_takes_no_tag_and_no_mark_along() {
        let own = "11111111-2222-3333-4444-555555555555";
        let written = |of: &str| {
            FULL.replace(
                "<warmd:snapshot xmlns:warmd='urn:warmd:domain:1' owner='me'/>",
                &format!(
                    "<w:snapshot xmlns:w='urn:warmd:domain:1' owner='me' {of}/>\
                     <w:target xmlns:w='urn:warmd:domain:1' owner='me' {of}/>\
                     <m:moved xmlns:m='urn:warmd:moved:1' owner='me' to='new' autostart='yes' {of}/>"
                ),
            )
        };
        let read = |text: &str| {
            let domain = DomainXml::read(text).unwrap();
            let tagged = |element| domain.tagged(element) == Some("me");
            (tagged("snapshot"), tagged(DomainXml::MOVED_HERE), domain.moved.is_some())
        };
        let text = written(&format!("domain='{own}'"));
        assert_eq!(read(&text), (true, true, true));
        let another = "99999999-2222-3333-4444-555555555555";
        let clone = text.replace(&format!("<uuid>{own}"), &format!("<uuid>{another}"));
        assert_eq!(read(&clone), (false, false, false), "a clone is of others");
        assert_eq!(read(&written("domain='noise'")), (false, false, false));
        assert_eq!(read(&written("")), (true, false, true), "as earlier versions wrote it");
        // libvirt writes lower case; a user's definition may not.
        let upper = FULL.replace(own, "AAAAAAAA-2222-3333-4444-555555555555").replace(
            "<warmd:snapshot xmlns:warmd='urn:warmd:domain:1' owner='me'/>",
            "<w:target xmlns:w='urn:warmd:domain:1' owner='me' domain='aaaaaaaa-2222-3333-4444-555555555555'/>",
        );
        assert_eq!(read(&upper), (false, true, false));
    }

    #[test]
    fn the_least_domain_gets_defaults() {
        let domain = DomainXml::read(LEAST).unwrap();
        assert_eq!((domain.memory, domain.vcpus, domain.topology), (1024, 1, None));
        assert_eq!(domain.firmware, LoaderFirmware::Bios);
        assert!(domain.disks.is_empty() && domain.tags.is_empty() && domain.runs_as.is_none());
    }

    #[test]
    fn missing_or_impossible_parts_are_named() {
        for part in ["<name>x</name>", "<uuid>u</uuid>", "<memory>1</memory>", "<devices/>", "arch='x86_64'"]
        {
            let error = DomainXml::read(&LEAST.replace(part, "")).unwrap_err();
            assert!(matches!(error, XmlError::Missing(_)), "{part}: {error}");
        }
        for (from, to) in [
            ("<memory>1", "<memory>99999999999999999999"),
            ("<memory>1", "<memory>18446744073709551615"),
            ("<memory>", "<memory unit='parsec'>"),
            ("<devices/>", "<vcpu>0</vcpu><devices/>"),
            ("<devices/>", "<vcpu>4294967297</vcpu><devices/>"),
            ("<devices/>", "<cpu><topology cores='99999999999'/></cpu><devices/>"),
            ("<devices/>", "<devices><disk><target dev='../../etc'/></disk></devices>"),
            ("<devices/>", "<devices><disk><target dev=''/></disk></devices>"),
            ("<devices/>", "<devices><interface><mac address='zz'/></interface></devices>"),
        ] {
            let error = DomainXml::read(&LEAST.replace(from, to)).unwrap_err();
            assert!(matches!(error, XmlError::Value { .. }), "{to}: {error}");
        }
    }

    #[test]
    fn vcpus_that_are_not_plugged_in_do_not_count() {
        let text = LEAST
            .replace("<devices/>", "<vcpu current='2'>4</vcpu><cpu><topology cores='4'/></cpu><devices/>");
        let domain = DomainXml::read(&text).unwrap();
        assert_eq!((domain.vcpus, domain.topology), (2, None));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(at in 0..FULL.len(), cut in 0..40_usize, put in ".{0,8}") {
            let end = (at + cut).min(FULL.len());
            let text = [&FULL[..at], &put, &FULL[end..]].concat();
            DomainXml::read(&text).ok();
        }
    }
}
