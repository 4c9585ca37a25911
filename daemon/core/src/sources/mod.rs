//! Sources: where VMs come from. Each kind is one folder; this is the contract that all of them keep.
//!
//! Rule: every call bears being repeated and being cut off in the middle. What a source holds for warmd (marks, a
//! running snapshot) carries the migration's id, so that after a crash it can tell its own leftovers from others'.

pub mod absent;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use warmd_cbt::{
    disk::ReadDisk,
    mark::{ChangeMark, Changed},
    units::Length,
};

pub use crate::model::hold_off::{HoldOff, MigratedMark};
use crate::model::{
    id::{DiskKey, MigrationId, VmId},
    machine::{Machine, MachineDisk, PowerState, VmSummary},
    rule::Objection,
};

/// A configured endpoint that VMs come from.
#[async_trait]
pub trait Source: Send + Sync {
    /// Reaches the endpoint and says what it is: product, version, what it lacks.
    async fn check(&self) -> Result<String, SourceError>;

    /// All VMs that it has.
    async fn vms(&self) -> Result<Vec<VmSummary>, SourceError>;

    /// Ids and names of all VMs that it has.
    async fn names(&self) -> Result<Vec<(VmId, String)>, SourceError> {
        Ok(self.vms().await?.into_iter().map(|vm| (vm.id, vm.name)).collect())
    }

    /// One VM's hardware, by id, or by name if that names exactly one.
    async fn describe(&self, vm: &str) -> Result<Machine, SourceError>;

    /// What stands in the way of moving the VM, or is to be known before, beside what its description and its power say.
    /// Changes nothing.
    async fn objections(&self, _vm: &VmId) -> Result<Vec<Objection>, SourceError> {
        Ok(Vec::new())
    }

    /// Fails unless all is there that reading these disks once the VM is off, and starting it again, will need. Asked
    /// before the VM is stopped; changes nothing.
    async fn can_finish(&self, _vm: &VmId, _disks: &[DiskKey]) -> Result<(), SourceError> {
        Ok(())
    }

    /// The disks that the VM has now. Answered also where a disk's size cannot be told.
    async fn disk_keys(&self, vm: &VmId) -> Result<Vec<DiskKey>, SourceError> {
        Ok(self.describe(&vm.0).await?.disks.into_iter().map(|disk| disk.key).collect())
    }

    /// The same, each with its size where that can be told now: whether a VM is the one that it was does not hang on
    /// it.
    async fn disk_sizes_if_known(&self, vm: &VmId) -> Result<Vec<(DiskKey, Option<Length>)>, SourceError> {
        Ok(self.describe(&vm.0).await?.disks.into_iter().map(|disk| (disk.key, Some(disk.size))).collect())
    }

    /// Whether the VM runs. A VM that is gone is [`SourceErrorKind::NotFound`].
    async fn power(&self, vm: &VmId) -> Result<PowerState, SourceError>;

    /// Takes a snapshot of all `request.disks` at one moment. First ends what an earlier call of the same migration
    /// left behind; a mark that no ledger names is folded into the ledger's mark, never lost.
    async fn snapshot(&self, request: &SnapshotRequest) -> Result<Box<dyn Snapshot>, SourceError>;

    /// Ends whatever snapshot of this migration still runs (after a crash), without touching marks. If the VM was
    /// started only to read its disks, it is off afterwards. Nothing to end is success.
    async fn end_snapshot(&self, vm: &VmId, owner: MigrationId) -> Result<(), SourceError>;

    /// Gives up all marks of this migration except `keep`. Marks already gone are success. What cannot be removed now is
    /// no failure: it is answered, and tried again by the next such call.
    async fn delete_marks(
        &self,
        vm: &VmId,
        owner: MigrationId,
        keep: &[ChangeMark],
    ) -> Result<Vec<Leftover>, SourceError>;

    /// What warmd's migrations left behind on it and do not ask for again: all that is none of the `known`
    /// migrations'. Changes nothing.
    async fn leftovers(&self, _known: &[MigrationId]) -> Result<Vec<Leftover>, SourceError> {
        Ok(Vec::new())
    }

    /// Stops the VM: asks the guest, waits `policy.graceful`, then cuts the power if the policy says so. Off already
    /// is success. The VM's disks are at rest on return.
    async fn shut_down(&self, vm: &VmId, policy: ShutdownPolicy) -> Result<HowStopped, SourceError>;

