//! The network interfaces that keep their place on the PCI bus, which guests name them by. Pure.
//!
//! Rule: a place is kept only where the target's machine surely has it: a missing one would be refused when
//! the domain is defined, with the source off. A place that is not kept is reported before.

use std::collections::{BTreeMap, BTreeSet};

use warmd_core::model::{hardware::HardwareElement, machine::Machine};

use super::{domain::family, xml::Element};

/// Root ports of a q35 machine that are created for it.
const MAX_PORTS: u32 = 31;

/// The places of a machine's network interfaces.
#[derive(Debug, Default)]
pub(super) struct PciSlots {
    /// By the interface's address in lower case.
    kept: BTreeMap<String, PciAddress>,
    /// The places that are not kept, by the same key: the place on the source.
    changed: BTreeMap<String, PciAddress>,
}

/// A place on the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PciAddress {
    domain: u32,
    bus: u32,
    slot: u32,
    function: u32,
}

impl PciSlots {
    /// Of the machine's interfaces as a domain of this target has them.
    pub(super) fn of(machine: &Machine) -> Self {
        let mut slots = Self::default();
        let Some(hardware) = &machine.hardware else { return slots };
        let layout = PciBuses::of(machine, hardware);
        let places: Vec<_> = machine
            .nics
            .iter()
            .filter_map(|nic| Some((nic.mac.to_ascii_lowercase(), PciAddress::of(hardware.nic(&nic.mac)?)?)))
            .collect();
        let mut taken = BTreeSet::new();
        for (mac, place) in places {
            // Functions of one device come and go together: only a separate device is kept.
            if layout.has(place) && taken.insert((place.bus, place.slot)) {
                slots.kept.insert(mac, place);
            } else {
                slots.changed.insert(mac, place);
            }
        }
        slots
    }

    /// The interface with its place, if it is kept.
    pub(super) fn put(&self, mac: &str, interface: Element) -> Element {
        let Some(place) = self.kept.get(&mac.to_ascii_lowercase()) else { return interface };
        let address = Element::new("address")
            .attr("type", "pci")
            .attr("domain", format!("{:#06x}", place.domain))
            .attr("bus", format!("{:#04x}", place.bus))
            .attr("slot", format!("{:#04x}", place.slot))
            .attr("function", format!("{:#x}", place.function));
        interface.with(address)
    }

    /// The root ports that the kept places are behind: all up to the last one, so that the guest counts the
    /// same.
    pub(super) fn ports(&self) -> impl Iterator<Item = Element> {
        let last = self.kept.values().map(|place| place.bus).max().unwrap_or_default();
        (1..=last).map(|index| {
            Element::new("controller")
                .attr("type", "pci")
                .attr("index", index)
                .attr("model", "pcie-root-port")
        })
    }

    /// What is reported of the interfaces that get another place.
    pub(super) fn findings(&self) -> impl Iterator<Item = String> {
        self.changed.iter().map(|(mac, place)| {
            let PciAddress { domain, bus, slot, function } = place;
            format!(
                "interface {mac}: its PCI address {domain:04x}:{bus:02x}:{slot:02x}.{function:x} changes; the guest's name \
                 of the interface may change"
            )
        })
    }
}

impl PciAddress {
    /// Where the device is; `None` if it is not on a PCI bus, or libvirt has not reported it.
    fn of(device: &HardwareElement) -> Option<Self> {
        let address = device.part("address").filter(|address| address.attribute("type") == Some("pci"))?;
        let number = |name| address.attribute(name).map_or(Some(0), number);
        Some(Self {
            domain: number("domain")?,
            bus: number("bus")?,
            slot: number("slot")?,
            function: number("function")?,
        })
    }
}

/// As libvirt writes it (`0x1f`), or in decimal.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The known PCI buses of the source's and the target's machine.
#[derive(Debug)]
enum PciBuses {
    /// One bus, whose first slots are the machine's own.
    Conventional { first: u32 },
    /// A root bus, and this many root ports in the order of their numbers.
    Express { first: u32, ports: u32 },
    /// Another kind of machine, or another than the source's.
    Unknown,
}

