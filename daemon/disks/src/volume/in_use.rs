//! Whether another process has a volume open: another warmd by `flock`, QEMU and others that lock byte ranges
//! by what the kernel lists in `/proc/locks`.
//!
//! Rule: this refuses a use that is visible. It does not stop a program that takes no locks (`users.rs`), and
//! never counts a lock of this process as another's (`own.rs`).

use std::{fs::File, io, os::unix::fs::MetadataExt, path::Path};

use rustix::fs::FlockOperation;

use super::{
    error::VolumeError,
    own::{self, OwnVolumeStatus},
};

/// Takes the lock that keeps other daemons away, for as long as `file` is open. `Err` says who has it.
pub(super) fn lock(file: &File, path: &Path, number: (u64, u64)) -> Result<(), LockError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
            let by = || "another warmd or another program holds its lock".to_owned();
            return Err(refused(number, by));
        }
        Err(error) => return Err(LockError::Io(error.into())),
    }
    match range_locked(path).map_err(LockError::Io)? {
        Some(by) => Err(LockError::Held(by)),
        None => Ok(()),
    }
}

/// Why the volume of this number, which was refused, is in use: by this process, or by the holder in `by`.
pub(super) fn refused(number: (u64, u64), by: impl FnOnce() -> String) -> LockError {
    match own::status(number) {
        OwnVolumeStatus::Hangs => LockError::Hangs,
        OwnVolumeStatus::Open => LockError::Ours,
        OwnVolumeStatus::Closed => LockError::Held(by()),
    }
}

/// Who holds a lock of byte ranges on the file, in words.
pub(super) fn range_locked(path: &Path) -> io::Result<Option<String>> {
    let by = |line| {
        format!(
            "a program has locked byte ranges of it, as QEMU does with the disks of a VM that runs ({line})"
        )
    };
    Ok(range_lock(path)?.map(by))
}

/// A lock of byte ranges that a process holds on the file, as the kernel lists it.
fn range_lock(path: &Path) -> io::Result<Option<String>> {
    // On btrfs and overlayfs the listed device number may differ from stat's: such locks are not seen.
    let metadata = std::fs::metadata(path)?;
    let listed = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    Ok(foreign_range_lock(&listed, metadata.dev(), metadata.ino()).map(str::to_owned))
}

/// Why the lock was not taken.
pub(super) enum LockError {
    Held(String),
    /// By this daemon, which uses it.
    Ours,
    /// By an abandoned call of this process that has not ended.
    Hangs,
    Io(io::Error),
}

impl LockError {
    /// As the error of the volume at `path`.
    pub(super) fn of(self, path: &Path) -> VolumeError {
        let path = path.to_owned();
        match self {
            Self::Held(by) => VolumeError::InUse { path, by, ours: false },
            Self::Ours => VolumeError::InUse { path, by: own::BY_US.to_owned(), ours: true },
            Self::Hangs => VolumeError::Hangs { path },
            Self::Io(error) => VolumeError::io("locking", path, error),
        }
    }
}

/// The first POSIX or OFD lock on the file in the text of `/proc/locks`. warmd itself takes only `flock`s.
fn foreign_range_lock(listed: &str, device: u64, inode: u64) -> Option<&str> {
    let wanted = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(device), rustix::fs::minor(device));
    listed.lines().find(|line| {
        let mut words = line.split_ascii_whitespace().skip(1).skip_while(|word| *word == "->");
        let kind = words.next();
        matches!(kind, Some("OFDLCK" | "POSIX")) && words.any(|word| word == wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_locks_of_that_file_are_found() {
        let listed = "1: FLOCK  ADVISORY  WRITE 706 fe:00:12 0 EOF\n\
                      2: OFDLCK ADVISORY  READ -1 fe:00:77 201 201\n\
                      2: -> POSIX ADVISORY  WRITE 9 fe:00:78 0 EOF\n";
        let device = rustix::fs::makedev(0xfe, 0);
        assert_eq!(foreign_range_lock(listed, device, 12), None, "a flock is no range lock");
        assert!(foreign_range_lock(listed, device, 77).is_some_and(|line| line.starts_with("2: OFDLCK")));
        assert!(foreign_range_lock(listed, device, 78).is_some());
        assert_eq!(foreign_range_lock(listed, device, 7), None);
        assert_eq!(foreign_range_lock(listed, rustix::fs::makedev(0xfe, 1), 77), None);
    }
}
