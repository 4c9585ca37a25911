//! A platform-neutral machine as libvirt's domain XML. Pure.
//!
//! Rule: the hardware that the guest sees stays the same (UUID if it is free, firmware, chipset family,
//! topology, memory, MACs); the rest is the target's own. Other carried hardware of the source (`carried.rs`)
//! is kept.

use std::path::Path;

use warmd_cbt::buffer::ALIGNMENT;
use warmd_core::{
    model::{
        hardware::HardwareElement,
        id::MigrationId,
        machine::{CpuTopology, Firmware, Machine, Nic},
    },
    targets::CreateMachine,
};
use warmd_storage::{DiskLocation, LocatedDisk};

use super::{
    carried::{AGENT, Carried},
    foreign, owned,
    pci::PciSlots,
    settings::DiskBus,
    xml::Element,
};
use crate::libvirt::DomainId;

/// The file in the migration's folder that takes the output of the guest's first serial port.
pub(super) const CONSOLE: &str = "console.log";

/// The target's additions to the request.
pub(super) struct DomainBuilder<'a> {
    pub(super) request: &'a CreateMachine,
    pub(super) id: DomainId,
    /// `kvm` or `qemu`.
    pub(super) kind: &'static str,
    pub(super) disks: &'a [LocatedDisk],
    pub(super) disk_bus: DiskBus,
    /// For each NIC of the machine, in order.
    pub(super) links: &'a [NicConnection],
    /// The migration's folder.
    pub(super) folder: &'a Path,
}

/// The connection of a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NicConnection {
    Network(String),
    Bridge(String),
    /// QEMU's own network, which needs no resource of the host.
    User,
}

/// Why a machine cannot be a domain of this target.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum UnsupportedHardware {
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

