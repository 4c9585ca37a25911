//! Many simulated VMs behind one source or several, which count open snapshots and disks.
//!
//! Rule: at every new snapshot the source counts the open ones in every scope; one too many is a violation,
//! unless it is a final one: with its VM down it does not wait.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use warmd_cbt::{
    disk::{ReadDisk, WriteDisk},
    mark::{ChangeMark, Changed},
};
use warmd_core::{
    clock,
    model::{
        id::{DiskKey, MigrationId, VmId},
        machine::{Machine, MachineDisk, PowerState, VmSummary},
    },
    sources::{
        HowStopped, Leftover, ShutdownPolicy, Snapshot, SnapshotDisk, SnapshotRequest, Source, SourceError,
    },
    targets::{
        CreateMachine, DiskSpec, GuestSign, LastWriter, MachineState, PreparedDisk, Target, TargetError,
    },
};

use super::{SimulatedSource, SimulatedTarget, SimulatedWorld};
use crate::endpoints::machine;

/// One VM: where it is, and its disks with their sizes in bytes and their datastores.
#[derive(Clone, Debug)]
pub struct FleetVm {
    pub name: String,
    pub plan: String,
    pub source: String,
    pub host: String,
    pub disks: Vec<(String, u64, String)>,
}

/// A snapshot that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub at: DateTime<Utc>,
    pub vm: String,
    pub plan: String,
    pub is_final: bool,
}

/// All VMs. Clones are handles on the same fleet.
#[derive(Clone, Debug, Default)]
pub struct Fleet(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    vms: BTreeMap<String, (FleetVm, SimulatedWorld)>,
    /// The target's side, by owner.
    targets: BTreeMap<MigrationId, SimulatedWorld>,
    owners: BTreeMap<MigrationId, String>,
    /// VMs with an open snapshot.
    open: Vec<String>,
    /// Quotas of snapshots and disks, by a scope's path; 0 is no limit.
    limits: BTreeMap<String, [usize; 2]>,
    most: BTreeMap<String, usize>,
    taken: Vec<Taken>,
    violations: Vec<String>,
}

impl Fleet {
    /// A fleet of these VMs, all running and with different contents.
    pub fn new(vms: impl IntoIterator<Item = FleetVm>) -> Self {
        let fleet = Self::default();
        for (at, vm) in vms.into_iter().enumerate() {
            let disks: Vec<_> = vm.disks.iter().map(|(key, size, _)| (key.as_str(), *size)).collect();
            let world = SimulatedWorld::new(&disks);
            for (key, size) in &disks {
                world.guest_writes(key, 0, &vec![at as u8 | 1; *size as usize]);
            }
            fleet.seen().vms.insert(vm.name.clone(), (vm, world));
        }
        fleet
    }

    /// Sets the quotas of open snapshots and disks in a scope; 0 is no limit.
    pub fn allow(&self, path: &str, snapshots: usize, disks: usize) {
        self.seen().limits.insert(path.to_owned(), [snapshots, disks]);
    }

    /// The names of the sources.
    pub fn sources(&self) -> BTreeSet<String> {
        self.seen().vms.values().map(|(vm, _)| vm.source.clone()).collect()
    }

    /// The world of a VM's source side.
    pub fn world(&self, vm: &str) -> SimulatedWorld {
        self.seen().vms[vm].1.clone()
    }

    /// The world of its target side for its last migration, once a snapshot was taken.
    pub fn target(&self, vm: &str) -> SimulatedWorld {
        let seen = self.seen();
        let owner = seen.owners.iter().rev().find(|(_, name)| *name == vm).map(|(owner, _)| owner);
        seen.targets[owner.expect("a snapshot was taken of it")].clone()
    }

    /// Snapshots so far, in their order.
    pub fn taken(&self) -> Vec<Taken> {
        self.seen().taken.clone()
    }

    /// VMs with an open snapshot.
    pub fn open(&self) -> Vec<String> {
        self.seen().open.clone()
    }

    /// The maximum of open snapshots in a scope.
    pub fn most(&self, path: &str) -> usize {
        self.seen().most.get(path).copied().unwrap_or_default()
    }

    /// The violations.
    pub fn violations(&self) -> Vec<String> {
        let seen = self.seen();
        let of_worlds = seen.vms.values().flat_map(|(_, world)| world.with(|truth| truth.violations.clone()));
        seen.violations.iter().cloned().chain(of_worlds).collect()
    }

