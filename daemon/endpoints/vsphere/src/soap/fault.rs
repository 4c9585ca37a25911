//! Faults: what a server answers instead of a result, and what a failed task holds.
//!
//! Rule: a fault is known by its type, never by its text, which is in the server's language. A type that is
//! not listed stays unknown under its own name, and is never success.

use std::fmt;

use super::{Element, MoRef};

/// A server's refusal or failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    /// What the server says to people.
    pub message: String,
}

/// What kind of fault it is, as far as something here acts on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The session has ended.
    NotAuthenticated,
    InvalidLogin,
    NoPermission {
        privilege: Option<String>,
        object: Option<MoRef>,
    },
    /// The licence does not allow it: the free ESXi is read-only.
    RestrictedVersion,
    /// The object is not there (any more).
    ObjectGone(Option<MoRef>),
    /// The named argument is wrong.
    InvalidArgument(Option<String>),
    InvalidProperty(Option<String>),
    /// A file of a VM: missing, locked, damaged; of a disk's change tracking, too.
    File {
        what: String,
        file: Option<String>,
    },
    /// No room on a datastore.
    NoSpace,
    /// Another task has the object.
    TaskInProgress,
    /// The guest's file systems or applications could not be brought to rest.
    Quiesce(String),
    /// VMware Tools do not run in the guest.
    ToolsUnavailable,
    /// It is not in the power state that the call needs.
    PowerState,
    /// It is not in a state that allows the call: disconnected, orphaned, suspended.
    InvalidState(String),
    /// The host of the VM does not answer the server.
    HostUnreachable(String),
    NotSupported,
    Cancelled,
    TimedOut,
    /// The filters' version is not known to the server any more.
    CollectorVersion,
    /// Too many snapshots in a chain.
    SnapshotLimit,
    /// The server itself failed.
    System(String),
    /// None of the above; its type.
    Unknown(String),
}

impl FaultKind {
    /// By the type's name and its fields.
    fn of(name: &str, fields: &Element) -> Self {
        let text = |path: &str| fields.text_at(path).map(str::to_owned);
        match name {
            "NotAuthenticated" => Self::NotAuthenticated,
            // A user without privileges anywhere is told so at the login.
            "InvalidLogin" | "PasswordExpired" => Self::InvalidLogin,
            "NoPermission" => {
                Self::NoPermission { privilege: text("privilegeId"), object: fields.moref_at("object") }
            }
            "RestrictedVersion" | "RestrictedByAdministrator" => Self::RestrictedVersion,
            "ManagedObjectNotFound" => Self::ObjectGone(fields.moref_at("obj")),
            "InvalidArgument" => Self::InvalidArgument(text("invalidProperty")),
            "InvalidProperty" => Self::InvalidProperty(text("name")),
            "FileFault"
            | "FileNotFound"
            | "FileLocked"
            | "CannotAccessFile"
            | "FileAlreadyExists"
            | "FileNotWritable"
            | "FileBackedPortNotSupported"
            | "FileNameTooLong"
            | "CannotAccessVmDisk"
            | "CannotDeleteFile"
            | "FileTooLarge" => Self::File { what: name.to_owned(), file: text("file") },
            "NoDiskSpace" | "InsufficientStorageSpace" => Self::NoSpace,
            "TaskInProgress" | "ResourceInUse" | "ConcurrentAccess" | "VAppTaskInProgress" => {
                Self::TaskInProgress
            }
            "ApplicationQuiesceFault" | "FilesystemQuiesceFault" => Self::Quiesce(name.to_owned()),
            "ToolsUnavailable" => Self::ToolsUnavailable,
            "InvalidPowerState" => Self::PowerState,
            "InvalidState" | "VmConfigFault" | "InvalidVmConfig" | "VimFault" | "GenericVmConfigFault" => {
                Self::InvalidState(name.to_owned())
            }
            "HostNotConnected"
            | "HostNotReachable"
            | "HostCommunication"
            | "HostConnectFault"
            | "CannotAccessNetwork" => Self::HostUnreachable(name.to_owned()),
            "NotSupported" | "MethodNotFound" | "NotImplemented" => Self::NotSupported,
            "RequestCanceled" => Self::Cancelled,
            "Timedout" => Self::TimedOut,
            "InvalidCollectorVersion" => Self::CollectorVersion,
            "TooManySnapshotLevels" | "MultipleSnapshotsNotSupported" => Self::SnapshotLimit,
            "RuntimeFault" | "SystemError" | "HostRuntimeFault" | "InternalError" | "UnexpectedFault" => {
                Self::System(name.to_owned())
            }
            other => Self::Unknown(other.to_owned()),
        }
    }
}

impl Fault {
    /// From a SOAP fault.
    pub(crate) fn read(fault: &Element) -> Self {
        let message = fault.text_at("faultstring").unwrap_or_default();
        let Some(detail) = fault.child("detail").and_then(|detail| detail.children.first()) else {
            return Self {
                kind: FaultKind::Unknown("a fault without a type".to_owned()),
                message: message.to_owned(),
            };
        };
        Self { kind: Self::kind_of(detail), message: message.to_owned() }
    }

    /// From a task's `error`, or from what stands for a property that could not be read.
    pub(crate) fn of_task(error: &Element) -> Self {
        let message = error.text_at("localizedMessage").unwrap_or_default().to_owned();
        let kind = match error.child("fault") {
            Some(fault) => Self::kind_of(fault),
            None => FaultKind::Unknown("a fault without a type".to_owned()),
        };
        Self { kind, message }
    }

