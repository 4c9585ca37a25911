//! The differences between a running domain's hardware and its definition's. Pure.
//!
//! Rule: only carried parts are compared, because a target is made of them. Values that libvirt itself writes
//! differently into the running domain's definition are no difference.

use std::collections::{BTreeMap, BTreeSet};

use warmd_core::model::hardware::HardwareElement;

/// One device or setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) what: String,
    pub(crate) running: String,
    pub(crate) defined: String,
}

/// Settings that always differ: the processor of the running one is written out in full, its memory is
/// that of the balloon, its power-off is what a stop by warmd needs, and notes are no hardware.
const OWN: [&str; 5] = ["devices", "cpu", "currentMemory", "on_poweroff", "metadata"];

/// Values that an interface may have from its libvirt network while it runs.
const OF_NETWORK: [&str; 3] = ["vlan", "virtualport", "port"];

/// The same, without its isolation.
const GIVEN: [&str; 4] = ["@type", "@trustGuestRxFilters", "bandwidth", "mtu"];

/// All differences.
pub(crate) fn differences(running: &HardwareElement, defined: &HardwareElement) -> Vec<Difference> {
    let mut found = Vec::new();
    settings(running, defined, &mut found);
    let devices =
        |of: &HardwareElement| of.part("devices").map(|devices| devices.parts.clone()).unwrap_or_default();
    let (running, defined) = (grouped(&devices(running)), grouped(&devices(defined)));
    let places: BTreeSet<_> = running.keys().chain(defined.keys()).collect();
    for place in places {
        let of =
            |all: &BTreeMap<DeviceName, Vec<HardwareElement>>| all.get(place).cloned().unwrap_or_default();
        let (now, then) = (of(&running), of(&defined));
        match (place.0.as_str(), now.as_slice(), then.as_slice()) {
            // One that is in one of them alone is reported by its name, with its image or its network.
            ("disk" | "interface", [], _) | ("disk" | "interface", _, []) if is_told(place, &now, &then) => {}
            ("disk" | "interface", [now], [then]) => {
                // Whether it is a disk or a LUN depends on its image.
                let is_kept = |line: &String| !matches!(line.as_str(), "@device=disk" | "@device=lun");
                let of = |part| lines(part).into_iter().filter(is_kept).collect::<Vec<_>>();
                let (mut now, mut then) = (of(now), of(then));
                // A device without an address gets one.
                let is_place = |line: &String| line.starts_with("address/");
                if !(now.iter().any(is_place) && then.iter().any(is_place)) {
                    now.retain(|line| !is_place(line));
                    then.retain(|line| !is_place(line));
                }
                let now = if is_on_network(then.as_slice()) { without_given(now, &then) } else { now };
                push(&place.to_string(), &now, &then, &mut found);
            }
            _ => push(&place.to_string(), &whole(&now), &whole(&then), &mut found),
        }
    }
    found
}

/// The isolation of the running domain's interfaces that is missing in its definition: each interface, and
/// its isolation. A value that its libvirt network gives it belongs to the network, on both sides.
pub(crate) fn isolation_of_running_alone(
    running: &HardwareElement,
    defined: &HardwareElement,
) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for nic in running.devices("interface") {
        let Some(mac) = nic.mac() else { continue };
        let Some(kept) = defined.nic(mac) else { continue };
        let mut own = nic.clone();
        if is_on_network(&lines(kept)) {
            own.parts.retain(|part| !OF_NETWORK.contains(&part.name.as_str()));
        }
        let kept = kept.isolation();
        let lost: Vec<_> = own.isolation().into_iter().filter(|what| !kept.contains(what)).collect();
        if !lost.is_empty() {
            found.push((mac.to_owned(), lost));
        }
    }
    found
}

fn settings(running: &HardwareElement, defined: &HardwareElement, found: &mut Vec<Difference>) {
    let names: BTreeSet<_> =
        running.parts.iter().chain(&defined.parts).map(|part| part.name.as_str()).collect();
    let of = |all: &HardwareElement, name: &str| -> Vec<String> {
        // The guest's clock runs independently.
        let is_kept = |line: &String| !line.starts_with("@adjustment");
        all.parts(name).flat_map(lines).filter(is_kept).collect()
    };
    for name in names.into_iter().filter(|name| !OWN.contains(name)) {
        let is_there = |all: &HardwareElement| all.part(name).is_some();
        let mark = |all: &HardwareElement| if is_there(all) { vec!["there".to_owned()] } else { Vec::new() };
        if is_there(running) == is_there(defined) {
            push(name, &of(running, name), &of(defined, name), found);
        } else {
            push(name, &mark(running), &mark(defined), found);
        }
    }
}

