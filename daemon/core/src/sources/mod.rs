//! Sources: where VMs come from. Each kind is one folder; this is the contract for all of them.
//!
//! Rule: every call may be repeated and may be cut off in the middle. What a source keeps for warmd (marks, a
//! running snapshot) carries the migration's id, so that after a crash its own leftovers are distinguished
//! from others'.

pub mod absent;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use warmd_cbt::{
    disk::ReadDisk,
    mark::{ChangeMark, Changed},
    units::Length,
};
pub use warmd_schedules::quota::Quota;

pub use crate::model::hold_off::{HoldOff, MigratedMark};
use crate::model::{
    id::{DiskKey, MigrationId, VmId},
    machine::{Machine, MachineDisk, PowerState, VmSummary},
    plan::snapshots::SnapshotPolicy,
    rule::Objection,
};

/// A configured endpoint that VMs come from.
#[async_trait]
pub trait Source: Send + Sync {
    /// Connects to the endpoint and describes it: product, version, what it lacks.
    async fn check(&self) -> Result<String, SourceError>;

    /// What an operator must know about the source beyond [`Source::check`], each with a remedy; empty if all
    /// is in order. Called when an operator checks the source; may take some seconds. Changes nothing.
    async fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// The same source for passes with another policy for snapshots; `None` if it has none.
    fn with_policy(&self, _policy: SnapshotPolicy) -> Option<Arc<dyn Source>> {
        None
    }

    /// All of its VMs.
    async fn vms(&self) -> Result<Vec<VmSummary>, SourceError>;

    /// Ids and names of all of its VMs.
    async fn names(&self) -> Result<Vec<(VmId, String)>, SourceError> {
        Ok(self.vms().await?.into_iter().map(|vm| (vm.id, vm.name)).collect())
    }

    /// One VM's hardware, by id, or by name if exactly one VM has it.
    async fn describe(&self, vm: &str) -> Result<Machine, SourceError>;

    /// Objections and warnings to moving the VM, beyond its description and power state. Changes nothing.
    async fn objections(&self, _vm: &VmId) -> Result<Vec<Objection>, SourceError> {
        Ok(Vec::new())
    }

    /// Fails unless all is there that this migration needs to read these disks with the VM off, and to start
    /// the VM again. Called before the VM is stopped; changes nothing.
    async fn can_finish(
        &self,
        _vm: &VmId,
        _owner: MigrationId,
        _disks: &[DiskKey],
    ) -> Result<(), SourceError> {
        Ok(())
    }

    /// The disks that the VM has now. Answered also where a disk's size is unknown.
    async fn disk_keys(&self, vm: &VmId) -> Result<Vec<DiskKey>, SourceError> {
        Ok(self.describe(&vm.0).await?.disks.into_iter().map(|disk| disk.key).collect())
    }

    /// The same, each with its size where that is known now: whether a VM is unchanged does not depend on it.
    async fn disk_sizes_if_known(&self, vm: &VmId) -> Result<Vec<(DiskKey, Option<Length>)>, SourceError> {
        Ok(self.describe(&vm.0).await?.disks.into_iter().map(|disk| (disk.key, Some(disk.size))).collect())
    }

    /// Whether the VM runs. A deleted VM is [`SourceErrorKind::NotFound`].
    async fn power(&self, vm: &VmId) -> Result<PowerState, SourceError>;

    /// Takes a snapshot of all `request.disks` at one moment. First ends the leftovers of an earlier call of
    /// the same migration; a mark that no ledger names is merged into the ledger's mark, never lost.
    async fn snapshot(&self, request: &SnapshotRequest) -> Result<Box<dyn Snapshot>, SourceError>;

    /// Ends any snapshot of this migration that still runs (after a crash), without touching marks. A VM that
    /// was started only to read its disks is off afterwards. No snapshot is success.
    async fn end_snapshot(&self, vm: &VmId, owner: MigrationId) -> Result<(), SourceError>;

    /// Deletes all marks of this migration except `keep`. Marks already deleted are success. Marks that
    /// cannot be removed now are no failure: they are returned, and the next such call retries.
    async fn delete_marks(
        &self,
        vm: &VmId,
        owner: MigrationId,
        keep: &[ChangeMark],
    ) -> Result<Vec<Leftover>, SourceError>;

    /// Leftovers of warmd's migrations on the source that no migration will remove: all that belongs to none
    /// of the `known` migrations. Changes nothing.
    async fn leftovers(&self, _known: &[MigrationId]) -> Result<Vec<Leftover>, SourceError> {
        Ok(Vec::new())
    }

    /// Stops the VM: asks the guest, waits `policy.graceful`, then cuts the power if the policy allows it. A
    /// stopped VM is success. The VM's disks are at rest on return.
    async fn shut_down(&self, vm: &VmId, policy: ShutdownPolicy) -> Result<HowStopped, SourceError>;

    /// Starts the VM; a running VM is success.
    async fn power_on(&self, vm: &VmId) -> Result<(), SourceError>;

    /// What besides warmd can start the VM again, as it was before this migration's [`Source::hold_off`]
    /// removed it. Changes nothing.
    async fn starters(&self, _vm: &VmId, _owner: MigrationId) -> Result<HoldOff, SourceError> {
        Ok(HoldOff::default())
    }