    /// Starts the VM; running already is success.
    async fn power_on(&self, vm: &VmId) -> Result<(), SourceError>;

    /// What can start the VM again beside warmd, as it was before [`Source::hold_off`] of this migration took it
    /// away. Changes nothing.
    async fn starters(&self, _vm: &VmId, _owner: MigrationId) -> Result<HoldOff, SourceError> {
        Ok(HoldOff::default())
    }

    /// Takes away what can start the VM beside warmd, and leaves a mark that tells where the VM went and what was taken.
    /// Done already is success.
    async fn hold_off(&self, _vm: &VmId, _moved: &MigratedMark, _was: &HoldOff) -> Result<(), SourceError> {
        Ok(())
    }

    /// Gives back what [`Source::hold_off`] took away, and removes its mark. Nothing held off is success.
    async fn let_go(&self, _vm: &VmId, _owner: MigrationId, _was: &HoldOff) -> Result<(), SourceError> {
        Ok(())
    }

    /// The hypervisor's host that reads the machine's disks, by the name that quotas have for it; `None` if the source
    /// knows of no hosts.
    fn host(&self, _machine: &Machine) -> Option<String> {
        None
    }

    /// Where the disk lies together with others, by the name that quotas have for it; `None` if the source knows of
    /// nothing such.
    fn datastore(&self, _disk: &MachineDisk) -> Option<String> {
        None
    }

    /// Whether it is in the daemon's configuration: only then [`Source::datastore`] can tell.
    fn is_configured(&self) -> bool {
        true
    }
}

/// Something of warmd's that stays behind on a source, and how a person removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub what: String,
    pub why: String,
    /// A command, or what else to do.
    pub remedy: String,
}

impl std::fmt::Display for Leftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} stays behind: {}; to remove it: {}", self.what, self.why, self.remedy)
    }
}

/// What to take a snapshot of.
#[derive(Clone, Debug)]
pub struct SnapshotRequest {
    pub owner: MigrationId,
    pub vm: VmId,
    /// Each disk with its ledger's anchor.
    pub disks: Vec<(DiskKey, Option<ChangeMark>)>,
    /// The final one: the VM is off, and must not execute an instruction.
    pub is_final: bool,
}

/// A point-in-time image of a VM's disks.
#[async_trait]
pub trait Snapshot: Send + Sync {
    /// The disks in it, with the mark of this moment.
    fn disks(&self) -> &[SnapshotDisk];

    /// What changed on the disk since the anchor that the request named for it.
    async fn changed(&self, disk: &DiskKey) -> Result<Changed, SourceError>;

    /// A reader of the disk as it was at the snapshot's moment.
    async fn open(&self, disk: &DiskKey) -> Result<Arc<dyn ReadDisk>, SourceError>;

    /// Why the source gave it up before it was released, if it did: readers then only see that it is gone.
    fn given_up(&self) -> Option<SourceError> {
        None
    }

    /// Ends it. The marks stay. If this fails, [`Source::end_snapshot`] does it later.
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
    /// How long the guest gets to shut down by itself.
    pub graceful: Duration,
    /// Whether the power is cut after that.
    pub force: bool,
}

/// How a VM came to be off.
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
            Self::Gracefully => "the guest shut down by itself",
            Self::Forced => "the power was cut",
        })
    }
}

/// What kind of failure it was, to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceErrorKind {
    /// The endpoint does not answer; trying again later may help.
    Unreachable,
    /// No answer within the deadline; trying again later may help.
    Timeout,
    /// The VM or the disk is not there (any more).
    NotFound,
    /// Something stands in the way for now: a foreign backup job, a paused VM, a managed save. It passes by itself, or by
    /// what its owner does; trying again later helps.
    Blocked,
    /// The source will not, and time does not mend it: a missing permission, a setting. An operator must act.
    Refused,
    /// The source failed at it; trying again may help.
    Failed,
    /// The guest did not shut down in time, and the policy forbids to cut the power.
    StillRunning,
}

/// The cause of a failure: the VM runs on another host of the source. With what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Elsewhere(pub String);

/// A source's failure: kind, what was being done to what, what to do, and the cause.
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

    /// Whether it failed because the VM is off here and runs on another host of the source: a look whether it
    /// runs takes that for running.
    pub fn runs_elsewhere(&self) -> bool {
        self.cause.is::<Elsewhere>()
    }
}
