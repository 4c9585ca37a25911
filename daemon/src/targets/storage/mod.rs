//! Where a migration's disks are kept on this host: files of its own in the target's directory, or the places that the
//! plan names. Shared by the kinds of target that write to this host.
//!
//! Rule: a file of warmd's own lies in the folder named after the migration, so no two migrations meet. A place that
//! a plan names (`place.rs`) belongs to the first migration that claims it (`claims.rs`) until that one discards it.
//! What comes from outside (a disk's key) never chooses a path.

mod claims;
mod export;
mod guard;
mod place;
mod preflight;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use warmd_cbt::{disk::WriteDisk, units::Length};

pub use self::place::{Place, safe_name};
use self::{claims::Claims, place::Where};
use super::{
    DiskSpec, PreparedDisk, TargetError, TargetErrorKind, Writer,
    volume::{self, FileDisk, VolumeError, VolumeKind, VolumeOptions},
};
use crate::{
    model::id::{DiskKey, MigrationId},
    span,
};

/// In a migration's folder: who wrote to its disks last, a pass by its number.
const LAST_WRITER: &str = "last-pass";

/// For each look at, making or removing of a file.
const DEADLINE: Duration = Duration::from_mins(1);

/// The directory of a target, and how its folders are kept.
#[derive(Clone, Debug)]
pub struct Storage {
    directory: PathBuf,
    folder_mode: u32,
    claims: Claims,
}

/// A disk that is there, of the right size, and this migration's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    pub key: DiskKey,
    pub size: Length,
    pub place: Place,
}

impl Storage {
    /// `directory` must be absolute. `folder_mode` is the mode of each migration's folder.
    pub fn new(directory: &Path, folder_mode: u32) -> Result<Self, TargetError> {
        if !directory.is_absolute() {
            let why = "`directory` must be an absolute path, such as /var/lib/libvirt/warmd";
            return Err(TargetError::new(TargetErrorKind::Refused, directory.display().to_string(), why));
        }
        let claims = Claims::new(directory.join(".claims"));
        Ok(Self { directory: directory.to_owned(), folder_mode, claims })
    }

    /// The migration's own folder, whether it is there or not.
    pub fn folder(&self, owner: MigrationId) -> PathBuf {
        self.directory.join(owner.to_string())
    }

    /// Makes the migration's folder, or finds it.
    pub async fn make_folder(&self, owner: MigrationId) -> Result<PathBuf, TargetError> {
        let (directory, folder, mode) = (self.directory.clone(), self.folder(owner), self.folder_mode);
        let made = folder.clone();
        let doing = format!("preparing the folder {}", folder.display());
        blocking(doing, move || {
            // The directory itself is never made: where a mount is missing, the root's file system would fill up.
            std::fs::metadata(&directory)
                .map_err(|error| VolumeError::io("looking at", &directory, error))?;
            volume::make_directory(&made, mode)
        })
        .await
        .map_err(operator)?;
        Ok(folder)
    }

    /// Room left in the directory, which must be there and writable.
    pub async fn room(&self) -> Result<Length, TargetError> {
        let directory = self.directory.clone();
        blocking(format!("looking at the directory {}", directory.display()), move || {
            let failed = |error| VolumeError::io("looking at", &directory, error);
            if !std::fs::metadata(&directory).map_err(failed)?.is_dir() {
                return Err(failed(std::io::ErrorKind::NotADirectory.into()));
            }
            let rights =
                rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
            rustix::fs::access(&directory, rights).map_err(|error| failed(error.into()))?;
            let system = rustix::fs::statvfs(&directory).map_err(|error| failed(error.into()))?;
            Ok(Length(system.f_bavail.saturating_mul(system.f_frsize)))
        })
        .await
        .map_err(operator)
    }

