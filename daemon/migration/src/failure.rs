//! Failures of a migration's work, sorted by their remedy.
//!
//! Rule: the sorting is exhaustive over the error kinds of every port; a new kind does not compile until it
//! is sorted.

use warmd_cbt::{
    disk::{DiskError, ErrorKind},
    store::{StoreError, StoreErrorKind},
    transfer::PassError,
    verify::VerifyError,
};
use warmd_core::{
    model::transition::FailureCause,
    sources::{SourceError, SourceErrorKind},
    targets::{TargetError, TargetErrorKind},
};

/// The remedy of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A retry, until retries have not helped.
    Retry,
    /// Time: an obstacle or an unreachable endpoint, which may be gone at any later try.
    Wait,
    /// An operator's action, then `resume`.
    Operator,
    /// The next cutover window: this one closed before the cutover, or that of a VM of its group, was
    /// admitted.
    NextWindow,
    /// An operator's decision for the source VM or the target VM; until then nothing is done or undone.
    NeedsDecision,
}

/// Why a migration's work failed.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct WorkError {
    pub remedy: Remedy,
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl WorkError {
    /// A failure that an operator must look at.
    pub fn operator(reason: impl Into<String>) -> Self {
        Self { remedy: Remedy::Operator, cause: reason.into().into() }
    }

    /// The end of a cutover because its group is halted.
    pub fn halted(why: String) -> Self {
        let remedy = match FailureCause::saved_as(&why) {
            FailureCause::CutoverWindowClosed => Remedy::NextWindow,
            FailureCause::Other => Remedy::Operator,
        };
        Self { remedy, cause: why.into() }
    }

    /// A temporary failure.
    pub fn passing(reason: impl Into<String>) -> Self {
        Self { remedy: Remedy::Retry, cause: reason.into().into() }
    }
}

/// The migration's VM or disk no longer exists on its source.
#[derive(Debug, thiserror::Error)]
#[error("{cause}: it was removed from the source; put it back there and resume, or cancel the migration")]
struct VmRemoved {
    #[source]
    cause: SourceError,
}

impl From<SourceError> for WorkError {
    fn from(error: SourceError) -> Self {
        let remedy = match error.kind {
            SourceErrorKind::Unreachable | SourceErrorKind::Timeout | SourceErrorKind::Blocked => {
                Remedy::Wait
            }
            SourceErrorKind::Failed => Remedy::Retry,
            SourceErrorKind::NotFound => {
                return Self { remedy: Remedy::Operator, cause: Box::new(VmRemoved { cause: error }) };
            }
            SourceErrorKind::Refused | SourceErrorKind::StillRunning => Remedy::Operator,
        };
        Self { remedy, cause: Box::new(error) }
    }
}

impl From<TargetError> for WorkError {
    fn from(error: TargetError) -> Self {
        let remedy = match error.kind {
            TargetErrorKind::Unreachable | TargetErrorKind::Timeout => Remedy::Wait,
            TargetErrorKind::Failed => Remedy::Retry,
            // The user of the disk closes it sooner or later; that may be a hanging write of warmd's.
            TargetErrorKind::Conflict if error.is_in_use => Remedy::Wait,
            TargetErrorKind::NotFound
            | TargetErrorKind::Conflict
            | TargetErrorKind::NoSpace
            | TargetErrorKind::Refused => Remedy::Operator,
        };
        Self { remedy, cause: Box::new(error) }
    }
}

impl From<DiskError> for WorkError {
    fn from(error: DiskError) -> Self {
        Self { remedy: remedy_of(&error), cause: Box::new(error) }
    }
}

fn remedy_of(error: &DiskError) -> Remedy {
    match error.kind {
        ErrorKind::Connection | ErrorKind::Timeout => Remedy::Wait,
        ErrorKind::Media | ErrorKind::Protocol => Remedy::Retry,
        ErrorKind::NoSpace | ErrorKind::Refused => Remedy::Operator,
    }
}

impl From<PassError> for WorkError {
    fn from(error: PassError) -> Self {
        let remedy = match &error {
            PassError::Source(cause) | PassError::Target(cause) => remedy_of(cause),
            PassError::Store(cause) => remedy_of_store(cause),
        };
        Self { remedy, cause: Box::new(error) }
    }
}

impl From<VerifyError> for WorkError {
    fn from(error: VerifyError) -> Self {
        let remedy = match &error {
            VerifyError::Pending(_) => Remedy::Operator,
            VerifyError::Source(cause) | VerifyError::Target(cause) => remedy_of(cause),
            VerifyError::Store(cause) => remedy_of_store(cause),
        };
        Self { remedy, cause: Box::new(error) }
    }
}

impl From<StoreError> for WorkError {
    fn from(error: StoreError) -> Self {
        Self { remedy: remedy_of_store(&error), cause: Box::new(error) }
    }
}

fn remedy_of_store(error: &StoreError) -> Remedy {
    match error.kind {
        StoreErrorKind::Unavailable => Remedy::Wait,
        StoreErrorKind::Corrupt | StoreErrorKind::NotFound => Remedy::Operator,
    }
}
