//! What keeps a network interface apart from others: whether the target has what it takes.
//!
//! Rule: an interface never comes up without its filter, port group, VLAN or virtual port unless the plan says that it may;
//! libvirt itself takes a port group that its network lacks for none.

use super::{carried::ISOLATION, domain::Link};
use crate::{
    libvirt::{Libvirt, LibvirtError, xml},
    model::{hardware::Part, machine::Machine},
};

/// Something that an interface has and the target lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lack {
    mac: String,
    /// The element of the interface that names it.
    element: &'static str,
    pub(super) found: String,
}

/// What the target lacks for the machine's interfaces, which are connected by these links, in order.
pub(super) async fn lacks(
    libvirt: &Libvirt,
    machine: &Machine,
    links: &[Link],
) -> Result<Vec<Lack>, LibvirtError> {
    let Some(hardware) = &machine.hardware else { return Ok(Vec::new()) };
    let mut lacks = Vec::new();
    let mut filters = None;
    for (nic, link) in machine.nics.iter().zip(links) {
        let Some(part) = hardware.nic(&nic.mac) else { continue };
        let mut lack = |element, what: &str| {
            let found = format!("interface {}: {what}", nic.mac);
            lacks.push(Lack { mac: nic.mac.clone(), element, found });
        };
        if *link == Link::User {
            for element in ISOLATION.into_iter().filter(|element| part.part(element).is_some()) {
                lack(element, &format!("QEMU's own network cannot keep its <{element}>"));
            }
            continue;
        }
        if let Some(name) = part.part("filterref").and_then(|filter| filter.attribute("filter")) {
            if filters.is_none() {
                filters = Some(libvirt.network_filters().await?);
            }
            if !filters.iter().flatten().any(|known| known == name) {
                lack("filterref", &format!("the network filter {name:?} is not here"));
            }
        }
        if let Some(group) = part.part("source").and_then(|source| source.attribute("portgroup")) {
            let has = match link {
                Link::Network(network) => has_port_group(libvirt, network, group).await?,
                Link::Bridge(_) | Link::User => false,
            };
            if !has {
                lack("source", &format!("{} has no port group {group:?}", nic.network));
            }
        }
    }
    Ok(lacks)
}

/// The machine without what the target lacks, which the plan accepts.
pub(super) fn without(mut machine: Machine, lacks: &[Lack]) -> Machine {
    let devices = machine.hardware.iter_mut().flat_map(|hardware| &mut hardware.parts);
    for nic in devices.filter(|part| part.name == "devices").flat_map(|devices| &mut devices.parts) {
        let mac = nic.part("mac").and_then(|mac| mac.attribute("address")).map(str::to_owned);
        let is_lacked = |part: &Part| {
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

async fn has_port_group(libvirt: &Libvirt, network: &str, group: &str) -> Result<bool, LibvirtError> {
    let text = libvirt.network_xml(network).await?;
    let document =
        xml::parse(&text, "network").map_err(|error| LibvirtError::malformed("net-dumpxml", error))?;
    let has = xml::children(document.root_element(), "portgroup")
        .any(|known| known.attribute("name") == Some(group));
    Ok(has)
}