    /// Makes or finds all of the disks; see [`super::Target::prepare`].
    pub async fn prepare(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
    ) -> Result<Vec<PreparedDisk>, TargetError> {
        self.make_folder(owner).await?;
        let mut prepared = Vec::with_capacity(disks.len());
        let mut seen: Vec<(Whereabouts, &DiskKey)> = Vec::new();
        for spec in disks {
            let doing = doing("preparing", owner, spec);
            let (disk, whereabouts) = self.prepare_one(owner, spec, &doing).await?;
            if let Some((_, other)) = seen.iter().find(|(there, _)| *there == whereabouts) {
                let why = format!("it is at the same place as disk {other}: give each its own");
                return Err(TargetError::new(TargetErrorKind::Conflict, doing, why));
            }
            seen.push((whereabouts, &spec.key));
            prepared.push(disk);
        }
        Ok(prepared)
    }

    async fn prepare_one(
        &self,
        owner: MigrationId,
        spec: &DiskSpec,
        doing: &str,
    ) -> Result<(PreparedDisk, Whereabouts), TargetError> {
        let size = spec.size;
        let (path, own) = match self.place(owner, spec)? {
            Where::Own(path) => (path, true),
            Where::Path(path) => (path, false),
            Where::Nbd(uri) => {
                export::open(&uri, size, doing).await?.close().await;
                self.claim(owner, &uri, doing).await?;
                let disk = PreparedDisk { key: spec.key.clone(), location: uri.clone(), reads_zero: false };
                return Ok((disk, Whereabouts::Export(uri)));
            }
        };
        let location = path.display().to_string();
        let found = blocking(doing.to_owned(), move || {
            if own { volume::make_file(&path, size) } else { volume::find(&path, size) }
        })
        .await?;
        if !own {
            self.claim(owner, &location, doing).await?;
        }
        let disk = PreparedDisk { key: spec.key.clone(), location, reads_zero: found.reads_zero };
        Ok((disk, Whereabouts::Volume(found.number)))
    }

    /// A writer for a prepared disk; see [`super::Target::open`].
    pub async fn open(&self, owner: MigrationId, spec: &DiskSpec) -> Result<Arc<dyn WriteDisk>, TargetError> {
        let doing = doing("opening", owner, spec);
        let path = match self.place(owner, spec)? {
            Where::Own(path) => path,
            Where::Path(path) => {
                self.check_claim(owner, &path.display().to_string(), &doing).await?;
                path
            }
            Where::Nbd(uri) => {
                self.check_claim(owner, &uri, &doing).await?;
                return Ok(Arc::new(export::open(&uri, spec.size, &doing).await?));
            }
        };
        match FileDisk::open(&path, spec.size, VolumeOptions::default()).await {
            Ok(disk) => Ok(Arc::new(disk)),
            Err(error) => Err(error.for_target(doing)),
        }
    }

    /// The prepared disks, all of them, to create a machine from.
    pub async fn locate(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<Vec<Located>, TargetError> {
        let mut located = Vec::with_capacity(disks.len());
        for spec in disks {
            let doing = doing("looking at", owner, spec);
            let path = match self.place(owner, spec)? {
                Where::Own(path) => path,
                Where::Path(path) => {
                    self.check_claim(owner, &path.display().to_string(), &doing).await?;
                    path
                }
                Where::Nbd(uri) => {
                    self.check_claim(owner, &uri, &doing).await?;
                    export::open(&uri, spec.size, &doing).await?.close().await;
                    located.push(Located { key: spec.key.clone(), size: spec.size, place: Place::Nbd(uri) });
                    continue;
                }
            };
            let (size, there) = (spec.size, path.clone());
            let found = blocking(doing, move || volume::find(&there, size)).await?;
            let place = match found.kind {
                VolumeKind::File => Place::File(path),
                VolumeKind::BlockDevice => Place::Device(path),
            };
            located.push(Located { key: spec.key.clone(), size: spec.size, place });
        }
        Ok(located)
    }

    /// Removes the disks that are warmd's own, gives up the claims on the others, and removes the files `beside` them
    /// in the migration's folder.
    pub async fn discard(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
        beside: &'static [&'static str],
    ) -> Result<(), TargetError> {
        for spec in disks {
            let doing = doing("discarding", owner, spec);
            match self.place(owner, spec)? {
                Where::Own(path) => blocking(doing, move || volume::remove_unused(&path)).await?,
                Where::Path(path) => self.give_up(owner, &path.display().to_string(), &doing).await?,
                Where::Nbd(uri) => self.give_up(owner, &uri, &doing).await?,
            }
        }
        let folder = self.folder(owner);
        blocking(format!("discarding the folder {}", folder.display()), move || {
            for name in beside.iter().chain(&[LAST_WRITER]) {
                volume::remove_file(&folder.join(name))?;
            }
            volume::remove_tree(&folder.join(guard::FOLDER))?;
            volume::remove_directory(&folder)
        })
        .await
    }

