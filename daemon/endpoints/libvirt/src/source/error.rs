//! The meaning of libvirt's failures for a source.

use warmd_core::sources::{SourceError, SourceErrorKind, VmOnAnotherHost};

use crate::libvirt::{LibvirtError, LibvirtErrorKind};

/// Adds a context to a failed call.
pub(super) trait ErrorContext<T> {
    /// The failure as the source's, with the operation.
    fn context(self, context: impl FnOnce() -> String) -> Result<T, SourceError>;
}

impl<T> ErrorContext<T> for Result<T, LibvirtError> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T, SourceError> {
        self.map_err(|error| SourceError::new(kind(&error), context(), error))
    }
}

impl<T> ErrorContext<T> for std::io::Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T, SourceError> {
        self.map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    SourceErrorKind::Refused
                }
                _ => SourceErrorKind::Failed,
            };
            SourceError::new(kind, context(), error)
        })
    }
}

/// A refusal that an operator must resolve.
pub(super) fn refused(context: impl Into<String>, why: impl Into<String>) -> SourceError {
    SourceError::new(SourceErrorKind::Refused, context, why.into())
}

/// A refusal because the VM runs on another host.
pub(super) fn elsewhere(context: impl Into<String>, why: impl Into<String>) -> SourceError {
    SourceError::new(SourceErrorKind::Refused, context, VmOnAnotherHost(why.into()))
}

/// An obstacle that its owner removes, or that ends with time.
pub(super) fn blocked(context: impl Into<String>, why: impl Into<String>) -> SourceError {
    SourceError::new(SourceErrorKind::Blocked, context, why.into())
}

fn kind(error: &LibvirtError) -> SourceErrorKind {
    use LibvirtErrorKind as L;
    match error.kind {
        L::Unreachable => SourceErrorKind::Unreachable,
        L::Timeout => SourceErrorKind::Timeout,
        L::Busy => SourceErrorKind::Blocked,
        L::NoSuchDomain => SourceErrorKind::NotFound,
        L::MissingTool | L::Denied | L::Exists | L::Unsupported => SourceErrorKind::Refused,
        L::WrongState
        | L::AlreadyActive
        | L::NoSuchCheckpoint
        | L::CheckpointExists
        | L::CheckpointInconsistent
        | L::NoSuchBitmap
        | L::BitmapExists
        | L::NoJob
        | L::NoSuchMetadata
        | L::NoSpace
        | L::Malformed
        | L::Failed => SourceErrorKind::Failed,
    }
}
