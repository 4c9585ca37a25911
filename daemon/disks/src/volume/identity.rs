//! Whether an open volume is still the file or device that its path names, and still of its size.
//!
//! Rule: the path is checked as well as the open file, because a file that was replaced goes on taking
//! writes.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use rustix::fs::SeekFrom;
use warmd_cbt::units::Length;

/// The kind of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    File,
    BlockDevice,
}

/// The identity of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) kind: VolumeKind,
    /// Device and inode of a file; a block device's own number, because its node may be created again.
    device: u64,
    inode: u64,
}

impl Identity {
    /// The identity of a regular file or block device; else the kind of file.
    pub(super) fn of(metadata: &Metadata) -> Result<Self, &'static str> {
        let kind = metadata.file_type();
        if kind.is_file() {
            Ok(Self { kind: VolumeKind::File, device: metadata.dev(), inode: metadata.ino() })
        } else if kind.is_block_device() {
            Ok(Self { kind: VolumeKind::BlockDevice, device: metadata.rdev(), inode: 0 })
        } else if kind.is_dir() {
            Err("a directory")
        } else if kind.is_char_device() {
            Err("a character device")
        } else if kind.is_symlink() {
            Err("a symbolic link")
        } else {
            Err("a pipe or socket")
        }
    }

    /// The volume's number on this host; no file has inode 0, so a device's number never equals a file's.
    pub(super) fn number(self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Fails unless `path` still names this volume.
    pub(super) fn still_at(self, path: &Path) -> io::Result<()> {
        let metadata = std::fs::metadata(path)?;
        if Self::of(&metadata) == Ok(self) {
            Ok(())
        } else {
            Err(io::Error::other("another file or device stands at this path now: the volume was replaced"))
        }
    }
}

/// Bytes in the open volume.
pub(super) fn size_of(file: &File, kind: VolumeKind) -> io::Result<Length> {
    Ok(Length(match kind {
        VolumeKind::File => file.metadata()?.len(),
        VolumeKind::BlockDevice => rustix::fs::seek(file, SeekFrom::End(0))?,
    }))
}

/// Fails unless the open volume has `size` bytes and, if a file, still a name.
pub(super) fn still_whole(file: &File, kind: VolumeKind, size: Length) -> io::Result<()> {
    let now = match kind {
        VolumeKind::File => {
            let metadata = file.metadata()?;
            if metadata.nlink() == 0 {
                return Err(io::Error::other("the file was removed or replaced"));
            }
            Length(metadata.len())
        }
        VolumeKind::BlockDevice => size_of(file, kind)?,
    };
    if now == size {
        Ok(())
    } else {
        Err(io::Error::other(format!("the volume has {now} bytes now, and had {size} when it was opened")))
    }
}
