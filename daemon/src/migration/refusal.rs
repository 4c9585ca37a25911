//! What endpoints' failures mean to whoever asked for something.

use super::control::{ControlError, ControlErrorKind};
use crate::{
    sources::{SourceError, SourceErrorKind},
    targets::{TargetError, TargetErrorKind},
};

impl From<SourceError> for ControlError {
    fn from(error: SourceError) -> Self {
        let kind = match error.kind {
            SourceErrorKind::Unreachable | SourceErrorKind::Timeout => ControlErrorKind::Unavailable,
            SourceErrorKind::NotFound => ControlErrorKind::NotFound,
            SourceErrorKind::Blocked | SourceErrorKind::Refused | SourceErrorKind::StillRunning => {
                ControlErrorKind::Refused
            }
            SourceErrorKind::Failed => ControlErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<TargetError> for ControlError {
    fn from(error: TargetError) -> Self {
        let kind = match error.kind {
            TargetErrorKind::Unreachable | TargetErrorKind::Timeout => ControlErrorKind::Unavailable,
            TargetErrorKind::NotFound => ControlErrorKind::NotFound,
            TargetErrorKind::Conflict | TargetErrorKind::NoSpace | TargetErrorKind::Refused => {
                ControlErrorKind::Refused
            }
            TargetErrorKind::Failed => ControlErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
