//! Hardware that the platform-neutral machine cannot express, as a small tree in the terms of its source.
//!
//! Rule: the tree contains only what the source's table of hardware carries (never a raw text), and the
//! writer escapes it. A target that does not know these terms reports what it loses.

use serde::{Deserialize, Serialize};

/// An element with attributes, a text and children; of the kind `libvirt`, with the root `domain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HardwareElement {
    pub name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(String, String)>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<HardwareElement>,
}

impl HardwareElement {
    /// The root's attribute that carries the plan's consent to lose isolation to the target.
    pub const WAIVED: &str = "waived";

    /// Whether a network interface may be created without its isolation.
    pub fn waives_isolation(&self) -> bool {
        self.attribute(Self::WAIVED) == Some("isolation-lost")
    }

    /// The first child of that name.
    pub fn part(&self, name: &str) -> Option<&Self> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// All children of that name.
    pub fn parts<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.parts.iter().filter(move |part| part.name == name)
    }

    /// An attribute's value.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The children of its `devices` that have that name.
    pub fn devices<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.part("devices").into_iter().flat_map(move |devices| devices.parts(name))
    }

    /// The disk, CD-ROM or floppy with that name on the machine.
    pub fn disk(&self, target: &str) -> Option<&Self> {
        self.devices("disk").find(|disk| disk.target() == Some(target))
    }

    /// The network interface with that address.
    pub fn nic(&self, mac: &str) -> Option<&Self> {
        self.devices("interface").find(|nic| nic.mac().is_some_and(|own| own.eq_ignore_ascii_case(mac)))
    }

    /// Of a disk: its name on the machine.
    pub fn target(&self) -> Option<&str> {
        self.part("target")?.attribute("dev")
    }

    /// Of a network interface: its address.
    pub fn mac(&self) -> Option<&str> {
        self.part("mac")?.attribute("address")
    }

    /// Whether it is a PCI controller: a bus, which belongs to the machine.
    pub fn is_pci_bus(&self) -> bool {
        self.name == "controller" && self.attribute("type") == Some("pci")
    }

    /// The settings that isolate this network interface from others, in words; empty if there are none.
    pub fn isolation(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(filter) = self.part("filterref").and_then(|filter| filter.attribute("filter")) {
            found.push(format!("the network filter {filter:?}"));
        }
        if self.part("vlan").is_some() {
            found.push("a VLAN".to_owned());
        }
        if self.part("port").and_then(|port| port.attribute("isolated")) == Some("yes") {
            found.push("an isolated port".to_owned());
        }
        if self.part("virtualport").is_some() {
            found.push("a virtual port".to_owned());
        }
        if self.part("link").and_then(|link| link.attribute("state")) == Some("down") {
            found.push("a link that is down".to_owned());
        }
        if let Some(group) = self.part("source").and_then(|source| source.attribute("portgroup")) {
            found.push(format!("the port group {group:?}"));
        }
        found
    }

    /// Its content besides disks' and interfaces' own entries, for a user who loses it: one line for each
    /// device and setting.
    pub fn summary(&self) -> Vec<String> {
        let mut found = Vec::new();
        for part in self.parts.iter().filter(|part| part.name != "metadata") {
            if part.name == "devices" {
                found.extend(part.parts.iter().filter_map(Self::device_in_words));
            } else {
                found.push(part.name.clone());
            }
        }
        found.dedup();
        found
    }

    fn device_in_words(&self) -> Option<String> {
        let of = |part: &str, attribute: &str| self.part(part).and_then(|part| part.attribute(attribute));
        if self.is_pci_bus() {
            return None;
        }
        let name = match self.name.as_str() {
            "disk" => of("target", "dev"),
            "interface" => of("mac", "address"),
            "video" => of("model", "type"),
            _ => self.attribute("model").or_else(|| self.attribute("type")),
        };
        let own: Vec<_> = self
            .parts
            .iter()
            .map(|part| part.name.as_str())
            .filter(|part| !matches!(*part, "target" | "mac" | "source" | "model" | "driver" | "address"))
            .collect();
        let is_plain = matches!(self.name.as_str(), "disk" | "interface") && own.is_empty();
        // A drive without a medium is nevertheless a missing device.
        if is_plain && matches!(self.attribute("device"), None | Some("disk" | "lun")) {
            return None;
        }
        let mut words =
            self.attribute("device").filter(|device| *device != "disk").unwrap_or(&self.name).to_owned();
        if let Some(name) = name {
            words = format!("{words} {name}");
        }
        if matches!(self.name.as_str(), "disk" | "interface") && !own.is_empty() {
            words = format!("{words} ({})", own.join(", "));
        }
        Some(words)
    }
}
