//! What a target asks of the host that it writes to: which VMs use which disks, and which migration owns
//! which location.
//!
//! Rule: a target knows no sources, no other targets and no state. The daemon's root knows them all, and
//! answers here.

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

    /// Claims the identity for a migration's disk, which releases its earlier claim; an existing claim of the
    /// same disk is success. Otherwise returns the owner.
    async fn claim(&self, claim: &LocationClaim) -> Result<Option<LocationClaim>, TargetError>;

    /// The claims of all other migrations.
    async fn claims_of_others(&self, owner: MigrationId) -> Result<Vec<LocationClaim>, TargetError>;

    /// Deletes a claim that is no longer valid.
    async fn forget(&self, claim: &LocationClaim) -> Result<(), TargetError>;

    /// Deletes the claim of a migration's disk.
    async fn give_up(&self, owner: MigrationId, disk: &DiskKey) -> Result<(), TargetError>;
}

/// The disks of the VMs of this host's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmDisks {
    pub found: Vec<VmDisk>,
    /// Possible further disks, in words: endpoints that did not answer, VMs that could not be read.
    pub unknown: Vec<String>,
}

/// A file or device that a VM uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDisk {
    pub path: PathBuf,
    /// `VM web1 of qemu:///system`.
    pub vm: String,
    /// The migration that created the VM, if one did.
    pub moved_by: Option<String>,
}
