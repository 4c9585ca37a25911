//! Conversion overlays on this host: a qcow2 overlay over each disk, in a folder of the migration's own
//! folder.
//!
//! Rule: each conversion has a folder of its own, for warmd's user only, by a new name: so no file in it was
//! there before, no name in it leads elsewhere, and no program that outlived an earlier one knows it; all of
//! them are removed together. While overlays are committed, the volume's own lock belongs to the program that
//! writes, so not even a later daemon opens the disk before that one has ended.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use uuid::Uuid;
use warmd_cbt::units::Extent;
use warmd_core::{
    model::id::{DiskKey, MigrationId},
    targets::{
        DiskSpec, TargetError, TargetErrorKind,
        conversion_overlay::{ConversionOverlay, OverlayDisk, Overlays},
    },
};
use warmd_disks::{
    qemu_img::{ImageError, ImageErrorKind, overlay},
    volume::{self, LockedVolume, VolumeError},
};

use super::volume_error::ForTarget as _;
use super::{Storage, WantedLocation, blocking_on, blocking_within, doing, operator, safe_name};

/// The name in a migration's folder.
pub(super) const FOLDER: &str = "conversion";

const FORMAT: &str = "qcow2";

impl Storage {
    fn overlays(&self, owner: MigrationId) -> PathBuf {
        self.folder(owner).join(FOLDER)
    }

    /// A disk's overlay, and the volume under it.
    fn layers<'a>(
        &self,
        owner: MigrationId,
        spec: &DiskSpec,
        overlays: &'a Overlays,
        doing: &str,
    ) -> Result<(&'a Path, PathBuf), TargetError> {
        let missing = || TargetError::new(TargetErrorKind::NotFound, doing, "it is not kept apart");
        Ok((overlays.path(&spec.key).ok_or_else(missing)?, self.backing(owner, spec, doing)?))
    }

    /// The volume under an overlay.
    fn backing(&self, owner: MigrationId, spec: &DiskSpec, doing: &str) -> Result<PathBuf, TargetError> {
        match self.place(owner, spec)? {
            WantedLocation::Own(path) | WantedLocation::Path(path) => Ok(path),
            WantedLocation::Nbd(uri) => {
                Err(TargetError::new(TargetErrorKind::Refused, doing, no_overlay(&uri)))
            }
        }
    }
}

fn overlay_name(spec: &DiskSpec) -> String {
    format!("{}.{FORMAT}", safe_name(&spec.key.0))
}

fn no_overlay(uri: &str) -> String {
    format!(
        "a conversion cannot be kept apart from {uri}: give the disk a file or block device of the daemon's host, or set \
         `conversion = \"none\"` and convert it where the export is served"
    )
}

#[async_trait]
impl ConversionOverlay for Storage {
    fn refusal(&self, disk: &DiskSpec) -> Option<String> {
        match self.place(MigrationId(Uuid::nil()), disk) {
            Ok(WantedLocation::Own(_) | WantedLocation::Path(_)) => None,
            Ok(WantedLocation::Nbd(uri)) => Some(no_overlay(&uri)),
            Err(error) => Some(error.to_string()),
        }
    }

    async fn check(&self) -> Result<(), TargetError> {
        overlay::tool().await.map(drop).map_err(failed("looking for qemu-img"))
    }

