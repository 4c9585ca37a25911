//! The error numbers that NBD servers answer with, under their usual names.

use std::fmt;

use warmd_cbt::disk::ErrorKind;

/// An error number of a server; not always one that this machine's system knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub u32);

impl Errno {
    pub const EPERM: Self = Self(1);
    pub const EIO: Self = Self(5);
    pub const ENOMEM: Self = Self(12);
    pub const EACCES: Self = Self(13);
    pub const EINVAL: Self = Self(22);
    pub const EFBIG: Self = Self(27);
    pub const ENOSPC: Self = Self(28);
    pub const EROFS: Self = Self(30);
    pub const ENOSYS: Self = Self(38);
    pub const EOVERFLOW: Self = Self(75);
    pub const ENOTSUP: Self = Self(95);
    pub const ESHUTDOWN: Self = Self(108);
    pub const ETIMEDOUT: Self = Self(110);
    pub const EDQUOT: Self = Self(122);

    /// Its name, if servers send it.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::EPERM => "EPERM",
            Self::EIO => "EIO",
            Self::ENOMEM => "ENOMEM",
            Self::EACCES => "EACCES",
            Self::EINVAL => "EINVAL",
            Self::EFBIG => "EFBIG",
            Self::ENOSPC => "ENOSPC",
            Self::EROFS => "EROFS",
            Self::ENOSYS => "ENOSYS",
            Self::EOVERFLOW => "EOVERFLOW",
            Self::ENOTSUP => "ENOTSUP",
            Self::ESHUTDOWN => "ESHUTDOWN",
            Self::ETIMEDOUT => "ETIMEDOUT",
            Self::EDQUOT => "EDQUOT",
            _ => return None,
        })
    }

    /// What to do about it.
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::ENOSPC | Self::EDQUOT | Self::EFBIG => ErrorKind::NoSpace,
            Self::EPERM
            | Self::EACCES
            | Self::EINVAL
            | Self::EROFS
            | Self::ENOSYS
            | Self::EOVERFLOW
            | Self::ENOTSUP => ErrorKind::Refused,
            // The server lacks a resource or is about to end: trying again later may help.
            Self::ESHUTDOWN | Self::ENOMEM => ErrorKind::Connection,
            Self::ETIMEDOUT => ErrorKind::Timeout,
            _ => ErrorKind::Media,
        }
    }

    /// Whether it says that the server does not know the command.
    pub fn is_unsupported(self) -> bool {
        matches!(self, Self::ENOTSUP | Self::ENOSYS)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
