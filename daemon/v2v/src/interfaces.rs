//! The names of a Linux guest's network interfaces, and the files that keep them. Pure.
//!
//! The name comes from an interface's place on the PCI bus, and the target has other places. A name that
//! changes leaves the guest without its addresses.
//!
//! Rule: a name is kept only where it is certain which interface it belongs to: the plan says so, the guest's
//! configuration names the MAC beside it, or there is one interface and one configured name. A wrong name is
//! worse than none: the guest would answer in the wrong network.

use std::collections::{BTreeMap, BTreeSet};

use warmd_core::model::{conversion::is_interface, machine::Nic};

/// A file of the guest's network configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigFile {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// The folders with the network configuration of the known distributions.
pub(crate) const FOLDERS: [&str; 8] = [
    "/etc/network/interfaces.d",
    "/etc/sysconfig/network-scripts",
    "/etc/sysconfig/network",
    "/etc/NetworkManager/system-connections",
    "/etc/netplan",
    "/etc/systemd/network",
    "/etc/udev/rules.d",
    "/run/netplan",
];
/// The same of single files.
pub(crate) const FILES: [&str; 1] = ["/etc/network/interfaces"];

/// What is known of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// By MAC in lower case.
    pub(crate) kept: BTreeMap<String, String>,
    /// Names that the guest configures, and whose interface is not known.
    pub(crate) unknown: Vec<String>,
}

/// The names by the plan and by the guest's configuration.
pub(crate) fn names(planned: &BTreeMap<String, String>, nics: &[Nic], files: &[ConfigFile]) -> Names {
    let (mut by_mac, mut configured) = (BTreeMap::new(), BTreeSet::new());
    for file in files {
        for (name, mac) in read(file) {
            if !is_interface(&name) || is_virtual(&name) {
                continue;
            }
            if let Some(mac) = mac {
                by_mac.insert(mac.to_ascii_lowercase(), name.clone());
            }
            configured.insert(name);
        }
    }
    by_mac.extend(planned.iter().map(|(mac, name)| (mac.to_ascii_lowercase(), name.clone())));
    let macs: Vec<_> = nics.iter().map(|nic| nic.mac.to_ascii_lowercase()).collect();
    let mut kept: BTreeMap<_, _> =
        macs.iter().filter_map(|mac| Some((mac.clone(), by_mac.get(mac)?.clone()))).collect();
    let mut unknown: Vec<_> =
        configured.into_iter().filter(|name| !kept.values().any(|kept| kept == name)).collect();
    if let ([mac], [name]) = (macs.as_slice(), unknown.as_slice())
        && kept.is_empty()
    {
        kept.insert(mac.clone(), name.clone());
        unknown.clear();
    }
    Names { kept, unknown }
}

/// Interfaces that software makes.
fn is_virtual(name: &str) -> bool {
    ["bond", "br", "veth", "docker", "virbr", "tun", "tap", "vlan", "team", "dummy", "wg", "vxlan"]
        .iter()
        .any(|kind| name.starts_with(kind))
        || name.contains('.')
}

/// The names in a file, with the MAC where the file has it.
fn read(file: &ConfigFile) -> Vec<(String, Option<String>)> {
    let (path, text) = (file.path.as_str(), file.text.as_str());
    if path.starts_with("/etc/network/interfaces") {
        interfaces(text)
    } else if let Some(name) = path.strip_prefix("/etc/sysconfig/").and_then(|_| path.rsplit_once("/ifcfg-"))
    {
        ifcfg(name.1, text)
    } else if path.contains("/NetworkManager/") || path.ends_with(".network") {
        keyed(text, &["interface-name", "Name"], &["mac-address", "MACAddress"])
    } else if path.contains("/netplan/") {
        netplan(text)
    } else if path.contains("/udev/rules.d/") {
        text.lines().filter_map(udev).collect()
    } else {
        Vec::new()
    }
}

/// Debian's `iface NAME inet …`, with `hwaddress` in its lines.
fn interfaces(text: &str) -> Vec<(String, Option<String>)> {
    let mut all: Vec<(String, Option<String>)> = Vec::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["iface", name, ..] => all.push(((*name).to_owned(), None)),
            ["hwaddress", "ether", mac] | ["hwaddress", mac] => {
                if let Some(last) = all.last_mut() {
                    last.1 = Some((*mac).to_owned());
                }
            }
            _ => {}
        }
    }
    all
}

