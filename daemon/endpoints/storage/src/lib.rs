//! The storage of a migration's disks on this host: files of its own in the target's directory or in one of
//! its other storages, or the places that the plan names. Shared by the kinds of target that write to this
//! host.
//!
//! Rule: a file of warmd's own lies in the folder named after the migration, in any storage, so no two
//! migrations collide. Files about a whole migration (last writer, overlays, the console) are in the folder
//! in the target's directory. A place that a plan names (`place.rs`) belongs to the first migration that
//! claims it (`claims.rs`, and by its identity `neighbours.rs`) until that one discards it.
//! Untrusted text (a disk's key) never chooses a path.
//! Knows the ports of `core` and disks; not a platform.
#![forbid(unsafe_code)]

mod claims;
mod conversion_overlay;
mod export;
mod free_space;
mod neighbours;
mod place;
mod preflight;
#[cfg(test)]
mod tests;
mod volume_error;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use warmd_cbt::{disk::WriteDisk, units::Length};
use warmd_core::model::{
    id::{DiskKey, MigrationId},
    plan::is_target_name,
    storage,
};
use warmd_core::targets::{DiskSpec, LastWriter, PreparedDisk, TargetError, TargetErrorKind, host::Host};
use warmd_disks::volume::{self, FileDisk, VolumeError, VolumeKind, VolumeOptions};

pub use self::place::DiskLocation;
use self::{
    claims::Claims,
    place::{WantedLocation, safe_name},
    volume_error::ForTarget as _,
};

/// In a migration's folder: the last writer of its disks, a pass by its number.
const LAST_WRITER: &str = "last-pass";

/// The deadline of each check, creation or removal of a file.
const DEADLINE: Duration = Duration::from_mins(1);

/// The directory of a target, and the mode of its folders.
#[derive(Clone, Debug)]
pub struct Storage {
    directory: PathBuf,
    /// Other directories for disks, by the names that plans use.
    others: BTreeMap<String, PathBuf>,
    folder_mode: u32,
    claims: Claims,
    /// Other facts of this host; none until the daemon has its state, and in tools.
    host: Arc<OnceLock<Arc<dyn Host>>>,
}

/// An existing disk of the right size that this migration owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedDisk {
    pub key: DiskKey,
    pub size: Length,
    pub place: DiskLocation,
}

impl Storage {
    /// `directory` must be absolute. `folder_mode` is the mode of each migration's folder.
    pub fn new(directory: &Path, folder_mode: u32) -> Result<Self, TargetError> {
        if !directory.is_absolute() {
            let why = "`directory` must be an absolute path, such as /var/lib/libvirt/warmd";
            return Err(TargetError::new(TargetErrorKind::Refused, directory.display().to_string(), why));
        }
        let claims = Claims::new(directory.join(".claims"));
        Ok(Self {
            directory: directory.to_owned(),
            others: BTreeMap::new(),
            folder_mode,
            claims,
            host: Arc::default(),
        })
    }

    /// The same, with other storages beside the directory.
    pub fn with(mut self, others: &BTreeMap<String, PathBuf>) -> Result<Self, TargetError> {
        for (name, directory) in others {
            let wrong = if name == storage::DEFAULT {
                "`default` is the storage of the disks that no plan sends elsewhere: call this one otherwise"
            } else if !is_target_name(name) {
                "the name of a storage has 1 to 63 letters, digits, dots, dashes and underscores"
            } else if !directory.is_absolute() {
                "a storage must be an absolute path, such as /srv/fast"
            } else {
                continue;
            };
            let doing = format!("`storages` has {name:?} = {:?}", directory.display().to_string());
            return Err(TargetError::new(TargetErrorKind::Refused, doing, wrong));
        }
        self.others.clone_from(others);
        Ok(self)
    }

    /// Sets the other facts of this host; only the first one counts.
    pub fn on(&self, host: &Arc<dyn Host>) {
        self.host.set(Arc::clone(host)).ok();
    }

    /// The migration's own folder, existing or not.
    pub fn folder(&self, owner: MigrationId) -> PathBuf {
        self.directory.join(owner.to_string())
    }

    /// Creates or finds the migration's folder.
    pub async fn make_folder(&self, owner: MigrationId) -> Result<PathBuf, TargetError> {
        self.make_folder_in(&self.directory, owner).await
    }

