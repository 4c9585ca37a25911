//! Room for the state: the free space, and a reserve for a full file system.
//!
//! Rule: a cutover under way must be saved, even when another process filled the file system. The reserve is
//! a file of real blocks beside the database, which is deleted for that, and created again when there is
//! room.

use std::{
    any::TypeId,
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tokio::time::Instant;

use super::{Store, StoreError, error::is_full};

/// The reserve's name in the state directory.
const RESERVE_NAME: &str = "reserve";
/// The size of the reserve.
pub const RESERVE: u64 = 64 << 20;
/// The free space needed before a VM is stopped: a cutover's steps, and the ledgers of its last deltas.
const ENOUGH: u64 = 32 << 20;
/// With less than this the file system counts as full.
const FULL: u64 = 1 << 20;

/// After which a failure without a new try since no longer counts: above the longest pause between two tries.
const FORGOTTEN: Duration = Duration::from_mins(2);

/// Failing writes, by their kind.
///
/// Only a success of the same kind ends its failing: where little room is left, a small write that succeeds
/// is no evidence for a large one.
#[derive(Debug, Default)]
pub(super) struct Failing(Mutex<BTreeMap<TypeId, Failed>>);

/// From the first failure to the last one; no success between them.
#[derive(Clone, Copy, Debug)]
struct Failed {
    since: Instant,
    last: Instant,
}

impl Failing {
    pub(super) fn note(&self, kind: TypeId, is_failing: bool) {
        let (mut all, now) = (self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        all.retain(|_, failed| failed.last.elapsed() <= FORGOTTEN);
        if is_failing {
            all.entry(kind).or_insert(Failed { since: now, last: now }).last = now;
        } else {
            all.remove(&kind);
        }
    }

    fn span(&self) -> Option<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = all.values().filter(|failed| failed.last.elapsed() <= FORGOTTEN);
        fresh.map(|failed| failed.last - failed.since).max()
    }
}

impl Store {
    /// For how long a repeated or hanging write has not succeeded; `None` if all is saved.
    pub fn failing_for(&self) -> Option<Duration> {
        self.0.failing.span()
    }

    /// Bytes that the state may still grow by, the reserve among them; `None` if that cannot be known.
    fn room(&self) -> Option<u64> {
        let dir = self.0.file.parent()?;
        let held = fs::metadata(dir.join(RESERVE_NAME)).map_or(0, |meta| meta.blocks() * 512);
        Some(free(dir)?.saturating_add(held))
    }

    /// Why there is too little room to begin work that must be saved to its end, and the remedy.
    pub fn too_little_room(&self) -> Option<String> {
        self.too_little_for(1)
    }

    /// The same before a VM is stopped: all cutovers that are under way by the state, this one among them,
    /// need room at the same time.
    pub async fn too_little_room_now(&self) -> Result<Option<String>, StoreError> {
        let under_way = self.cutovers_under_way().await?;
        Ok(self.too_little_for(under_way.max(1)))
    }

    fn too_little_for(&self, cutovers: u64) -> Option<String> {
        let (room, needed) = (self.room()?, ENOUGH.saturating_mul(cutovers));
        let what =
            if cutovers == 1 { "a cutover".to_owned() } else { format!("{cutovers} cutovers at once") };
        (room < needed).then(|| {
            format!(
                "the file system of the state ({}) has room for {} KiB, and {what} may need {} MiB: make room there",
                self.0.file.display(),
                room >> 10,
                needed >> 20
            )
        })
    }

    /// Creates the reserve, if it is missing and the file system has room for twice as much.
    pub fn hold_reserve(&self, bytes: u64) {
        let Some(dir) = self.0.file.parent() else { return };
        let (path, part) = (dir.join(RESERVE_NAME), dir.join(format!("{RESERVE_NAME}.part")));
        // A partial one left by a crash.
        fs::remove_file(&part).ok();
        if bytes == 0 || is_whole(&path) || free(dir).is_none_or(|free| free < bytes.saturating_mul(2)) {
            return;
        }
        if let Err(error) = make(&part, bytes).and_then(|()| fs::rename(&part, &path)) {
            tracing::warn!(path = %path.display(), %error, "no room is kept in reserve for the state");
            fs::remove_file(&part).ok();
        }
    }

    /// Deletes the reserve, if the file system is full: by a write's error, which may come from a quota, or
    /// by its figures.
    pub(super) fn give_up_reserve(&self, after: &StoreError) {
        let Some(dir) = self.0.file.parent() else { return };
        let path: PathBuf = dir.join(RESERVE_NAME);
        let is_full = is_full(after) || free(dir).is_some_and(|free| free < FULL);
        if is_full && path.exists() {
            match fs::remove_file(&path) {
                Ok(()) => tracing::error!(
                    path = %path.display(),
                    "the state's file system is full: the reserve is deleted; make room there"
                ),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the reserve cannot be deleted");
                }
            }
        }
    }
}

fn free(dir: &Path) -> Option<u64> {
    let found = statvfs(dir).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether the reserve exists with all its blocks. An empty file keeps no room, and neither does one with
/// holes.
fn is_whole(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.len() > 0 && meta.blocks() * 512 >= meta.len())
}

fn make(path: &Path, bytes: u64) -> io::Result<()> {
    let file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rusqlite::ffi;

    use super::{
        super::error::{from_sql, unavailable},
        *,
    };

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
        store.give_up_reserve(&unavailable("saving", "no answer"));
        assert!(dir.path().join(RESERVE_NAME).exists());
        // A quota can be full while the file system has room.
        let full = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None);
        store.give_up_reserve(&from_sql(&Arc::new(full), "saving"));
        assert!(!dir.path().join(RESERVE_NAME).exists());
    }

    #[test]
    fn what_a_crash_left_of_a_reserve_is_no_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let path = dir.path().join(RESERVE_NAME);
        for hollow in [0, 4 << 20] {
            File::create(&path).unwrap().set_len(hollow).unwrap();
            fs::write(dir.path().join("reserve.part"), "x").unwrap();
            store.hold_reserve(4 << 20);
            let held = fs::metadata(&path).unwrap();
            assert!(held.blocks() * 512 >= 4 << 20, "{hollow}: real blocks");
            assert!(!dir.path().join("reserve.part").exists());
        }
    }

    #[test]
    fn each_cutover_under_way_needs_its_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let room = store.room().unwrap();
        assert_eq!(store.too_little_for(room / ENOUGH / 2), None);
        let many = room / ENOUGH * 2 + 1;
        let told = store.too_little_for(many).unwrap();
        assert!(told.contains(&format!("{many} cutovers at once")), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn successful_write_does_not_clear_a_failure_of_another_kind() {
        let (failing, [save, beat]) = (Failing::default(), [TypeId::of::<u8>(), TypeId::of::<u16>()]);
        for _ in 0..5 {
            failing.note(save, true);
            failing.note(beat, false);
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        assert_eq!(failing.span(), Some(Duration::from_mins(4)));
        failing.note(save, false);
        assert_eq!(failing.span(), None);
        // One without another try is not failing for ever.
        failing.note(save, true);
        tokio::time::sleep(Duration::from_mins(3)).await;
        assert_eq!(failing.span(), None);
        failing.note(save, true);
        assert_eq!(failing.span(), Some(Duration::ZERO));
    }
}
