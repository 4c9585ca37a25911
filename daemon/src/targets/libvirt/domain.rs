//! A platform-neutral machine as libvirt's domain XML. Pure.
//!
//! Rule: what the guest sees stays as it was (UUID if it is free, firmware, chipset family, topology, memory, MACs); what
//! carries it is the target's own.

use std::path::Path;

use warmd_cbt::buffer::ALIGNMENT;

use super::{owned, settings::DiskBus, xml::Element};
use crate::{
    libvirt::DomainId,
    model::{
        id::MigrationId,
        machine::{CpuTopology, Firmware, Machine, Nic},
    },
    targets::{
        CreateMachine,
        storage::{Located, Place},
    },
};

/// The file in the migration's folder that takes what the guest writes to its first serial port.
pub(super) const CONSOLE: &str = "console.log";

/// The same of the machine before it, if a cutover was taken back.
pub(super) const OLDER_CONSOLE: &str = "console.log.1";

/// What the target adds to the request.
pub(super) struct Domain<'a> {
    pub(super) request: &'a CreateMachine,
    pub(super) id: DomainId,
    /// `kvm` or `qemu`.
    pub(super) kind: &'static str,
    pub(super) disks: &'a [Located],
    pub(super) disk_bus: DiskBus,
    /// For each NIC of the machine, in order.
    pub(super) links: &'a [Link],
    /// The migration's folder.
    pub(super) folder: &'a Path,
}

/// What a NIC is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Network(String),
    Bridge(String),
    /// QEMU's own network, which needs nothing of the host.
    User,
}

/// Why a machine cannot be a domain of this target.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Misfit {
    #[error(
        "disk {0} is at an NBD server: a libvirt domain of warmd takes files and block devices; use a target `disk`"
    )]
    Nbd(String),
    #[error("it has {0} disks, libvirt names at most {MAX_DISKS} of a bus")]
    TooManyDisks(usize),
    #[error("{mac:?} is no MAC address")]
    Mac { mac: String },
    #[error("it has no processor or no memory")]
    Empty,
}

/// From `vda` to `vdzz`.
const MAX_DISKS: usize = 26 * 27;