/// Records the parts that one of them alone has.
fn push(what: &str, running: &[String], defined: &[String], found: &mut Vec<Difference>) {
    let (running, defined) = (without(running.to_vec(), defined), without(defined.to_vec(), running));
    if running.is_empty() && defined.is_empty() {
        return;
    }
    let words = |lines: Vec<String>| if lines.is_empty() { "none".to_owned() } else { lines.join(", ") };
    found.push(Difference { what: what.to_owned(), running: words(running), defined: words(defined) });
}

/// `lines` without those of `others`, each removed once.
fn without(mut lines: Vec<String>, others: &[String]) -> Vec<String> {
    for other in others {
        if let Some(at) = lines.iter().position(|line| line == other) {
            lines.remove(at);
        }
    }
    lines
}

/// A kind of device, and the name of one where it has any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DeviceName(String, String);

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(kind, name) = self;
        if name.is_empty() { f.write_str(kind) } else { write!(f, "{kind} {name}") }
    }
}

fn grouped(devices: &[HardwareElement]) -> BTreeMap<DeviceName, Vec<HardwareElement>> {
    let mut groups = BTreeMap::<_, Vec<HardwareElement>>::new();
    // Buses come and go with their devices.
    for device in devices.iter().filter(|device| !device.is_pci_bus()) {
        let name = match device.name.as_str() {
            "disk" => device.target().map(str::to_owned),
            "interface" => device.mac().map(str::to_ascii_lowercase),
            _ => None,
        };
        groups
            .entry(DeviceName(device.name.clone(), name.unwrap_or_default()))
            .or_default()
            .push(device.clone());
    }
    groups
}

/// Interfaces and disks are compared elsewhere; drives are not.
fn is_told(place: &DeviceName, now: &[HardwareElement], then: &[HardwareElement]) -> bool {
    let mut kinds = now.iter().chain(then).map(|device| device.attribute("device"));
    place.0 == "interface" || kinds.all(|kind| matches!(kind, None | Some("disk" | "lun")))
}

fn is_on_network(lines: &[String]) -> bool {
    lines.iter().any(|line| line == "@type=network")
}

/// Without the network's values.
fn without_given(lines: Vec<String>, defined: &[String]) -> Vec<String> {
    let is_given = |line: &String| {
        let has = |name: &str| defined.iter().any(|line| line.starts_with(name));
        GIVEN.iter().any(|name| line.starts_with(name) && (*name == "@type" || !has(name)))
    };
    let (given, mut own): (Vec<_>, Vec<_>) = lines.into_iter().partition(is_given);
    if given.iter().any(|line| line.starts_with("@type=")) {
        own.push("@type=network".to_owned());
    }
    own
}

/// Each device in one line.
fn whole(devices: &[HardwareElement]) -> Vec<String> {
    devices.iter().map(|device| lines(device).join(" ")).map(or_there).collect()
}

fn or_there(line: String) -> String {
    if line.is_empty() { "there".to_owned() } else { line }
}

/// All values of a part, one line each, in order of their names: `driver/@discard=unmap`, `serial=x`,
/// `readonly`.
fn lines(part: &HardwareElement) -> Vec<String> {
    let mut lines = Vec::new();
    add(part, "", &mut lines);
    lines.sort();
    lines
}