    /// Removes what besides warmd can start the VM, and leaves a mark with the VM's new location and what was
    /// removed. Done already is success.
    async fn hold_off(&self, _vm: &VmId, _moved: &MigratedMark, _was: &HoldOff) -> Result<(), SourceError> {
        Ok(())
    }

    /// Restores what [`Source::hold_off`] removed, and removes its mark. Nothing held off is success.
    async fn let_go(&self, _vm: &VmId, _owner: MigrationId, _was: &HoldOff) -> Result<(), SourceError> {
        Ok(())
    }

    /// The hypervisor's host that reads the machine's disks, by its name in quotas; `None` if the source
    /// knows no hosts.
    fn host(&self, _machine: &Machine) -> Option<String> {
        None
    }

    /// The [`Source::host`] that the VM is on now; `None` if the source's VMs do not move between hosts.
    async fn current_host(&self, _vm: &VmId) -> Result<Option<String>, SourceError> {
        Ok(None)
    }

    /// The disk's datastore, by its name in quotas; `None` if the source knows none.
    fn datastore(&self, _disk: &MachineDisk) -> Option<String> {
        None
    }

    /// The source's own capacity, beside the quotas of the configuration.
    fn quotas(&self) -> SourceQuotas {
        SourceQuotas::default()
    }

    /// Whether the source is in the daemon's configuration: only then does [`Source::datastore`] answer.
    fn is_configured(&self) -> bool {
        true
    }
}

/// A source's own capacity at one time. The least of these and of the configured quotas applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceQuotas {
    /// For all of its VMs.
    pub whole: Option<Quota>,
    /// For the VMs of each [`Source::host`].
    pub host: Option<Quota>,
}

/// A leftover of warmd on a source, and how an operator removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub what: String,
    pub why: String,
    /// A command, or other instructions.
    pub remedy: String,
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} stays behind: {}; to remove it: {}", self.what, self.why, self.remedy)
    }
}

/// The request for a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotRequest {
    pub owner: MigrationId,
    pub vm: VmId,
    /// Each disk with its ledger's anchor.
    pub disks: Vec<(DiskKey, Option<ChangeMark>)>,
    /// The final one: the VM is off, and must not run.
    pub is_final: bool,
}

/// A point-in-time image of a VM's disks.
#[async_trait]
pub trait Snapshot: Send + Sync {
    /// Its disks, each with the mark of this moment.
    fn disks(&self) -> &[SnapshotDisk];

    /// The changes on the disk since the anchor that the request named for it.
    async fn changed(&self, disk: &DiskKey) -> Result<Changed, SourceError>;

    /// A reader of the disk at the snapshot's moment.
    async fn open(&self, disk: &DiskKey) -> Result<Arc<dyn ReadDisk>, SourceError>;

    /// How long it took to be made, by the source's clock, if the source reports that: the VM was stunned for
    /// a part of that time.
    fn made_in(&self) -> Option<Duration> {
        None
    }

    /// Why the source ended the snapshot before its release, if it did: readers then only see that it no
    /// longer exists.
    fn ended_early(&self) -> Option<SourceError> {
        None
    }

    /// Ends the snapshot. The marks stay. If this fails, [`Source::end_snapshot`] does it later.
    async fn release(self: Box<Self>) -> Result<(), SourceError>;
}

/// One disk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotDisk {
    pub key: DiskKey,
    pub size: Length,
    pub mark: ChangeMark,
}

/// How a VM may be stopped.
#[derive(Clone, Copy, Debug)]
pub struct ShutdownPolicy {
    /// How long the guest may take to shut down.
    pub graceful: Duration,
    /// Whether the power is cut after that.
    pub force: bool,
}

/// How a VM was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowStopped {
    WasOff,
    Gracefully,
    Forced,
}

impl std::fmt::Display for HowStopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WasOff => "it was off already",
            Self::Gracefully => "the guest shut down",
            Self::Forced => "the power was cut",
        })
    }
}

/// The kind of a failure, for the reaction to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceErrorKind {
    /// The endpoint does not answer; trying again later may help.
    Unreachable,
    /// No answer within the deadline; trying again later may help.
    Timeout,
    /// The VM or the disk does not exist (any more).
    NotFound,
    /// Blocked for now: a foreign backup job, a paused VM, a managed save. The block ends without an
    /// operator, or when its owner acts; trying again later helps.
    Blocked,
    /// The source refuses permanently: a missing permission, a setting. An operator must act.
    Refused,
    /// The source failed; trying again may help.
    Failed,
    /// The guest did not shut down in time, and the policy forbids cutting the power.
    StillRunning,
}

/// The cause of a failure: the VM runs on another host of the source. With what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct VmOnAnotherHost(pub String);

/// A source's failure: kind, operation and object, what to do, and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {cause}")]
pub struct SourceError {
    pub kind: SourceErrorKind,
    pub context: String,
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl SourceError {
    /// An error of `kind` with its cause.
    pub fn new(
        kind: SourceErrorKind,
        context: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), cause: cause.into() }
    }

    /// Whether the failure is that the VM is off here and runs on another host of the source: a check whether
    /// the VM runs counts that as running.
    pub fn runs_elsewhere(&self) -> bool {
        self.cause.is::<VmOnAnotherHost>()
    }
}