impl DomainBuilder<'_> {
    /// The domain's XML.
    pub(super) fn xml(&self) -> Result<String, UnsupportedHardware> {
        let machine = &self.request.machine;
        let vcpus = vcpus(machine.cpu).filter(|_| machine.memory.0 > 0).ok_or(UnsupportedHardware::Empty)?;
        let carried = self.carried();
        let on = |event: &str, default| carried.and_then(|carried| carried.on(event)).unwrap_or(default);
        let domain = Element::new("domain")
            .attr("type", self.kind)
            .with(Element::of("name", &self.request.name))
            .with(Element::of("uuid", self.id))
            .with(Element::of("description", self.description()))
            .with(self.metadata())
            .with(Element::of("memory", machine.memory.0.div_ceil(1024)).attr("unit", "KiB"))
            .with(Element::of("vcpu", vcpus))
            .with(os(machine).with_all(carried.map(Carried::os).unwrap_or_default()))
            .with(carried.map_or_else(|| features(machine), |carried| carried.features(machine.firmware)))
            .with(self.cpu())
            .with(
                carried
                    .and_then(Carried::clock)
                    .unwrap_or_else(|| Element::new("clock").attr("offset", "utc")),
            )
            .with(Element::of("on_poweroff", on("on_poweroff", "destroy")))
            .with(Element::of("on_reboot", on("on_reboot", "restart")))
            .with(Element::of("on_crash", on("on_crash", "destroy")))
            .with_all(carried.map(Carried::whole).unwrap_or_default())
            .with(self.devices()?);
        Ok(domain.to_string())
    }

    fn carried(&self) -> Option<Carried<'_>> {
        Carried::of(&self.request.machine, self.kind)
    }

    fn metadata(&self) -> Element {
        let metadata = Element::new("metadata").with(owned::tag(self.request.owner, self.id));
        metadata.with_all(self.carried().map(Carried::metadata).unwrap_or_default())
    }

    fn description(&self) -> String {
        let machine = &self.request.machine;
        let moved = format!("moved here by warmd, migration {}", self.request.owner);
        let moved = match self.carried().and_then(Carried::description) {
            // Of a domain that moves on, only the last move is reported.
            Some(own) if !own.starts_with("moved here by warmd") => format!("{own}\n{moved}"),
            _ => moved,
        };
        if machine.uuid.parse() == Ok(self.id) {
            moved
        } else {
            format!("{moved}; its UUID was {}, which another domain here has", machine.uuid)
        }
    }

    fn cpu(&self) -> Element {
        let CpuTopology { sockets, cores, threads } = self.request.machine.cpu;
        let cpu = match self.carried().and_then(Carried::cpu) {
            Some(cpu) => cpu,
            None if self.kind == "kvm" => Element::new("cpu").attr("mode", "host-model"),
            // Emulation has a model of its own, which every guest takes.
            None => Element::new("cpu"),
        };
        let topology = Element::new("topology").attr("sockets", sockets).attr("cores", cores);
        cpu.with(topology.attr("threads", threads))
    }

    fn devices(&self) -> Result<Element, UnsupportedHardware> {
        let carried = self.carried();
        let order = self.boot_order();
        let slots = PciSlots::of(&self.request.machine);
        let nics = self.request.machine.nics.iter().zip(self.links).map(|(nic, link)| {
            let interface = slots.put(&nic.mac, interface(nic, link, carried)?);
            Ok::<_, UnsupportedHardware>(
                match order.iter().position(|device| *device == Boots::Nic(&nic.mac)) {
                    Some(at) => interface.with(Element::new("boot").attr("order", at + 1)),
                    None => interface,
                },
            )
        });
        let nics = nics.collect::<Result<Vec<_>, _>>()?;
        let (port, ports) = carried.map(Carried::serials).unwrap_or_default();
        // Operators look at it with `virsh console`, and later in the file.
        let serial = Element::new("serial")
            .attr("type", "pty")
            .with(Element::new("log").attr("file", self.folder.join(CONSOLE).display()).attr("append", "on"))
            .with(port.unwrap_or_else(|| Element::new("target").attr("port", 0)));
        // libvirt makes the socket. A guest without the agent never looks at its end of it.
        let agent = Element::new("channel")
            .attr("type", "unix")
            .with(Element::new("target").attr("type", "virtio").attr("name", AGENT));
        let others = if let Some(carried) = carried {
            [carried.controllers("usb").collect(), ports, carried.devices()].concat()
        } else {
            let random = Element::of("backend", "/dev/urandom").attr("model", "random");
            vec![Element::new("rng").attr("model", "virtio").with(random)]
        };
        Ok(Element::new("devices")
            .with_all(slots.ports())
            .with_all(self.disks(&order)?)
            .with_all(nics)
            .with(serial)
            .with(agent)
            .with_all(others))
    }

    /// The disks in the order of booting.
    fn in_order(&self) -> Vec<&LocatedDisk> {
        let mut disks: Vec<&LocatedDisk> = self.disks.iter().collect();
        disks.sort_by_key(|disk| self.request.boot_order(&disk.key));
        disks
    }

    /// All boot devices, the first one first: disks in the machine's order, and between them the carried
    /// devices.
    fn boot_order(&self) -> Vec<Boots<'_>> {
        let disks = self.in_order();
        let Some(carried) = self.carried() else {
            return disks.into_iter().map(|disk| Boots::Disk(&disk.key.0)).collect();
        };
        let rank =
            |key: &str| carried.part.disk(key).and_then(|disk| carried.boot_rank(disk)).unwrap_or(u32::MAX);
        // A conversion may have put them in another order: then they swap places.
        let mut ranks: Vec<_> = disks.iter().map(|disk| rank(&disk.key.0)).collect();
        ranks.sort_unstable();
        let mut order: Vec<_> =
            ranks.into_iter().zip(disks.into_iter().map(|disk| Boots::Disk(&disk.key.0))).collect();
        for drive in carried.drives() {
            order.extend(carried.boot_rank(drive).zip(drive.target().map(Boots::Drive)));
        }
        for nic in &self.request.machine.nics {
            let rank = carried.part.nic(&nic.mac).and_then(|part| carried.boot_rank(part));
            order.extend(rank.map(|rank| (rank, Boots::Nic(nic.mac.as_str()))));
        }
        order.sort_by_key(|(rank, _)| *rank);
        order.into_iter().map(|(_, device)| device).collect()
    }

    fn disks(&self, boots: &[Boots<'_>]) -> Result<Vec<Element>, UnsupportedHardware> {
        // The order of attaching is the order of booting, so that the guest's names stay with virtio as they
        // were.
        let disks = self.in_order();
        let carried = self.carried();
        let boot = |device: Boots<'_>| {
            let at = boots.iter().position(|known| *known == device);
            at.map(|at| Element::new("boot").attr("order", at + 1))
        };
        let mut elements: Vec<_> =
            carried.into_iter().flat_map(|carried| carried.controllers("scsi")).collect();
        let mut has_scsi = !elements.is_empty();
        let mut names = Names::default();
        if carried.is_some() {
            for disk in &disks {
                names.keep(&disk.key.0, self.bus(disk).1);
            }
        }
        for drive in carried.into_iter().flat_map(Carried::drives) {
            names.keep(drive.target().unwrap_or_default(), self.drive_bus(drive).1);
        }
        for disk in disks {
            let (bus, prefix) = self.bus(disk);
            let name =
                names.take(&disk.key.0, prefix).ok_or(UnsupportedHardware::TooManyDisks(self.disks.len()))?;
            if bus == "scsi" && !has_scsi {
                let model = foreign::scsi_model(&self.request.machine);
                elements.push(Element::new("controller").attr("type", "scsi").attr("model", model));
                has_scsi = true;
            }
            let is_same_bus = self.had_bus(disk) == Some(bus);
            let (kind, source) = match &disk.place {
                DiskLocation::File(path) => ("file", Element::new("source").attr("file", path.display())),
                DiskLocation::Device(path) => ("block", Element::new("source").attr("dev", path.display())),
                DiskLocation::Nbd(_) => return Err(UnsupportedHardware::Nbd(disk.key.0.clone())),
            };
            // With the page cache bypassed QEMU accepts only whole blocks, and does not start if the disk
            // ends within one.
            let cache = if disk.size.0.is_multiple_of(ALIGNMENT as u64) { "none" } else { "writeback" };
            let driver = Element::new("driver")
                .attr("name", "qemu")
                .attr("type", "raw")
                .attr("cache", cache)
                .attr("discard", "unmap");
            let mut target = Element::new("target").attr("dev", name).attr("bus", bus);
            let mut element = Element::new("disk").attr("type", kind).attr("device", "disk");
            let (mut driver, mut rest) = (driver, Vec::new());
            if let Some(carried) = carried {
                driver = carried.disk_driver(&disk.key.0, is_same_bus, cache, driver);
                rest = carried.disk(&disk.key.0, is_same_bus);
                if let Some(had) = carried.part.disk(&disk.key.0).filter(|_| is_same_bus) {
                    element =
                        had.attribute("model").map_or(element.clone(), |model| element.attr("model", model));
                    for (name, value) in had.part("target").into_iter().flat_map(|target| &target.attributes)
                    {
                        if matches!(name.as_str(), "removable" | "rotation_rate") {
                            target = target.set(name, value);
                        }
                    }
                }
            }
            let boot = boot(Boots::Disk(&disk.key.0));
            elements.push(element.with(driver).with(source).with(target).with_all(boot).with_all(rest));
        }
        for drive in carried.into_iter().flat_map(Carried::drives) {
            let (bus, prefix) = self.drive_bus(drive);
            let own = drive.target().unwrap_or_default();
            let name = names.take(own, prefix).ok_or(UnsupportedHardware::TooManyDisks(self.disks.len()))?;
            if bus == "scsi" && !has_scsi {
                elements.push(Element::new("controller").attr("type", "scsi").attr("model", "virtio-scsi"));
                has_scsi = true;
            }
            let element = Element::new("disk").attr("type", "file");
            let element = element.attr("device", drive.attribute("device").unwrap_or("cdrom"));
            let driver = Element::new("driver").attr("name", "qemu").attr("type", "raw");
            let target = Element::new("target").attr("dev", name).attr("bus", bus);
            let readonly = drive.part("readonly").map(Element::carried);
            let serial = drive.part("serial").map(Element::carried);
            let boot = boot(Boots::Drive(own));
            elements
                .push(element.with(driver).with(target).with_all(boot).with_all(readonly).with_all(serial));
        }
        Ok(elements)
    }

    /// The bus that the disk had on the source.
    fn had_bus(&self, disk: &LocatedDisk) -> Option<&str> {
        let had = self.request.machine.disks.iter().find(|known| known.key == disk.key);
        had.map(|disk| disk.bus.as_str())
    }

    fn drive_bus(&self, drive: &HardwareElement) -> (&'static str, &'static str) {
        let bus = drive.part("target").and_then(|target| target.attribute("bus"));
        match (bus, family(&self.request.machine.machine_type)) {
            _ if drive.attribute("device") == Some("floppy") => ("fdc", "fd"),
            (Some("scsi"), _) => ("scsi", "sd"),
            (Some("usb"), _) => ("usb", "sd"),
            (Some("ide"), "pc") => ("ide", "hd"),
            _ => ("sata", "sd"),
        }
    }

    fn bus(&self, disk: &LocatedDisk) -> (&'static str, &'static str) {
        match (self.disk_bus, self.had_bus(disk)) {
            (DiskBus::Keep, Some(bus)) if foreign::is_scsi(bus) => ("scsi", "sd"),
            (DiskBus::Keep, Some("sata")) => ("sata", "sd"),
            (DiskBus::Keep, Some("usb")) => ("usb", "sd"),
            (DiskBus::Keep, Some("ide")) => ("ide", "hd"),
            _ => ("virtio", "vd"),
        }
    }
}

