//! Snapshots: one for all disks of a VM, made for a pass and removed right after it.
//!
//! Rule: one of ours on a VM while it is read, and none between. Before one is made, tasks that run on the VM
//! are waited for, and what an earlier call left is removed and consolidated. An answer that was lost is no
//! failure: the VM is looked at. A failed call leaves no snapshot behind, as far as the server lets it.

mod activate;
mod changed;
mod create;
mod remove;
mod take;

use std::{fmt, time::Duration};

use crate::{
    inventory::{SnapshotNode, VirtualDisk},
    soap::MoRef,
    tracking::Mark,
};

pub(crate) use take::pass_privileges;
pub use take::{Anchors, VmSnapshotRequest};

/// The migration that a snapshot is made for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(String);

impl Owner {
    /// By the migration's id.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// How its snapshots are called.
    pub fn snapshot_name(&self) -> String {
        format!("{PREFIX}{}", self.0)
    }

    fn description(&self) -> String {
        format!(
            "{MIGRATION}{}: made to copy the disks, removed when they are copied. Do not delete it or revert to it.",
            self.0
        )
    }

    /// Whether the snapshot was made for this migration: by its name and by its description.
    pub fn has_made(&self, snapshot: &SnapshotNode) -> bool {
        Self::of(snapshot).as_ref() == Some(self)
    }

    /// The migration that a snapshot was made for; `None` if it is not warmd's. A name alone, which people
    /// copy, proves nothing.
    pub fn of(snapshot: &SnapshotNode) -> Option<Self> {
        let named = snapshot.name.strip_prefix(PREFIX)?;
        let (described, _) = snapshot.description.strip_prefix(MIGRATION)?.split_once(':')?;
        (named == described).then(|| Self::new(named))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const PREFIX: &str = "warmd-";
const MIGRATION: &str = "warmd, migration ";

/// A snapshot that was made.
#[derive(Clone, Debug)]
pub struct Taken {
    pub of: MoRef,
    pub vm: MoRef,
    pub owner: Owner,
    /// The disks that were asked for, in their order.
    pub disks: Vec<TakenDisk>,
    /// Whether the guest was brought to rest.
    pub quiesced: bool,
    /// How long the server took to make it, by its own clock: the VM was stunned for a part of that.
    pub made_in: Option<Duration>,
    /// Whether warmd switched tracking on for it.
    pub switched_tracking_on: bool,
    /// The last start of the VM before a final snapshot.
    pub last_start: LastStart,
    /// What people should know.
    pub warnings: Vec<String>,
}

/// The last start of a VM, by its server's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastStart {
    /// The server does not say.
    #[default]
    Unknown,
    /// The server has no event of a start.
    NoneReported,
    /// By the event's key.
    Event(i64),
}

impl LastStart {
    /// Whether the VM was started between this look and a later one. Events that were deleted meanwhile are
    /// no start.
    fn is_before_a_start(self, later: Self) -> bool {
        match (self, later) {
            (Self::Unknown, _) | (_, Self::Unknown | Self::NoneReported) => false,
            (Self::NoneReported, Self::Event(_)) => true,
            (Self::Event(before), Self::Event(later)) => later > before,
        }
    }
}

/// A disk as it was at the snapshot's moment.
#[derive(Clone, Debug)]
pub struct TakenDisk {
    pub disk: VirtualDisk,
    pub mark: Mark,
    /// Whether tracking was on.
    pub tracking_enabled: bool,
}

impl Taken {
    /// The disk with this backing UUID.
    pub fn disk(&self, uuid: &str) -> Option<&TakenDisk> {
        self.disks.iter().find(|disk| disk.mark.disk == uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn node(name: &str, description: &str) -> SnapshotNode {
        SnapshotNode {
            of: MoRef::new("VirtualMachineSnapshot", "snapshot-7"),
            name: name.to_owned(),
            description: description.to_owned(),
            created: None,
            power: None,
            has_children: false,
        }
    }

    #[test]
    fn only_an_event_that_came_later_is_a_start() {
        use LastStart::{Event, NoneReported, Unknown};
        for (before, later) in [(NoneReported, Event(1)), (Event(1), Event(2))] {
            assert!(before.is_before_a_start(later), "{before:?} {later:?}");
        }
        for (before, later) in [
            (Unknown, Event(1)),
            (Event(1), Unknown),
            (Event(1), NoneReported),
            (NoneReported, NoneReported),
            (Event(2), Event(2)),
            (Event(2), Event(1)),
        ] {
            assert!(!before.is_before_a_start(later), "{before:?} {later:?}");
        }
    }

    #[test]
    fn a_snapshot_is_known_by_name_and_description() {
        let owner = Owner::new("0190f3a4-0000-7000-8000-000000000001");
        let ours = node(&owner.snapshot_name(), &owner.description());
        assert!(owner.has_made(&ours));
        assert!(!Owner::new("other").has_made(&ours));
        assert_eq!(Owner::of(&ours), Some(owner.clone()));
        for (name, description) in [
            (owner.snapshot_name().as_str(), "by hand"),
            ("before update", owner.description().as_str()),
            (Owner::new("x").snapshot_name().as_str(), owner.description().as_str()),
            ("", ""),
        ] {
            assert_eq!(Owner::of(&node(name, description)), None, "{name} {description}");
        }
    }
}
