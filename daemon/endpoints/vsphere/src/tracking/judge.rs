//! Whether the anchor of a disk still says something.
//!
//! Rule: a change id is asked about only if the disk, its capacity and the epoch of its tracking are those of
//! the anchor. Everything else is "unknown", with the reason.

use warmd_cbt::mark::ChangeMark;

use crate::soap::FaultKind;

use super::{ChangeId, Mark};

/// A disk in the snapshot that is there now, by the snapshot's own settings.
#[derive(Clone, Debug)]
pub struct TrackedDisk<'a> {
    pub mark: &'a Mark,
    /// Whether tracking was on for the VM at the snapshot's moment.
    pub tracking_enabled: bool,
}

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// What changed since this one.
    Ask(ChangeId),
    /// Nothing: all of the disk is to be compared.
    Unknown(String),
}

/// Judges the anchor.
pub fn since(anchor: Option<&ChangeMark>, now: &TrackedDisk<'_>) -> Since {
    match comparable_mark(anchor, now) {
        Ok(id) => Since::Ask(id),
        Err(why) => Since::Unknown(why),
    }
}

fn comparable_mark(anchor: Option<&ChangeMark>, now: &TrackedDisk<'_>) -> Result<ChangeId, String> {
    let anchor = anchor.ok_or("it has not been copied before")?;
    let anchor = Mark::read(anchor).ok_or("the mark of the last pass is not one of vSphere's change ids")?;
    if anchor.disk != now.mark.disk {
        return Err(format!(
            "it is another disk now: its backing is {} and was {}",
            now.mark.disk, anchor.disk
        ));
    }
    if anchor.capacity != now.mark.capacity {
        return Err(format!(
            "its capacity was {} bytes and is {} now; releases differ in what tracking then says",
            anchor.capacity, now.mark.capacity
        ));
    }
    if !now.tracking_enabled {
        return Err("changed-block tracking is switched off on the VM".to_owned());
    }
    let current =
        now.mark.change_id.as_ref().ok_or("the snapshot has no change id for it: it is not tracked")?;
    let id = anchor.change_id.ok_or("it was not tracked at the last pass")?;
    if !id.same_epoch(current) {
        return Err(format!("its tracking was reset: the change id was {id} and is {current}"));
    }
    if current.sequence() < id.sequence() {
        return Err(format!(
            "its tracking went back (a snapshot was reverted to?): {id} came before {current}"
        ));
    }
    Ok(id)
}

/// What a failed question says of the disk; `None` if it says nothing, and asking again may help.
pub fn after_fault(fault: &FaultKind) -> Option<String> {
    match fault {
        // The tracking file is missing, damaged or locked, or the epoch is another.
        FaultKind::File { what, file } => Some(format!(
            "its tracking file cannot be used ({what}{})",
            file.as_ref().map(|file| format!(": {file}")).unwrap_or_default()
        )),
        FaultKind::InvalidArgument(Some(name)) if name == "changeId" => {
            Some("the server does not accept the change id of the last pass".to_owned())
        }
        // It does not say which: the disk and the offset are from its own answers, so it is the change id.
        FaultKind::InvalidArgument(None) => {
            Some("the server does not accept what it is asked since the last pass".to_owned())
        }
        FaultKind::NotSupported => Some("the server does not track this disk".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tracking::marks::tests::{EPOCH, mark};

    fn judged(anchor: &Mark, now: &Mark) -> Since {
        since(Some(&anchor.write()), &TrackedDisk { mark: now, tracking_enabled: true })
    }

    fn reason(since: Since) -> String {
        match since {
            Since::Ask(id) => panic!("asks since {id}"),
            Since::Unknown(why) => why,
        }
    }

    #[test]
    fn the_same_disk_in_the_same_epoch_is_asked() {
        assert!(matches!(judged(&mark(81), &mark(82)), Since::Ask(id) if id.sequence() == 81));
        // A failed pass is retried from the last committed mark: cumulative, over several snapshots.
        assert!(matches!(judged(&mark(81), &mark(99)), Since::Ask(id) if id.sequence() == 81));
    }

    #[test]
    fn each_pitfall_is_unknown_with_its_reason() {
        let other_epoch = format!("{}/82", EPOCH.replace("52 de", "53 de")).parse().unwrap();
        for (anchor, now, word) in [
            (mark(81), Mark { change_id: Some(other_epoch), ..mark(0) }, "reset"),
            (mark(81), mark(80), "back"),
            (mark(81), Mark { capacity: 2 << 30, ..mark(82) }, "capacity"),
            (mark(81), Mark { disk: "6000c29a-0002".to_owned(), ..mark(82) }, "another disk"),
            (mark(81), Mark { change_id: None, ..mark(82) }, "not tracked"),
            (Mark { change_id: None, ..mark(81) }, mark(82), "not tracked at the last pass"),
        ] {
            let why = reason(judged(&anchor, &now));
            assert!(why.contains(word), "{word}: {why}");
        }
        let now = mark(82);
        let off = TrackedDisk { mark: &now, tracking_enabled: false };
        assert!(reason(since(Some(&mark(81).write()), &off)).contains("switched off"));
        let on = TrackedDisk { mark: &now, tracking_enabled: true };
        assert!(reason(since(None, &on)).contains("not been copied"));
        assert!(reason(since(Some(&ChangeMark("x".to_owned())), &on)).contains("mark"));
    }

    #[test]
    fn faults_of_the_tracking_are_told_from_others() {
        let file = FaultKind::File { what: "FileFault".to_owned(), file: Some("a-ctk.vmdk".to_owned()) };
        assert!(after_fault(&file).unwrap().contains("a-ctk.vmdk"));
        assert!(after_fault(&FaultKind::InvalidArgument(Some("changeId".to_owned()))).is_some());
        assert!(after_fault(&FaultKind::InvalidArgument(Some("deviceKey".to_owned()))).is_none());
        for passing in [
            FaultKind::NotAuthenticated,
            FaultKind::HostUnreachable("HostCommunication".to_owned()),
            FaultKind::Unknown("NewFault".to_owned()),
            FaultKind::ObjectGone(None),
        ] {
            assert_eq!(after_fault(&passing), None, "{passing}");
        }
    }

    proptest! {
        /// Whatever differs, an answer is asked for only where disk, capacity and epoch are the anchor's and
        /// time went on.
        #[test]
        fn only_the_very_same_is_asked(
            disks in (0..2_u8, 0..2_u8), capacities in (0..2_u64, 0..2_u64), epochs in (0..2_u8, 0..2_u8),
            sequences in (0..4_u64, 0..4_u64), tracked in (any::<bool>(), any::<bool>()), enabled: bool,
        ) {
            let make = |disk: u8, capacity: u64, epoch: u8, sequence: u64, tracked: bool| Mark {
                disk: format!("disk-{disk}"),
                capacity,
                snapshot: "s".to_owned(),
                change_id: tracked.then(|| format!("{epoch}{}/{sequence}", &EPOCH[1..]).parse().unwrap()),
            };
            let anchor = make(disks.0, capacities.0, epochs.0, sequences.0, tracked.0);
            let now = make(disks.1, capacities.1, epochs.1, sequences.1, tracked.1);
            let may = disks.0 == disks.1 && capacities.0 == capacities.1 && epochs.0 == epochs.1
                && sequences.0 <= sequences.1 && tracked.0 && tracked.1 && enabled;
            let judged = since(Some(&anchor.write()), &TrackedDisk { mark: &now, tracking_enabled: enabled });
            prop_assert_eq!(matches!(judged, Since::Ask(_)), may);
        }
    }
}
