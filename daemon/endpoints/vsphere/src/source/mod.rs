//! The source `vsphere`: VMs of a vCenter, or of a standalone ESXi.
//!
//! Rule: it only translates the port [`Source`] into calls of the other modules, which know nothing of it.
//!
//! A VM's id is the instance UUID that vCenter gave it, a disk's key its backing's UUID: both stay when a
//! host leaves vCenter and comes back, when the VM moves, and when device keys change.

mod describe;
mod error;
mod finish;
mod leftovers;
mod reading;
mod snapshot;
mod turn;

use std::{num::NonZeroU32, sync::Arc};

use async_trait::async_trait;
use warmd_cbt::mark::ChangeMark;
use warmd_core::{
    model::{
        id::{DiskKey, MigrationId, VmId},
        machine::{Machine, MachineDisk, PowerState, VmSummary},
        plan::snapshots::SnapshotPolicy,
        rule::{Objection, Rule},
    },
    sources::{
        HoldOff, HowStopped, Leftover, MigratedMark, Quota, ShutdownPolicy, Snapshot, SnapshotRequest,
        Source, SourceError, SourceErrorKind, SourceQuotas,
    },
};

use crate::{
    Owner, Settings, Vsphere, doctor::DoctorSeverity, power, settings::Capacity, soap::MoRef, vim::tasks,
};

use describe::vm_id;
use turn::Turns;

/// A source `vsphere`.
#[derive(Clone, Debug)]
pub struct VsphereSource {
    vsphere: Vsphere,
    turns: Turns,
}

impl VsphereSource {
    /// By these settings, which are judged but not tried.
    pub fn new(settings: &Settings) -> Result<Self, SourceError> {
        Ok(Self::over(Vsphere::new(settings.clone())?))
    }

    /// Over a server that has its settings already.
    pub fn over(vsphere: Vsphere) -> Self {
        let turns = Turns::new(vsphere.settings().capacity.snapshots_at_once);
        Self { vsphere, turns }
    }

    /// The server's reference to the VM.
    async fn of(&self, vm: &VmId) -> Result<MoRef, SourceError> {
        Ok(self.vsphere.locate(&vm.0).await?)
    }

    fn may_track(&self) -> bool {
        self.vsphere.settings().enable_change_tracking
    }
}

/// What the server and each of its hosts can bear.
fn quotas(capacity: &Capacity) -> SourceQuotas {
    let count = |number: usize| u32::try_from(number).ok().and_then(NonZeroU32::new);
    SourceQuotas {
        whole: Some(Quota { disks: count(capacity.disks_per_vcenter), ..Quota::default() }),
        host: Some(Quota {
            disks: count(capacity.disks_per_host),
            passes: count(capacity.vms_per_host),
            ..Quota::default()
        }),
    }
}

/// A migration, as the VMs' snapshots and notes name it.
fn owner_of(migration: MigrationId) -> Owner {
    Owner::new(migration.to_string())
}

#[async_trait]
impl Source for VsphereSource {
    async fn check(&self) -> Result<String, SourceError> {
        let about = self.vsphere.about().await?;
        let reader = crate::reader::check(&self.vsphere.settings().reader).await.map_err(|error| {
            let why = format!("{error}; {}", error.remedy());
            SourceError::new(SourceErrorKind::Refused, "looking at what reads the disks", why)
        })?;
        Ok(format!("{}; {reader}", about.full_name))
    }

    async fn warnings(&self) -> Vec<String> {
        let findings = self.vsphere.doctor(&[]).await;
        findings
            .into_iter()
            .filter(|finding| finding.severity > DoctorSeverity::Good)
            .map(|it| it.to_string())
            .collect()
    }

    fn with_policy(&self, policy: SnapshotPolicy) -> Option<Arc<dyn Source>> {
        Some(Arc::new(Self { vsphere: self.vsphere.with_policy(policy), turns: self.turns.clone() }))
    }

    async fn vms(&self) -> Result<Vec<VmSummary>, SourceError> {
        let vms = self.vsphere.vms().await?;
        let settings = self.vsphere.settings();
        Ok(vms.iter().map(|vm| describe::summary(vm, settings)).collect())
    }

