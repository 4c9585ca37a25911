//! The small traits of disks in the engine: one to read the source's snapshot, one to write the target.
//!
//! Rule: every call has a deadline of the implementation's own, moves its whole extent or fails, and may run
//! at the same time as others. A hang is an error of kind [`ErrorKind::Timeout`].

use std::{fmt, ops::Range};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    buffer::Buffer,
    units::{Extent, Length, Offset},
};

/// The kind of failure, to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The other side is gone or unreachable; trying again later may help.
    Connection,
    /// No answer within the deadline; trying again later may help.
    Timeout,
    /// The device reports that these bytes cannot be read or written (EIO).
    Media,
    /// No room on the target (ENOSPC, EDQUOT).
    NoSpace,
    /// The request is refused: read-only, not permitted, not supported.
    Refused,
    /// The other side broke its protocol, or gave an impossible answer.
    Protocol,
}

/// The operation on a disk that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    Open,
    Read,
    Allocation,
    Write,
    WriteZeroes,
    Flush,
}

/// A failed disk operation: kind, where, and the unchanged cause.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of {disk}{} failed: {cause}", at(*extent))]
pub struct DiskError {
    pub kind: ErrorKind,
    pub operation: Operation,
    /// The disk's name as its owner knows it: a path, an NBD export.
    pub disk: String,
    pub extent: Option<Extent>,
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl DiskError {
    /// An error of `kind` with its cause.
    pub fn new(
        kind: ErrorKind,
        operation: Operation,
        disk: impl Into<String>,
        extent: Option<Extent>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, operation, disk: disk.into(), extent, cause: cause.into() }
    }

    /// The kind of an I/O error, by its errno.
    pub fn kind_of(error: &std::io::Error) -> ErrorKind {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::NoSpace,
            Io::TimedOut => ErrorKind::Timeout,
            Io::PermissionDenied | Io::ReadOnlyFilesystem | Io::Unsupported | Io::NotFound => {
                ErrorKind::Refused
            }
            Io::ConnectionRefused
            | Io::ConnectionReset
            | Io::ConnectionAborted
            | Io::NotConnected
            | Io::BrokenPipe
            | Io::UnexpectedEof => ErrorKind::Connection,
            _ => ErrorKind::Media,
        }
    }
}

fn at(extent: Option<Extent>) -> String {
    extent.map(|extent| format!(" at {extent}")).unwrap_or_default()
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Allocation => "block status",
            Self::Write => "write",
            Self::WriteZeroes => "zeroing",
            Self::Flush => "flush",
        })
    }
}

/// A source's knowledge of a run of bytes without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    pub extent: Extent,
    /// True only if the bytes are known to read as zeroes.
    pub zero: bool,
}

/// The limits of a disk's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// The most bytes in one read or write.
    pub max_request: usize,
    /// Requests in flight beyond which the disk only queues.
    pub in_flight: usize,
}

impl Default for DiskLimits {
    fn default() -> Self {
        Self { max_request: 1 << 20, in_flight: 16 }
    }
}

/// Reads one disk of a snapshot, or a target that is being verified.
#[async_trait]
pub trait ReadDisk: Send + Sync {
    /// Bytes on the disk.
    fn size(&self) -> Length;

    /// The limits of its requests.
    fn limits(&self) -> DiskLimits {
        DiskLimits::default()
    }

    /// Fills all of `buffer` from `at` and gives it back.
    async fn read(&self, at: Offset, buffer: Buffer) -> Result<Buffer, DiskError>;

    /// The known zeroes: a gap-free prefix of `extent`, which may end early but covers at least one byte.
    /// The default knows nothing.
    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        Ok(vec![Allocation { extent, zero: false }])
    }
}

/// Writes one disk of the target. Writes count only after a successful [`WriteDisk::flush`].
#[async_trait]
pub trait WriteDisk: ReadDisk {
    /// Writes `buffer[range]` at `at` and gives the buffer back.
    async fn write(&self, at: Offset, buffer: Buffer, range: Range<usize>) -> Result<Buffer, DiskError>;

    /// Makes the extent read as zeroes, by a hole where the target can, else by writing zeroes.
    async fn write_zeroes(&self, extent: Extent) -> Result<(), DiskError>;

    /// Whether zeroing costs as much as writing, as far as that is known: then it counts in the limits of
    /// bytes.
    fn zeroes_by_writing(&self) -> bool {
        false
    }

    /// Makes every write that had returned before this call durable. After a failure no write since the last
    /// successful flush counts as written.
    ///
    /// It must fail if any of those writes may have been lost before it: an implementation that reconnects to
    /// a server, which may have been restarted, reports its next flush as failed if it had written since the
    /// last one.
    async fn flush(&self) -> Result<(), DiskError>;
}
