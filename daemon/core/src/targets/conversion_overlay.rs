//! Conversion overlays: where a conversion writes instead of to a target's disks, until it has succeeded.
//!
//! Rule: until [`ConversionOverlay::commit`] no byte of a disk changes; whatever fails, hangs or dies, [`ConversionOverlay::remove_overlays`] leaves the
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

/// A target that can keep the writes of a conversion apart. All of it is keyed by the migration's id and bears being repeated
/// and cut off anywhere.
#[async_trait]
pub trait ConversionOverlay: Send + Sync {
    /// Why nothing can be kept apart from this disk, and what to do; `None` if it can.
    fn refusal(&self, disk: &DiskSpec) -> Option<String>;

    /// Fails if something is missing that will be needed.
    async fn check(&self) -> Result<(), TargetError>;

    /// Creates overlays for the disks, at paths that were never used: those of an earlier conversion are removed with what is
    /// in them, and its programs, should any have outlived their daemon, know other paths.
    async fn create_overlays(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<Overlays, TargetError>;

    /// Moves the overlays to other paths: what is left of a conversion's programs finds nothing there any
    /// more, and what it has open still is seen by [`ConversionOverlay::changed`]. The overlays as they are from now on.
    async fn detach_overlays(&self, owner: MigrationId, overlays: Overlays) -> Result<Overlays, TargetError>;

    /// Where the overlays differ now from their disks; none of them may be in use.
    async fn changed(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
        overlays: &Overlays,
    ) -> Result<Vec<(DiskKey, Vec<Extent>)>, TargetError>;

    /// Writes what is in the overlays into the disks, durably. `deadline` is for each disk.
    async fn commit(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
        overlays: &Overlays,
        deadline: Duration,
    ) -> Result<(), TargetError>;

    /// Removes the overlays with what is in them, when nothing writes to the disks any more; none there is success.
    async fn remove_overlays(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError>;
}

/// The overlays of one conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlays {
    /// A folder beside them that goes with them, and that no other user may enter.
    pub folder: PathBuf,
    pub disks: Vec<OverlayDisk>,
}

impl Overlays {
    /// Where the disk is kept apart.
    pub fn path(&self, disk: &DiskKey) -> Option<&Path> {
        self.disks.iter().find(|overlay| overlay.key == *disk).map(|overlay| overlay.path.as_path())
    }
}

/// Where a conversion finds a disk, and writes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayDisk {
    pub key: DiskKey,
    pub path: PathBuf,
    /// As QEMU calls it.
    pub format: &'static str,
}