/// The UUID that the domain gets if the machine's own is taken: always the same for the same migration.
pub(super) fn substitute(owner: MigrationId) -> DomainId {
    let hash = blake3::derive_key("warmd target libvirt domain uuid 1", owner.0.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    DomainId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

impl Domain<'_> {
    /// The domain's XML.
    pub(super) fn xml(&self) -> Result<String, Misfit> {
        let machine = &self.request.machine;
        let vcpus = vcpus(machine.cpu).filter(|_| machine.memory.0 > 0).ok_or(Misfit::Empty)?;
        let domain = Element::new("domain")
            .attr("type", self.kind)
            .with(Element::of("name", &self.request.name))
            .with(Element::of("uuid", self.id))
            .with(Element::of("description", self.description()))
            .with(Element::new("metadata").with(owned::tag(self.request.owner, self.id)))
            .with(Element::of("memory", machine.memory.0.div_ceil(1024)).attr("unit", "KiB"))
            .with(Element::of("vcpu", vcpus))
            .with(os(machine))
            .with(features(machine))
            .with(self.cpu())
            .with(Element::new("clock").attr("offset", "utc"))
            .with(Element::of("on_poweroff", "destroy"))
            .with(Element::of("on_reboot", "restart"))
            .with(Element::of("on_crash", "destroy"))
            .with(self.devices()?);
        Ok(domain.to_string())
    }

    fn description(&self) -> String {
        let machine = &self.request.machine;
        let moved = format!("moved here by warmd, migration {}", self.request.owner);
        if machine.uuid.parse() == Ok(self.id) {
            moved
        } else {
            format!("{moved}; its UUID was {}, which another domain here has", machine.uuid)
        }
    }

    fn cpu(&self) -> Element {
        let CpuTopology { sockets, cores, threads } = self.request.machine.cpu;
        let cpu = match self.kind {
            "kvm" => Element::new("cpu").attr("mode", "host-model"),
            // Emulation has a model of its own, which every guest takes.
            _ => Element::new("cpu"),
        };
        let topology = Element::new("topology").attr("sockets", sockets).attr("cores", cores);
        cpu.with(topology.attr("threads", threads))
    }

    fn devices(&self) -> Result<Element, Misfit> {
        let nics = self.request.machine.nics.iter().zip(self.links).map(|(nic, link)| interface(nic, link));
        let nics = nics.collect::<Result<Vec<_>, _>>()?;
        // People look at it with `virsh console`, and later in the file.
        let serial = Element::new("serial")
            .attr("type", "pty")
            .with(Element::new("log").attr("file", self.folder.join(CONSOLE).display()).attr("append", "on"))
            .with(Element::new("target").attr("port", 0));
        // libvirt makes the socket. A guest without the agent never looks at its end of it.
        let agent = Element::new("channel")
            .attr("type", "unix")
            .with(Element::new("target").attr("type", "virtio").attr("name", "org.qemu.guest_agent.0"));
        let random = Element::new("rng")
            .attr("model", "virtio")
            .with(Element::of("backend", "/dev/urandom").attr("model", "random"));
        Ok(Element::new("devices")
            .with_all(self.disks()?)
            .with_all(nics)
            .with(serial)
            .with(agent)
            .with(random))
    }

    fn disks(&self) -> Result<Vec<Element>, Misfit> {
        // The order of attaching is the order of booting, so that the guest's names stay with virtio as they were.
        let mut disks: Vec<&Located> = self.disks.iter().collect();
        disks.sort_by_key(|disk| self.request.boot_order(&disk.key));
        let mut elements = Vec::with_capacity(disks.len() + 1);
        let mut used: Vec<&str> = Vec::new();
        for (order, disk) in disks.into_iter().enumerate() {
            let (bus, prefix) = self.bus(disk);
            let nth = used.iter().filter(|other| **other == prefix).count();
            let letters = letters(nth).ok_or(Misfit::TooManyDisks(self.disks.len()))?;
            if bus == "scsi" && !used.contains(&"sd") {
                elements.push(Element::new("controller").attr("type", "scsi").attr("model", "virtio-scsi"));
            }
            used.push(prefix);
            let (kind, source) = match &disk.place {
                Place::File(path) => ("file", Element::new("source").attr("file", path.display())),
                Place::Device(path) => ("block", Element::new("source").attr("dev", path.display())),
                Place::Nbd(_) => return Err(Misfit::Nbd(disk.key.0.clone())),
            };
            // Around the page cache QEMU takes only whole blocks, and does not start if the disk's end is none.
            let cache = if disk.size.0.is_multiple_of(ALIGNMENT as u64) { "none" } else { "writeback" };
            let driver = Element::new("driver")
                .attr("name", "qemu")
                .attr("type", "raw")
                .attr("cache", cache)
                .attr("discard", "unmap");
            let target = Element::new("target").attr("dev", format!("{prefix}{letters}")).attr("bus", bus);
            let boot = Element::new("boot").attr("order", order + 1);
            let element = Element::new("disk").attr("type", kind).attr("device", "disk");
            elements.push(element.with(driver).with(source).with(target).with(boot));
        }
        Ok(elements)
    }

    fn bus(&self, disk: &Located) -> (&'static str, &'static str) {
        let had = self.request.machine.disks.iter().find(|known| known.key == disk.key);
        match (self.disk_bus, had.map(|disk| disk.bus.as_str())) {
            (DiskBus::Keep, Some("scsi")) => ("scsi", "sd"),
            (DiskBus::Keep, Some("sata")) => ("sata", "sd"),
            (DiskBus::Keep, Some("usb")) => ("usb", "sd"),
            (DiskBus::Keep, Some("ide")) => ("ide", "hd"),
            _ => ("virtio", "vd"),
        }
    }
}

fn vcpus(cpu: CpuTopology) -> Option<u32> {
    let all = cpu.sockets.checked_mul(cpu.cores)?.checked_mul(cpu.threads)?;
    (all > 0).then_some(all)
}

fn os(machine: &Machine) -> Element {
    let kind = Element::of("type", "hvm")
        .attr("arch", &machine.architecture)
        .attr("machine", family(&machine.machine_type));
    let feature = |name: &str, on: bool| {
        Element::new("feature").attr("enabled", if on { "yes" } else { "no" }).attr("name", name)
    };
    let os = Element::new("os");
    let secure = match machine.firmware {
        Firmware::Bios => return os.with(kind),
        Firmware::Uefi => false,
        Firmware::UefiSecure => true,
    };
    let features = [feature("secure-boot", secure), feature("enrolled-keys", secure)];
    os.attr("firmware", "efi").with(kind).with(Element::new("firmware").with_all(features))
}

fn features(machine: &Machine) -> Element {
    let features = Element::new("features").with(Element::new("acpi"));
    match machine.firmware {
        Firmware::UefiSecure => features.with(Element::new("smm").attr("state", "on")),
        Firmware::Bios | Firmware::Uefi => features,
    }
}

/// The family's newest machine of the target: versions differ from host to host.
pub(super) fn family(machine_type: &str) -> &str {
    if machine_type.contains("q35") {
        "q35"
    } else if machine_type == "pc" || machine_type.starts_with("pc-") {
        "pc"
    } else {
        machine_type
    }
}

fn interface(nic: &Nic, link: &Link) -> Result<Element, Misfit> {
    let is_byte = |byte: &str| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
    if nic.mac.split(':').count() != 6 || !nic.mac.split(':').all(is_byte) {
        return Err(Misfit::Mac { mac: nic.mac.clone() });
    }
    let interface = Element::new("interface");
    let interface = match link {
        Link::Network(name) => {
            interface.attr("type", "network").with(Element::new("source").attr("network", name))
        }
        Link::Bridge(name) => {
            interface.attr("type", "bridge").with(Element::new("source").attr("bridge", name))
        }
        Link::User => interface.attr("type", "user"),
    };
    let mac = Element::new("mac").attr("address", &nic.mac);
    Ok(interface.with(mac).with(Element::new("model").attr("type", "virtio")))
}

/// `a` to `z`, then `aa` to `zz`.
fn letters(nth: usize) -> Option<String> {
    let letter = |at: usize| u8::try_from(at).ok().map(|at| char::from(b'a' + at));
    match nth {
        0..26 => letter(nth).map(String::from),
        26..MAX_DISKS => Some([letter(nth / 26 - 1)?, letter(nth % 26)?].iter().collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use warmd_cbt::units::Length;

    use super::*;
    use crate::{
        libvirt::{DomainXml, LoaderFirmware},
        model::{
            id::{DiskKey, VmId},
            machine::MachineDisk,
        },
    };

    fn request(disks: &[(&str, &str)]) -> CreateMachine {
        let uuid = "11111111-2222-4333-8444-555555555555";
        let disk = |(order, (key, bus)): (usize, &(&str, &str))| MachineDisk {
            key: DiskKey((*key).to_owned()),
            size: Length(1 << 20),
            bus: (*bus).to_owned(),
            boot_order: order as u32,
            location: String::new(),
            untracked: None,
        };
        let machine = Machine {
            id: VmId(uuid.to_owned()),
            name: "source".to_owned(),
            uuid: uuid.to_owned(),
            firmware: Firmware::Bios,
            machine_type: "pc-q35-7.2".to_owned(),
            architecture: "x86_64".to_owned(),
            cpu: CpuTopology { sockets: 1, cores: 2, threads: 3 },
            memory: Length(256 << 20),
            disks: disks.iter().enumerate().map(disk).collect(),
            nics: vec![Nic {
                mac: "52:54:00:12:34:56".to_owned(),
                network: "x".to_owned(),
                model: "e1000".to_owned(),
            }],
        };
        CreateMachine {
            owner: MigrationId::generate(),
            name: "a <b> & 'c'".to_owned(),
            machine,
            disks: Vec::new(),
        }
    }

    fn xml(request: &CreateMachine, disk_bus: DiskBus, links: &[Link]) -> Result<String, Misfit> {
        let located = |disk: &MachineDisk| Located {
            key: disk.key.clone(),
            size: disk.size,
            place: Place::File(format!("/d/{}.raw", disk.key).into()),
        };
        // In another order than they boot.
        let disks: Vec<_> = request.machine.disks.iter().rev().map(located).collect();
        let id = request.machine.uuid.parse().unwrap();
        Domain { request, id, kind: "qemu", disks: &disks, disk_bus, links, folder: Path::new("/d") }.xml()
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let mut request = request(&[("vda", "virtio"), ("sdb", "scsi"), ("sdc", "sata")]);
        for (firmware, loader) in [
            (Firmware::Bios, LoaderFirmware::Bios),
            (Firmware::Uefi, LoaderFirmware::Uefi),
            (Firmware::UefiSecure, LoaderFirmware::UefiSecure),
        ] {
            request.machine.firmware = firmware;
            let text = xml(&request, DiskBus::Virtio, &[Link::Network("prod & test".to_owned())]).unwrap();
            let read = DomainXml::read(&text).unwrap();
            assert_eq!(
                (read.name.as_str(), read.uuid.as_str()),
                (request.name.as_str(), request.machine.uuid.as_str())
            );
            assert_eq!((read.memory, read.vcpus, read.topology), (256 << 20, 6, Some((1, 2, 3))));
            assert_eq!((read.machine.as_str(), read.firmware), ("q35", loader));
            assert_eq!(
                (read.nics[0].mac.as_str(), read.nics[0].network.as_str()),
                ("52:54:00:12:34:56", "prod & test")
            );
            let disks: Vec<_> =
                read.disks.iter().map(|disk| (disk.target.as_str(), disk.boot_order)).collect();
            assert_eq!(disks, [("vda", Some(1)), ("vdb", Some(2)), ("vdc", Some(3))]);
            assert!(text.contains("'/d/vda.raw'/><target dev='vda'"), "the first disk boots first: {text}");
        }
    }

    #[test]
    fn buses_are_kept_where_asked() {
        let request = request(&[("a", "scsi"), ("b", "ide"), ("c", "scsi"), ("d", "nvme"), ("e", "sata")]);
        let read = DomainXml::read(&xml(&request, DiskBus::Keep, &[Link::User]).unwrap()).unwrap();
        let disks: Vec<_> = read.disks.iter().map(|disk| (disk.target.as_str(), disk.bus.as_str())).collect();
        let wanted = [("sda", "scsi"), ("hda", "ide"), ("sdb", "scsi"), ("vda", "virtio"), ("sdc", "sata")];
        assert_eq!(disks, wanted);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut odd = request(&[]);
        odd.machine.nics[0].mac = "52:54:00:12:34:5g".to_owned();
        assert!(matches!(xml(&odd, DiskBus::Virtio, &[Link::User]), Err(Misfit::Mac { .. })));
        let mut none = request(&[]);
        none.machine.cpu.cores = 0;
        assert_eq!(xml(&none, DiskBus::Virtio, &[Link::User]), Err(Misfit::Empty));
        let mut huge = request(&[]);
        huge.machine.cpu = CpuTopology { sockets: u32::MAX, cores: 2, threads: 1 };
        assert_eq!(xml(&huge, DiskBus::Virtio, &[Link::User]), Err(Misfit::Empty));
    }

    #[test]
    fn a_taken_uuid_gets_the_same_substitute_each_time() {
        let owner = MigrationId::generate();
        assert_eq!(substitute(owner), substitute(owner));
        assert_ne!(substitute(owner), substitute(MigrationId::generate()));
    }

    #[test]
    fn letters_go_on_after_z() {
        let named: Vec<_> = [0, 25, 26, 27, 701].into_iter().filter_map(letters).collect();
        assert_eq!(named, ["a", "z", "aa", "ab", "zz"]);
        assert_eq!(letters(702), None);
    }
}
