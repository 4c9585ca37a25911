//! The isolation of a network interface, and whether the target supports it.
//!
//! Rule: an interface never comes up without its filter, port group, VLAN or virtual port unless the plan
//! allows it; libvirt itself ignores a port group that its network lacks.

use warmd_core::model::{hardware::HardwareElement, machine::Machine};

use super::{carried::ISOLATION, domain::NicConnection, networks::Definitions, wire::NetworkAttachment};
use crate::libvirt::{LibvirtClient, LibvirtError, xml};

/// An isolation of an interface that the target lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MissingIsolation {
    mac: String,
    /// The element of the interface that names it.
    element: &'static str,
    pub(super) found: String,
}

/// What libvirt has answered already: a network's definition and the list of filters are asked for once, for
/// all machines that are looked at together.
#[derive(Debug, Default)]
pub(super) struct IsolationQueries {
    definitions: Definitions,
    filters: Option<Vec<String>>,
}

/// The missing isolation of the machine's interfaces, which are connected by these links, in order.
pub(super) async fn lacks(
    libvirt: &LibvirtClient,
    machine: &Machine,
    links: &[NicConnection],
    asked: &mut IsolationQueries,
) -> Result<Vec<MissingIsolation>, LibvirtError> {
    let Some(hardware) = &machine.hardware else { return Ok(Vec::new()) };
    let mut lacks = Vec::new();
    for (nic, link) in machine.nics.iter().zip(links) {
        let Some(part) = hardware.nic(&nic.mac) else { continue };
        let mut lack = |element, what: &str| {
            let found = format!("interface {}: {what}", nic.mac);
            lacks.push(MissingIsolation { mac: nic.mac.clone(), element, found });
        };
        let has = |element: &str| part.part(element).is_some();
        let wire = if [VLAN, VIRTUAL_PORT, PORT].into_iter().any(has) {
            NetworkAttachment::of(libvirt, &mut asked.definitions, link).await?
        } else {
            None
        };
        for (element, what) in wire.iter().flat_map(|wire| unkept(part, wire)) {
            lack(element, &what);
        }
        if *link == NicConnection::User {
            for element in ISOLATION.into_iter().filter(|element| part.part(element).is_some()) {
                lack(element, &format!("QEMU's own network cannot keep its <{element}>"));
            }
            continue;
        }
        if let Some(name) = part.part("filterref").and_then(|filter| filter.attribute("filter")) {
            if asked.filters.is_none() {
                asked.filters = Some(libvirt.network_filters().await?);
            }
            if !asked.filters.iter().flatten().any(|known| known == name) {
                lack("filterref", &format!("the network filter {name:?} is not here"));
            }
        }
        if let Some(group) = part.part("source").and_then(|source| source.attribute("portgroup")) {
            let has = match link {
                NicConnection::Network(network) => {
                    let text = asked.definitions.of(network, || libvirt.network_xml(network)).await?;
                    has_port_group(text, group)?
                }
                NicConnection::Bridge(_) | NicConnection::User => false,
            };
            if !has {
                lack("source", &format!("{} has no port group {group:?}", nic.network));
            }
        }
    }
    Ok(lacks)
}

const VLAN: &str = "vlan";
const VIRTUAL_PORT: &str = "virtualport";
const PORT: &str = "port";

/// The isolation that this end does not keep.
fn unkept(nic: &HardwareElement, wire: &NetworkAttachment) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut lack = |element, what: &str| {
        let network = wire.name();
        found.push((element, format!("its {what} is not kept: its network here is {network}")));
    };
    if nic.part(VLAN).is_some() && !wire.keeps_vlan() {
        lack(VLAN, "VLAN tag");
    }
    if let Some(port) = nic.part(VIRTUAL_PORT)
        && !wire.keeps_virtual_port(port.attribute("type"))
    {
        lack(VIRTUAL_PORT, "virtual port");
    }
    let isolated = nic.part(PORT).is_some_and(|port| port.attribute("isolated") == Some("yes"));
    if isolated && !wire.isolates_ports() {
        lack(PORT, "isolated port");
    }
    found
}

/// The machine without the missing isolation, which the plan accepts.
pub(super) fn without(mut machine: Machine, lacks: &[MissingIsolation]) -> Machine {
    let devices = machine.hardware.iter_mut().flat_map(|hardware| &mut hardware.parts);
    for nic in devices.filter(|part| part.name == "devices").flat_map(|devices| &mut devices.parts) {
        let mac = nic.mac().map(str::to_owned);
        let is_lacked = |part: &HardwareElement| {
            lacks.iter().any(|lack| {
                part.name == lack.element
                    && mac.as_ref().is_some_and(|mac| mac.eq_ignore_ascii_case(&lack.mac))
            })
        };
        if nic.name == "interface" {
            nic.parts.retain(|part| !is_lacked(part));
        }
    }
    machine
}

fn has_port_group(text: &str, group: &str) -> Result<bool, LibvirtError> {
    let document =
        xml::parse(text, "network").map_err(|error| LibvirtError::malformed("net-dumpxml", error))?;
    let has = xml::children(document.root_element(), "portgroup")
        .any(|known| known.attribute("name") == Some(group));
    Ok(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_end_does_not_keep_is_named_once() {
        let part = |name: &str, attribute: Option<(&str, &str)>| HardwareElement {
            name: name.to_owned(),
            attributes: attribute
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into_iter()
                .collect(),
            ..HardwareElement::default()
        };
        let nic = |parts: Vec<HardwareElement>| HardwareElement { parts, ..part("interface", None) };
        let all = nic(vec![
            part("vlan", None),
            part("virtualport", Some(("type", "openvswitch"))),
            part("port", Some(("isolated", "yes"))),
        ]);
        let elements = |nic: &HardwareElement, wire: &NetworkAttachment| -> Vec<_> {
            unkept(nic, wire).into_iter().map(|(element, _)| element).collect()
        };
        assert_eq!(elements(&all, &NetworkAttachment::Bridge { vlans: false }), ["vlan", "virtualport"]);
        assert_eq!(elements(&all, &NetworkAttachment::Bridge { vlans: true }), ["virtualport"]);
        assert_eq!(elements(&all, &NetworkAttachment::OpenVSwitch), ["port"]);
        assert_eq!(elements(&all, &NetworkAttachment::Direct), ["vlan", "virtualport", "port"]);
        let open = nic(vec![part("port", Some(("isolated", "no")))]);
        assert!(
            elements(&open, &NetworkAttachment::Direct).is_empty()
                && elements(&nic(Vec::new()), &NetworkAttachment::Direct).is_empty()
        );
    }
}
