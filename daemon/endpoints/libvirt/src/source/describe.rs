//! libvirt's machines, described without libvirt's terms.

use std::collections::{BTreeMap, BTreeSet};

use warmd_cbt::units::Length;
use warmd_core::{
    model::{
        id::{DiskKey, VmId},
        machine::{CpuTopology, Firmware, Machine, MachineDisk, Nic, PowerState, VmSummary},
        rule::{Objection, Rule},
    },
    sources::{SourceError, SourceErrorKind},
};

use crate::libvirt::{
    CurrentJob, Disk, DomainId, DomainStatus, DomainXml, Lane, LoaderFirmware, Reason, RunState,
};

use super::{
    LibvirtSource,
    definitions::Definitions,
    error::ErrorContext,
    hold_off::held_off,
    needs::Obstacle,
    plan::{ImageFactsByDisk, is_disk},
    power::ELSEWHERE,
    sizes::Sizes,
};

impl LibvirtSource {
    /// The domain that `vm` names: a UUID, or the name of exactly one.
    pub(super) async fn find(&self, vm: &str) -> Result<DomainId, SourceError> {
        let doing = || format!("looking for VM {vm:?}");
        let domains = self.libvirt.domains().await.context(doing)?;
        if let Ok(id) = vm.parse::<DomainId>()
            && domains.iter().any(|(domain, _)| *domain == id)
        {
            return Ok(id);
        }
        let named: Vec<DomainId> =
            domains.iter().filter(|(_, name)| name == vm).map(|(domain, _)| *domain).collect();
        match named[..] {
            [one] => Ok(one),
            [] => Err(SourceError::new(
                SourceErrorKind::NotFound,
                doing(),
                format!("{} has no VM of this name or UUID", self.libvirt.uri()),
            )),
            _ => Err(SourceError::new(
                SourceErrorKind::Refused,
                doing(),
                format!("{} VMs have this name: use a UUID", named.len()),
            )),
        }
    }

    pub(super) async fn machine(&self, domain: DomainId) -> Result<Machine, SourceError> {
        let doing = || format!("VM {domain}: reading its hardware");
        let definitions = self.definitions(domain).await.context(doing)?;
        let sizes = self.sizes(domain, &definitions.live).await.context(doing)?;
        let looks = self.look(&definitions.live.disks).await;
        machine(domain, &definitions, &sizes, &looks)
            .map_err(|why| SourceError::new(SourceErrorKind::Failed, doing(), why))
    }

    /// See [`warmd_core::sources::Source::disk_keys`].
    pub(super) async fn keys(&self, domain: DomainId) -> Result<Vec<DiskKey>, SourceError> {
        let xml = self.libvirt.domain(domain).await.context(|| format!("VM {domain}: reading its disks"))?;
        let disks = xml.disks.into_iter().filter(is_disk);
        Ok(disks.map(|disk| DiskKey(disk.target)).collect())
    }

    /// See [`warmd_core::sources::Source::disk_sizes_if_known`].
    pub(super) async fn sizes_if_known(
        &self,
        domain: DomainId,
    ) -> Result<Vec<(DiskKey, Option<Length>)>, SourceError> {
        let doing = || format!("VM {domain}: reading its disks");
        let xml = self.libvirt.domain(domain).await.context(doing)?;
        let sizes = self.sizes(domain, &xml).await.context(doing)?;
        let disks = xml.disks.iter().filter(|disk| is_disk(disk));
        let known = |disk: &Disk| size(disk, &sizes).ok().map(Length);
        Ok(disks.map(|disk| (DiskKey(disk.target.clone()), known(disk))).collect())
    }

    /// One line of the list of VMs; `None` if the VM is gone. Without an answer there is no list: the list
    /// seen before is more useful.
    pub(super) async fn summary(
        &self,
        domain: DomainId,
        name: String,
    ) -> Result<Option<VmSummary>, SourceError> {
        let error = match self.try_summary(domain, &name).await {
            Ok(summary) => return Ok(Some(summary)),
            Err(error) => error,
        };
        match error.kind {
            // Gone since it was listed.
            SourceErrorKind::NotFound => return Ok(None),
            SourceErrorKind::Unreachable | SourceErrorKind::Timeout => return Err(error),
            _ => {}
        }
        Ok(Some(VmSummary {
            id: VmId(domain.to_string()),
            name,
            power: self.power_of(domain).await.unwrap_or(PowerState::Off),
            disks: 0,
            bytes: Length(0),
            tracked: 0,
            snapshots: 0,
            warnings: vec![format!("it cannot be read: {error}")],
        }))
    }

