//! Which disks can be moved by snapshots, and what to do about the others.
//!
//! Rule: each disk is checked separately, and a refusal says what to do.

use crate::inventory::{RawMapping, VirtualDisk};

/// Why a disk cannot be moved while its VM runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub why: String,
    /// What to do.
    pub remedy: String,
}

/// What stands in the way of a disk, if anything does.
pub fn obstacle(disk: &VirtualDisk) -> Option<Obstacle> {
    let is = |why: &str, remedy: &str| Some(Obstacle { why: why.to_owned(), remedy: remedy.to_owned() });
    if disk.backing.raw == Some(RawMapping::Physical) {
        return is(
            "it is a raw device mapping in physical mode, of which vSphere makes no snapshots",
            "shut the VM down and map the LUN in virtual mode, or move the LUN's data by other means",
        );
    }
    if disk.mode.starts_with("independent") {
        return is(
            "its mode is independent, so snapshots leave it out",
            "shut the VM down and change the disk's mode to dependent",
        );
    }
    if !matches!(disk.mode.as_str(), "persistent" | "") {
        return is(
            &format!("its mode is `{}`", disk.mode),
            "shut the VM down and change the disk's mode to dependent (persistent)",
        );
    }
    if disk.multi_writer {
        return is(
            "several VMs may write to it (multi-writer), so a snapshot of one of them says nothing",
            "shut the cluster's VMs down, set the disk's sharing to none, and move it with one of them",
        );
    }
    if disk.controller.shared {
        return is(
            "its controller's bus is shared with other VMs, so vSphere makes no snapshots",
            "shut the VM down and put the disk on a controller that is not shared",
        );
    }
    if disk.uuid.is_none() {
        return is(
            &format!("its backing ({}) has no UUID, so it cannot be known again", disk.backing.kind),
            "move it with Storage vMotion to a VMFS or NFS datastore, which gives it a current format",
        );
    }
    if disk.capacity.0 == 0 {
        return is("the server does not tell its capacity", "see that its datastore is reachable");
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use warmd_cbt::units::Length;

    use super::*;
    use crate::inventory::{Backing, Controller};

    pub(in crate::tracking) fn disk() -> VirtualDisk {
        VirtualDisk {
            key: 2000,
            uuid: Some("6000c29a-0001".to_owned()),
            label: "Hard disk 1".to_owned(),
            controller: Controller::default(),
            capacity: Length(1 << 30),
            mode: "persistent".to_owned(),
            multi_writer: false,
            backing: Backing {
                kind: "VirtualDiskFlatVer2BackingInfo".to_owned(),
                file: "[DS 1] web1/web1.vmdk".to_owned(),
                datastore: Some("DS 1".to_owned()),
                thin: true,
                raw: None,
                change_id: None,
                has_parent: false,
                encrypted: false,
            },
        }
    }

    #[test]
    fn an_ordinary_disk_and_a_virtual_mapping_pass() {
        assert_eq!(obstacle(&disk()), None);
        let mut mapped = disk();
        mapped.backing.raw = Some(RawMapping::Virtual);
        assert_eq!(obstacle(&mapped), None);
    }

    #[test]
    fn each_kind_that_cannot_be_moved_is_refused_with_a_remedy() {
        let changed = |change: fn(&mut VirtualDisk)| {
            let mut disk = disk();
            change(&mut disk);
            obstacle(&disk).expect("it is refused")
        };
        for (change, word) in [
            ((|disk| disk.mode = "independent_persistent".to_owned()) as fn(&mut VirtualDisk), "independent"),
            (|disk| disk.mode = "nonpersistent".to_owned(), "nonpersistent"),
            (|disk| disk.backing.raw = Some(RawMapping::Physical), "physical"),
            (|disk| disk.multi_writer = true, "multi-writer"),
            (|disk| disk.controller.shared = true, "shared"),
            (|disk| disk.uuid = None, "UUID"),
            (|disk| disk.capacity = Length(0), "capacity"),
        ] {
            let obstacle = changed(change);
            assert!(obstacle.why.contains(word), "{word}: {}", obstacle.why);
            assert!(!obstacle.remedy.is_empty());
        }
    }
}