impl PciBuses {
    fn of(machine: &Machine, hardware: &HardwareElement) -> Self {
        let controllers: BTreeMap<u32, &HardwareElement> = hardware
            .devices("controller")
            .filter(|controller| controller.is_pci_bus())
            .filter_map(|controller| Some((number(controller.attribute("index")?)?, controller)))
            .collect();
        let model = |controller: &&HardwareElement| controller.attribute("model").map(str::to_owned);
        let root = controllers.get(&0).and_then(model);
        // The first display device has a slot of its own.
        let has_video = hardware.devices("video").next().is_some();
        match (family(&machine.machine_type), root.as_deref()) {
            ("pc", Some("pci-root")) => Self::Conventional { first: if has_video { 3 } else { 2 } },
            ("q35", Some("pcie-root")) => {
                // A bridge below a port shifts the guest's numbers of all after it.
                let has_bridge = controllers
                    .values()
                    .filter_map(model)
                    .any(|model| model != "pcie-root" && model != "pcie-root-port");
                let mut ports = 0;
                let mut before = None;
                for index in 1..=if has_bridge { 0 } else { MAX_PORTS } {
                    let port = controllers.get(&index).copied();
                    let port = port.filter(|port| port.attribute("model") == Some("pcie-root-port"));
                    // A guest numbers the buses in the order of the ports' places.
                    let place = port.and_then(PciAddress::of).filter(|place| place.bus == 0);
                    if place.is_none() || place <= before {
                        break;
                    }
                    (ports, before) = (index, place);
                }
                Self::Express { first: if has_video { 2 } else { 1 }, ports }
            }
            _ => Self::Unknown,
        }
    }

