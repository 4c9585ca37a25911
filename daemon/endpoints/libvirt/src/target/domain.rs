//! A platform-neutral machine as libvirt's domain XML. Pure.
//!
//! Rule: the hardware that the guest sees stays the same (UUID if it is free, firmware, chipset family,
//! topology, memory, MACs); the rest is the target's own. Other carried hardware of the source (`carried.rs`)
//! is kept.

mod disks;

use std::path::Path;

use warmd_core::{
    model::{
        conversion::is_mac,
        id::MigrationId,
        machine::{CpuTopology, Firmware, Machine, Nic},
    },
    targets::CreateMachine,
};
use warmd_storage::LocatedDisk;

use self::disks::{Boots, MAX_DISKS};
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
    if !is_mac(&nic.mac) {
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

#[cfg(test)]
mod tests {
    use warmd_cbt::units::Length;
    use warmd_storage::DiskLocation;

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
}