    async fn create_overlays(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<Overlays, TargetError> {
        self.remove_overlays(owner, disks).await?;
        // Also checks that this migration owns them and that their sizes are right.
        self.locate(owner, disks).await?;
        self.make_folder(owner).await?;
        let all = self.overlays(owner);
        let folder = all.join(Uuid::now_v7().to_string());
        let (made, making) = (folder.clone(), format!("making the folder {}", folder.display()));
        let make = move || {
            volume::make_own_directory(&all)?;
            volume::make_own_directory(&made)
        };
        blocking_on(&self.directory, making, make).await.map_err(operator)?;
        let mut overlays = Vec::with_capacity(disks.len());
        for spec in disks {
            let doing = doing("guarding", owner, spec);
            let path = folder.join(overlay_name(spec));
            let backing = self.backing(owner, spec, &doing)?;
            overlay::make(&path, &backing, spec.size).await.map_err(failed(&doing))?;
            overlays.push(OverlayDisk { key: spec.key.clone(), path, format: FORMAT });
        }
        Ok(Overlays { folder, disks: overlays })
    }

    async fn detach_overlays(&self, owner: MigrationId, overlays: Overlays) -> Result<Overlays, TargetError> {
        let folder = self.overlays(owner).join(Uuid::now_v7().to_string());
        let (from, to) = (overlays.folder, folder.clone());
        let doing = format!("renaming {}", from.display());
        let rename =
            move || fs::rename(&from, &to).map_err(|error| VolumeError::io("renaming", &from, error));
        blocking_on(&self.directory, doing, rename).await?;
        let moved = |disk: OverlayDisk| {
            let name = disk.path.file_name().map(ToOwned::to_owned).unwrap_or_default();
            OverlayDisk { path: folder.join(name), ..disk }
        };
        let disks = overlays.disks.into_iter().map(moved).collect();
        Ok(Overlays { folder, disks })
    }

    async fn changed(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
        overlays: &Overlays,
    ) -> Result<Vec<(DiskKey, Vec<Extent>)>, TargetError> {
        let mut all = Vec::with_capacity(disks.len());
        for spec in disks {
            let doing = doing("looking at the conversion of", owner, spec);
            let (path, backing) = self.layers(owner, spec, overlays, &doing)?;
            overlay::check(path, &backing, spec.size).await.map_err(failed(&doing))?;
            let changed = overlay::changed(path, spec.size).await.map_err(failed(&doing))?;
            all.push((spec.key.clone(), changed));
        }
        Ok(all)
    }

    async fn commit(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
        overlays: &Overlays,
        deadline: Duration,
    ) -> Result<(), TargetError> {
        for spec in disks {
            let doing = doing("writing the conversion into", owner, spec);
            let (path, backing) = self.layers(owner, spec, overlays, &doing)?;
            let (volume, size) = (backing.clone(), spec.size);
            let held =
                blocking_on(&backing, doing.clone(), move || LockedVolume::open(&volume, size)).await?;
            overlay::check(path, &backing, spec.size).await.map_err(failed(&doing))?;
            let handle = held.handle().map_err(|error| error.for_target(&doing))?;
            overlay::commit(path, handle, deadline).await.map_err(failed(&doing))?;
            blocking_within(&backing, doing, deadline, move || held.sync()).await?;
        }
        Ok(())
    }

    async fn remove_overlays(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError> {
        let folder = self.overlays(owner);
        let doing = format!("removing {}", folder.display());
        let mut volumes = Vec::new();
        for spec in disks {
            if let WantedLocation::Own(path) | WantedLocation::Path(path) = self.place(owner, spec)? {
                volumes.push((path, spec.size));
            }
        }
        let there = folder.clone();
        let is_there = move || Ok(there.is_symlink() || there.exists());
        if !blocking_on(&self.directory, doing.clone(), is_there).await? {
            return Ok(());
        }
        for (path, size) in volumes {
            let there = path.clone();
            blocking_on(&path, doing.clone(), move || match LockedVolume::open(&there, size) {
                // An earlier daemon's conversion may still be written into it; this waits for its end.
                Err(error @ (VolumeError::InUse { .. } | VolumeError::Hangs { .. })) => {
                    let error = std::io::Error::other(error);
                    Err(VolumeError::io("waiting for the end of a conversion of", &there, error))
                }
                // Other faults of it do not matter here.
                Err(_) | Ok(_) => Ok(()),
            })
            .await?;
        }
        blocking_on(&self.directory, doing, move || volume::remove_tree(&folder)).await
    }
}

fn failed(doing: &str) -> impl FnOnce(ImageError) -> TargetError {
    use ImageErrorKind as K;
    move |error| {
        let kind = match error.kind {
            K::MissingTool | K::Unsupported | K::Malformed | K::NoSuchImage => TargetErrorKind::Refused,
            K::Timeout => TargetErrorKind::Timeout,
            K::NoSpace => TargetErrorKind::NoSpace,
            K::Busy => TargetErrorKind::Conflict,
            K::Failed => TargetErrorKind::Failed,
        };
        TargetError::new(kind, doing, error)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{PermissionsExt, symlink},
        process::{Command, Stdio},
    };

    use warmd_cbt::units::Length;

    use super::*;

    const SIZE: u64 = 1 << 20;
    const SOON: Duration = Duration::from_secs(30);

    fn specs() -> Vec<DiskSpec> {
        let spec = |key: &str| DiskSpec { key: DiskKey(key.to_owned()), size: Length(SIZE), place: None };
        vec![spec("vda"), spec("../../b")]
    }

    async fn storage(dir: &tempfile::TempDir) -> (Storage, MigrationId, Vec<PathBuf>) {
        let (storage, owner) = (Storage::new(dir.path(), 0o711).unwrap(), MigrationId::generate());
        let disks = storage.prepare(owner, &specs()).await.unwrap();
        (storage, owner, disks.into_iter().map(|disk| disk.location.into()).collect())
    }

    fn qemu_io(path: &std::path::Path, command: &str) {
        let done = Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(path).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    }

    #[tokio::test]
    async fn each_disk_takes_its_own_writes_when_they_are_committed() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, owner, volumes) = storage(&dir).await;
        storage.check().await.unwrap();
        let overlays = storage.create_overlays(owner, &specs()).await.unwrap();
        let mode = fs::metadata(&overlays.folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        qemu_io(&overlays.disks[1].path, "write -P 9 0 512");
        let changed = storage.changed(owner, &specs(), &overlays).await.unwrap();
        assert_eq!((changed[0].1.len(), changed[1].1.len()), (0, 1));
        assert!(volumes.iter().all(|volume| fs::read(volume).unwrap().iter().all(|byte| *byte == 0)));
        storage.commit(owner, &specs(), &overlays, SOON).await.unwrap();
        assert!(fs::read(&volumes[0]).unwrap().iter().all(|byte| *byte == 0));
        assert!(fs::read(&volumes[1]).unwrap()[..512].iter().all(|byte| *byte == 9));
        // No part of it is in the next one, nor left when the disks are discarded.
        let again = storage.create_overlays(owner, &specs()).await.unwrap();
        assert!(
            storage.changed(owner, &specs(), &again).await.unwrap().iter().all(|(_, runs)| runs.is_empty())
        );
        storage.discard(owner, &specs(), |_| false).await.unwrap();
        assert!(!again.folder.exists() && !storage.folder(owner).exists());
        storage.remove_overlays(owner, &specs()).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_finds_the_places_who_was_told_of_them_before() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, owner, _) = storage(&dir).await;
        let first = storage.create_overlays(owner, &specs()).await.unwrap();
        let second = storage.create_overlays(owner, &specs()).await.unwrap();
        assert!(first.disks.iter().all(|disk| !disk.path.exists()) && !first.folder.exists());
        qemu_io(&second.disks[0].path, "write -P 9 0 512");
        let closed = storage.detach_overlays(owner, second.clone()).await.unwrap();
        for (before, now) in second.disks.iter().zip(&closed.disks) {
            assert!(!before.path.exists() && now.path.exists(), "{before:?} {now:?}");
        }
        let changed = storage.changed(owner, &specs(), &closed).await.unwrap();
        assert_eq!((changed[0].1.len(), changed[1].1.len()), (1, 0));
        let error = storage.changed(owner, &specs(), &second).await.unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");
        storage.remove_overlays(owner, &specs()).await.unwrap();
        assert!(!storage.overlays(owner).exists());
    }