    async fn try_summary(&self, domain: DomainId, name: &str) -> Result<VmSummary, SourceError> {
        let doing = || format!("VM {domain}: reading its hardware");
        let definitions = self.definitions(domain).await.context(doing)?;
        let xml = &definitions.live;
        let sizes = self.sizes(domain, xml).await.context(doing)?;
        let status = self.libvirt.state(domain).await.context(doing)?;
        let power = match (status.state, status.reason) {
            // That it runs elsewhere is reported among the obstacles.
            (RunState::Off, Reason::Migrated) => PowerState::Off,
            _ => self.power_by(domain, &status).await?,
        };
        let looks = self.look(&xml.disks).await;
        let mut warnings = disk_warnings(xml, &sizes, &looks);
        if power == PowerState::Paused {
            warnings.push(format!("it is {}: no snapshot is taken until it runs or is off", status.text));
        }
        let snapshots = self.libvirt.snapshot_names(domain).await.context(doing)?;
        let objections = self.object(domain, &definitions, &status, &snapshots).await?;
        warnings.extend(held_off(&definitions.persistent));
        warnings.extend(objections.into_iter().map(|objection| objection.found));
        let disks: Vec<_> = xml.disks.iter().filter(|disk| is_disk(disk)).collect();
        Ok(VmSummary {
            id: VmId(domain.to_string()),
            name: name.to_owned(),
            power,
            disks: count(disks.iter()),
            bytes: disks
                .iter()
                .filter_map(|disk| Some(Length(*sizes.get(&disk.target)?.as_ref().ok()?)))
                .sum(),
            tracked: count(
                disks.iter().filter(|disk| disk.device != "lun" && untracked(disk, &looks).is_none()),
            ),
            snapshots: count(snapshots.iter()),
            warnings,
        })
    }

    /// See [`warmd_core::sources::Source::objections`].
    pub(super) async fn objections_to(&self, domain: DomainId) -> Result<Vec<Objection>, SourceError> {
        let doing = || format!("VM {domain}: looking for what is in its way");
        let definitions = self.definitions(domain).await.context(doing)?;
        let status = self.libvirt.state(domain).await.context(doing)?;
        let snapshots = self.libvirt.snapshot_names(domain).await.context(doing)?;
        let mut objections = self.object(domain, &definitions, &status, &snapshots).await?;
        // Not where all VMs are listed: it checks each file of a VM.
        let obstacles = self.obstacles(domain).await.context(doing)?;
        objections.extend(obstacles.into_iter().map(|obstacle| match obstacle {
            Obstacle::Missing(found) => Objection::new(Rule::StartBlocked, found),
            Obstacle::Unanswered(found) | Obstacle::Hidden(found) => Objection::new(
                Rule::StartDoubtful,
                format!("whether it can be started again is not known: {found}"),
            ),
        }));
        let disks: Vec<_> = definitions.live.disks.iter().filter(|disk| is_disk(disk)).cloned().collect();
        let shared = self.libvirt.shared_disks(&disks).await;
        if !shared.is_empty() {
            objections.push(Objection::new(Rule::SharedStorage, shared.join("; ")));
        }
        Ok(objections)
    }