/// A device that takes part in booting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boots<'a> {
    Disk(&'a str),
    /// A drive of a removable medium, by its name on the source.
    Drive(&'a str),
    Nic(&'a str),
}

/// The names of disks and drives: their own where the bus allows, else the next free one.
#[derive(Debug, Default)]
struct Names {
    kept: Vec<String>,
    taken: Vec<String>,
}

impl Names {
    /// Keeps a name for its old owner.
    fn keep(&mut self, name: &str, prefix: &str) {
        let letters = name.strip_prefix(prefix).unwrap_or_default();
        let fits = (1..=2).contains(&letters.len()) && letters.bytes().all(|byte| byte.is_ascii_lowercase());
        if fits && !self.kept.iter().any(|kept| kept == name) {
            self.kept.push(name.to_owned());
        }
    }

    fn take(&mut self, own: &str, prefix: &str) -> Option<String> {
        let is_taken = |name: &String| self.taken.contains(name);
        let name = match self.kept.iter().find(|kept| *kept == own && kept.starts_with(prefix)) {
            Some(kept) if !is_taken(kept) => kept.clone(),
            _ => {
                let mut names =
                    (0..MAX_DISKS).filter_map(letters).map(|letters| format!("{prefix}{letters}"));
                names.find(|name| !is_taken(name) && !self.kept.contains(name))?
            }
        };
        self.taken.push(name.clone());
        Some(name)
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

fn interface(
    nic: &Nic,
    link: &NicConnection,
    carried: Option<Carried<'_>>,
) -> Result<Element, UnsupportedHardware> {
    let is_byte = |byte: &str| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
    if nic.mac.split(':').count() != 6 || !nic.mac.split(':').all(is_byte) {
        return Err(UnsupportedHardware::Mac { mac: nic.mac.clone() });
    }
    let interface = Element::new("interface");
    let interface = match link {
        NicConnection::Network(name) => {
            let source = Element::new("source").attr("network", name);
            let group = carried.and_then(|carried| carried.port_group(nic));
            let source = match group {
                Some(group) => source.attr("portgroup", group),
                None => source,
            };
            interface.attr("type", "network").with(source)
        }
        NicConnection::Bridge(name) => {
            interface.attr("type", "bridge").with(Element::new("source").attr("bridge", name))
        }
        NicConnection::User => interface.attr("type", "user"),
    };
    let mac = Element::new("mac").attr("address", &nic.mac);
    let interface = interface.with(mac);
    Ok(match carried {
        None => interface.with(Element::new("model").attr("type", foreign::nic_model(&nic.model))),
        Some(carried) if nic.model == "default" => carried.nic(nic, link, interface),
        Some(carried) => {
            carried.nic(nic, link, interface.with(Element::new("model").attr("type", &nic.model)))
        }
    })
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
    use crate::libvirt::{DomainXml, LoaderFirmware};
    use warmd_core::model::{
        id::{DiskKey, VmId},
        machine::MachineDisk,
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
            hardware: None,
            host: None,
        };
        CreateMachine {
            owner: MigrationId::generate(),
            name: "a <b> & 'c'".to_owned(),
            machine,
            disks: Vec::new(),
        }
    }

    fn xml(
        request: &CreateMachine,
        disk_bus: DiskBus,
        links: &[NicConnection],
    ) -> Result<String, UnsupportedHardware> {
        let located = |disk: &MachineDisk| LocatedDisk {
            key: disk.key.clone(),
            size: disk.size,
            place: DiskLocation::File(format!("/d/{}.raw", disk.key).into()),
        };
        // In another order than the boot order.
        let disks: Vec<_> = request.machine.disks.iter().rev().map(located).collect();
        let id = request.machine.uuid.parse().unwrap();
        DomainBuilder { request, id, kind: "qemu", disks: &disks, disk_bus, links, folder: Path::new("/d") }
            .xml()
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
            let text =
                xml(&request, DiskBus::Virtio, &[NicConnection::Network("prod & test".to_owned())]).unwrap();
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
        let read = DomainXml::read(&xml(&request, DiskBus::Keep, &[NicConnection::User]).unwrap()).unwrap();
        let disks: Vec<_> = read.disks.iter().map(|disk| (disk.target.as_str(), disk.bus.as_str())).collect();
        let wanted = [("sda", "scsi"), ("hda", "ide"), ("sdb", "scsi"), ("vda", "virtio"), ("sdc", "sata")];
        assert_eq!(disks, wanted);
    }

    #[test]
    fn a_guest_of_another_platform_keeps_its_controller_and_card() {
        let mut request = request(&[("a", "pvscsi"), ("b", "lsisas"), ("c", "sata")]);
        for (model, wanted) in [("vmxnet3", "vmxnet3"), ("e1000e", "e1000e"), ("sriov", "virtio")] {
            model.clone_into(&mut request.machine.nics[0].model);
            let text = xml(&request, DiskBus::Keep, &[NicConnection::User]).unwrap();
            assert!(text.contains(&format!("<model type='{wanted}'/>")), "{text}");
            // All on the controller that the guest boots from.
            assert_eq!(text.matches("<controller type='scsi' model='vmpvscsi'/>").count(), 1, "{text}");
            assert!(!text.contains("lsisas"), "{text}");
            let read = DomainXml::read(&text).unwrap();
            let buses: Vec<_> = read.disks.iter().map(|disk| disk.bus.as_str()).collect();
            assert_eq!(buses, ["scsi", "scsi", "sata"]);
        }
        assert!(foreign::findings(&request.machine).is_empty());
        let odd = self::request(&[("a", "lsilogic")]);
        assert!(foreign::findings(&odd.machine)[0].1.contains("disk a is on lsilogic"));
        // What virt-v2v made of it counts, and not where it was.
        let converted = self::request(&[("a", "virtio")]);
        assert!(
            !xml(&converted, DiskBus::Keep, &[NicConnection::User])
                .unwrap()
                .contains("<controller type='scsi'")
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut odd = request(&[]);
        odd.machine.nics[0].mac = "52:54:00:12:34:5g".to_owned();
        assert!(matches!(
            xml(&odd, DiskBus::Virtio, &[NicConnection::User]),
            Err(UnsupportedHardware::Mac { .. })
        ));
        let mut none = request(&[]);
        none.machine.cpu.cores = 0;
        assert_eq!(xml(&none, DiskBus::Virtio, &[NicConnection::User]), Err(UnsupportedHardware::Empty));
        let mut huge = request(&[]);
        huge.machine.cpu = CpuTopology { sockets: u32::MAX, cores: 2, threads: 1 };
        assert_eq!(xml(&huge, DiskBus::Virtio, &[NicConnection::User]), Err(UnsupportedHardware::Empty));
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
