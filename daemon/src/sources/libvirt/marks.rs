//! Marks: how a moment is written down so that after months libvirt, and only for the very same disk, can say what
//! changed since.
//!
//! Rule: a mark holds all that must still be so for its answer to be true: the checkpoint, whose name carries the
//! migration and is never used twice, the disk's size, and the image that it was. A bitmap belongs to its image, and the
//! bitmaps of one moment have one name in all images of a VM: two files that changed places are told apart by what the
//! file system says of them, not by their paths.

use warmd_cbt::{mark::ChangeMark, units::Length};

use crate::model::id::MigrationId;

/// A moment of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// From here on a checkpoint's bitmap records.
    Checkpoint {
        name: String,
        size: Length,
        image: String,
        /// What tells its file from another at the same path, where that can be told.
        identity: Option<String>,
    },
    /// Nothing records; the number only tells moments apart.
    Untracked { number: u64 },
}

const UNTRACKED: &str = "untracked-";
/// Stands around an identity. No image begins so: it is an absolute path, or begins with its kind.
const IDENTITY: char = '@';

impl Mark {
    pub(super) fn write(&self) -> ChangeMark {
        ChangeMark(match self {
            Self::Checkpoint { name, size, image, identity: None } => format!("{name}/{size}/{image}"),
            Self::Checkpoint { name, size, image, identity: Some(identity) } => {
                format!("{name}/{size}/{IDENTITY}{identity}{IDENTITY}{image}")
            }
            Self::Untracked { number } => format!("{UNTRACKED}{number}"),
        })
    }

    /// `None` if it is none of ours: another version's, or damaged.
    pub(super) fn read(mark: &ChangeMark) -> Option<Self> {
        if let Some(number) = mark.0.strip_prefix(UNTRACKED) {
            return number.parse().ok().map(|number| Self::Untracked { number });
        }
        let (name, rest) = mark.0.split_once('/')?;
        let (size, image) = rest.split_once('/')?;
        let size = Length(size.parse().ok()?);
        let (identity, image) = match image.strip_prefix(IDENTITY) {
            Some(rest) => {
                rest.split_once(IDENTITY).map(|(identity, image)| (Some(identity.to_owned()), image))?
            }
            None => (None, image),
        };
        Some(Self::Checkpoint { name: name.to_owned(), size, image: image.to_owned(), identity })
    }

    /// The checkpoint that it needs.
    pub(super) fn checkpoint(&self) -> Option<&str> {
        match self {
            Self::Checkpoint { name, .. } => Some(name),
            Self::Untracked { .. } => None,
        }
    }
}

/// How the names of all checkpoints of warmd begin.
pub(super) const PREFIX: &str = "warmd-";

/// How the names of a migration's checkpoints begin.
pub(super) fn prefix(owner: MigrationId) -> String {
    format!("{PREFIX}{}-", owner.short())
}

/// What a migration's checkpoints have in their description; the name has only a part of the id.
pub(super) fn description(owner: MigrationId) -> String {
    format!("warmd, migration {owner}: what changed since its last pass")
}

/// A number above all that this migration ever gave: above those of its checkpoints and of the ledgers' anchors.
pub(super) fn next_number<'a>(
    owner: MigrationId,
    checkpoints: impl IntoIterator<Item = &'a str>,
    anchors: impl IntoIterator<Item = &'a Mark>,
) -> u64 {
    let prefix = prefix(owner);
    let of_name = |name: &str| name.strip_prefix(&prefix).and_then(|number| number.parse::<u64>().ok());
    let used = checkpoints.into_iter().filter_map(of_name);
    let anchored = anchors.into_iter().filter_map(|mark| match mark {
        Mark::Checkpoint { name, .. } => of_name(name),
        Mark::Untracked { number } => Some(*number),
    });
    used.chain(anchored).max().unwrap_or(0).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_read_back() {
        let image = "/a/b c/../d.qcow2".to_owned();
        let of = |identity: Option<&str>| Mark::Checkpoint {
            name: "warmd-x-7".to_owned(),
            size: Length(42),
            image: image.clone(),
            identity: identity.map(str::to_owned),
        };
        let marks = [of(None), of(Some("5-1f")), Mark::Untracked { number: 3 }];
        for mark in marks {
            assert_eq!(Mark::read(&mark.write()), Some(mark));
        }
        for odd in ["", "x", "x/y", "x/y/z", "untracked-", "untracked-x", "untracked--1"] {
            assert_eq!(Mark::read(&ChangeMark(odd.to_owned())), None, "{odd}");
        }
    }

    #[test]
    fn numbers_only_rise() {
        let owner = MigrationId::generate();
        let name = |number: u64| format!("{}{number}", prefix(owner));
        assert_eq!(next_number(owner, [], []), 1);
        let (two, five) = (name(2), name(5));
        let anchor = Mark::Checkpoint { name: five, size: Length(1), image: String::new(), identity: None };
        assert_eq!(next_number(owner, [two.as_str(), "warmd-other-99", "x"], []), 3);
        assert_eq!(next_number(owner, [two.as_str()], [&anchor]), 6);
        assert_eq!(next_number(owner, [two.as_str()], [&Mark::Untracked { number: 9 }]), 10);
    }
}