    async fn object(
        &self,
        domain: DomainId,
        definitions: &Definitions,
        status: &DomainStatus,
        snapshots: &[String],
    ) -> Result<Vec<Objection>, SourceError> {
        let doing = || format!("VM {domain}: looking for what is in its way");
        let (persistent, saved) = self.libvirt.persistent_and_saved(domain).await.context(doing)?;
        let checkpoints = self.libvirt.checkpoint_names(domain).await.context(doing)?;
        let autostart = self.libvirt.autostart(domain, Lane::Look).await.context(doing)?;
        let job = match status.state {
            RunState::Off => CurrentJob::None,
            RunState::Running | RunState::Paused => {
                self.libvirt.job(domain, Lane::Look).await.context(doing)?
            }
        };
        let xml = &definitions.live;
        let mut objections = of_hardware(xml, &definitions.persistent);
        objections.extend(definitions.objections());
        if let Some(owner) = xml.tagged(DomainXml::MOVED_HERE) {
            let found = format!("migration {owner} made it here");
            objections.push(Objection::new(Rule::VmIsMigrated, found));
        }
        let mut object = |rule, found: String| objections.push(Objection::new(rule, found));
        match (status.state, status.reason) {
            (RunState::Off, Reason::Migrated) => object(Rule::VmElsewhere, ELSEWHERE.to_owned()),
            (RunState::Off, Reason::Crashed | Reason::Failed) => {
                object(Rule::VmCrashed, format!("it is {}", status.text));
            }
            _ => {}
        }
        if autostart {
            let found = "its autostart is on: a cutover turns it off here once the VM is off, and on on the target at its end";
            object(Rule::VmAutostart, found.to_owned());
        }
        if !persistent {
            object(
                Rule::VmTransient,
                "it is transient: it cannot be tracked, and is gone once it is off".to_owned(),
            );
        }
        if saved {
            object(Rule::VmSaved, "it has a saved memory image: start it, or remove the image".to_owned());
        }
        if let [first, ..] = snapshots {
            object(
                Rule::VmHasSnapshots,
                format!("it has {} snapshots, {first:?} among them", snapshots.len()),
            );
        }
        let foreign = checkpoints.iter().filter(|name| !name.starts_with("warmd-")).count();
        if foreign > 0 {
            object(
                Rule::CheckpointsThere,
                format!(
                    "it has {foreign} checkpoints of another tool: if that tool deletes checkpoints below its own, a pass must compare everything"
                ),
            );
        }
        match job {
            CurrentJob::Backup(job)
                if !job.socket.as_ref().is_some_and(|socket| self.is_below_runtime(socket)) =>
            {
                object(Rule::VmBusy, "a backup job of another tool runs on it".to_owned());
            }
            CurrentJob::Other(job) => object(Rule::VmBusy, format!("a job runs on it: {job}")),
            CurrentJob::Backup(_) | CurrentJob::None => {}
        }
        Ok(objections)
    }

    pub(super) fn is_below_runtime(&self, socket: &str) -> bool {
        std::path::Path::new(socket).starts_with(&self.settings.runtime_dir)
    }
}

/// The machine; `Err` names the disk whose size is unknown, and why.
fn machine(
    domain: DomainId,
    definitions: &Definitions,
    sizes: &Sizes,
    looks: &ImageFactsByDisk,
) -> Result<Machine, String> {
    // The copy is of the running VM; the target is made as the VM would be at its next start.
    let (live, xml) = (&definitions.live, &definitions.persistent);
    let order = boot_order(live);
    let disks = live
        .disks
        .iter()
        .filter(|disk| is_disk(disk))
        .map(|disk| {
            Ok(MachineDisk {
                key: DiskKey(disk.target.clone()),
                size: Length(size(disk, sizes)?),
                bus: disk.bus.clone(),
                boot_order: order.get(disk.target.as_str()).copied().unwrap_or(u32::MAX),
                location: disk.source.to_string(),
                untracked: untracked(disk, looks),
            })
        })
        .collect::<Result<_, String>>()?;
    let (sockets, cores, threads) = xml.topology.unwrap_or((xml.vcpus, 1, 1));
    Ok(Machine {
        id: VmId(domain.to_string()),
        name: xml.name.clone(),
        uuid: domain.to_string(),
        firmware: match xml.firmware {
            LoaderFirmware::Bios => Firmware::Bios,
            LoaderFirmware::Uefi => Firmware::Uefi,
            LoaderFirmware::UefiSecure => Firmware::UefiSecure,
        },
        machine_type: family(&xml.machine),
        architecture: xml.architecture.clone(),
        cpu: CpuTopology { sockets, cores, threads },
        memory: Length(xml.memory),
        disks,
        nics: xml
            .nics
            .iter()
            .map(|nic| Nic { mac: nic.mac.clone(), network: nic.network.clone(), model: nic.model.clone() })
            .collect(),
        hardware: Some(definitions.hardware.carried.clone()),
        host: None,
    })
}

