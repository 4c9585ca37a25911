//! Marks: a moment of one disk, written down so that later only the very same disk can be asked what changed
//! since.
//!
//! Rule: a disk is known by its backing's UUID, never by its device key, which may be given to another. A
//! mark holds what must still be so for an answer to be true: the disk, its capacity, and where its tracking
//! stood.

use std::{fmt, str::FromStr};

use warmd_cbt::mark::ChangeMark;

use crate::inventory::Vm;

/// Where a disk's tracking stands: `52 de c0 … 65 63/81`, an epoch and a number that rises with each
/// snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeId {
    epoch: String,
    sequence: u64,
}

impl ChangeId {
    /// Whether both are of one uninterrupted tracking.
    pub fn same_epoch(&self, other: &Self) -> bool {
        self.epoch == other.epoch
    }

    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl FromStr for ChangeId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, sequence) = text.rsplit_once('/').ok_or(())?;
        let is_hex = |character: char| character.is_ascii_hexdigit() || character == ' ' || character == '-';
        // `*` (all that is allocated) is no moment, and is never taken for one.
        if epoch.chars().filter(char::is_ascii_hexdigit).count() != 32 || !epoch.chars().all(is_hex) {
            return Err(());
        }
        Ok(Self { epoch: epoch.to_owned(), sequence: sequence.parse().map_err(drop)? })
    }
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.sequence)
    }
}

/// A moment of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The backing's UUID.
    pub disk: String,
    /// In bytes.
    pub capacity: u64,
    /// The snapshot's id, which tells moments of an untracked disk apart.
    pub snapshot: String,
    /// `None`: the disk was not tracked.
    pub change_id: Option<ChangeId>,
}

/// How marks of this form begin.
const FORM: &str = "vsphere-1";
const NONE: &str = "untracked";

impl Mark {
    pub fn write(&self) -> ChangeMark {
        let tracking = self.change_id.as_ref().map_or_else(|| NONE.to_owned(), ToString::to_string);
        ChangeMark(format!("{FORM}/{}/{}/{}/{tracking}", self.disk, self.capacity, self.snapshot))
    }

    /// `None` if it is none of ours: another version's, another source's, or damaged.
    pub fn read(mark: &ChangeMark) -> Option<Self> {
        let mut parts = mark.0.splitn(5, '/');
        if parts.next()? != FORM {
            return None;
        }
        let mut part = || parts.next().filter(|part| !part.is_empty());
        let (disk, capacity, snapshot, tracking) = (part()?, part()?, part()?, part()?);
        let change_id = if tracking == NONE { None } else { Some(tracking.parse().ok()?) };
        Some(Self {
            disk: disk.to_owned(),
            capacity: capacity.parse().ok()?,
            snapshot: snapshot.to_owned(),
            change_id,
        })
    }
}

/// The change id that the disk with this backing UUID has now, if it is tracked.
pub fn change_id_now(vm: &Vm, uuid: &str) -> Option<ChangeId> {
    vm.disk(uuid)?.backing.change_id.as_ref()?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::tracking) const EPOCH: &str = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63";

    pub(in crate::tracking) fn mark(sequence: u64) -> Mark {
        Mark {
            disk: "6000c29a-0001".to_owned(),
            capacity: 1 << 30,
            snapshot: "snapshot-70".to_owned(),
            change_id: Some(format!("{EPOCH}/{sequence}").parse().unwrap()),
        }
    }

    #[test]
    fn marks_read_back() {
        for mark in [mark(81), Mark { change_id: None, ..mark(0) }] {
            assert_eq!(Mark::read(&mark.write()), Some(mark));
        }
        let text = |text: &str| Mark::read(&ChangeMark(text.to_owned()));
        for odd in [
            "",
            "vsphere-1",
            "vsphere-1/disk/1/snapshot-1/",
            "vsphere-1/disk/1/snapshot-1/*",
            "vsphere-1//1/snapshot-1/untracked",
            "vsphere-1/disk/x/snapshot-1/untracked",
            "vsphere-2/disk/1/snapshot-1/untracked",
            "untracked-3",
        ] {
            assert_eq!(text(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_change_id_is_an_epoch_and_a_number() {
        let id: ChangeId = format!("{EPOCH}/81").parse().unwrap();
        assert_eq!(id.sequence(), 81);
        assert_eq!(id.to_string(), format!("{EPOCH}/81"));
        for odd in ["*", "", "/", "x/1", &format!("{EPOCH}/"), &format!("{EPOCH}/-1"), EPOCH] {
            assert!(odd.parse::<ChangeId>().is_err(), "{odd}");
        }
    }
}
