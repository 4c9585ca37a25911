//! Whether tracking may be switched on.
//!
//! Rule: never with snapshots, and never while redo logs wait to be consolidated: what tracking says after
//! that is wrong, and since vSphere 6.5 no error tells.

use crate::inventory::{SnapshotNode, Vm};

/// Why tracking may not be switched on now; with what to do.
pub fn may_switch_on(vm: &Vm) -> Result<(), String> {
    if vm.tracking_supported == Some(false) {
        let version = vm.hardware_version.as_deref().unwrap_or("unknown");
        return Err(format!(
            "the VM does not support changed-block tracking (virtual hardware {version}): upgrade its virtual hardware to \
             version 7 or newer, or move it by comparison"
        ));
    }
    if !vm.snapshots.is_empty() {
        let names: Vec<_> = vm.snapshots.iter().map(|snapshot| format!("{:?}", snapshot.name)).collect();
        return Err(format!(
            "it has snapshots ({}), and tracking that is switched on with snapshots loses changes without an error: \
             delete them first",
            names.join(", ")
        ));
    }
    if vm.consolidation_needed {
        return Err(
            "its disks need consolidation: in vSphere, Snapshots, Consolidate; then try again".to_owned()
        );
    }
    // A redo log that no snapshot owns: a linked clone, or a chain whose snapshots are forgotten.
    if let Some(disk) = vm.disks.iter().find(|disk| disk.backing.has_parent) {
        return Err(format!(
            "{} lies on a redo log without a snapshot ({}): it is a linked clone, or its chain is to be consolidated; \
             clone the VM in full, or consolidate its disks",
            disk.label, disk.backing.file
        ));
    }
    Ok(())
}

/// The snapshots that `is_own` does not take for the migration's own.
pub fn snapshots_of_others(vm: &Vm, is_own: impl Fn(&SnapshotNode) -> bool) -> Vec<&SnapshotNode> {
    vm.snapshots.iter().filter(|snapshot| !is_own(snapshot)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{inventory::tests_support::vm, soap::MoRef, tracking::disks::tests::disk};

    fn snapshot(name: &str) -> SnapshotNode {
        SnapshotNode {
            of: MoRef::new("VirtualMachineSnapshot", "snapshot-1"),
            name: name.to_owned(),
            description: String::new(),
            created: None,
            power: None,
            has_children: false,
        }
    }

    fn plain() -> Vm {
        Vm { disks: vec![disk()], ..vm() }
    }

    #[test]
    fn a_plain_vm_may_be_tracked() {
        assert_eq!(may_switch_on(&plain()), Ok(()));
    }

    #[test]
    fn each_way_to_wrong_answers_is_refused() {
        let mut redo = disk();
        redo.backing.has_parent = true;
        for (vm, word) in [
            (Vm { snapshots: vec![snapshot("before update")], ..plain() }, "before update"),
            (Vm { consolidation_needed: true, ..plain() }, "consolidation"),
            (Vm { tracking_supported: Some(false), ..plain() }, "vmx-19"),
            (Vm { disks: vec![redo], ..plain() }, "redo log"),
        ] {
            let why = may_switch_on(&vm).unwrap_err();
            assert!(why.contains(word), "{word}: {why}");
        }
    }

    #[test]
    fn own_snapshots_are_not_others() {
        let vm = Vm { snapshots: vec![snapshot("ours"), snapshot("theirs")], ..plain() };
        let others = snapshots_of_others(&vm, |snapshot| snapshot.name == "ours");
        assert_eq!(others.len(), 1);
        assert_eq!(others[0].name, "theirs");
    }
}
