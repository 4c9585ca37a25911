//! What can go wrong with a vSphere endpoint.
//!
//! Rule: a small kind to act on, the context to find it, and the cause untouched.

use thiserror::Error;

use crate::soap::{Fault, FaultKind, MoRef};

/// What kind of failure it was, to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The server, or the host of a VM, does not answer; trying again later may help.
    Unreachable,
    /// No answer within the deadline; trying again later may help.
    Timeout,
    /// The VM, the disk or the snapshot is not there (any more).
    NotFound,
    /// Something stands in the way for now, and passes by what its owner does; trying again later helps.
    Blocked,
    /// The server will not, and time does not mend it: an operator must act.
    Refused,
    /// The server failed at it; trying again may help.
    Failed,
    /// The guest did not shut down in time, and the power may not be cut.
    StillRunning,
}

/// A failure: its kind, what was being done to what, and the cause.
#[derive(Debug, Error)]
#[error("{context}: {cause}")]
pub struct VsphereError {
    pub kind: Kind,
    pub context: String,
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

/// What calls of this package answer.
pub type Result<T> = std::result::Result<T, VsphereError>;

impl VsphereError {
    pub fn new(
        kind: Kind,
        context: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), cause: cause.into() }
    }

    /// An operator must act.
    pub(crate) fn refused(context: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Kind::Refused, context, why.into())
    }

    /// Something is in the way that its owner, or time, takes away.
    pub(crate) fn blocked(context: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Kind::Blocked, context, why.into())
    }

    /// The server's answer cannot be used.
    pub(crate) fn failed(context: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Kind::Failed, context, why.into())
    }

    /// A fault that the server answered.
    pub(crate) fn of_fault(context: impl Into<String>, fault: Fault) -> Self {
        Self::new(kind_of(&fault.kind), context, fault)
    }

    /// The server's fault, if it was one.
    pub fn fault(&self) -> Option<&FaultKind> {
        self.cause.downcast_ref::<Fault>().map(|fault| &fault.kind)
    }

    /// Whether the server says that this very object does not exist. A call also meets tasks, hosts and
    /// snapshots that are gone: that says nothing of the VM.
    pub(crate) fn is_gone(&self, object: &MoRef) -> bool {
        matches!(self.fault(), Some(FaultKind::ObjectGone(Some(gone))) if gone == object)
    }

    /// Whether the server may have done what it was asked for, though it did not say so.
    pub(crate) fn is_undecided(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::Timeout)
            || matches!(self.fault(), Some(FaultKind::System(_) | FaultKind::Unknown(_)))
    }
}

/// Says what was being done when a call failed.
pub(crate) trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> During<T> for Result<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| VsphereError { context: format!("{}: {}", what(), error.context), ..error })
    }
}

/// What a fault means for who asked. No catch-all: a new fault is to be thought about.
fn kind_of(fault: &FaultKind) -> Kind {
    match fault {
        // After a new login it is repeated; if it comes back, something is wrong with the server.
        FaultKind::NotAuthenticated => Kind::Failed,
        FaultKind::InvalidLogin
        | FaultKind::NoPermission { .. }
        | FaultKind::RestrictedVersion
        | FaultKind::NotSupported
        | FaultKind::SnapshotLimit => Kind::Refused,
        // A VM that is gone ends a migration. Tasks, snapshots and hosts come and go.
        FaultKind::ObjectGone(Some(object)) if object.kind == "VirtualMachine" => Kind::NotFound,
        FaultKind::ObjectGone(_) => Kind::Failed,
        FaultKind::TaskInProgress | FaultKind::NoSpace => Kind::Blocked,
        FaultKind::HostUnreachable(_) => Kind::Unreachable,
        FaultKind::TimedOut => Kind::Timeout,
        FaultKind::InvalidArgument(_)
        | FaultKind::InvalidProperty(_)
        | FaultKind::File { .. }
        | FaultKind::Quiesce(_)
        | FaultKind::ToolsUnavailable
        | FaultKind::PowerState
        | FaultKind::InvalidState(_)
        | FaultKind::Cancelled
        | FaultKind::CollectorVersion
        | FaultKind::System(_)
        | FaultKind::Unknown(_) => Kind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_done_to_what_and_why() {
        let fault = Fault {
            kind: FaultKind::NoPermission {
                privilege: Some("VirtualMachine.Interact.PowerOff".to_owned()),
                object: None,
            },
            message: "Permission to perform this operation was denied.".to_owned(),
        };
        let error = Err::<(), _>(VsphereError::of_fault("PowerOffVM_Task", fault))
            .during(|| "VM web1: switching it off".to_owned())
            .unwrap_err();
        assert_eq!(error.kind, Kind::Refused);
        let text = error.to_string();
        assert!(text.starts_with("VM web1: switching it off: PowerOffVM_Task: "), "{text}");
        assert!(text.contains("VirtualMachine.Interact.PowerOff"), "{text}");
    }

    #[test]
    fn only_the_object_that_the_server_names_is_gone() {
        let (vm, task) = (MoRef::vm("vm-57"), MoRef::new("Task", "task-7"));
        let by = |gone| {
            let fault = Fault { kind: FaultKind::ObjectGone(gone), message: String::new() };
            VsphereError::of_fault("x", fault)
        };
        assert!(by(Some(vm.clone())).is_gone(&vm));
        assert!(!by(Some(task.clone())).is_gone(&vm) && by(Some(task.clone())).is_gone(&task));
        assert!(!by(None).is_gone(&vm), "the server does not name it");
        assert!(!VsphereError::new(Kind::NotFound, "x", "no").is_gone(&vm));
    }

    #[test]
    fn silence_and_unclear_faults_leave_open_whether_it_was_done() {
        let silent = VsphereError::new(Kind::Timeout, "x", "no answer");
        assert!(silent.is_undecided());
        let by = |kind| VsphereError::of_fault("x", Fault { kind, message: String::new() }).is_undecided();
        assert!(by(FaultKind::HostUnreachable("HostCommunication".to_owned())));
        assert!(by(FaultKind::System("SystemError".to_owned())));
        assert!(by(FaultKind::Unknown("NewFault".to_owned())));
        assert!(!by(FaultKind::PowerState) && !by(FaultKind::InvalidLogin));
        assert!(!VsphereError::refused("x", "no").is_undecided());
    }
}