fn untracked(disk: &Disk, looks: &ImageFactsByDisk) -> Option<String> {
    disk.untracked().or_else(|| looks.get(&disk.target)?.untracked.clone())
}

fn size(disk: &Disk, sizes: &Sizes) -> Result<u64, String> {
    match sizes.get(&disk.target) {
        Some(Ok(size)) => Ok(*size),
        Some(Err(why)) => Err(format!("the size of disk {} cannot be told: {why}", disk.target)),
        None => Err(format!("the size of disk {} cannot be told", disk.target)),
    }
}

/// Each disk's place in the boot order: those with one of their own first, then the others in the XML's
/// order.
fn boot_order(xml: &DomainXml) -> BTreeMap<&str, u32> {
    let mut disks: Vec<_> = xml.disks.iter().filter(|disk| is_disk(disk)).collect();
    disks.sort_by_key(|disk| disk.boot_order.unwrap_or(u32::MAX));
    disks.into_iter().zip(0..).map(|(disk, place)| (disk.target.as_str(), place)).collect()
}

/// `pc-q35-7.2` is a `q35`, `pc-i440fx-7.2` a `pc`; for others the version is dropped.
fn family(machine: &str) -> String {
    if machine.starts_with("pc-q35") || machine == "q35" {
        return "q35".to_owned();
    }
    if machine.starts_with("pc-i440fx") || machine == "pc" {
        return "pc".to_owned();
    }
    match machine.rsplit_once('-') {
        Some((family, version)) if version.starts_with(|first: char| first.is_ascii_digit()) => family,
        _ => machine,
    }
    .to_owned()
}

fn count<T>(of: impl Iterator<Item = T>) -> u32 {
    u32::try_from(of.count()).unwrap_or(u32::MAX)
}

/// Also in its disks' description.
fn disk_warnings(xml: &DomainXml, sizes: &Sizes, looks: &ImageFactsByDisk) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut has_disk = false;
    for disk in xml.disks.iter().filter(|disk| is_disk(disk)) {
        has_disk = true;
        let name = &disk.target;
        if disk.device != "lun"
            && let Some(reason) = untracked(disk, looks)
        {
            warnings.push(format!("disk {name} cannot be tracked, each pass compares all of it: {reason}"));
        }
        warnings.extend(size(disk, sizes).err());
    }
    if !has_disk {
        warnings.push("it has no disk".to_owned());
    }
    warnings
}

fn of_hardware(xml: &DomainXml, persistent: &DomainXml) -> Vec<Objection> {
    let mut objections = Vec::new();
    for disk in xml.disks.iter().filter(|disk| is_disk(disk)) {
        let name = &disk.target;
        if disk.device == "lun" {
            let found = format!("disk {name} is a LUN passed through: it cannot be copied");
            objections.push(Objection::new(Rule::DiskUnsupported, found));
        } else if disk.shareable {
            objections.push(Objection::new(Rule::DiskShared, format!("disk {name} is shareable")));
        }
    }
    let bound: BTreeSet<_> = xml.bound.iter().chain(&persistent.bound).map(String::as_str).collect();
    if !bound.is_empty() {
        let bound: Vec<_> = bound.into_iter().collect();
        let found = format!("it has devices that stay behind: {}", bound.join(", "));
        objections.push(Objection::new(Rule::DeviceUnmapped, found));
    }
    if xml.firmware != LoaderFirmware::Bios {
        let found = "its UEFI variables (boot entries, keys) are not moved";
        objections.push(Objection::new(Rule::FirmwareState, found));
    }
    objections
}

#[cfg(test)]
mod tests {
    use super::{super::hardware::Hardware, *};

    fn read(devices: &str, machine: &str) -> DomainXml {
        let text = format!(
            "<domain><name>../--help</name><uuid>u</uuid><memory>4</memory><vcpu>3</vcpu>\
             <os><type arch='x86_64' machine='{machine}'>hvm</type></os><devices>{devices}</devices></domain>"
        );
        DomainXml::read(&text).unwrap()
    }