    /// Checks that the target of a VM holds, durably, what its source holds.
    pub fn assert_same(&self, vm: &str) {
        let target = self.target(vm);
        let source = self.world(vm).with(|truth| truth.source_disks.clone());
        for (key, contents) in source {
            let held = target.with(|truth| truth.target_disks[&key].durable());
            assert!(held == contents, "disk {key} of {vm} differs");
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// The scopes of a VM, each with the disks that it has there.
    fn scopes(vm: &FleetVm) -> BTreeMap<String, usize> {
        let all = ["global".to_owned(), format!("source/{}", vm.source), "target/t".to_owned()];
        let all = all.into_iter().chain([format!("host/{}", vm.host), format!("plan/{}", vm.plan)]);
        let mut scopes: BTreeMap<_, _> = all.map(|path| (path, vm.disks.len())).collect();
        for (.., store) in &vm.disks {
            *scopes.entry(format!("datastore/{store}")).or_default() += 1;
        }
        scopes
    }

    fn count(&mut self, name: &str, is_final: bool) {
        let vm = self.vms[name].0.clone();
        self.taken.push(Taken { at: clock::now(), vm: vm.name.clone(), plan: vm.plan.clone(), is_final });
        self.open.retain(|open| open != name);
        self.open.push(name.to_owned());
        for path in Self::scopes(&vm).into_keys() {
            let there: Vec<_> = self
                .open
                .iter()
                .filter_map(|name| Self::scopes(&self.vms[name].0).get(&path).copied())
                .collect();
            let (snapshots, disks) = (there.len(), there.iter().sum::<usize>());
            let most = self.most.entry(path.clone()).or_default();
            *most = (*most).max(snapshots);
            let [most_snapshots, most_disks] = self.limits.get(&path).copied().unwrap_or_default();
            // A VM with more disks than the quota is copied alone.
            let too_many = most_snapshots > 0 && snapshots > most_snapshots
                || most_disks > 0 && disks > most_disks && snapshots > 1;
            if too_many && !is_final {
                let told =
                    format!("{path}: {snapshots} snapshots and {disks} disks: {}", self.open.join(", "));
                self.violations.push(told);
            }
        }
    }
}

/// One source of a fleet, by its name.
#[derive(Clone, Debug)]
pub struct FleetSource(pub Fleet, pub String);

impl FleetSource {
    fn of(&self, vm: &str) -> Option<(FleetVm, SimulatedSource)> {
        let seen = self.0.seen();
        let (vm, world) = seen.vms.get(vm).filter(|(vm, _)| vm.source == self.1)?;
        Some((vm.clone(), SimulatedSource(world.clone())))
    }

    fn at(&self, vm: &str) -> Result<SimulatedSource, SourceError> {
        let found = self.of(vm).map(|(_, source)| source);
        found.ok_or_else(|| {
            SourceError::new(warmd_core::sources::SourceErrorKind::NotFound, vm, "there is none")
        })
    }

    fn closed(&self, vm: &str) {
        self.0.seen().open.retain(|open| open != vm);
    }
}

#[async_trait]
impl Source for FleetSource {
    async fn check(&self) -> Result<String, SourceError> {
        Ok("a fleet".to_owned())
    }

    async fn vms(&self) -> Result<Vec<VmSummary>, SourceError> {
        Ok(Vec::new())
    }

    async fn describe(&self, vm: &str) -> Result<Machine, SourceError> {
        self.at(vm)?;
        let (vm, _) = self.of(vm).expect("it was just there");
        let sizes = vm.disks.iter().map(|(key, size, _)| (key.clone(), *size));
        let mut machine = machine(&vm.name, &vm.name, sizes);
        for (disk, (key, _, store)) in machine.disks.iter_mut().zip(&vm.disks) {
            disk.location = format!("{store}/{}-{key}", vm.name);
        }
        Ok(machine)
    }

    async fn power(&self, vm: &VmId) -> Result<PowerState, SourceError> {
        self.at(&vm.0)?.power(vm).await
    }

    async fn snapshot(&self, request: &SnapshotRequest) -> Result<Box<dyn Snapshot>, SourceError> {
        let vm = request.vm.0.clone();
        let inner = self.at(&vm)?.snapshot(request).await?;
        let mut seen = self.0.seen();
        seen.owners.insert(request.owner, vm.clone());
        seen.count(&vm, request.is_final);
        Ok(Box::new(FleetSnapshot { source: self.clone(), vm, inner }))
    }

    async fn end_snapshot(&self, vm: &VmId, owner: MigrationId) -> Result<(), SourceError> {
        self.at(&vm.0)?.end_snapshot(vm, owner).await?;
        self.closed(&vm.0);
        Ok(())
    }

    async fn delete_marks(
        &self,
        vm: &VmId,
        owner: MigrationId,
        keep: &[ChangeMark],
    ) -> Result<Vec<Leftover>, SourceError> {
        self.at(&vm.0)?.delete_marks(vm, owner, keep).await
    }

    async fn shut_down(&self, vm: &VmId, policy: ShutdownPolicy) -> Result<HowStopped, SourceError> {
        self.at(&vm.0)?.shut_down(vm, policy).await
    }

    async fn power_on(&self, vm: &VmId) -> Result<(), SourceError> {
        self.at(&vm.0)?.power_on(vm).await
    }

    fn host(&self, machine: &Machine) -> Option<String> {
        self.of(&machine.id.0).map(|(vm, _)| vm.host)
    }

    fn datastore(&self, disk: &MachineDisk) -> Option<String> {
        disk.location.split_once('/').map(|(store, _)| store.to_owned())
    }
}

struct FleetSnapshot {
    source: FleetSource,
    vm: String,
    inner: Box<dyn Snapshot>,
}

#[async_trait]
impl Snapshot for FleetSnapshot {
    fn disks(&self) -> &[SnapshotDisk] {
        self.inner.disks()
    }

    async fn changed(&self, disk: &DiskKey) -> Result<Changed, SourceError> {
        self.inner.changed(disk).await
    }

    async fn open(&self, disk: &DiskKey) -> Result<Arc<dyn ReadDisk>, SourceError> {
        self.inner.open(disk).await
    }

    async fn release(self: Box<Self>) -> Result<(), SourceError> {
        self.inner.release().await?;
        self.source.closed(&self.vm);
        Ok(())
    }
}

/// The target of the fleet.
#[derive(Clone, Debug)]
pub struct FleetTarget(pub Fleet);

impl FleetTarget {
    fn of(&self, owner: MigrationId) -> SimulatedTarget {
        let empty = || {
            let world = SimulatedWorld::new(&[]);
            world.with(|truth| truth.source_runs = false);
            world
        };
        SimulatedTarget(self.0.seen().targets.entry(owner).or_insert_with(empty).clone())
    }
}

#[async_trait]
impl Target for FleetTarget {
    async fn check(&self) -> Result<String, TargetError> {
        Ok("a fleet".to_owned())
    }

    async fn prepare(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
    ) -> Result<Vec<PreparedDisk>, TargetError> {
        self.of(owner).prepare(owner, disks).await
    }

    async fn open(&self, owner: MigrationId, disk: &DiskSpec) -> Result<Arc<dyn WriteDisk>, TargetError> {
        self.of(owner).open(owner, disk).await
    }

    async fn create(&self, request: &CreateMachine) -> Result<(), TargetError> {
        self.of(request.owner).create(request).await
    }

    async fn start(&self, owner: MigrationId) -> Result<(), TargetError> {
        self.of(owner).start(owner).await
    }

    async fn look(&self, owner: MigrationId) -> Result<MachineState, TargetError> {
        self.of(owner).look(owner).await
    }

    async fn sign(&self, owner: MigrationId, sign: &GuestSign) -> Result<(), TargetError> {
        self.of(owner).sign(owner, sign).await
    }

    async fn discard_machine(&self, owner: MigrationId) -> Result<(), TargetError> {
        self.of(owner).discard_machine(owner).await
    }

    async fn discard_disks(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError> {
        self.of(owner).discard_disks(owner, disks).await
    }

    async fn note_writer(&self, owner: MigrationId, writer: Option<LastWriter>) -> Result<(), TargetError> {
        self.of(owner).note_writer(owner, writer).await
    }

    async fn noted_writer(&self, owner: MigrationId) -> Result<Option<LastWriter>, TargetError> {
        self.of(owner).noted_writer(owner).await
    }
}