/// Red Hat's and SUSE's `ifcfg-NAME`.
fn ifcfg(file: &str, text: &str) -> Vec<(String, Option<String>)> {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['"', '\'', ' ']).to_owned()).filter(|value| !value.is_empty())
    };
    let name = value("DEVICE").unwrap_or_else(|| file.to_owned());
    vec![(name, value("HWADDR"))]
}

/// A file of `key=value` lines about one interface.
fn keyed(text: &str, names: &[&str], macs: &[&str]) -> Vec<(String, Option<String>)> {
    let value = |keys: &[&str]| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            keys.contains(&key.trim()).then(|| value.trim().to_owned())
        })
    };
    value(names).map(|name| (name, value(macs))).into_iter().collect()
}

/// Netplan's `ethernets:`, by the indentation of its lines. An entry that matches a MAC and sets no name
/// does not depend on the name.
fn netplan(text: &str) -> Vec<(String, Option<String>)> {
    struct Entry {
        name: String,
        mac: Option<String>,
        set_name: Option<String>,
    }
    let mut all: Vec<Entry> = Vec::new();
    let (mut section, mut depth) = (None, None);
    for line in text.lines() {
        let body = line.trim_start();
        if body.is_empty() || body.starts_with('#') {
            continue;
        }
        let indent = line.len() - body.len();
        let (key, value) = body.split_once(':').unwrap_or((body, ""));
        let value = value.trim().trim_matches(['"', '\'']);
        if section.is_some_and(|section| indent <= section) {
            (section, depth) = (None, None);
        }
        if key == "ethernets" {
            section = Some(indent);
        } else if section.is_some() && depth.is_none_or(|depth| indent == depth) {
            depth = Some(indent);
            let name = key.trim_matches(['"', '\'']).to_owned();
            all.push(Entry { name, mac: None, set_name: None });
        } else if section.is_some()
            && let Some(entry) = all.last_mut()
        {
            match key {
                "macaddress" if !value.is_empty() => entry.mac = Some(value.to_owned()),
                "set-name" => entry.set_name = Some(value.to_owned()),
                _ => {}
            }
        }
    }
    all.into_iter()
        .filter_map(|entry| match (entry.mac, entry.set_name) {
            (None, set_name) => Some((set_name.unwrap_or(entry.name), None)),
            (Some(mac), Some(name)) => Some((name, Some(mac))),
            (Some(_), None) => None,
        })
        .collect()
}

/// The rules that older systems keep names with.
fn udev(line: &str) -> Option<(String, Option<String>)> {
    let value = |key: &str| {
        let rest = &line[line.find(key)? + key.len()..];
        Some(rest.split_once('"')?.0.to_owned())
    };
    if line.trim_start().starts_with('#') {
        return None;
    }
    Some((value("NAME=\"")?, Some(value("ATTR{address}==\"")?)))
}

