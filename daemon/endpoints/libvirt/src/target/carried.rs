//! The carried hardware of a libvirt source, put into a domain of this target.
//!
//! Rule: only where the target makes no choice of its own. A machine's platform-neutral fields come first: a
//! conversion may have changed them. Hardware that depends on the kind of domain (KVM, emulation) is left out
//! of another kind.

use warmd_core::model::{
    hardware::HardwareElement,
    machine::{Firmware, Machine, Nic},
};

use super::{domain::NicConnection, xml::Element};

/// Features that a domain has with KVM and with emulation.
const ANY_KIND: [&str; 8] = ["acpi", "apic", "pae", "smm", "vmport", "vmcoreinfo", "gic", "ps2"];

/// Timers that only KVM has.
const KVM_TIMERS: [&str; 3] = ["kvmclock", "hypervclock", "tsc"];

/// Values that a disk keeps on any bus.
const ANY_BUS: [&str; 5] = ["iotune", "serial", "readonly", "shareable", "blockio"];

/// Values that it keeps on its old bus.
const SAME_BUS: [&str; 4] = ["wwn", "vendor", "product", "geometry"];

/// Values that a driver keeps on any bus.
const ANY_BUS_DRIVER: [&str; 4] = ["discard", "detect_zeroes", "error_policy", "rerror_policy"];

/// Isolation of a network interface, which QEMU's own network cannot provide.
pub(super) const ISOLATION: [&str; 4] = ["filterref", "vlan", "port", "virtualport"];

/// The guest agent's channel, which every domain of this target has.
pub(super) const AGENT: &str = "org.qemu.guest_agent.0";

/// The carried hardware, and whether this domain is of the source's kind.
#[derive(Clone, Copy)]
pub(super) struct Carried<'a> {
    pub(super) part: &'a HardwareElement,
    pub(super) is_same_kind: bool,
}

impl<'a> Carried<'a> {
    /// The carried hardware of the machine, for a domain of that kind; `None` if its source is another
    /// platform.
    pub(super) fn of(machine: &'a Machine, kind: &str) -> Option<Self> {
        let part = machine.hardware.as_ref()?;
        Some(Self { part, is_same_kind: part.attribute("type") == Some(kind) })
    }

    /// Elements of the domain itself that the target does not set.
    pub(super) fn whole(self) -> Vec<Element> {
        let names = ["genid", "title", "currentMemory", "iothreads", "iothreadids", "pm"];
        let mut elements: Vec<_> =
            names.into_iter().flat_map(|name| self.part.parts(name)).map(Element::carried).collect();
        elements.extend(self.part.parts("sysinfo").map(|sysinfo| {
            // libvirt wants it to be the domain's own UUID, and fills that in.
            let mut sysinfo = sysinfo.clone();
            for system in sysinfo.parts.iter_mut().filter(|part| part.name == "system") {
                system.parts.retain(|entry| entry.attribute("name") != Some("uuid"));
            }
            Element::carried(&sysinfo)
        }));
        elements
    }

    /// Other tools' metadata.
    pub(super) fn metadata(self) -> Vec<Element> {
        self.part.parts("metadata").flat_map(|metadata| &metadata.parts).map(Element::carried).collect()
    }

