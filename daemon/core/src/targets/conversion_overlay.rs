//! Conversion overlays: a conversion writes to them instead of to a target's disks, until it has succeeded.
//!
//! Rule: until [`ConversionOverlay::commit`] no byte of a disk changes; after any failure, hang or crash,
//! [`ConversionOverlay::remove_overlays`] leaves the disks as they were before. From `commit`'s first byte
//! on, a disk differs from the copy in the blocks that [`ConversionOverlay::changed`] returns, so the caller
//! records that durably before.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use warmd_cbt::units::Extent;

use super::{DiskSpec, TargetError};
use crate::model::id::{DiskKey, MigrationId};

/// A target that can hold a conversion's writes apart. Each call is keyed by the migration's id, and may be
/// repeated and cut off anywhere.
#[async_trait]
pub trait ConversionOverlay: Send + Sync {
    /// Why this disk cannot have an overlay, and what to do; `None` if it can.
    fn refusal(&self, disk: &DiskSpec) -> Option<String>;

    /// Fails if something is missing that will be needed.
    async fn check(&self) -> Result<(), TargetError>;

    /// Creates overlays for the disks, at paths that were never used: those of an earlier conversion are
    /// removed with their content, and programs of it that outlived their daemon know only other paths.
    async fn create_overlays(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<Overlays, TargetError>;

    /// Moves the overlays to other paths: the conversion's remaining programs no longer find them, and writes
    /// through files that are still open are seen by [`ConversionOverlay::changed`]. Returns the overlays'
    /// new paths.
    async fn detach_overlays(&self, owner: MigrationId, overlays: Overlays) -> Result<Overlays, TargetError>;

    /// Where the overlays differ now from their disks; none of them may be in use.
    async fn changed(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
        overlays: &Overlays,
    ) -> Result<Vec<(DiskKey, Vec<Extent>)>, TargetError>;

    /// Writes the overlays' content into the disks, durably. `deadline` is for each disk.
    async fn commit(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
        overlays: &Overlays,
        deadline: Duration,
    ) -> Result<(), TargetError>;

    /// Removes the overlays with their content, after the last write to the disks; none there is success.
    async fn remove_overlays(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError>;
}

/// The overlays of one conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlays {
    /// A folder beside the overlays that is removed with them, and that no other user may enter.
    pub folder: PathBuf,
    pub disks: Vec<OverlayDisk>,
}

impl Overlays {
    /// The path of the disk's overlay.
    pub fn path(&self, disk: &DiskKey) -> Option<&Path> {
        self.disks.iter().find(|overlay| overlay.key == *disk).map(|overlay| overlay.path.as_path())
    }
}

/// The path and format through which a conversion reads and writes a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayDisk {
    pub key: DiskKey,
    pub path: PathBuf,
    /// QEMU's name of the format.
    pub format: &'static str,
}
