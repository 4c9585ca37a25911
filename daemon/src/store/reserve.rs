//! Room for the state: how much there is, and a reserve for the moment in which there is none.
//!
//! Rule: a cutover under way must be saved, whoever filled the file system. The reserve is a file of real blocks beside the
//! database, which is given up for that, and made again when there is room.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tokio::time::Instant;

use super::Store;

/// The reserve's name in the state directory.
pub const RESERVE_NAME: &str = "reserve";
/// What the reserve takes.
pub const RESERVE: u64 = 64 << 20;
/// What must be there before a VM is stopped: a cutover's steps, and the ledgers of its last deltas.
pub const ENOUGH: u64 = 32 << 20;
/// With less than this the file system counts as full.
const FULL: u64 = 1 << 20;

/// Since when nothing could be saved.
#[derive(Debug, Default)]
pub(super) struct Failing(Mutex<Option<Instant>>);

impl Failing {
    pub(super) fn note(&self, is_failing: bool) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if is_failing {
            since.get_or_insert_with(Instant::now);
        } else {
            *since = None;
        }
    }
}

impl Store {
    /// For how long nothing could be saved; `None` if the last save succeeded.
    pub fn failing_for(&self) -> Option<Duration> {
        let since = *self.0.failing.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }

    /// Bytes that the state may still grow by, the reserve among them; `None` if that cannot be known.
    pub fn room(&self) -> Option<u64> {
        let dir = self.0.file.parent()?;
        let held = fs::metadata(dir.join(RESERVE_NAME)).map_or(0, |meta| meta.blocks() * 512);
        Some(free(dir)?.saturating_add(held))
    }

    /// Why there is too little room to begin what must be saved to its end, with what to do.
    pub fn too_little_room(&self) -> Option<String> {
        let room = self.room()?;
        (room < ENOUGH).then(|| {
            format!(
                "the file system of the state ({}) has room for {} KiB, and a cutover may need {} MiB: make room there",
                self.0.file.display(),
                room >> 10,
                ENOUGH >> 20
            )
        })
    }

    /// Makes the reserve, if it is not there and the file system has room for twice as much.
    pub fn hold_reserve(&self, bytes: u64) {
        let Some(dir) = self.0.file.parent() else { return };
        let path = dir.join(RESERVE_NAME);
        if bytes == 0 || path.exists() || free(dir).is_none_or(|free| free < bytes.saturating_mul(2)) {
            return;
        }
        if let Err(error) = make(&path, bytes) {
            tracing::warn!(path = %path.display(), %error, "no room is kept in reserve for the state");
            fs::remove_file(&path).ok();
        }
    }

    /// Gives the reserve up, if the file system is full.
    pub(super) fn give_up_reserve(&self) {
        let Some(dir) = self.0.file.parent() else { return };
        let path: PathBuf = dir.join(RESERVE_NAME);
        if free(dir).is_some_and(|free| free < FULL) && path.exists() {
            match fs::remove_file(&path) {
                Ok(()) => tracing::error!(
                    path = %path.display(),
                    "the state's file system is full: the reserve is given up; make room there"
                ),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the reserve cannot be given up")
                }
            }
        }
    }
}

fn free(dir: &Path) -> Option<u64> {
    let found = statvfs(dir).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

fn make(path: &Path, bytes: u64) -> io::Result<()> {
    let file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_counted_as_room_and_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.hold_reserve(4 << 20);
        let held = fs::metadata(dir.path().join(RESERVE_NAME)).unwrap();
        assert!(held.blocks() * 512 >= 4 << 20, "real blocks");
        assert!(store.room().unwrap() >= 4 << 20);
        store.hold_reserve(8 << 20);
        assert_eq!(fs::metadata(dir.path().join(RESERVE_NAME)).unwrap().len(), 4 << 20);
        // There is room: it stays.
        store.give_up_reserve();
        assert!(dir.path().join(RESERVE_NAME).exists());
    }
}