    #[tokio::test]
    async fn a_link_in_the_folders_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, owner, _) = storage(&dir).await;
        let victim = dir.path().join("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("vda.qcow2"), "mine").unwrap();
        symlink(&victim, storage.overlays(owner)).unwrap();
        let overlays = storage.create_overlays(owner, &specs()).await.unwrap();
        assert!(!storage.overlays(owner).is_symlink());
        symlink(&victim, overlays.folder.join("out")).unwrap();
        storage.remove_overlays(owner, &specs()).await.unwrap();
        assert_eq!(fs::read_to_string(victim.join("vda.qcow2")).unwrap(), "mine");
    }

    #[tokio::test]
    async fn running_program_keeps_overlays_and_disks_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, owner, volumes) = storage(&dir).await;
        let overlays = storage.create_overlays(owner, &specs()).await.unwrap();
        let held = LockedVolume::open(&volumes[0], Length(SIZE)).unwrap();
        // Like a `qemu-img` that outlives its daemon.
        let mut program =
            Command::new("sleep").arg("1000").stdin(Stdio::from(held.handle().unwrap())).spawn().unwrap();
        drop(held);
        let error = storage.remove_overlays(owner, &specs()).await.unwrap_err();
        assert!(error.may_pass(), "{error}");
        assert!(overlays.folder.exists());
        let error = storage.open(owner, &specs()[0]).await.err().unwrap();
        assert_eq!(error.kind, TargetErrorKind::Conflict, "{error}");
        program.kill().unwrap();
        program.wait().unwrap();
        storage.remove_overlays(owner, &specs()).await.unwrap();
        storage.open(owner, &specs()[0]).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_still_open_is_no_success() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, owner, volumes) = storage(&dir).await;
        let overlays = storage.create_overlays(owner, &specs()).await.unwrap();
        let overlay = &overlays.disks[0].path;
        let mut command = Command::new("qemu-io");
        command.args(["-f", "qcow2", "-c", "write -P 9 0 512", "-c", "sleep 600000"]).arg(overlay);
        let mut program = command.stdout(Stdio::null()).spawn().unwrap();
        let begun = std::time::Instant::now();
        // 196 KiB are its tables: it has written.
        while fs::metadata(overlay).unwrap().len() < 300_000 {
            assert!(begun.elapsed() < SOON, "qemu-io does not write");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let error = storage.changed(owner, &specs(), &overlays).await.unwrap_err();
        assert_eq!(error.kind, TargetErrorKind::Conflict, "{error}");
        let error = storage.commit(owner, &specs(), &overlays, SOON).await.unwrap_err();
        assert_eq!(error.kind, TargetErrorKind::Conflict, "{error}");
        program.kill().unwrap();
        program.wait().unwrap();
        assert!(fs::read(&volumes[0]).unwrap().iter().all(|byte| *byte == 0));
    }
}
