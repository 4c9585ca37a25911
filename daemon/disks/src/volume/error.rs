//! Failures of a volume before it is an open disk, and how missing space is reported.

use std::{io, path::PathBuf};

use warmd_cbt::{
    disk::{DiskError, ErrorKind},
    units::Length,
};

/// The kind of failure, to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeErrorKind {
    /// It does not exist.
    NotFound,
    /// It is no volume, or the system refuses.
    Refused,
    /// It is in use by others, or has another size.
    Conflict,
    /// No answer yet, or in use by this process itself.
    Timeout,
    /// No room.
    NoSpace,
    /// Its directory or storage does not exist.
    Unreachable,
    /// A system call failed.
    Failed,
}

/// A volume that could not be created, found, opened or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{} is not there", path.display())]
    NotFound { path: PathBuf },
    #[error("{} is {what}: only regular files and block devices can hold a disk", path.display())]
    NotAVolume { path: PathBuf, what: &'static str },
    #[error(
        "{} is {is} bytes long, the disk is {wanted}: it is never resized; make it {wanted} bytes long, remove it, or \
         name another place",
        path.display()
    )]
    WrongSize { path: PathBuf, is: Length, wanted: Length },
    #[error("{} is in use: {by}", path.display())]
    InUse {
        path: PathBuf,
        by: String,
        /// By this daemon itself: that ends, and no other process has had it.
        ours: bool,
    },
    #[error(
        "{} cannot be opened yet: an earlier call of warmd's own to it still hangs, and holds its lock; does its storage answer?",
        path.display()
    )]
    Hangs { path: PathBuf },
    #[error("no room for {}", path.display())]
    NoSpace { path: PathBuf, source: io::Error },
    #[error("{doing} {} failed", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

impl VolumeError {
    /// An I/O error, classified by its errno.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::NoSpace { path, source }
            }
            _ => Self::Io { doing, path, source },
        }
    }

    /// The kind of failure for a target.
    pub fn kind(&self) -> VolumeErrorKind {
        match self {
            Self::NotFound { .. } => VolumeErrorKind::NotFound,
            Self::NotAVolume { .. } => VolumeErrorKind::Refused,
            Self::WrongSize { .. } | Self::InUse { ours: false, .. } => VolumeErrorKind::Conflict,
            Self::Hangs { .. } | Self::InUse { ours: true, .. } => VolumeErrorKind::Timeout,
            Self::NoSpace { .. } => VolumeErrorKind::NoSpace,
            Self::Io { source, .. } => match DiskError::kind_of(source) {
                ErrorKind::NoSpace => VolumeErrorKind::NoSpace,
                ErrorKind::Refused => VolumeErrorKind::Refused,
                ErrorKind::Timeout => VolumeErrorKind::Timeout,
                ErrorKind::Connection => VolumeErrorKind::Unreachable,
                ErrorKind::Media | ErrorKind::Protocol => VolumeErrorKind::Failed,
            },
        }
    }
}

/// The file system is full, and how much it lacks as far as that is known.
#[derive(Debug, thiserror::Error)]
#[error(
    "no room: {free} bytes are free on its file system, and the disk may still grow by {growth}: make {} bytes of room \
     there, then resume",
    growth.0.saturating_sub(free.0).max(1)
)]
pub struct NoRoom {
    /// What an ordinary user may still write there.
    pub free: Length,
    /// The disk's size less what it has on the file system now.
    pub growth: Length,
    #[source]
    pub cause: io::Error,
}
