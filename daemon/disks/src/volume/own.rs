//! The volumes that this process has open: so that it recognises its own locks.
//!
//! Rule: a call that hangs keeps its volume open, and locked, after the disk was dropped. A lock of that kind
//! ends with the call: it never counts as another program's.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Open volumes by their numbers; whether each one's disk was dropped.
static OPEN: Mutex<BTreeMap<(u64, u64), bool>> = Mutex::new(BTreeMap::new());

/// The user of an open volume.
pub(super) const BY_US: &str = "another operation of this daemon has it open";

/// The status of a volume in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnVolumeStatus {
    Closed,
    /// A disk of it is in use.
    Open,
    /// Its disk was dropped, and a call of it has not ended yet.
    Hangs,
}

/// The status of the volume of this number.
pub(super) fn status(number: (u64, u64)) -> OwnVolumeStatus {
    match open().get(&number) {
        None => OwnVolumeStatus::Closed,
        Some(false) => OwnVolumeStatus::Open,
        Some(true) => OwnVolumeStatus::Hangs,
    }
}

/// The entry of an open, locked volume, for as long as it is open. The lock allows only one at a time.
#[derive(Debug)]
pub(super) struct Own((u64, u64));

impl Own {
    pub(super) fn note(number: (u64, u64)) -> Self {
        open().insert(number, false);
        Self(number)
    }

    /// Its disk was dropped: it is open only until its last call ends.
    pub(super) fn left(&self) {
        open().insert(self.0, true);
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        open().remove(&self.0);
    }
}

fn open() -> MutexGuard<'static, BTreeMap<(u64, u64), bool>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}
