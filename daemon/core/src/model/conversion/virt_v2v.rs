//! The settings of a conversion by virt-v2v.
//!
//! Rule: a key is named by its file, never written into a plan; every value becomes one argument of a program
//! or one line of a file, and is checked for that before.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{an_hour, is_mac};
use crate::model::plan::duration;

/// The longest name of an interface that Linux takes, in bytes.
const LONGEST_INTERFACE: usize = 15;

/// How virt-v2v converts a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtV2v {
    /// The file system that the guest boots from, where it has several systems: `single` (it must have one),
    /// `first`, or a device as virt-v2v names it.
    #[serde(default = "single", skip_serializing_if = "is_single")]
    pub root: String,
    /// The files with the keys of encrypted disks, by device, UUID, or `all`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, PathBuf>,
    /// Scripts of the daemon's host that run at the guest's first start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_boot: Vec<PathBuf>,
    /// The names that network interfaces keep in a Linux guest, by MAC; others are read from the guest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub interfaces: BTreeMap<String, String>,
    /// The addresses that network interfaces keep in a Windows guest, by MAC:
    /// `ADDRESS[,GATEWAY[,PREFIX[,NAMESERVER…]]]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<String, String>,
    /// How long it may take.
    #[serde(with = "duration", default = "an_hour")]
    pub timeout: Duration,
}

impl Default for VirtV2v {
    fn default() -> Self {
        Self {
            root: single(),
            keys: BTreeMap::new(),
            first_boot: Vec::new(),
            interfaces: BTreeMap::new(),
            addresses: BTreeMap::new(),
            timeout: an_hour(),
        }
    }
}

fn single() -> String {
    "single".to_owned()
}

#[allow(clippy::ptr_arg, reason = "serde passes the field")]
fn is_single(root: &String) -> bool {
    root == "single"
}

impl VirtV2v {
    /// The problems of the settings as written; `name` is their name in the plan.
    pub(super) fn problems(&self, name: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let is_device = self.root.starts_with("/dev/") && is_plain(&self.root);
        if !is_device && !["single", "first"].contains(&self.root.as_str()) {
            problems.push(format!(
                "`{name}.root` is {:?}: write \"single\", \"first\", or the device of the file system, such as \
                 \"/dev/sda2\"",
                self.root
            ));
        }
        for (device, file) in &self.keys {
            if device.is_empty() || !is_plain(device) || device.contains(':') {
                problems.push(format!(
                    "`{name}.keys` names {device:?}: write a device such as \"/dev/sda2\", a UUID, or \"all\""
                ));
            }
            if !file.is_absolute() || !file.to_str().is_some_and(|file| is_plain(file) && !file.contains(':'))
            {
                problems.push(format!(
                    "`{name}.keys` has {}: write the absolute path of a file, without blanks and colons",
                    file.display()
                ));
            }
        }
        for script in self.first_boot.iter().filter(|script| !script.is_absolute()) {
            problems.push(format!(
                "`{name}.first_boot` has {}: write the absolute path of a script",
                script.display()
            ));
        }
        for mac in self.interfaces.keys().chain(self.addresses.keys()).filter(|mac| !is_mac(mac)) {
            problems.push(format!("`{name}` has settings of {mac:?}, which is no MAC address"));
        }
        for interface in self.interfaces.values().filter(|interface| !is_interface(interface)) {
            problems.push(format!("`{name}.interfaces` has {interface:?}, which no interface can be called"));
        }
        let fits = |text: &str| text.chars().all(|char| char.is_ascii_hexdigit() || ".:,".contains(char));
        for address in self.addresses.values().filter(|address| address.is_empty() || !fits(address)) {
            problems.push(format!(
                "`{name}.addresses` has {address:?}: write \"ADDRESS,GATEWAY,PREFIX,NAMESERVER\", all after \
                 the address as needed"
            ));
        }
        problems
    }
}

/// Whether Linux takes it as an interface's name, and it is safe in a configuration file.
pub fn is_interface(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_INTERFACE
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && ![".", "..", "lo"].contains(&name)
}

/// Whether it is one word of printable characters.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_value_is_named() {
        let good: VirtV2v = toml::from_str(
            "root = \"/dev/sda2\"\nfirst_boot = [\"/etc/x\"]\nkeys = { all = \"/etc/k\" }\n\
             interfaces = { \"52:54:00:77:61:01\" = \"ens192\" }\n\
             addresses = { \"52:54:00:77:61:01\" = \"192.0.2.7,192.0.2.1,24\" }",
        )
        .unwrap();
        assert_eq!(good.problems("conversion"), Vec::<String>::new());
        assert_eq!(VirtV2v::default().problems("conversion"), Vec::<String>::new());
        for (text, why) in [
            ("root = \"sda2\"", "`conversion.root` is \"sda2\""),
            ("root = \"/dev/sda 2\"", "`conversion.root`"),
            ("root = \"ask\"", "`conversion.root`"),
            ("keys = { all = \"k\" }", "absolute path of a file"),
            ("keys = { all = \"/k:y\" }", "absolute path of a file"),
            ("keys = { \"a:key\" = \"/k\" }", "a UUID, or"),
            ("first_boot = [\"x\"]", "absolute path of a script"),
            ("interfaces = { x = \"eth0\" }", "no MAC address"),
            ("interfaces = { \"52:54:00:77:61:01\" = \"a b\" }", "no interface can be called"),
            ("interfaces = { \"52:54:00:77:61:01\" = \"a23456789-123456\" }", "no interface can be called"),
            ("interfaces = { \"52:54:00:77:61:01\" = \"lo\" }", "no interface can be called"),
            ("addresses = { \"52:54:00:77:61:01\" = \"dhcp\" }", "ADDRESS,GATEWAY"),
            ("addresses = { \"52:54:00:77:61:01\" = \"\" }", "ADDRESS,GATEWAY"),
        ] {
            let problems = toml::from_str::<VirtV2v>(text).unwrap().problems("conversion");
            assert!(problems.len() == 1 && problems[0].contains(why), "{text}: {problems:?}");
        }
        assert!(toml::from_str::<VirtV2v>("retries = 1").is_err());
    }
}