    async fn make_folder_in(&self, directory: &Path, owner: MigrationId) -> Result<PathBuf, TargetError> {
        let (folder, mode) = (directory.join(owner.to_string()), self.folder_mode);
        let (directory, made) = (directory.to_owned(), folder.clone());
        let doing = format!("preparing the folder {}", folder.display());
        blocking_on(&folder, doing, move || {
            // The directory itself is never created: where a mount is missing, the root's file system would
            // fill up.
            std::fs::metadata(&directory)
                .map_err(|error| VolumeError::io("looking at", &directory, error))?;
            volume::make_directory(&made, mode)
        })
        .await
        .map_err(operator)?;
        Ok(folder)
    }

    /// Creates or finds all of the disks; see [`warmd_core::targets::Target::prepare`].
    pub async fn prepare(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
    ) -> Result<Vec<PreparedDisk>, TargetError> {
        self.make_folder(owner).await?;
        let mut prepared = Vec::with_capacity(disks.len());
        let mut seen: Vec<(VolumeId, &DiskKey)> = Vec::new();
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
    ) -> Result<(PreparedDisk, VolumeId), TargetError> {
        let size = spec.size;
        let (path, own) = match self.place(owner, spec)? {
            WantedLocation::Own(path) => {
                self.check_elsewhere(owner, spec, &path, doing).await?;
                if let Some(directory) = spec.place.as_deref().and_then(|place| self.directory_of(place)) {
                    self.make_folder_in(directory, owner).await?;
                }
                (path, true)
            }
            WantedLocation::Path(path) => (path, false),
            WantedLocation::Nbd(uri) => {
                export::look(&uri, size, doing).await?;
                let is_unclaimed = self.check_free(owner, &uri).await?;
                self.take_export(owner, spec, &uri, doing).await?;
                self.claim(owner, &uri, doing).await?;
                if is_unclaimed {
                    export::is_new(&uri, doing)?;
                }
                let disk = PreparedDisk { key: spec.key.clone(), location: uri.clone(), reads_zero: false };
                return Ok((disk, VolumeId::Export(uri)));
            }
        };
        let location = path.display().to_string();
        let there = path.clone();
        let found = blocking_on(&path, doing.to_owned(), move || {
            if own { volume::make_file(&there, size) } else { volume::find(&there, size) }
        })
        .await?;
        let is_new = !own && self.check_free(owner, &location).await?;
        self.take(owner, spec, &path, is_new, doing).await?;
        if !own {
            self.claim(owner, &location, doing).await?;
        }
        let disk = PreparedDisk { key: spec.key.clone(), location, reads_zero: found.reads_zero };
        Ok((disk, VolumeId::Volume(found.number)))
    }

    /// Fails if the disk lies in another storage: then another plan put it there, and it may have the only
    /// copy of the data.
    async fn check_elsewhere(
        &self,
        owner: MigrationId,
        spec: &DiskSpec,
        path: &Path,
        doing: &str,
    ) -> Result<(), TargetError> {
        for (name, other) in self.own_places(owner, &spec.key).filter(|(_, other)| other != path) {
            let there = other.clone();
            let is_there = blocking_on(&other, doing.to_owned(), move || {
                there.try_exists().map_err(|error| VolumeError::io("looking for", &there, error))
            })
            .await?;
            if is_there {
                let why = format!(
                    "it is in storage {name} already, as {}: let the plan send it there, or cancel this migration",
                    other.display()
                );
                return Err(TargetError::new(TargetErrorKind::Conflict, doing, why));
            }
        }
        Ok(())
    }

    /// A writer for a prepared disk; see [`warmd_core::targets::Target::open`].
    pub async fn open(&self, owner: MigrationId, spec: &DiskSpec) -> Result<Arc<dyn WriteDisk>, TargetError> {
        let doing = doing("opening", owner, spec);
        let path = match self.place(owner, spec)? {
            WantedLocation::Own(path) => path,
            WantedLocation::Path(path) => {
                self.check_claim(owner, &path.display().to_string(), &doing).await?;
                path
            }
            WantedLocation::Nbd(uri) => {
                self.check_claim(owner, &uri, &doing).await?;
                self.take_export(owner, spec, &uri, &doing).await?;
                return Ok(Arc::new(export::open_export(&uri, spec.size, &doing).await?));
            }
        };
        self.claim_identity(owner, spec, &path, &doing).await?;
        self.check_vms(owner, &path, false, &doing).await?;
        match FileDisk::open(&path, spec.size, VolumeOptions::default()).await {
            Ok(disk) => Ok(Arc::new(disk)),
            Err(error) => Err(error.for_target(doing)),
        }
    }

