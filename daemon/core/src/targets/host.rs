//! What a target asks of the host that it writes to: which VMs have which disks, and which migration has which place.
//!
//! Rule: a target knows no sources, no other targets and no state. The daemon's root knows them all, and answers here.

use std::{fmt, path::PathBuf};

use async_trait::async_trait;

pub use crate::model::location_claim::LocationClaim;
use crate::{
    model::id::{DiskKey, MigrationId},
    targets::TargetError,
};

/// What is known of this host beyond one target.
#[async_trait]
pub trait Host: fmt::Debug + Send + Sync {
    /// The disks, and the images under them, of all VMs of this host's endpoints, whether they run or not.
    async fn vm_disks(&self) -> VmDisks;

    /// Why processes that may use a volume cannot be seen, in words; `None` if they can.
    async fn unseen(&self) -> Option<String>;

    /// Takes the identity for a migration's disk, which gives up any other that it had; having it already is success. Else whose it is.
    async fn claim(&self, claim: &LocationClaim) -> Result<Option<LocationClaim>, TargetError>;

    /// The claims of all other migrations.
    async fn claims_of_others(&self, owner: MigrationId) -> Result<Vec<LocationClaim>, TargetError>;

    /// Takes a claim away that holds no more.
    async fn forget(&self, claim: &LocationClaim) -> Result<(), TargetError>;

    /// Gives up what a migration's disk has.
    async fn give_up(&self, owner: MigrationId, disk: &DiskKey) -> Result<(), TargetError>;
}

/// What the VMs of this host's endpoints have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmDisks {
    pub found: Vec<VmDisk>,
    /// What else VMs may have, in words: endpoints that did not answer, VMs that could not be read.
    pub unknown: Vec<String>,
}

/// A file or device that a VM has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDisk {
    pub path: PathBuf,
    /// `VM web1 of qemu:///system`.
    pub vm: String,
    /// The migration that made the VM, if one did.
    pub moved_by: Option<String>,
}
