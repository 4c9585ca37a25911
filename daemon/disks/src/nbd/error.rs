//! Failures of an NBD server: a cause to act on, and the request that met it.

use std::{io, sync::Arc, time::Duration};

use thiserror::Error;
use warmd_cbt::{
    disk::{DiskError, ErrorKind, Operation},
    units::{Extent, Length, Offset},
};

use super::{
    errno::Errno,
    option_reply::refusal,
    reply::Violation,
    wire::{NbdCommand, option_reply},
};

/// A failed call of the NBD client. Cheap to clone: one lost connection fails many requests.
#[derive(Clone, Debug, Error)]
#[error("{}{cause}", at(*.request))]
pub struct NbdError {
    #[source]
    pub cause: NbdCause,
    /// The request that failed; none when connecting or shaking hands.
    pub request: Option<RequestAt>,
}

/// The request that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestAt {
    pub command: NbdCommand,
    /// Bytes from the disk's start.
    pub offset: u64,
    /// Bytes asked for.
    pub length: u64,
}

/// Why a call failed.
#[derive(Clone, Debug, Error)]
pub enum NbdCause {
    /// The server could not be reached, or the connection ended.
    #[error("{doing}: {error}")]
    Connection { doing: &'static str, error: Arc<io::Error> },
    /// The connection had to be abandoned for another request's sake.
    #[error("the connection was closed: {0}")]
    Closed(&'static str),
    /// No answer in time.
    #[error("no answer within {after:?} while {waiting}")]
    Timeout { waiting: &'static str, after: Duration },
    /// The server answered with an error number.
    #[error("the server answers {errno}{}", server_message(.message))]
    Server { errno: Errno, message: String },
    /// The server broke the protocol; no data of this connection can be trusted any more.
    #[error("the server broke the NBD protocol: {0}")]
    Protocol(#[from] Violation),
    /// After a reconnect the server offers another export than before.
    #[error("the export changed while the connection was down: {0}")]
    Changed(String),
    /// The server refused in the handshake.
    #[error("the server refuses {what}: {}{}", refusal(*.code), server_message(.message))]
    Refused {
        what: String,
        /// The type of its reply.
        code: u32,
        message: String,
    },
    /// Writes may be gone: the connection was lost after they were acknowledged and before they were flushed.
    #[error("writes since the last flush may be lost: the connection to the server broke in between")]
    WritesLost,
    /// Writes that a flush covers were overwritten.
    #[error(
        "an older write, whose connection was abandoned before the server had answered it, landed over what was written: it \
         is written again"
    )]
    Overwritten,
    /// The server's smallest block is larger than the range that the request would change.
    #[error("the server takes only multiples of {minimum} bytes")]
    Misaligned { minimum: u32 },
    /// The request reaches past the disk's end.
    #[error("the disk ends at byte {size}")]
    PastEnd { size: u64 },
    /// Opened for reading only, or the export is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The server does not offer this command or flag.
    #[error("the server does not offer {0}")]
    Unsupported(&'static str),
    /// The server did not grant this meta context.
    #[error("the server does not offer the meta context {0}")]
    NoContext(String),
}

impl NbdCause {
    /// An I/O error while `doing` something.
    pub(super) fn io(doing: &'static str, error: io::Error) -> Self {
        Self::Connection { doing, error: Arc::new(error) }
    }
}

impl NbdError {
    /// An error outside any request.
    pub(super) fn of(cause: impl Into<NbdCause>) -> Self {
        Self { cause: cause.into(), request: None }
    }

    /// The same error, of this request.
    #[must_use]
    pub(super) fn at(self, request: RequestAt) -> Self {
        Self { cause: self.cause, request: Some(request) }
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match &self.cause {
            NbdCause::Connection { .. }
            | NbdCause::Closed(_)
            | NbdCause::WritesLost
            | NbdCause::Overwritten => ErrorKind::Connection,
            NbdCause::Timeout { .. } => ErrorKind::Timeout,
            NbdCause::Server { errno, .. } => errno.kind(),
            NbdCause::Protocol(_) | NbdCause::Changed(_) => ErrorKind::Protocol,
            NbdCause::Refused { .. }
            | NbdCause::Misaligned { .. }
            | NbdCause::PastEnd { .. }
            | NbdCause::ReadOnly
            | NbdCause::Unsupported(_)
            | NbdCause::NoContext(_) => ErrorKind::Refused,
        }
    }

    /// The error number, if the server answered with one.
    pub fn errno(&self) -> Option<Errno> {
        match &self.cause {
            NbdCause::Server { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the same request may succeed over another connection.
    pub(super) fn lost_connection(&self) -> bool {
        matches!(self.cause, NbdCause::Connection { .. } | NbdCause::Closed(_))
            || self.errno() == Some(Errno::ESHUTDOWN)
    }

    /// Whether another attempt to reach a server that was there before may succeed.
    pub(super) fn may_come_back(&self) -> bool {
        match &self.cause {
            NbdCause::Timeout { .. } => true,
            // A server that has just started may not have its exports yet.
            NbdCause::Refused { code, .. } => {
                matches!(*code, option_reply::ERR_UNKNOWN | option_reply::ERR_SHUTDOWN)
            }
            _ => self.lost_connection(),
        }
    }

    /// As an error of the engine. `disk` is the export's name.
    pub fn into_disk_error(self, operation: Operation, disk: impl Into<String>) -> DiskError {
        let extent = self.request.and_then(|at| Extent::new(Offset(at.offset), Length(at.length)));
        DiskError::new(self.kind(), operation, disk, extent, self)
    }
}

fn at(request: Option<RequestAt>) -> String {
    request
        .map(|RequestAt { command, offset, length }| match command {
            NbdCommand::Flush => format!("NBD {command}: "),
            _ => format!("NBD {command} of {length} bytes at {offset}: "),
        })
        .unwrap_or_default()
}

fn server_message(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" (\"{message}\")") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_number_name_and_place_and_keep_their_kind() {
        let at = RequestAt { command: NbdCommand::Write, offset: 4096, length: 512 };
        let cases = [
            (Errno::EIO, ErrorKind::Media),
            (Errno::ENOSPC, ErrorKind::NoSpace),
            (Errno::EPERM, ErrorKind::Refused),
            (Errno::ENOTSUP, ErrorKind::Refused),
            (Errno::EINVAL, ErrorKind::Refused),
            (Errno::ESHUTDOWN, ErrorKind::Connection),
            (Errno(9999), ErrorKind::Media),
        ];
        for (errno, kind) in cases {
            let error = NbdError::of(NbdCause::Server { errno, message: String::new() }).at(at);
            assert_eq!(error.kind(), kind, "{errno}");
            let disk = error.into_disk_error(Operation::Write, "vda");
            assert_eq!((disk.kind, disk.extent), (kind, Extent::new(Offset(4096), Length(512))));
        }
        let full = NbdCause::Server { errno: Errno::ENOSPC, message: "pool is full".into() };
        assert_eq!(
            NbdError::of(full).at(at).to_string(),
            "NBD WRITE of 512 bytes at 4096: the server answers ENOSPC (28) (\"pool is full\")"
        );
    }
}