    /// The prepared disks, all of them, to create a machine from.
    pub async fn locate(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
    ) -> Result<Vec<LocatedDisk>, TargetError> {
        let mut located = Vec::with_capacity(disks.len());
        for spec in disks {
            let doing = doing("looking at", owner, spec);
            let path = match self.place(owner, spec)? {
                WantedLocation::Own(path) => path,
                WantedLocation::Path(path) => {
                    self.check_claim(owner, &path.display().to_string(), &doing).await?;
                    path
                }
                WantedLocation::Nbd(uri) => {
                    self.check_claim(owner, &uri, &doing).await?;
                    export::settled(&uri, &doing).await?;
                    export::look(&uri, spec.size, &doing).await?;
                    located.push(LocatedDisk {
                        key: spec.key.clone(),
                        size: spec.size,
                        place: DiskLocation::Nbd(uri),
                    });
                    continue;
                }
            };
            let (size, there) = (spec.size, path.clone());
            let found = blocking_on(&path, doing, move || volume::find(&there, size)).await?;
            let place = match found.kind {
                VolumeKind::File => DiskLocation::File(path),
                VolumeKind::BlockDevice => DiskLocation::Device(path),
            };
            located.push(LocatedDisk { key: spec.key.clone(), size: spec.size, place });
        }
        Ok(located)
    }

    /// Removes the disks that are warmd's own, removes the claims on the others, and removes the files in the
    /// migration's folder that are called `beside` them.
    pub async fn discard(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
        beside: fn(&str) -> bool,
    ) -> Result<(), TargetError> {
        for spec in disks {
            let doing = doing("discarding", owner, spec);
            match self.place(owner, spec)? {
                WantedLocation::Own(path) => remove_unused(path, doing).await?,
                WantedLocation::Path(path) => {
                    self.give_up(owner, &path.display().to_string(), &doing).await?;
                }
                WantedLocation::Nbd(uri) => self.give_up(owner, &uri, &doing).await?,
            }
        }
        for spec in disks {
            self.give_up_identity(owner, spec).await?;
        }
        // Also files of another plan, or of a disk with a new place: by its name a file belongs
        // to no other migration.
        for (spec, (_, path)) in
            disks.iter().flat_map(|spec| self.own_places(owner, &spec.key).map(move |place| (spec, place)))
        {
            let doing = doing("discarding", owner, spec);
            remove_unused(path, doing).await?;
        }
        for directory in self.others.values() {
            let folder = directory.join(owner.to_string());
            let doing = format!("discarding the folder {}", folder.display());
            let gone = folder.clone();
            blocking_on(&folder, doing, move || volume::remove_directory(&gone)).await?;
        }
        let folder = self.folder(owner);
        blocking_on(&self.directory, format!("discarding the folder {}", folder.display()), move || {
            volume::remove_file(&folder.join(LAST_WRITER))?;
            volume::remove_files(&folder, beside)?;
            volume::remove_tree(&folder.join(conversion_overlay::FOLDER))?;
            volume::remove_directory(&folder)
        })
        .await
    }

    /// See [`warmd_core::targets::Target::note_writer`].
    pub async fn note_writer(
        &self,
        owner: MigrationId,
        writer: Option<LastWriter>,
    ) -> Result<(), TargetError> {
        let path = self.folder(owner).join(LAST_WRITER);
        let doing = format!("noting the writer in {}", path.display());
        blocking_on(&self.directory, doing, move || match writer {
            Some(writer) => volume::write_file(&path, writer.to_text().as_bytes()),
            None => volume::remove_file(&path),
        })
        .await
    }