fn add(part: &HardwareElement, above: &str, lines: &mut Vec<String>) {
    let name = above.trim_end_matches('/');
    lines.extend(part.attributes.iter().map(|(key, value)| format!("{above}@{key}={value}")));
    if !part.text.is_empty() {
        lines.push(if name.is_empty() { part.text.clone() } else { format!("{name}={}", part.text) });
    }
    let is_bare = part.attributes.is_empty() && part.text.is_empty() && part.parts.is_empty();
    if is_bare && !name.is_empty() {
        lines.push(name.to_owned());
    }
    for child in &part.parts {
        add(child, &format!("{above}{}/", child.name), lines);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sort, *};

    fn carried(rest: &str, devices: &str) -> HardwareElement {
        sort(&format!("<domain type='kvm'>{rest}<devices>{devices}</devices></domain>")).unwrap().carried
    }

    fn told(running: (&str, &str), defined: (&str, &str)) -> Vec<String> {
        let found = differences(&carried(running.0, running.1), &carried(defined.0, defined.1));
        found.into_iter().map(|one| format!("{}: {} | {}", one.what, one.running, one.defined)).collect()
    }

    const DISK: &str = "<disk type='file' device='disk'><driver name='qemu' type='raw' discard='unmap'/>\
        <target dev='vda' bus='virtio'/><serial>a</serial></disk>";
    const NIC: &str =
        "<interface type='network'><mac address='52:54:00:AA:00:01'/><source network='lan'/></interface>";

    #[test]
    fn what_libvirt_writes_otherwise_while_it_runs_is_no_difference() {
        let running = "<currentMemory unit='KiB'>1</currentMemory><cpu mode='custom'><model>EPYC</model></cpu>\
            <clock offset='variable' adjustment='7' basis='utc'/><on_poweroff>destroy</on_poweroff>";
        let defined = "<currentMemory unit='KiB'>2</currentMemory><cpu mode='host-model'/>\
            <clock offset='variable' adjustment='0' basis='utc'/><on_poweroff>restart</on_poweroff>";
        let live = "<interface type='bridge'><mac address='52:54:00:AA:00:01'/>\
            <source network='lan' portid='x' bridge='virbr0'/><target dev='vnet0'/><mtu size='9000'/>\
            <alias name='net0'/><address type='pci' slot='0x03'/></interface>";
        assert_eq!(told((running, &(DISK.to_owned() + live)), (defined, &(DISK.to_owned() + NIC))), [""; 0]);
    }

    #[test]
    fn an_interface_at_another_place_is_told() {
        let at = |slot: &str| {
            NIC.replace("</interface>", &format!("<address type='pci' slot='{slot}'/></interface>"))
        };
        let bus = "<controller type='pci' index='1' model='pcie-root-port'/>";
        assert_eq!(told(("", &(at("0x03") + bus)), ("", &at("0x03"))), [""; 0]);
        assert_eq!(
            told(("", &at("0x03")), ("", &at("0x04"))),
            ["interface 52:54:00:aa:00:01: address/@slot=0x03 | address/@slot=0x04"]
        );
    }

    #[test]
    fn each_carried_device_and_setting_is_compared() {
        let other = DISK.replace("unmap", "ignore").replace("<serial>a</serial>", "<readonly/>");
        let drive = "<disk type='file' device='cdrom'><target dev='sda'/></disk>";
        let running =
            ("<pm><suspend-to-mem enabled='no'/></pm>", &*(DISK.to_owned() + "<rng model='virtio'/>"));
        let defined =
            ("<on_crash>restart</on_crash>", &*(other + drive + "<video><model type='vga'/></video>"));
        assert_eq!(
            told(running, defined),
            [
                "on_crash: none | there",
                "pm: there | none",
                "disk sda: none | @device=cdrom target/@dev=sda",
                "disk vda: driver/@discard=unmap, serial=a | driver/@discard=ignore, readonly",
                "rng: @model=virtio | none",
                "video: none | model/@type=vga",
            ]
        );
    }

    #[test]
    fn isolation_of_the_running_vm_alone_is_found() {
        let apart = |inside: &str| NIC.replace("</interface>", &format!("{inside}</interface>"));
        let of = |running: &str, defined: &str| {
            isolation_of_running_alone(&carried("", running), &carried("", defined))
        };
        let guarded = apart("<filterref filter='clean'/><link state='down'/>");
        let found = of(&guarded, NIC);
        let words = ["the network filter \"clean\"", "a link that is down"].map(str::to_owned).to_vec();
        assert_eq!(found, [("52:54:00:AA:00:01".to_owned(), words)]);
        assert!(of(NIC, &guarded).is_empty() && of(&guarded, &guarded).is_empty());
        // On a libvirt network it belongs to the network; elsewhere to the interface.
        let tagged = apart("<vlan><tag id='7'/></vlan>");
        assert!(of(&tagged, NIC).is_empty());
        assert_eq!(told(("", &tagged), ("", NIC)), ["interface 52:54:00:aa:00:01: vlan/tag/@id=7 | none"]);
        let bridged = |text: &str| text.replace("type='network'", "type='bridge'");
        assert_eq!(of(&bridged(&tagged), &bridged(NIC)).len(), 1);
    }
}
