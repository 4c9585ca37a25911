//! The other end of an interface here, and the isolation that it supports.
//!
//! Rule: libvirt ignores a VLAN or a virtual port that the other end does not support, or fails at the start:
//! so only an end that is known to support it counts.

use std::path::Path;

use super::{domain::NicConnection, networks::Definitions};
use crate::libvirt::{
    LibvirtClient, LibvirtError,
    xml::{self, XmlError},
};

/// From this libvirt on, bridges of Linux keep VLANs, if they filter them.
const FILTERS_VLANS: (u32, u32) = (11, 0);

/// The other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NetworkAttachment {
    /// A bridge of Linux, and whether it keeps VLANs.
    Bridge {
        vlans: bool,
    },
    OpenVSwitch,
    /// A function of a network card that becomes the guest's (SR-IOV), or a macvtap device that uses one.
    Function,
    /// Another device straight on a network card: macvtap.
    Direct,
}

impl NetworkAttachment {
    /// The link's other end; `None` for QEMU's own network.
    pub(super) async fn of(
        libvirt: &LibvirtClient,
        definitions: &mut Definitions,
        link: &NicConnection,
    ) -> Result<Option<Self>, LibvirtError> {
        let known = match link {
            NicConnection::User => return Ok(None),
            NicConnection::Bridge(name) => Found::Bridge(Some(name.clone())),
            NicConnection::Network(name) => {
                let text = definitions.of(name, || libvirt.network_xml(name)).await?;
                read(text).map_err(|error| LibvirtError::malformed("net-dumpxml", error))?
            }
        };
        Ok(Some(match known {
            Found::Is(wire) => wire,
            Found::Bridge(name) => {
                let filters = name.is_some_and(|name| filters_vlans(Path::new("/sys/class/net"), &name));
                Self::Bridge { vlans: filters && is_new(libvirt.version().await?.1) }
            }
        }))
    }

    /// Whether it keeps a VLAN tag.
    pub(super) fn keeps_vlan(&self) -> bool {
        match self {
            Self::Bridge { vlans } => *vlans,
            Self::OpenVSwitch | Self::Function => true,
            Self::Direct => false,
        }
    }

    /// Whether it has virtual ports of that type; an interface that names none uses its network's.
    pub(super) fn keeps_virtual_port(&self, kind: Option<&str>) -> bool {
        match self {
            Self::Bridge { .. } => false,
            Self::OpenVSwitch => kind.is_none_or(|kind| kind == OPEN_V_SWITCH),
            Self::Function | Self::Direct => kind.is_some_and(|kind| kind.starts_with("802.1")),
        }
    }

    /// Whether its ports can be isolated from each other.
    pub(super) fn isolates_ports(&self) -> bool {
        matches!(self, Self::Bridge { .. })
    }

    /// For messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Bridge { vlans: true } => "a Linux bridge",
            Self::Bridge { vlans: false } => "a Linux bridge that filters no VLANs for libvirt",
            Self::OpenVSwitch => "Open vSwitch",
            Self::Function => "a network card's function",
            Self::Direct => "a network card (macvtap)",
        }
    }
}

const OPEN_V_SWITCH: &str = "openvswitch";

/// The content of a network's definition.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Is(NetworkAttachment),
    /// A bridge of Linux; which one, if it is known.
    Bridge(Option<String>),
}

fn read(text: &str) -> Result<Found, XmlError> {
    let document = xml::parse(text, "network")?;
    let root = document.root_element();
    let attribute =
        |element: &str, name: &str| xml::child(root, element).and_then(|element| element.attribute(name));
    if attribute("virtualport", "type") == Some(OPEN_V_SWITCH) {
        return Ok(Found::Is(NetworkAttachment::OpenVSwitch));
    }
    let bridge = attribute("bridge", "name").map(str::to_owned);
    Ok(match (attribute("forward", "mode"), bridge) {
        (Some("hostdev" | "passthrough"), _) => Found::Is(NetworkAttachment::Function),
        (Some("bridge" | "private" | "vepa"), None) => Found::Is(NetworkAttachment::Direct),
        (_, bridge) => Found::Bridge(bridge),
    })
}

/// Whether the bridge filters VLANs, by the kernel's files below `devices`.
fn filters_vlans(devices: &Path, name: &str) -> bool {
    !name.contains('/')
        && std::fs::read_to_string(devices.join(name).join("bridge/vlan_filtering"))
            .is_ok_and(|on| on.trim() == "1")
}

/// Whether this version of libvirt has its bridges filter VLANs.
fn is_new(version: (u32, u32)) -> bool {
    version >= FILTERS_VLANS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_say_what_they_lead_to() {
        let of = |inside: &str| read(&format!("<network><name>n</name>{inside}</network>")).unwrap();
        let bridge = |name: &str| Found::Bridge(Some(name.to_owned()));
        assert_eq!(of("<forward mode='nat'/><bridge name='virbr0'/>"), bridge("virbr0"));
        assert_eq!(of("<bridge name='virbr1'/>"), bridge("virbr1"));
        assert_eq!(of("<forward mode='bridge'/><bridge name='br0'/>"), bridge("br0"));
        let open = "<forward mode='bridge'/><bridge name='ovs'/><virtualport type='openvswitch'/>";
        assert_eq!(of(open), Found::Is(NetworkAttachment::OpenVSwitch));
        assert_eq!(
            of("<forward mode='hostdev'><pf dev='eth0'/></forward>"),
            Found::Is(NetworkAttachment::Function)
        );
        let direct = "<forward mode='bridge'><interface dev='eth0'/></forward>";
        assert_eq!(of(direct), Found::Is(NetworkAttachment::Direct));
        assert_eq!(of(""), Found::Bridge(None));
        assert!(read("noise").is_err());
    }

    #[test]
    fn each_keeps_apart_what_it_can() {
        let (plain, filtering) =
            (NetworkAttachment::Bridge { vlans: false }, NetworkAttachment::Bridge { vlans: true });
        assert!(!plain.keeps_vlan() && filtering.keeps_vlan() && !NetworkAttachment::Direct.keeps_vlan());
        assert!(NetworkAttachment::OpenVSwitch.keeps_vlan() && NetworkAttachment::Function.keeps_vlan());
        let open = Some(OPEN_V_SWITCH);
        assert!(!filtering.keeps_virtual_port(open) && !filtering.keeps_virtual_port(None));
        assert!(
            NetworkAttachment::OpenVSwitch.keeps_virtual_port(open)
                && NetworkAttachment::OpenVSwitch.keeps_virtual_port(None)
        );
        assert!(
            NetworkAttachment::Direct.keeps_virtual_port(Some("802.1Qbg"))
                && !NetworkAttachment::Direct.keeps_virtual_port(open)
        );
        assert!(plain.isolates_ports() && !NetworkAttachment::OpenVSwitch.isolates_ports());
    }

    #[test]
    fn a_bridge_of_linux_keeps_vlans_if_both_it_and_libvirt_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("br0/bridge/vlan_filtering");
        assert!(!filters_vlans(dir.path(), "br0"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "0\n").unwrap();
        assert!(!filters_vlans(dir.path(), "br0"));
        std::fs::write(&file, "1\n").unwrap();
        assert!(filters_vlans(dir.path(), "br0") && !filters_vlans(dir.path(), "../br0"));
        assert!(is_new((11, 0)) && !is_new((9, 0)) && !is_new((10, 10)));
    }
}