    /// See [`warmd_core::targets::Target::noted_writer`].
    pub async fn noted_writer(&self, owner: MigrationId) -> Result<Option<LastWriter>, TargetError> {
        let path = self.folder(owner).join(LAST_WRITER);
        let doing = format!("looking for the last writer in {}", path.display());
        blocking_on(&self.directory, doing, move || match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(LastWriter::of_text(&text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(Some(LastWriter::Unknown)),
            Err(error) => Err(VolumeError::io("reading", &path, error)),
        })
        .await
    }

    fn place(&self, owner: MigrationId, spec: &DiskSpec) -> Result<WantedLocation, TargetError> {
        let Some(place) = spec.place.as_deref().filter(|place| storage::named(place).is_some()) else {
            return place::wanted_location(&self.folder(owner), spec);
        };
        if let Some(directory) = self.directory_of(place) {
            return Ok(WantedLocation::Own(place::own(&directory.join(owner.to_string()), &spec.key)));
        }
        let doing = format!("disk {} is to go to {}", spec.key, storage::in_words(Some(place)));
        Err(TargetError::new(TargetErrorKind::Refused, doing, self.none_such()))
    }

    /// The directory of the storage that a place names, if the target has it.
    fn directory_of(&self, place: &str) -> Option<&Path> {
        match storage::named(place)? {
            storage::DEFAULT => Some(&self.directory),
            name => self.others.get(name).map(PathBuf::as_path),
        }
    }

    /// The possible files of a disk without a place of its own, by storage.
    fn own_places<'a>(
        &'a self,
        owner: MigrationId,
        key: &'a DiskKey,
    ) -> impl Iterator<Item = (String, PathBuf)> + 'a {
        let default = (storage::DEFAULT, self.directory.as_path());
        let others = self.others.iter().map(|(name, directory)| (name.as_str(), directory.as_path()));
        let all = std::iter::once(default).chain(others);
        all.map(move |(name, directory)| {
            (name.to_owned(), place::own(&directory.join(owner.to_string()), key))
        })
    }

    /// The error for a storage name that does not exist.
    fn none_such(&self) -> String {
        let names: Vec<_> =
            std::iter::once(storage::DEFAULT).chain(self.others.keys().map(String::as_str)).collect();
        format!("the target has no such storage, it has: {}", names.join(", "))
    }

    async fn claim(&self, owner: MigrationId, place: &str, doing: &str) -> Result<(), TargetError> {
        let (claims, place) = (self.claims.clone(), place.to_owned());
        let answered =
            blocking_on(&self.directory, doing.to_owned(), move || claims.claim(owner, &place)).await?;
        answer(doing, answered)
    }

    async fn check_claim(&self, owner: MigrationId, place: &str, doing: &str) -> Result<(), TargetError> {
        let (claims, place) = (self.claims.clone(), place.to_owned());
        let answered =
            blocking_on(&self.directory, doing.to_owned(), move || claims.check(owner, &place)).await?;
        answer(doing, answered)
    }

    async fn give_up(&self, owner: MigrationId, place: &str, doing: &str) -> Result<(), TargetError> {
        let (claims, place) = (self.claims.clone(), place.to_owned());
        blocking_on(&self.directory, doing.to_owned(), move || claims.give_up(owner, &place)).await
    }
}

/// The key that distinguishes two disks of one migration.
#[derive(PartialEq, Eq)]
enum VolumeId {
    Volume((u64, u64)),
    Export(String),
}

fn answer(doing: &str, claim: Result<(), claims::ClaimConflict>) -> Result<(), TargetError> {
    claim.map_err(|not_ours| {
        let kind = match not_ours {
            claims::ClaimConflict::Unclaimed { .. } => TargetErrorKind::NotFound,
            claims::ClaimConflict::Taken { .. } => TargetErrorKind::Conflict,
        };
        TargetError::new(kind, doing, not_ours)
    })
}

/// A missing target directory is no missing disk: an operator must create or mount it.
fn operator(error: TargetError) -> TargetError {
    match error.kind {
        TargetErrorKind::NotFound => TargetError { kind: TargetErrorKind::Refused, ..error },
        _ => error,
    }
}

fn doing(what: &str, owner: MigrationId, spec: &DiskSpec) -> String {
    format!("{what} disk {} of migration {owner}", spec.key)
}

async fn remove_unused(path: PathBuf, doing: String) -> Result<(), TargetError> {
    let gone = path.clone();
    blocking_on(&path, doing, move || volume::remove_unused(&gone)).await
}

/// Runs file system calls, which may hang, on threads of the file system that `path` is on.
pub async fn blocking_on<T: Send + 'static>(
    path: &Path,
    doing: String,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, TargetError> {
    blocking_within(path, doing, DEADLINE, work).await
}

/// The same within a deadline.
async fn blocking_within<T: Send + 'static>(
    path: &Path,
    doing: String,
    deadline: Duration,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, TargetError> {
    let lane = match warmd_threads::on(path) {
        Ok(lane) => lane,
        Err(error) => return Err(TargetError::new(TargetErrorKind::Failed, doing, error)),
    };
    match lane.run_within(deadline, work).await {
        Ok(answer) => answer.map_err(|error| error.for_target(doing)),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            Err(TargetError::new(TargetErrorKind::Timeout, doing, error))
        }
        Err(join) => Err(TargetError::new(TargetErrorKind::Failed, doing, join)),
    }
}
