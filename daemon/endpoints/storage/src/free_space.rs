//! The free space of a target's storages.
//!
//! Rule: storages on one file system share its free space.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use warmd_cbt::units::Length;
use warmd_core::{
    format,
    model::{
        rule::{Objection, Rule},
        storage,
    },
    targets::TargetError,
};
use warmd_disks::volume::VolumeError;

use super::{Storage, blocking_on, operator};

/// Of a file system.
#[derive(Clone, Copy, Debug)]
struct FreeSpace {
    device: u64,
    free: u64,
}

impl Storage {
    /// Free space of the directory, which must exist and be writable.
    pub async fn room(&self) -> Result<Length, TargetError> {
        Ok(Length(room_in(&self.directory).await?.free))
    }

    /// The other storages with the free space of each, or its fault: `; storage fast: 7 GiB free`. Also
    /// whether places that a plan names cannot be used.
    pub async fn others_in_words(&self) -> String {
        let mut words = Vec::new();
        for (name, directory) in &self.others {
            let room = match room_in(directory).await {
                Ok(room) => format!("{} GiB free", room.free >> 30),
                Err(error) => format!("cannot be used: {error}"),
            };
            words.push(format!("; storage {name}: {room}"));
        }
        if let Some(unseen) = self.unseen().await {
            words.push(format!("; files and devices that a plan names are refused: {unseen}"));
        }
        words.concat()
    }

    /// The fault of the storage that a disk's place names, if it names one.
    pub(super) async fn misfit(&self, place: Option<&str>) -> Option<String> {
        let place = place.filter(|place| storage::named(place).is_some())?;
        let told = storage::in_words(Some(place));
        let Some(directory) = self.directory_of(place) else {
            return Some(format!("{told}: {}", self.none_such()));
        };
        room_in(directory).await.err().map(|error| format!("{told}: {error}"))
    }

    /// Why the free space is too small for so many bytes in each directory.
    pub(super) async fn too_small(
        &self,
        needed: BTreeMap<PathBuf, u64>,
    ) -> Result<Vec<Objection>, TargetError> {
        let mut systems = BTreeMap::<u64, (u64, FreeSpace, Vec<String>)>::new();
        for (directory, bytes) in needed.into_iter().filter(|(_, bytes)| *bytes > 0) {
            let room = room_in(&directory).await?;
            let (sum, _, names) = systems.entry(room.device).or_insert((0, room, Vec::new()));
            *sum = sum.saturating_add(bytes);
            names.push(self.name_of(&directory));
        }
        let small = systems.into_values().filter(|(needed, room, _)| *needed > room.free);
        let told = small.map(|(needed, room, names)| {
            let (needed, free) = (format::bytes(needed), format::bytes(room.free));
            let whose = if self.others.is_empty() {
                String::new()
            } else {
                format!(" in storage {}", names.join(" and "))
            };
            let found = format!("the disks{whose} take up to {needed}, and {free} are free");
            Objection::new(Rule::Capacity, found)
        });
        Ok(told.collect())
    }

    fn name_of(&self, directory: &Path) -> String {
        let named = self.others.iter().find(|(_, other)| *other == directory);
        named.map_or_else(|| storage::DEFAULT.to_owned(), |(name, _)| name.clone())
    }
}

async fn room_in(directory: &Path) -> Result<FreeSpace, TargetError> {
    let (doing, on) = (format!("looking at the directory {}", directory.display()), directory);
    let directory = directory.to_owned();
    blocking_on(on, doing, move || {
        let failed = |error| VolumeError::io("looking at", &directory, error);
        let there = std::fs::metadata(&directory).map_err(failed)?;
        if !there.is_dir() {
            return Err(failed(std::io::ErrorKind::NotADirectory.into()));
        }
        let rights = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        rustix::fs::access(&directory, rights).map_err(|error| failed(error.into()))?;
        let system = rustix::fs::statvfs(&directory).map_err(|error| failed(error.into()))?;
        Ok(FreeSpace { device: there.dev(), free: system.f_bavail.saturating_mul(system.f_frsize) })
    })
    .await
    .map_err(operator)
}
