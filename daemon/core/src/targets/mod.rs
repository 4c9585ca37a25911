//! Targets: where VMs go to. Each kind is one folder; this is the contract for all of them.
//!
//! Rule: every call is keyed by the migration's id, may be repeated and may be cut off in the middle: the
//! same call again gives the same disks and the same machine, never a second one, and touches nothing of
//! others.

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
    /// Connects to the endpoint and describes it: product, version, free space, what it lacks.
    async fn check(&self) -> Result<String, TargetError>;

    /// Sets what else is known of this host, before any other call. Used by targets that write to this host.
    fn on(&self, _host: &Arc<dyn host::Host>) {}

    /// Objections and warnings to machines that are to be moved here: each with the machine's index in the
    /// list, none if it concerns all. Changes nothing.
    async fn objections(
        &self,
        _machines: &[Incoming],
    ) -> Result<Vec<(Option<usize>, Objection)>, TargetError> {
        Ok(Vec::new())
    }

    /// Creates the migration's disks, or finds those of an earlier call. An existing disk of another size is
    /// [`TargetErrorKind::Conflict`], never resized or overwritten.
    async fn prepare(&self, owner: MigrationId, disks: &[DiskSpec])
    -> Result<Vec<PreparedDisk>, TargetError>;

    /// A writer for a prepared disk; a disk that no longer exists is [`TargetErrorKind::NotFound`].
    async fn open(&self, owner: MigrationId, disk: &DiskSpec) -> Result<Arc<dyn WriteDisk>, TargetError>;

    /// Creates the machine from the prepared disks, stopped.
    async fn create(&self, request: &CreateMachine) -> Result<(), TargetError>;

    /// Starts the machine; a running one is success. [`TargetErrorKind::Refused`] means that it certainly
    /// does not run.
    async fn start(&self, owner: MigrationId) -> Result<(), TargetError>;

    /// The machine's state.
    async fn look(&self, owner: MigrationId) -> Result<MachineState, TargetError>;

    /// Whether [`Target::sign`] is available.
    fn sees_guests(&self) -> bool {
        false
    }

    /// Succeeds if the running machine's guest has given this sign of life; else returns why not, or what is
    /// missing.
    async fn sign(&self, owner: MigrationId, sign: &GuestSign) -> Result<(), TargetError> {
        let context = format!("looking for {sign:?} of the machine of migration {owner}");
        Err(TargetError::new(
            TargetErrorKind::Refused,
            context,
            "this kind of target cannot look into guests",
        ))
    }

    /// Stops and removes the machine; the disks stay. No machine is success.
    async fn discard_machine(&self, owner: MigrationId) -> Result<(), TargetError>;

    /// Whether the target implements [`Target::set_autostart`].
    fn keeps_autostart(&self) -> bool {
        false
    }

    /// Sets whether the machine is started together with its host. A target that does not control that does
    /// nothing and returns success.
    async fn set_autostart(&self, _owner: MigrationId, _on: bool) -> Result<(), TargetError> {
        Ok(())
    }

    /// Removes what concerns only earlier machines of the migration, when the last one is handed over. The
    /// machine needs none of it.
    async fn tidy(&self, _owner: MigrationId) -> Result<(), TargetError> {
        Ok(())
    }

    /// Removes the disks. Refuses while the machine exists. No disks is success.
    async fn discard_disks(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError>;

    /// The overlays for a conversion's writes; `None` if there are none.
    async fn conversion_overlay(&self) -> Result<Option<&dyn ConversionOverlay>, TargetError> {
        Ok(None)
    }

    /// Notes beside the disks, durably, which writer is about to write; `None` if there is none. The note
    /// reveals a state that was restored from an older copy: the disks name writers that the state does not
    /// know. It stays when the disks are handed over.
    async fn note_writer(&self, owner: MigrationId, writer: Option<LastWriter>) -> Result<(), TargetError>;

    /// The last noted writer; `None` if there is none.
    async fn noted_writer(&self, owner: MigrationId) -> Result<Option<LastWriter>, TargetError>;
}

/// A disk to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    pub key: DiskKey,
    pub size: Length,
    /// The disk's location in the plan, if any: a block device, a pool's path, an NBD URI, or a storage of
    /// the target ([`crate::model::storage`]); else the target chooses.
    pub place: Option<String>,
}

/// An existing disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedDisk {
    pub key: DiskKey,
    /// A path or an NBD URI.
    pub location: String,
    /// Whether every byte of it is known to read as zero now; if not, the source's holes are written too.
    pub reads_zero: bool,
}

/// A machine to be created.
#[derive(Clone, Debug)]
pub struct CreateMachine {
    pub owner: MigrationId,
    /// The name on the target; the machine's own name is the source's.
    pub name: String,
    /// With networks already mapped to the target's.
    pub machine: Machine,
    pub disks: Vec<DiskSpec>,
}

/// A machine that is to be moved, before anything of it is on the target.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The migration that moves it; none if there is none yet.
    pub owner: Option<MigrationId>,
    /// The name on the target; the machine's own name is the source's.
    pub name: String,
    /// With networks already mapped to the target's.
    pub machine: Machine,
    pub disks: Vec<DiskSpec>,
}

impl CreateMachine {
    /// The disk's boot order, 0 first; a disk that the machine does not know comes last.
    pub fn boot_order(&self, key: &DiskKey) -> u32 {
        let disk = self.machine.disks.iter().find(|disk| disk.key == *key);
        disk.map_or(u32::MAX, |disk| disk.boot_order)
    }
}

/// A sign that a guest has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestSign {
    /// It has written this text to its first serial port since the machine was created.
    Serial(String),
    /// Its QEMU guest agent answers.
    Agent,
}

/// The state of a machine on the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineState {
    Absent,
    Stopped,
    Starting,
    Running,
    /// It will not start without help, and why.
    Failed(String),
    /// The target only keeps disks: another program creates and starts the machine.
    NotManaged,
}

/// The kind of a failure, for the reaction to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetErrorKind {
    /// The endpoint does not answer; trying again later may help.
    Unreachable,
    /// No answer within the deadline; trying again later may help.
    Timeout,
    /// The disk or machine does not exist (any more).
    NotFound,
    /// An object of another owner is in the way.
    Conflict,
    /// No space.
    NoSpace,
    /// The target refuses; an operator must act.
    Refused,
    /// The target failed; trying again may help.
    Failed,
}

/// A target's failure: kind, operation and object, what to do, and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {cause}")]
pub struct TargetError {
    pub kind: TargetErrorKind,
    /// Another process uses the disk, and closes it sooner or later.
    pub is_in_use: bool,
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
        Self { kind, is_in_use: false, context: context.into(), cause: cause.into() }
    }

    /// Whether the same call may succeed later without an operator.
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