/// The path and text of the file that keeps a name, for systemd.
pub(crate) fn link(mac: &str, name: &str) -> (String, String) {
    // Before systemd's own, which begin with 99, and the administrator's usual numbers.
    let path = format!("/etc/systemd/network/10-warmd-{name}.link");
    (path, format!("[Match]\nMACAddress={mac}\n[Link]\nName={name}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: &str = "00:50:56:AB:00:01";

    fn nics(macs: &[&str]) -> Vec<Nic> {
        let nic =
            |mac: &&str| Nic { mac: (*mac).to_owned(), network: "x".to_owned(), model: "vmxnet3".to_owned() };
        macs.iter().map(nic).collect()
    }

    fn file(path: &str, text: &str) -> ConfigFile {
        ConfigFile { path: path.to_owned(), text: text.to_owned() }
    }

    fn of(macs: &[&str], files: &[ConfigFile]) -> Names {
        names(&BTreeMap::new(), &nics(macs), files)
    }

    #[test]
    fn one_interface_keeps_the_one_name_of_any_configuration() {
        for (path, text) in [
            (
                "/etc/network/interfaces",
                "auto lo\niface lo inet loopback\nauto ens192\niface ens192 inet static\n address 192.0.2.7/24\n",
            ),
            ("/etc/sysconfig/network-scripts/ifcfg-ens192", "BOOTPROTO=none\nDEVICE=\"ens192\"\n"),
            ("/etc/sysconfig/network/ifcfg-ens192", "BOOTPROTO='static'\n"),
            (
                "/etc/NetworkManager/system-connections/a.nmconnection",
                "[connection]\ninterface-name=ens192\n",
            ),
            ("/etc/systemd/network/10-a.network", "[Match]\nName=ens192\n"),
            (
                "/etc/netplan/50.yaml",
                "network:\n  ethernets:\n    ens192:\n      dhcp4: true\n  version: 2\n",
            ),
        ] {
            let found =
                of(&[MAC], &[file(path, text), file("/etc/network/interfaces.d/x", "iface br0 inet dhcp")]);
            let wanted = [(MAC.to_ascii_lowercase(), "ens192".to_owned())].into();
            assert_eq!(found, Names { kept: wanted, unknown: vec![] }, "{path}");
        }
    }

    #[test]
    fn of_several_only_those_with_a_mac_are_known() {
        let other = "00:50:56:ab:00:02";
        let files = [
            file("/etc/sysconfig/network-scripts/ifcfg-ens192", "HWADDR=00:50:56:ab:00:01\n"),
            file("/etc/sysconfig/network-scripts/ifcfg-ens224", "DEVICE=ens224\n"),
            file("/etc/sysconfig/network-scripts/ifcfg-lo", "DEVICE=lo\n"),
        ];
        let found = of(&[MAC, other], &files);
        assert_eq!(found.kept, [(MAC.to_ascii_lowercase(), "ens192".to_owned())].into());
        assert_eq!(found.unknown, ["ens224"], "whose it is must not be guessed");
        let planned = [(other.to_owned(), "ens224".to_owned())].into();
        let found = names(&planned, &nics(&[MAC, other]), &files);
        assert_eq!((found.kept.len(), found.unknown.len()), (2, 0));
        // A MAC that the machine does not have gets no name.
        assert!(of(&[], &files).kept.is_empty());
    }

    #[test]
    fn macs_in_other_notations_are_found() {
        let rule = "# PCI device\nSUBSYSTEM==\"net\", ATTR{address}==\"00:50:56:ab:00:01\", KERNEL==\"eth*\", NAME=\"eth0\"";
        for (path, text, name) in [
            ("/etc/udev/rules.d/70-persistent-net.rules", rule, "eth0"),
            ("/etc/network/interfaces", "iface eth0 inet dhcp\n hwaddress ether 00:50:56:ab:00:01\n", "eth0"),
            (
                "/etc/netplan/a.yaml",
                "network:\n ethernets:\n  lan:\n   match:\n    macaddress: \"00:50:56:ab:00:01\"\n   set-name: lan0\n",
                "lan0",
            ),
            (
                "/etc/NetworkManager/system-connections/a",
                "[connection]\ninterface-name=eth0\n[ethernet]\nmac-address=00:50:56:AB:00:01\n",
                "eth0",
            ),
        ] {
            let found = of(&[MAC, "00:50:56:ab:00:02"], &[file(path, text)]);
            assert_eq!(found.kept.get(&MAC.to_ascii_lowercase()).map(String::as_str), Some(name), "{path}");
        }
        let by_mac = "network:\n ethernets:\n  a:\n   match: {}\n   macaddress: 00:50:56:ab:00:01\n";
        assert_eq!(of(&[MAC], &[file("/etc/netplan/a.yaml", by_mac)]), Names::default());
    }

    #[test]
    fn names_that_no_interface_has_are_left_out() {
        let text =
            "iface ../../x inet dhcp\niface eth0.7 inet dhcp\niface bond0 inet dhcp\niface a;b inet dhcp\n";
        assert_eq!(of(&[MAC], &[file("/etc/network/interfaces", text)]), Names::default());
        let (path, text) = link("00:50:56:ab:00:01", "ens192");
        assert_eq!(path, "/etc/systemd/network/10-warmd-ens192.link");
        assert_eq!(text, "[Match]\nMACAddress=00:50:56:ab:00:01\n[Link]\nName=ens192\n");
    }
}
