//! The privileges that a migration needs, and what for.
//!
//! Rule: the list that the documents name. Each is asked for on the VM itself, where a role that does not
//! propagate is seen.

use crate::soap::MoRef;

use super::DoctorFinding;

/// A privilege.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privilege {
    pub id: &'static str,
    pub what_for: &'static str,
    /// Without it, a migration goes on in another way.
    pub is_optional: bool,
    /// A standalone ESXi host does not know it.
    pub is_vcenters: bool,
}

const fn needed(id: &'static str, what_for: &'static str) -> Privilege {
    Privilege { id, what_for, is_optional: false, is_vcenters: false }
}

/// All of them.
pub const PRIVILEGES: [Privilege; 13] = [
    needed("VirtualMachine.State.CreateSnapshot", "to take a snapshot for each pass"),
    needed("VirtualMachine.State.RemoveSnapshot", "to remove it right after"),
    needed("VirtualMachine.Interact.PowerOff", "to stop the VM at the cutover"),
    needed("VirtualMachine.Interact.PowerOn", "to start it again if the cutover is undone"),
    needed("VirtualMachine.Provisioning.DiskRandomRead", "to read its disks"),
    needed("VirtualMachine.Provisioning.GetVmFiles", "to read its disks"),
    needed("VirtualMachine.Config.ChangeTracking", "to track changes"),
    needed("VirtualMachine.Config.DiskLease", "to keep its disks from being moved while they are read"),
    Privilege {
        is_optional: true,
        ..needed("VirtualMachine.Config.Annotation", "to note on the VM where it was moved")
    },
    needed("Datastore.Browse", "to find its disks' files"),
    needed("Datastore.FileManagement", "to read its disks' files"),
    Privilege {
        is_optional: true,
        ..needed("Host.Config.AutoStart", "to take it out of its host's autostart at the cutover")
    },
    Privilege {
        is_vcenters: true,
        ..needed("Sessions.ValidateSession", "so that an ESXi host accepts vCenter's session")
    },
];

/// What is told of the privileges that are missing on an object.
pub(super) fn finding(on: &MoRef, missing: &[&Privilege]) -> DoctorFinding {
    if missing.is_empty() {
        return DoctorFinding::good(format!("all privileges are there on {on}"));
    }
    let list = |privileges: &[&&Privilege]| {
        let each = privileges.iter().map(|privilege| format!("{} ({})", privilege.id, privilege.what_for));
        each.collect::<Vec<_>>().join(", ")
    };
    let (optional, needed): (Vec<&&Privilege>, Vec<&&Privilege>) =
        missing.iter().partition(|privilege| privilege.is_optional);
    let remedy = "give the user a role with it on the root of the inventory, with \"Propagate to children\"";
    if needed.is_empty() {
        return DoctorFinding::warning(
            format!("on {on}, a privilege is missing: {}", list(&optional)),
            remedy,
        );
    }
    let all: Vec<&&Privilege> = needed.into_iter().chain(optional).collect();
    DoctorFinding::error(format!("on {on}, privileges are missing: {}", list(&all)), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::DoctorSeverity;

    #[test]
    fn what_is_missing_is_named_with_its_purpose() {
        let on = MoRef::vm("vm-57");
        assert_eq!(finding(&on, &[]).severity, DoctorSeverity::Good);
        let needed = finding(&on, &[&PRIVILEGES[0], &PRIVILEGES[8]]);
        assert_eq!(needed.severity, DoctorSeverity::Error);
        assert!(needed.what.contains("CreateSnapshot") && needed.what.contains("Annotation"), "{needed}");
        assert_eq!(finding(&on, &[&PRIVILEGES[8]]).severity, DoctorSeverity::Warning);
    }

    #[test]
    fn none_is_listed_twice() {
        let mut ids: Vec<_> = PRIVILEGES.iter().map(|privilege| privilege.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), PRIVILEGES.len());
    }
}
