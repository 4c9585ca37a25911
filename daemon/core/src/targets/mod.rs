//! Targets: where VMs go to. Each kind is one folder; this is the contract that all of them keep.
//!
//! Rule: everything is keyed by the migration's id and bears being repeated and being cut off in the middle: the same
//! call again gives the same disks and the same machine, never a second one, and touches nothing of others.

pub mod absent;
pub mod conversion_overlay;
pub mod host;
mod last_writer;

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use warmd_cbt::{disk::WriteDisk, units::Length};

use self::conversion_overlay::ConversionOverlay;
pub use self::last_writer::LastWriter;
use crate::model::{
    id::{DiskKey, MigrationId},
    machine::Machine,
    rule::Objection,
};

/// A configured endpoint that VMs go to.
#[async_trait]
pub trait Target: Send + Sync {
    /// Reaches the endpoint and says what it is: product, version, room left, what it lacks.
    async fn check(&self) -> Result<String, TargetError>;

    /// Takes what else is known of this host, before anything else is asked of it. Of use to those that write to it.
    fn on(&self, _host: &Arc<dyn host::Host>) {}

    /// What it has against machines that are to come, or wants to be known before: each with the machine's place in the
    /// list, none if it is of all of them. Changes nothing.
    async fn objections(
        &self,
        _machines: &[Incoming],
    ) -> Result<Vec<(Option<usize>, Objection)>, TargetError> {
        Ok(Vec::new())
    }

    /// Makes the migration's disks, or finds those that an earlier call made. A disk that is there with another size
    /// is [`TargetErrorKind::Conflict`], never resized or overwritten.
    async fn prepare(&self, owner: MigrationId, disks: &[DiskSpec])
    -> Result<Vec<PreparedDisk>, TargetError>;

    /// A writer for a prepared disk; a disk that is not there any more is [`TargetErrorKind::NotFound`].
    async fn open(&self, owner: MigrationId, disk: &DiskSpec) -> Result<Arc<dyn WriteDisk>, TargetError>;

    /// Creates the machine from the prepared disks, stopped.
    async fn create(&self, request: &CreateMachine) -> Result<(), TargetError>;

    /// Starts the machine; running already is success. [`TargetErrorKind::Refused`] means that it surely does not run.
    async fn start(&self, owner: MigrationId) -> Result<(), TargetError>;

    /// How the machine is.
    async fn look(&self, owner: MigrationId) -> Result<MachineState, TargetError>;

    /// Whether [`Target::sign`] can be asked.
    fn sees_guests(&self) -> bool {
        false
    }

    /// Succeeds if the running machine's guest has given this sign of life; else says why not, or what it lacks.
    async fn sign(&self, owner: MigrationId, sign: &GuestSign) -> Result<(), TargetError> {
        let context = format!("looking for {sign:?} of the machine of migration {owner}");
        Err(TargetError::new(
            TargetErrorKind::Refused,
            context,
            "this kind of target cannot look into guests",
        ))
    }

    /// Stops and removes the machine; the disks stay. None there is success.
    async fn discard_machine(&self, owner: MigrationId) -> Result<(), TargetError>;

    /// Whether [`Target::set_autostart`] is the target's to do.
    fn keeps_autostart(&self) -> bool {
        false
    }

    /// Whether the machine is started together with its host from now on. Where that is not the target's to say, nothing is
    /// done, and that is success.
    async fn set_autostart(&self, _owner: MigrationId, _on: bool) -> Result<(), TargetError> {
        Ok(())
    }

    /// Removes what only speaks of earlier machines of the migration, when the last one is handed over. The machine needs
    /// none of it.
    async fn tidy(&self, _owner: MigrationId) -> Result<(), TargetError> {
        Ok(())
    }

    /// Removes the disks. Refuses while the machine exists. None there is success.
    async fn discard_disks(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError>;

    /// What keeps a conversion's writes apart from the disks; `None` if nothing can.
    async fn conversion_overlay(&self) -> Result<Option<&dyn ConversionOverlay>, TargetError> {
        Ok(None)
    }

    /// Keeps beside the disks, durably, who is about to write to them; `None` if there is no writer. It is how a state
    /// that was put back from an older copy is noticed: the disks know of writers that it does not. It stays when they
    /// are handed over.
    async fn note_writer(&self, owner: MigrationId, writer: Option<LastWriter>) -> Result<(), TargetError>;

    /// The last writer that was noted; `None` if there is none.
    async fn noted_writer(&self, owner: MigrationId) -> Result<Option<LastWriter>, TargetError>;
}

/// A disk to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    pub key: DiskKey,
    pub size: Length,
    /// Where this disk goes, if the plan says so: a block device, a pool's path, an NBD URI, or a storage of the target
    /// ([`crate::model::storage`]); else the target chooses.
    pub place: Option<String>,
}

/// A disk that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedDisk {
    pub key: DiskKey,
    /// A path or an NBD URI.
    pub location: String,
    /// Whether every byte of it is known to read as zero now; if not, holes of the source are written too.
    pub reads_zero: bool,
}

/// A machine to be created.
#[derive(Clone, Debug)]
pub struct CreateMachine {
    pub owner: MigrationId,
    /// The name on the target; the machine's own is the source's.
    pub name: String,
    /// With networks already mapped to the target's.
    pub machine: Machine,
    pub disks: Vec<DiskSpec>,
}

/// A machine that is to come, before anything of it is here.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The migration that moves it; none if it has not begun.
    pub owner: Option<MigrationId>,
    /// The name on the target; the machine's own is the source's.
    pub name: String,
    /// With networks already mapped to the target's.
    pub machine: Machine,
    pub disks: Vec<DiskSpec>,
}

impl CreateMachine {
    /// The disk's order in booting, 0 first; a disk that the machine does not know comes last.
    pub fn boot_order(&self, key: &DiskKey) -> u32 {
        let disk = self.machine.disks.iter().find(|disk| disk.key == *key);
        disk.map_or(u32::MAX, |disk| disk.boot_order)
    }
}

/// A sign that a guest has come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestSign {
    /// It has written this text to its first serial port since the machine was created.
    Serial(String),
    /// Its QEMU guest agent answers.
    Agent,
}

/// How a machine on the target is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineState {
    Absent,
    Stopped,
    Starting,
    Running,
    /// It will not come up by itself; why.
    Failed(String),
    /// The target only keeps disks: another program creates and starts the machine.
    NotManaged,
}

/// What kind of failure it was, to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetErrorKind {
    /// The endpoint does not answer; trying again later may help.
    Unreachable,
    /// No answer within the deadline; trying again later may help.
    Timeout,
    /// The disk or machine is not there (any more).
    NotFound,
    /// Something that is not this migration's is in the way.
    Conflict,
    /// No room.
    NoSpace,
    /// The target will not; an operator must act.
    Refused,
    /// The target failed at it; trying again may help.
    Failed,
}

/// A target's failure: kind, what was being done to what, what to do, and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {cause}")]
pub struct TargetError {
    pub kind: TargetErrorKind,
    pub context: String,
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl TargetError {
    /// An error of `kind` with its cause.
    pub fn new(
        kind: TargetErrorKind,
        context: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), cause: cause.into() }
    }

    /// Whether the same call may succeed later by itself.
    pub fn may_pass(&self) -> bool {
        match self.kind {
            TargetErrorKind::Unreachable | TargetErrorKind::Timeout | TargetErrorKind::Failed => true,
            TargetErrorKind::NotFound
            | TargetErrorKind::Conflict
            | TargetErrorKind::NoSpace
            | TargetErrorKind::Refused => false,
        }
    }
}
