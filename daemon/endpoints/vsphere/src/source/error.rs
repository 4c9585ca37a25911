//! What vSphere's failures mean for a source.
//!
//! Rule: no catch-all: a new kind is to be thought about.

use warmd_core::sources::{SourceError, SourceErrorKind};

use crate::{Kind, VsphereError};

impl From<VsphereError> for SourceError {
    fn from(error: VsphereError) -> Self {
        Self { kind: kind(error.kind), context: error.context, cause: error.cause }
    }
}

fn kind(kind: Kind) -> SourceErrorKind {
    match kind {
        Kind::Unreachable => SourceErrorKind::Unreachable,
        Kind::Timeout => SourceErrorKind::Timeout,
        Kind::NotFound => SourceErrorKind::NotFound,
        Kind::Blocked => SourceErrorKind::Blocked,
        Kind::Refused => SourceErrorKind::Refused,
        Kind::Failed => SourceErrorKind::Failed,
        Kind::StillRunning => SourceErrorKind::StillRunning,
    }
}