    fn one(xml: DomainXml) -> Definitions {
        let hardware = Hardware::default();
        let (live, live_hardware) = (xml.clone(), hardware.clone());
        Definitions { live, persistent: xml, hardware, live_hardware, elsewhere: BTreeSet::new() }
    }

    fn id() -> DomainId {
        "11111111-2222-3333-4444-555555555555".parse().unwrap()
    }

    #[test]
    fn boot_order_is_the_disks_own_then_the_xmls() {
        let disk = |name: &str, rest: &str| {
            format!("<disk type='file'><source file='/x'/><target dev='{name}'/>{rest}</disk>")
        };
        let devices = [
            disk("vda", ""),
            disk("vdb", "<boot order='3'/>"),
            "<disk type='file' device='cdrom'><target dev='sda'/><boot order='1'/></disk>".to_owned(),
            disk("vdc", "<boot order='2'/>"),
            disk("vdd", ""),
        ];
        let xml = read(&devices.concat(), "pc-q35-7.2");
        let sizes = ["vda", "vdb", "vdc", "vdd"].map(|name| (name.to_owned(), Ok(512))).into();
        let machine = machine(id(), &one(xml), &sizes, &ImageFactsByDisk::new()).unwrap();
        let order: Vec<_> = machine.disks.iter().map(|disk| (disk.key.0.as_str(), disk.boot_order)).collect();
        assert_eq!(order, [("vda", 2), ("vdb", 1), ("vdc", 0), ("vdd", 3)]);
        assert_eq!(
            (machine.cpu.vcpus(), machine.memory, machine.machine_type.as_str()),
            (3, Length(4096), "q35")
        );
    }

    #[test]
    fn a_disk_of_unknown_size_is_named() {
        let xml = read("<disk><source file='/x'/><target dev='vda'/></disk>", "pc");
        assert!(
            machine(id(), &one(xml), &Sizes::new(), &ImageFactsByDisk::new())
                .unwrap_err()
                .contains("disk vda")
        );
    }

    #[test]
    fn machine_types_lose_their_version() {
        for (machine, kind) in [
            ("pc-q35-7.2", "q35"),
            ("q35", "q35"),
            ("pc-i440fx-rhel7.6.0", "pc"),
            ("pc", "pc"),
            ("virt-9.1", "virt"),
            ("s390-ccw-virtio-7.2", "s390-ccw-virtio"),
            ("microvm", "microvm"),
        ] {
            assert_eq!(family(machine), kind, "{machine}");
        }
    }

    #[test]
    fn what_stands_in_the_way_is_told() {
        let xml = read(
            "<disk><driver type='qcow2'/><source file='/x'/><target dev='vda'/></disk>\
             <disk><driver type='raw'/><source file='/x'/><target dev='vdb'/></disk>\
             <disk type='block' device='lun'><source dev='/x'/><target dev='sda'/></disk>\
             <hostdev/><shmem/>",
            "q35",
        );
        let sizes = ["vda", "vdb", "sda"].map(|name| (name.to_owned(), Ok(512))).into();
        let disks = disk_warnings(&xml, &sizes, &ImageFactsByDisk::new());
        assert!(disks.len() == 1 && disks[0].contains("vdb"), "{disks:?}");
        let objections = of_hardware(&xml, &xml);
        let rules: Vec<_> = objections.iter().map(|objection| objection.rule).collect();
        assert_eq!(rules, [Rule::DiskUnsupported, Rule::DeviceUnmapped], "{objections:?}");
        assert!(objections[0].found.contains("sda") && objections[1].found.contains("hostdev, shmem"));
        let shared = "<disk type='file'><driver type='qcow2'/><source file='/x'/><target dev='vda'/><shareable/></disk>";
        let shared = read(shared, "q35");
        assert_eq!(of_hardware(&shared, &shared)[0].rule, Rule::DiskShared);
        assert_eq!(disk_warnings(&read("", "q35"), &BTreeMap::new(), &BTreeMap::new()), ["it has no disk"]);
    }
}
