//! A libvirt's obstacles for planned machines: names, addresses, networks, and hardware that it does not
//! support.
//!
//! Rule: it only reads. A domain that is the migration's own, or the source VM itself under the same libvirt,
//! is an obstacle only by its name.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use warmd_core::{
    model::{
        id::MigrationId,
        machine::{Firmware, Machine},
        rule::{Objection, Rule},
    },
    targets::{CreateMachine, Incoming, TargetError},
};
use warmd_storage::{DiskLocation, LocatedDisk};

use super::{
    DiskBus, LibvirtTarget,
    cpu::Processors,
    domain::DomainBuilder,
    failed, foreign,
    isolation::{self, IsolationQueries},
    networks::Networks,
    owned,
    pci::PciSlots,
};
use crate::libvirt::{DomainId, DomainXml, LibvirtError, LibvirtErrorKind, went_unanswered, xml as read};

/// Domains that are queried at the same time.
const PARALLEL: usize = 8;

impl LibvirtTarget {
    /// See [`warmd_core::targets::Target::objections`].
    pub(super) async fn object(
        &self,
        machines: &[Incoming],
    ) -> Result<Vec<(Option<usize>, Objection)>, TargetError> {
        let doing = format!("asking {} about what is to come", self.settings.uri);
        let mut objections = self.storage().await?.objections(machines).await?;
        let domains = self.all_domains().await.map_err(failed(&doing))?;
        let networks = Networks::list(&self.libvirt).await.map_err(failed(&doing))?;
        let (mut capabilities, mut asked) = (BTreeMap::new(), IsolationQueries::default());
        for (at, incoming) in machines.iter().enumerate() {
            let mut object = |rule, found: String| {
                objections.push((Some(at), Objection::new(rule, found)));
            };
            for (id, domain) in &domains {
                if is_owned(domain, incoming.owner) {
                    continue;
                }
                if domain.name == incoming.name {
                    object(Rule::NameTaken, format!("the domain {:?} ({id}) is there already", domain.name));
                }
                if *id == incoming.machine.uuid {
                    continue;
                }
                let theirs = |mac: &str| domain.nics.iter().any(|nic| nic.mac.eq_ignore_ascii_case(mac));
                for nic in incoming.machine.nics.iter().filter(|nic| theirs(&nic.mac)) {
                    let found = format!("the domain {:?} ({id}) has {} too", domain.name, nic.mac);
                    object(Rule::MacTaken, found);
                }
            }
            let mut links = Vec::new();
            for nic in &incoming.machine.nics {
                match networks.link(nic) {
                    Ok(link) => links.push(link),
                    Err(why) => object(Rule::NetworkUnknown, why.to_string()),
                }
            }
            if links.len() == incoming.machine.nics.len() {
                let lacks = isolation::lacks(&self.libvirt, &incoming.machine, &links, &mut asked).await;
                for lack in lacks.map_err(failed(&doing))? {
                    object(Rule::IsolationLost, lack.found);
                }
                let disks: Vec<_> = located(incoming).collect();
                let request = request(incoming);
                let domain = DomainBuilder {
                    request: &request,
                    id: super::domain::substitute(request.owner),
                    kind: "qemu",
                    disks: &disks,
                    disk_bus: self.settings.disk_bus,
                    links: &links,
                    folder: "/".as_ref(),
                };
                if let Err(misfit) = domain.xml() {
                    object(Rule::HardwareUnmapped, misfit.to_string());
                }
            }
            let machine = &incoming.machine;
            let key = (machine.architecture.clone(), super::domain::family(&machine.machine_type).to_owned());
            if !capabilities.contains_key(&key) {
                let known = self.capabilities(&key.0, &key.1).await.map_err(failed(&doing))?;
                capabilities.insert(key.clone(), known);
            }
            let known = capabilities.get(&key);
            if let Some(why) = known.and_then(|known| misfit(machine, known)) {
                object(Rule::HardwareUnmapped, why);
            }
            if let Some(Ok(known)) = known {
                for (rule, found) in changes(machine, known, self.settings.disk_bus) {
                    object(rule, found);
                }
                let had = machine.hardware.as_ref().and_then(|hardware| hardware.attribute("type"));
                if had == Some(known.kind) {
                    // The source VM itself is here.
                    let is_same_host = domains
                        .iter()
                        .any(|(id, domain)| *id == machine.uuid && !is_owned(domain, incoming.owner));
                    let judged =
                        self.judge_cpu(machine, known.kind, &key.1, &known.processors, is_same_host).await;
                    if let Some((rule, found)) = judged.map_err(failed(&doing))? {
                        object(rule, found);
                    }
                }
            }
        }
        Ok(objections)
    }