    fn has(&self, place: PciAddress) -> bool {
        let PciAddress { domain, bus, slot, function } = place;
        domain == 0
            && function == 0
            && match *self {
                Self::Conventional { first } => bus == 0 && (first..=0x1f).contains(&slot),
                // The last slots are those of the chipset, and of controllers that libvirt usually puts
                // there.
                Self::Express { first, .. } if bus == 0 => (first..0x1a).contains(&slot),
                Self::Express { ports, .. } => bus <= ports && slot == 0,
                Self::Unknown => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warmd_core::model::{
        id::VmId,
        machine::{CpuTopology, Firmware, Nic},
    };

    fn part(name: &str, attributes: &[(&str, &str)], parts: Vec<HardwareElement>) -> HardwareElement {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        HardwareElement {
            name: name.to_owned(),
            attributes: attributes.collect(),
            parts,
            ..HardwareElement::default()
        }
    }

    fn address(bus: &str, slot: &str, function: &str) -> HardwareElement {
        let of =
            [("type", "pci"), ("domain", "0x0000"), ("bus", bus), ("slot", slot), ("function", function)];
        part("address", &of, Vec::new())
    }

    fn controller(index: &str, model: &str, address: Vec<HardwareElement>) -> HardwareElement {
        part("controller", &[("type", "pci"), ("index", index), ("model", model)], address)
    }

    /// A machine whose nth interface is at the nth address.
    fn machine(
        machine_type: &str,
        mut devices: Vec<HardwareElement>,
        addresses: &[HardwareElement],
    ) -> Machine {
        let mut machine = Machine {
            id: VmId("a".to_owned()),
            name: "a".to_owned(),
            uuid: "a".to_owned(),
            firmware: Firmware::Bios,
            machine_type: machine_type.to_owned(),
            architecture: "x86_64".to_owned(),
            cpu: CpuTopology { sockets: 1, cores: 1, threads: 1 },
            memory: warmd_cbt::units::Length(1 << 20),
            disks: Vec::new(),
            nics: Vec::new(),
            hardware: None,
            host: None,
        };
        for (at, address) in addresses.iter().enumerate() {
            let mac = format!("52:54:00:00:00:{at:02X}");
            let own = part("mac", &[("address", &mac)], Vec::new());
            devices.push(part("interface", &[], vec![own, address.clone()]));
            machine.nics.push(Nic { mac, network: "x".to_owned(), model: "virtio".to_owned() });
        }
        machine.hardware = Some(part("domain", &[], vec![part("devices", &[], devices)]));
        machine
    }

    fn kept(machine: &Machine) -> Vec<bool> {
        let slots = PciSlots::of(machine);
        machine
            .nics
            .iter()
            .map(|nic| {
                let put = slots.put(&nic.mac, Element::new("interface")).to_string().contains("<address");
                let is_told = slots.findings().any(|found| found.contains(&nic.mac.to_ascii_lowercase()));
                assert_ne!(put, is_told, "an interface is either kept or told");
                put
            })
            .collect()
    }

    #[test]
    fn a_place_that_the_target_has_is_kept_and_another_is_told() {
        let video = || part("video", &[], Vec::new());
        let root = || controller("0", "pci-root", Vec::new());
        let places =
            [address("0x00", "0x03", "0x0"), address("0x00", "0x02", "0x0"), address("0x01", "0x04", "0x0")];
        assert_eq!(kept(&machine("pc-i440fx-7.2", vec![root(), video()], &places)), [true, false, false]);
        assert_eq!(kept(&machine("pc", vec![root()], &places)), [true, true, false], "no screen is there");
        assert_eq!(kept(&machine("q35", vec![root()], &places)), [false; 3], "another machine");
        assert_eq!(kept(&machine("pc", Vec::new(), &places)), [false; 3], "what it was is not known");
        let shared = [address("0", "5", "0"), address("0", "5", "1"), address("0", "5", "0")];
        assert_eq!(kept(&machine("pc", vec![root()], &shared)), [true, false, false]);
        let text = PciSlots::of(&machine("pc", vec![root()], &places[..1]));
        let text = text.put("52:54:00:00:00:00", Element::new("interface")).to_string();
        assert_eq!(
            text,
            "<interface><address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/></interface>"
        );
    }

    #[test]
    fn a_place_behind_a_root_port_is_kept_with_the_ports_before_it() {
        let root = controller("0", "pcie-root", Vec::new());
        let port = |index: &str, function| {
            controller(index, "pcie-root-port", vec![address("0x00", "0x02", function)])
        };
        let devices = vec![root.clone(), port("1", "0x0"), port("2", "0x1"), port("3", "0x2")];
        let places = [address("0x02", "0x00", "0x0"), address("0x04", "0x00", "0x0")];
        let found = machine("pc-q35-7.2", devices, &places);
        assert_eq!(kept(&found), [true, false]);
        let slots = PciSlots::of(&found);
        let ports: Vec<_> = slots.ports().map(|port| port.to_string()).collect();
        assert_eq!(
            ports,
            [
                "<controller type='pci' index='1' model='pcie-root-port'/>",
                "<controller type='pci' index='2' model='pcie-root-port'/>"
            ]
        );
        assert_eq!(
            slots.findings().collect::<Vec<_>>(),
            [
                "interface 52:54:00:00:00:01: its PCI address 0000:04:00.0 changes; the guest's name of the interface may \
                 change"
            ]
        );
        // The guest counts ports by their places, not by libvirt's numbers.
        let swapped = vec![root.clone(), port("1", "0x1"), port("2", "0x0")];
        assert_eq!(kept(&machine("q35", swapped, &places[..1])), [false]);
        let bridge = controller("3", "pcie-to-pci-bridge", Vec::new());
        let shifted = vec![root, port("1", "0x0"), port("2", "0x1"), bridge];
        let places = [places[0].clone(), address("0x00", "0x04", "0x0")];
        assert_eq!(kept(&machine("q35", shifted, &places)), [false, true]);
    }
}
