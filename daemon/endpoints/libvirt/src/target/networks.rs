//! The target's connections for a machine's NICs.

use std::{collections::BTreeMap, path::Path};

use warmd_core::model::machine::Nic;

use super::domain::NicConnection;
use crate::libvirt::{LibvirtClient, LibvirtError, LibvirtErrorKind, Network};

/// The name by which plans, and sources that have it, mean QEMU's own user-mode network.
const USER: &str = "user";

/// The target's networks.
#[derive(Debug, Default)]
pub(super) struct Networks {
    active: Vec<String>,
    inactive: Vec<String>,
}

/// The networks' XMLs that were read: each once for all interfaces.
#[derive(Debug, Default)]
pub(super) struct Definitions(BTreeMap<String, String>);

impl Definitions {
    /// The XML of the network `name`, by `ask` if it is not known yet.
    pub(super) async fn of<F: Future<Output = Result<String, LibvirtError>>>(
        &mut self,
        name: &str,
        ask: impl FnOnce() -> F,
    ) -> Result<&str, LibvirtError> {
        if !self.0.contains_key(name) {
            let text = ask().await?;
            self.0.insert(name.to_owned(), text);
        }
        Ok(self.0.get(name).map(String::as_str).unwrap_or_default())
    }
}

/// Why a NIC cannot be connected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum NetworkMissing {
    #[error("the network {0:?} is defined and not active: `virsh net-start` it")]
    Inactive(String),
    #[error(
        "no network or bridge {wanted:?} is here: map it in the plan's [networks], or make it; active networks are: \
         {known}"
    )]
    Unknown { wanted: String, known: String },
}

impl Networks {
    /// Asks libvirt; one without a network driver has none.
    pub(super) async fn list(libvirt: &LibvirtClient) -> Result<Self, LibvirtError> {
        let networks = match libvirt.networks().await {
            Err(error) if error.kind == LibvirtErrorKind::Unsupported => Vec::new(),
            result => result?,
        };
        let (active, inactive): (Vec<_>, Vec<_>) = networks.into_iter().partition(|network| network.active);
        let names = |networks: Vec<Network>| networks.into_iter().map(|network| network.name).collect();
        Ok(Self { active: names(active), inactive: names(inactive) })
    }

    /// The active ones, for messages.
    pub(super) fn known(&self) -> String {
        if self.active.is_empty() { "none".to_owned() } else { self.active.join(", ") }
    }

    /// The connection of the NIC.
    pub(super) fn link(&self, nic: &Nic) -> Result<NicConnection, NetworkMissing> {
        self.link_or(nic, is_bridge)
    }

    fn link_or(&self, nic: &Nic, is_bridge: impl Fn(&str) -> bool) -> Result<NicConnection, NetworkMissing> {
        let wanted = &nic.network;
        if self.active.contains(wanted) {
            Ok(NicConnection::Network(wanted.clone()))
        } else if self.inactive.contains(wanted) {
            Err(NetworkMissing::Inactive(wanted.clone()))
        } else if is_bridge(wanted) {
            Ok(NicConnection::Bridge(wanted.clone()))
        } else if wanted == USER {
            Ok(NicConnection::User)
        } else {
            Err(NetworkMissing::Unknown { wanted: wanted.clone(), known: self.known() })
        }
    }
}

/// Whether this host has a bridge of that name. An invalid interface name never becomes part of a path.
fn is_bridge(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    (1..16).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(plain)
        && Path::new("/sys/class/net").join(name).join("bridge").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_network_is_asked_for_once() {
        let (mut definitions, asked) = (Definitions::default(), std::cell::Cell::new(0));
        let ask = || async {
            asked.set(asked.get() + 1);
            match asked.get() {
                1 => Err(LibvirtError::new(LibvirtErrorKind::Timeout, "net-dumpxml", "no answer")),
                nth => Ok(nth.to_string()),
            }
        };
        assert!(definitions.of("a", ask).await.is_err(), "a failure is not kept");
        for (name, text) in [("a", "2"), ("a", "2"), ("b", "3"), ("a", "2")] {
            assert_eq!(definitions.of(name, ask).await.unwrap(), text);
        }
    }

    #[test]
    fn links_are_found_or_say_what_to_do() {
        let networks = Networks { active: vec!["prod".into()], inactive: vec!["old".into()] };
        let link = |name: &str| {
            let nic = Nic { mac: String::new(), network: name.to_owned(), model: String::new() };
            networks.link_or(&nic, |name| name == "br0")
        };
        assert_eq!(link("prod"), Ok(NicConnection::Network("prod".into())));
        assert_eq!(link("br0"), Ok(NicConnection::Bridge("br0".into())));
        assert_eq!(link("user"), Ok(NicConnection::User));
        assert_eq!(link("old"), Err(NetworkMissing::Inactive("old".into())));
        assert!(link("none").unwrap_err().to_string().contains("prod"));
        for odd in ["", ".", "..", "../../etc", "a/b", "lo"] {
            assert!(!is_bridge(odd), "{odd}");
        }
    }
}