    async fn all_domains(&self) -> Result<Vec<(String, DomainXml)>, LibvirtError> {
        let domains = self.libvirt.domains().await?;
        stream::iter(domains)
            .map(|(id, _): (DomainId, String)| async move {
                match self.libvirt.domain(id).await {
                    Ok(domain) => Ok(Some((id.to_string(), domain))),
                    // Gone since it was listed.
                    Err(error) if error.kind == LibvirtErrorKind::NoSuchDomain => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffered(PARALLEL)
            .try_filter_map(|domain| std::future::ready(Ok(domain)))
            .try_collect()
            .await
    }

    /// The hypervisor's capabilities for such machines; `Err` with its words if it supports none.
    async fn capabilities(
        &self,
        architecture: &str,
        family: &str,
    ) -> Result<Result<Capabilities, String>, LibvirtError> {
        let kind = self.domain_type(architecture).await?;
        match self.libvirt.domain_capabilities(kind, architecture, Some(family)).await {
            Ok(text) => Ok(Ok(Capabilities { kind, ..Capabilities::read(&text) })),
            Err(error) if !went_unanswered(&error) => Ok(Err(error.to_string())),
            Err(error) => Err(error),
        }
    }
}

/// A hypervisor's capabilities for a kind of machine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Capabilities {
    uefi: bool,
    secure: bool,
    /// `kvm` or `qemu`.
    kind: &'static str,
    /// Screens and display devices that it names; none if it does not list them.
    graphics: Vec<String>,
    videos: Vec<String>,
    processors: Processors,
}

impl Capabilities {
    /// Reads libvirt's answer; a missing value counts as not supported.
    fn read(text: &str) -> Self {
        let Ok(document) = read::parse(text, "domainCapabilities") else { return Self::default() };
        let Some(os) = read::child(document.root_element(), "os") else { return Self::default() };
        let has = |node, name: &str, value: &str| {
            read::children(node, "enum")
                .filter(|each| each.attribute("name") == Some(name))
                .any(|each| read::children(each, "value").any(|each| each.text() == Some(value)))
        };
        let secure = read::child(os, "loader").is_some_and(|loader| has(loader, "secure", "yes"));
        let named = |device: &str, of: &str| -> Vec<String> {
            let device = read::descend(document.root_element(), &["devices", device]);
            let all = device.into_iter().flat_map(|device| read::children(device, "enum"));
            let all = all.filter(|each| each.attribute("name") == Some(of));
            let values = all.flat_map(|each| read::children(each, "value"));
            values.filter_map(|value| value.text().map(str::to_owned)).collect()
        };
        let (graphics, videos) = (named("graphics", "type"), named("video", "modelType"));
        let processors = Processors::read(document.root_element());
        Self { uefi: has(os, "firmware", "efi"), secure, kind: "", graphics, videos, processors }
    }
}

/// The machine's differences from its source.
fn changes(machine: &Machine, known: &Capabilities, disk_bus: DiskBus) -> Vec<(Rule, String)> {
    let Some(hardware) = &machine.hardware else { return foreign::findings(machine) };
    let mut found = Vec::new();
    if let Some(kind) = hardware.attribute("type").filter(|kind| *kind != known.kind) {
        let why = format!(
            "it is a {kind} domain, and one of {} here: its processor model, and features and timers of the \
             hypervisor's, are not carried over",
            known.kind
        );
        found.push((Rule::HardwareChanged, why));
    }
    for disk in machine.disks.iter().filter(|disk| disk_bus == DiskBus::Virtio && disk.bus != "virtio") {
        let why = format!("disk {} is on {} and comes to virtio: `disk_bus` says so", disk.key, disk.bus);
        found.push((Rule::HardwareChanged, why));
    }
    found.extend(PciSlots::of(machine).findings().map(|found| (Rule::HardwareChanged, found)));
    let lacks = |all: &[String], one: &str| !all.is_empty() && !all.iter().any(|known| known == one);
    let graphics = hardware.devices("graphics").filter_map(|graphics| graphics.attribute("type"));
    for kind in graphics.filter(|kind| lacks(&known.graphics, kind)) {
        found.push((Rule::HardwareUnmapped, format!("it has no {kind} graphics here")));
    }
    let videos = hardware.devices("video").filter_map(|video| video.part("model")?.attribute("type"));
    for kind in videos.filter(|kind| lacks(&known.videos, kind)) {
        found.push((Rule::HardwareUnmapped, format!("it has no {kind} video here")));
    }
    found
}

fn misfit(machine: &Machine, known: &Result<Capabilities, String>) -> Option<String> {
    let Machine { architecture, machine_type, firmware, .. } = machine;
    match known {
        Err(why) => Some(format!("it makes no {architecture} machines of type {machine_type}: {why}")),
        Ok(known) => match firmware {
            Firmware::Uefi if !known.uefi => Some("it has no UEFI firmware for this machine".to_owned()),
            Firmware::UefiSecure if !(known.uefi && known.secure) => {
                Some("it has no UEFI firmware with secure boot for this machine".to_owned())
            }
            Firmware::Bios | Firmware::Uefi | Firmware::UefiSecure => None,
        },
    }
}

fn is_owned(domain: &DomainXml, owner: Option<MigrationId>) -> bool {
    owner.is_some_and(|owner| domain.tagged(owned::ELEMENT) == Some(owner.to_string().as_str()))
}

/// The machine as it would be requested.
fn request(incoming: &Incoming) -> CreateMachine {
    CreateMachine {
        owner: incoming.owner.unwrap_or(MigrationId(uuid::Uuid::nil())),
        name: incoming.name.clone(),
        machine: incoming.machine.clone(),
        disks: incoming.disks.clone(),
    }
}

/// Its disks, as if they existed: only their kind matters.
fn located(incoming: &Incoming) -> impl Iterator<Item = LocatedDisk> {
    incoming.disks.iter().map(|spec| {
        let place = match spec.place.as_deref() {
            Some(uri) if uri.starts_with("nbd") => DiskLocation::Nbd(uri.to_owned()),
            place => DiskLocation::File(place.unwrap_or("/").into()),
        };
        LocatedDisk { key: spec.key.clone(), size: spec.size, place }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmwares_are_those_that_are_named() {
        let of = |os: &str| {
            Capabilities::read(&format!(
                "<domainCapabilities><os supported='yes'>{os}</os></domainCapabilities>"
            ))
        };
        let efi = "<enum name='firmware'><value>bios</value><value>efi</value></enum>";
        let secure = |value| format!("<loader><enum name='secure'><value>no</value>{value}</enum></loader>");
        assert_eq!(of(""), Capabilities::default());
        assert_eq!(of(&efi.replace("efi", "x")), Capabilities::default());
        assert_eq!(of(efi), Capabilities { uefi: true, ..Capabilities::default() });
        assert_eq!(
            of(&format!("{efi}{}", secure(""))),
            Capabilities { uefi: true, ..Capabilities::default() }
        );
        let both = of(&format!("{efi}{}", secure("<value>yes</value>")));
        assert_eq!(both, Capabilities { uefi: true, secure: true, ..Capabilities::default() });
        assert_eq!(Capabilities::read("noise"), Capabilities::default());
    }
}