    pub(super) fn description(self) -> Option<&'a str> {
        self.part
            .part("description")
            .map(|description| description.text.as_str())
            .filter(|text| !text.is_empty())
    }

    pub(super) fn os(self) -> Vec<Element> {
        let os = self.part.part("os");
        let names = ["bootmenu", "smbios", "bios"];
        names
            .into_iter()
            .flat_map(|name| os.into_iter().flat_map(move |os| os.parts(name)))
            .map(Element::carried)
            .collect()
    }

    pub(super) fn features(self, firmware: Firmware) -> Element {
        let mut features = Element::new("features");
        for part in self.part.part("features").into_iter().flat_map(|features| &features.parts) {
            let fits = self.is_same_kind || ANY_KIND.contains(&part.name.as_str());
            if fits && !(part.name == "smm" && firmware == Firmware::UefiSecure) {
                features = features.with(Element::carried(part));
            }
        }
        match firmware {
            Firmware::UefiSecure => features.with(Element::new("smm").attr("state", "on")),
            Firmware::Bios | Firmware::Uefi => features,
        }
    }

    /// Without its topology; `None` if another kind of domain has another.
    pub(super) fn cpu(self) -> Option<Element> {
        let cpu = self.is_same_kind.then(|| self.part.part("cpu"))?;
        Some(cpu.map_or_else(|| Element::new("cpu"), Element::carried))
    }

    pub(super) fn clock(self) -> Option<Element> {
        let mut clock = self.part.part("clock")?.clone();
        let fits =
            |timer: &HardwareElement| !timer.attribute("name").is_some_and(|name| KVM_TIMERS.contains(&name));
        clock.parts.retain(|timer| self.is_same_kind || fits(timer));
        Some(Element::carried(&clock))
    }

    pub(super) fn on(self, event: &str) -> Option<&'a str> {
        self.part.part(event).map(|part| part.text.as_str()).filter(|text| !text.is_empty())
    }

    /// Attributes of a disk's driver beside the target's own.
    pub(super) fn disk_driver(
        self,
        disk: &str,
        is_same_bus: bool,
        cache: &str,
        mut driver: Element,
    ) -> Element {
        let Some(had) = self.part.disk(disk).and_then(|disk| disk.part("driver")) else { return driver };
        for (name, value) in &had.attributes {
            let fits = match name.as_str() {
                // Only with the page cache bypassed; threads and io_uring work with both.
                "io" => cache == "none" || value != "native",
                name => is_same_bus || ANY_BUS_DRIVER.contains(&name),
            };
            if fits {
                driver = driver.set(name, value);
            }
        }
        driver
    }

    /// A disk's elements beside driver, source, target and boot.
    pub(super) fn disk(self, disk: &str, is_same_bus: bool) -> Vec<Element> {
        let Some(had) = self.part.disk(disk) else { return Vec::new() };
        let fits = |name: &str| ANY_BUS.contains(&name) || (is_same_bus && SAME_BUS.contains(&name));
        had.parts.iter().filter(|part| fits(&part.name)).map(Element::carried).collect()
    }

    /// Drives of removable media.
    pub(super) fn drives(self) -> impl Iterator<Item = &'a HardwareElement> {
        self.part.devices("disk").filter(|disk| matches!(disk.attribute("device"), Some("cdrom" | "floppy")))
    }

    pub(super) fn controllers(self, kind: &'a str) -> impl Iterator<Item = Element> {
        let controllers = self.part.devices("controller");
        controllers.filter(move |part| part.attribute("type") == Some(kind)).map(Element::carried)
    }

    /// A network interface's elements and attributes beside MAC, source and model.
    pub(super) fn nic(self, nic: &Nic, link: &NicConnection, mut interface: Element) -> Element {
        let Some(had) = self.part.nic(&nic.mac) else { return interface };
        let is_user = *link == NicConnection::User;
        for part in &had.parts {
            let fits = match part.name.as_str() {
                "link" | "rom" => true,
                "driver" => nic.model.starts_with("virtio") && !is_user,
                "mtu" | "bandwidth" | "coalesce" => !is_user,
                name => ISOLATION.contains(&name) && !is_user,
            };
            if !fits {
                continue;
            }
            let mut part = part.clone();
            // The packet path belongs to the host: KVM takes vhost automatically where it is there.
            part.attributes.retain(|(name, _)| part.name != "driver" || name != "name");
            interface = interface.with(Element::carried(&part));
        }
        match had.attribute("trustGuestRxFilters") {
            Some(trust) if !is_user => interface.attr("trustGuestRxFilters", trust),
            _ => interface,
        }
    }

    /// The port group of its network.
    pub(super) fn port_group(self, nic: &Nic) -> Option<&'a str> {
        self.part.nic(&nic.mac)?.part("source")?.attribute("portgroup")
    }

    /// Serial ports: the first one's kind, and all others.
    pub(super) fn serials(self) -> (Option<Element>, Vec<Element>) {
        let target = |serial: &HardwareElement| serial.part("target").map(Element::carried);
        let port = |serial: &HardwareElement| {
            serial.part("target").and_then(|target| target.attribute("port")).unwrap_or("0").to_owned()
        };
        let first = self.part.devices("serial").find(|serial| port(serial) == "0").and_then(target);
        let others = self.part.devices("serial").filter(|serial| port(serial) != "0");
        let others = others
            .filter_map(|serial| Some(Element::new("serial").attr("type", "pty").with(target(serial)?)));
        (first, others.collect())
    }

    /// All other devices.
    pub(super) fn devices(self) -> Vec<Element> {
        let mut devices = Vec::new();
        let has_spice =
            self.part.devices("graphics").any(|graphics| graphics.attribute("type") == Some("spice"));
        for part in self.part.part("devices").into_iter().flat_map(|devices| &devices.parts) {
            let target = |attribute: &str| part.part("target").and_then(|target| target.attribute(attribute));
            match part.name.as_str() {
                "input" | "sound" | "watchdog" | "memballoon" | "video" => {
                    devices.push(Element::carried(part));
                }
                "panic" if self.is_same_kind => devices.push(Element::carried(part)),
                "rng" => {
                    let random = Element::of("backend", "/dev/urandom").attr("model", "random");
                    devices.push(Element::carried(part).with(random));
                }
                // Reachable from the host alone, regardless of the source.
                "graphics" => {
                    let listen = Element::new("listen").attr("type", "address").attr("address", "127.0.0.1");
                    devices.push(Element::carried(part).set("autoport", "yes").with(listen));
                }
                "console" if target("type") == Some("virtio") => {
                    devices.push(Element::carried(part).attr("type", "pty"));
                }
                "channel" if target("type") != Some("virtio") || target("name") == Some(AGENT) => {}
                "channel" if part.attribute("type") == Some("unix") || has_spice => {
                    devices.push(Element::carried(part));
                }
                _ => {}
            }
        }
        devices
    }

    /// Each one's place in the boot order: the source's own order of devices, or that of their kinds.
    pub(super) fn boot_rank(self, device: &HardwareElement) -> Option<u32> {
        let own = |part: &HardwareElement| {
            part.part("boot")
                .and_then(|boot| boot.attribute("order"))
                .and_then(|order| order.parse::<u32>().ok())
        };
        if self.part.devices("disk").chain(self.part.devices("interface")).any(|part| own(part).is_some()) {
            return own(device);
        }
        let kind = match (device.name.as_str(), device.attribute("device")) {
            ("interface", _) => "network",
            (_, Some("cdrom")) => "cdrom",
            (_, Some("floppy")) => "fd",
            _ => "hd",
        };
        let listed =
            self.part.part("os")?.parts("boot").position(|boot| boot.attribute("dev") == Some(kind))?;
        u32::try_from(listed).ok()
    }
}