    /// The true type is in `xsi:type`; some servers name only the element.
    fn kind_of(detail: &Element) -> FaultKind {
        let element = detail.name.strip_suffix("Fault").unwrap_or(&detail.name);
        let name = detail.kind.as_deref().unwrap_or(element);
        match FaultKind::of(name, detail) {
            // The element of `RuntimeFault` is `RuntimeFaultFault`, and that of `FileFault` is
            // `FileFaultFault`.
            FaultKind::Unknown(_) if detail.kind.is_none() => FaultKind::of(&detail.name, detail),
            kind => kind,
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |f: &mut fmt::Formatter<'_>, what: &str, name: Option<&String>| match name {
            Some(name) => write!(f, "{what}: {name}"),
            None => f.write_str(what),
        };
        match self {
            Self::NotAuthenticated => f.write_str("the session has ended"),
            Self::InvalidLogin => f.write_str("the user name or the password is wrong"),
            Self::NoPermission { privilege, object } => {
                named(f, "a privilege is missing", privilege.as_ref())?;
                object.as_ref().map_or(Ok(()), |object| write!(f, ", on {object}"))
            }
            Self::RestrictedVersion => f.write_str("the host's licence does not allow it"),
            Self::ObjectGone(object) => match object {
                Some(object) => write!(f, "{object} does not exist"),
                None => f.write_str("the object does not exist"),
            },
            Self::InvalidArgument(name) => named(f, "an argument is wrong", name.as_ref()),
            Self::InvalidProperty(name) => named(f, "there is no such property", name.as_ref()),
            Self::File { what, file } => named(f, what, file.as_ref()),
            Self::NoSpace => f.write_str("the datastore has no room"),
            Self::TaskInProgress => f.write_str("another task works on it"),
            Self::Quiesce(what) => write!(f, "the guest could not be brought to rest ({what})"),
            Self::ToolsUnavailable => f.write_str("VMware Tools do not run in the guest"),
            Self::PowerState => f.write_str("its power state does not allow it"),
            Self::InvalidState(what) => write!(f, "its state does not allow it ({what})"),
            Self::HostUnreachable(what) => write!(f, "its ESXi host does not answer vCenter ({what})"),
            Self::NotSupported => f.write_str("it is not supported"),
            Self::Cancelled => f.write_str("it was cancelled"),
            Self::TimedOut => f.write_str("it timed out"),
            Self::CollectorVersion => f.write_str("the server does not know the filter's version any more"),
            Self::SnapshotLimit => f.write_str("it has too many snapshots"),
            Self::System(what) => write!(f, "the server failed ({what})"),
            Self::Unknown(what) => write!(f, "the server answers {what}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.trim() {
            "" => write!(f, "{}", self.kind),
            message => write!(f, "{}: \"{message}\"", self.kind),
        }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(detail: &str) -> Fault {
        let text = format!(
            "<Fault xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance'><faultcode>ServerFaultCode</faultcode>\
             <faultstring>what people read</faultstring><detail>{detail}</detail></Fault>"
        );
        Fault::read(&Element::read(text.as_bytes()).unwrap())
    }

    #[test]
    fn faults_are_known_by_their_type() {
        for (detail, kind) in [
            ("<InvalidLoginFault xsi:type='InvalidLogin'/>", FaultKind::InvalidLogin),
            ("<NotAuthenticatedFault/>", FaultKind::NotAuthenticated),
            ("<RuntimeFaultFault/>", FaultKind::System("RuntimeFault".to_owned())),
            ("<TaskInProgressFault xsi:type='vim25:TaskInProgress'/>", FaultKind::TaskInProgress),
            (
                "<x xsi:type='InvalidArgument'><invalidProperty>changeId</invalidProperty></x>",
                FaultKind::InvalidArgument(Some("changeId".to_owned())),
            ),
            (
                "<FileFaultFault xsi:type='FileFault'><file>[ds] a/a-ctk.vmdk</file></FileFaultFault>",
                FaultKind::File { what: "FileFault".to_owned(), file: Some("[ds] a/a-ctk.vmdk".to_owned()) },
            ),
            (
                "<NoPermissionFault xsi:type='NoPermission'><object type='VirtualMachine'>vm-1</object>\
                 <privilegeId>VirtualMachine.State.CreateSnapshot</privilegeId></NoPermissionFault>",
                FaultKind::NoPermission {
                    privilege: Some("VirtualMachine.State.CreateSnapshot".to_owned()),
                    object: Some(MoRef::vm("vm-1")),
                },
            ),
            (
                "<ManagedObjectNotFoundFault xsi:type='ManagedObjectNotFound'><obj type='Task'>task-1</obj></ManagedObjectNotFoundFault>",
                FaultKind::ObjectGone(Some(MoRef::new("Task", "task-1"))),
            ),
        ] {
            assert_eq!(fault(detail).kind, kind, "{detail}");
        }
    }

    #[test]
    fn what_is_not_listed_stays_unknown_under_its_name() {
        let odd = fault("<x xsi:type='CrystalBallFault'/>");
        assert_eq!(odd.kind, FaultKind::Unknown("CrystalBallFault".to_owned()));
        assert!(odd.to_string().contains("CrystalBallFault") && odd.to_string().contains("what people read"));
        assert!(matches!(fault("").kind, FaultKind::Unknown(_)));
    }

    #[test]
    fn a_task_has_its_fault_one_level_deeper() {
        let text = "<error xmlns:xsi='u'><fault xsi:type='ApplicationQuiesceFault'/>\
                    <localizedMessage>Momentaufnahme fehlgeschlagen</localizedMessage></error>";
        let fault = Fault::of_task(&Element::read(text.as_bytes()).unwrap());
        assert_eq!(fault.kind, FaultKind::Quiesce("ApplicationQuiesceFault".to_owned()));
        assert!(fault.to_string().contains("Momentaufnahme"));
    }
}