    async fn names(&self) -> Result<Vec<(VmId, String)>, SourceError> {
        let vms = self.vsphere.vms().await?;
        Ok(vms.into_iter().map(|vm| (vm_id(&vm), vm.name)).collect())
    }

    async fn describe(&self, vm: &str) -> Result<Machine, SourceError> {
        let vm = self.vsphere.find(vm).await?;
        describe::machine(&vm, self.may_track())
    }

    async fn objections(&self, vm: &VmId) -> Result<Vec<Objection>, SourceError> {
        let vm = self.vsphere.vm(&vm.0).await?;
        // No migration's: what is held off by one is told, too.
        let starters = self.vsphere.starters(&vm.of, &Owner::new("")).await?;
        let mut found = describe::objections(&vm, &starters, self.vsphere.settings());
        if let Some(task) = tasks::first_open(self.vsphere.client(), &vm.recent_tasks).await? {
            found.push(Objection::new(Rule::VmBusy, task.to_string()));
        }
        Ok(found)
    }

    async fn can_finish(&self, vm: &VmId, owner: MigrationId, disks: &[DiskKey]) -> Result<(), SourceError> {
        self.check_finish(vm, &owner_of(owner), disks).await
    }

    async fn power(&self, vm: &VmId) -> Result<PowerState, SourceError> {
        Ok(describe::power(self.vsphere.power(&self.of(vm).await?).await?))
    }

    async fn snapshot(&self, request: &SnapshotRequest) -> Result<Box<dyn Snapshot>, SourceError> {
        self.take(request).await
    }

    async fn end_snapshot(&self, vm: &VmId, owner: MigrationId) -> Result<(), SourceError> {
        self.end(vm, owner).await
    }

    async fn delete_marks(
        &self,
        vm: &VmId,
        owner: MigrationId,
        keep: &[ChangeMark],
    ) -> Result<Vec<Leftover>, SourceError> {
        // A change id holds nothing on the server; tracking that was switched on for the migration ends with
        // its last.
        if keep.is_empty() { self.restore_tracking(vm, owner).await } else { Ok(Vec::new()) }
    }

    async fn leftovers(&self, known: &[MigrationId]) -> Result<Vec<Leftover>, SourceError> {
        self.remains(known).await
    }

    async fn shut_down(&self, vm: &VmId, policy: ShutdownPolicy) -> Result<HowStopped, SourceError> {
        let how = power::Shutdown { graceful: policy.graceful, force: policy.force };
        Ok(match self.vsphere.shut_down(&self.of(vm).await?, how).await? {
            power::Stopped::WasOff => HowStopped::WasOff,
            power::Stopped::Gracefully => HowStopped::Gracefully,
            power::Stopped::Forced => HowStopped::Forced,
        })
    }

    async fn power_on(&self, vm: &VmId) -> Result<(), SourceError> {
        Ok(self.vsphere.power_on(&self.of(vm).await?).await?)
    }

    async fn starters(&self, vm: &VmId, owner: MigrationId) -> Result<HoldOff, SourceError> {
        let starters = self.vsphere.starters(&self.of(vm).await?, &owner_of(owner)).await?;
        for named in &starters.named {
            tracing::info!(%vm, named, "what else can start the VM is left as it is");
        }
        Ok(HoldOff { autostart: starters.autostart })
    }

    async fn hold_off(&self, vm: &VmId, moved: &MigratedMark, was: &HoldOff) -> Result<(), SourceError> {
        let (of, owner) = (self.of(vm).await?, owner_of(moved.owner));
        Ok(self.vsphere.hold_off(&of, &owner, &moved.target, was.autostart).await?)
    }

    async fn let_go(&self, vm: &VmId, owner: MigrationId, was: &HoldOff) -> Result<(), SourceError> {
        Ok(self.vsphere.let_go(&self.of(vm).await?, &owner_of(owner), was.autostart).await?)
    }

    fn host(&self, machine: &Machine) -> Option<String> {
        machine.host.clone()
    }

    async fn current_host(&self, vm: &VmId) -> Result<Option<String>, SourceError> {
        Ok(self.vsphere.vm(&vm.0).await?.host)
    }

    fn quotas(&self) -> SourceQuotas {
        quotas(&self.vsphere.settings().capacity)
    }

    fn datastore(&self, disk: &MachineDisk) -> Option<String> {
        describe::datastore(&disk.location)
    }
}