    /// See [`super::Target::note_writer`].
    pub async fn note_writer(&self, owner: MigrationId, writer: Option<Writer>) -> Result<(), TargetError> {
        let path = self.folder(owner).join(LAST_WRITER);
        blocking(format!("noting the writer in {}", path.display()), move || match writer {
            Some(writer) => volume::write_file(&path, writer.to_text().as_bytes()),
            None => volume::remove_file(&path),
        })
        .await
    }

    /// See [`super::Target::noted_writer`].
    pub async fn noted_writer(&self, owner: MigrationId) -> Result<Option<Writer>, TargetError> {
        let path = self.folder(owner).join(LAST_WRITER);
        blocking(format!("looking for the last writer in {}", path.display()), move || {
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some(Writer::of_text(&text))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(Some(Writer::Unknown)),
                Err(error) => Err(VolumeError::io("reading", &path, error)),
            }
        })
        .await
    }

    fn place(&self, owner: MigrationId, spec: &DiskSpec) -> Result<Where, TargetError> {
        place::of(&self.folder(owner), spec)
    }

    async fn claim(&self, owner: MigrationId, place: &str, doing: &str) -> Result<(), TargetError> {
        let (claims, place) = (self.claims.clone(), place.to_owned());
        answer(doing, blocking(doing.to_owned(), move || claims.claim(owner, &place)).await?)
    }

    async fn check_claim(&self, owner: MigrationId, place: &str, doing: &str) -> Result<(), TargetError> {
        let (claims, place) = (self.claims.clone(), place.to_owned());
        answer(doing, blocking(doing.to_owned(), move || claims.check(owner, &place)).await?)
    }

    async fn give_up(&self, owner: MigrationId, place: &str, doing: &str) -> Result<(), TargetError> {
        let (claims, place) = (self.claims.clone(), place.to_owned());
        blocking(doing.to_owned(), move || claims.give_up(owner, &place)).await
    }
}

/// What tells two disks of one migration apart.
#[derive(PartialEq, Eq)]
enum Whereabouts {
    Volume((u64, u64)),
    Export(String),
}

fn answer(doing: &str, claim: Result<(), claims::NotOurs>) -> Result<(), TargetError> {
    claim.map_err(|not_ours| {
        let kind = match not_ours {
            claims::NotOurs::Unclaimed { .. } => TargetErrorKind::NotFound,
            claims::NotOurs::Taken { .. } => TargetErrorKind::Conflict,
        };
        TargetError::new(kind, doing, not_ours)
    })
}

/// The target's directory that is not there is no missing disk: an operator must make or mount it.
fn operator(error: TargetError) -> TargetError {
    match error.kind {
        TargetErrorKind::NotFound => TargetError { kind: TargetErrorKind::Refused, ..error },
        _ => error,
    }
}

fn doing(what: &str, owner: MigrationId, spec: &DiskSpec) -> String {
    format!("{what} disk {} of migration {owner}", spec.key)
}

/// Runs file system calls, which may hang, on a thread of their own.
pub async fn blocking<T: Send + 'static>(
    doing: String,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, TargetError> {
    match tokio::time::timeout(DEADLINE, span::blocking(work)).await {
        Ok(Ok(answer)) => answer.map_err(|error| error.for_target(doing)),
        Ok(Err(join)) => Err(TargetError::new(TargetErrorKind::Failed, doing, join)),
        Err(late) => Err(TargetError::new(TargetErrorKind::Timeout, doing, late)),
    }
}
