//! Guarded places: where a conversion writes instead of to a target's disks, until it has succeeded.
//!
//! Rule: until [`ConversionOverlay::commit`] no byte of a disk changes; whatever fails, hangs or dies, [`ConversionOverlay::lower`] leaves the
//! disks as they were before. From the first byte that `commit` writes a disk is no longer what was copied in the blocks
//! that [`ConversionOverlay::changed`] tells, so the caller has it noted durably before.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use warmd_cbt::units::Extent;

use super::{DiskSpec, TargetError};
use crate::model::id::{DiskKey, MigrationId};

/// A target that can keep a conversion's writes apart. All of it is keyed by the migration's id and bears being repeated
/// and cut off anywhere.
#[async_trait]
pub trait ConversionOverlay: Send + Sync {
    /// Why nothing can be kept apart from this disk, and what to do; `None` if it can.
    fn refusal(&self, disk: &DiskSpec) -> Option<String>;

    /// Fails if something is missing that will be needed.
    async fn check(&self) -> Result<(), TargetError>;

    /// Makes guarded places for the disks, anew and where none ever were: those of an earlier conversion are removed with what is
    /// in them, and its programs, should any have outlived their daemon, know other paths.
    async fn raise(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<Guarded, TargetError>;

    /// Takes the places away from who was told of them: what is left of a conversion's programs finds nothing there any
    /// more, and what it has open still is seen by [`ConversionOverlay::changed`]. The places as they are from now on.
    async fn close(&self, owner: MigrationId, guarded: Guarded) -> Result<Guarded, TargetError>;

    /// Where the guarded places now differ from their disks; none of them may be in use.
    async fn changed(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
        guarded: &Guarded,
    ) -> Result<Vec<(DiskKey, Vec<Extent>)>, TargetError>;

    /// Writes what is in the guarded places into the disks, durably. `deadline` is for each disk.
    async fn commit(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
        guarded: &Guarded,
        deadline: Duration,
    ) -> Result<(), TargetError>;

    /// Removes the guarded places with what is in them, when nothing writes to the disks any more; none there is success.
    async fn lower(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError>;
}

/// Guarded places that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// A folder beside them that goes with them, and that nobody else may enter.
    pub folder: PathBuf,
    pub disks: Vec<GuardedDisk>,
}

impl Guarded {
    /// Where the disk is kept apart.
    pub fn path(&self, disk: &DiskKey) -> Option<&Path> {
        self.disks.iter().find(|guarded| guarded.key == *disk).map(|guarded| guarded.path.as_path())
    }
}

/// Where a conversion finds a disk, and writes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedDisk {
    pub key: DiskKey,
    pub path: PathBuf,
    /// As QEMU calls it.
    pub format: &'static str,
}
