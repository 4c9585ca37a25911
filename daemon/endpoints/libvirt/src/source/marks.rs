//! Marks: the stored form of a moment, so that after months libvirt can report, for the same disk only, what
//! changed since.
//!
//! Rule: a mark contains all conditions of a true answer: the checkpoint, whose name carries the
//! migration and is never used twice, the disk's size, and its image. A bitmap belongs to its image, and the
//! bitmaps of one moment have one name in all images of a VM: two files that changed places are distinguished
//! by what the file system says of them, not by their paths.

use warmd_cbt::{mark::ChangeMark, units::Length};
use warmd_core::model::id::MigrationId;

/// A moment of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LibvirtMark {
    /// A checkpoint's bitmap records from here on.
    Checkpoint { name: String, size: Length, image: ImageIdentity },
    /// No record; the number only distinguishes moments, and the image names the copied one.
    Untracked { number: u64, image: Option<ImageIdentity> },
}

/// The image of a disk at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageIdentity {
    /// Its location.
    pub(super) place: String,
    /// What distinguishes its file from another at the same path, where that is known.
    pub(super) identity: Option<String>,
}

impl ImageIdentity {
    /// Whether this present image is surely another than `before`.
    pub(super) fn is_other_than(&self, before: &Self) -> bool {
        self.place != before.place
            || self.identity.as_ref().zip(before.identity.as_ref()).is_some_and(|(now, then)| now != then)
    }

    fn write(&self) -> String {
        match &self.identity {
            None => self.place.clone(),
            Some(identity) => format!("{IDENTITY}{identity}{IDENTITY}{}", self.place),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (identity, place) = match text.strip_prefix(IDENTITY) {
            Some(rest) => {
                let (identity, place) = rest.split_once(IDENTITY)?;
                (Some(identity.to_owned()), place)
            }
            None => (None, text),
        };
        Some(Self { place: place.to_owned(), identity })
    }
}

const UNTRACKED: &str = "untracked-";
/// Encloses an identity. No image begins like this: it is an absolute path, or begins with its kind.
const IDENTITY: char = '@';

impl LibvirtMark {
    pub(super) fn write(&self) -> ChangeMark {
        ChangeMark(match self {
            Self::Checkpoint { name, size, image } => format!("{name}/{size}/{}", image.write()),
            Self::Untracked { number, image: None } => format!("{UNTRACKED}{number}"),
            Self::Untracked { number, image: Some(image) } => {
                format!("{UNTRACKED}{number}/{}", image.write())
            }
        })
    }

    /// `None` if it is not warmd's: another version's, or damaged.
    pub(super) fn read(mark: &ChangeMark) -> Option<Self> {
        if let Some(rest) = mark.0.strip_prefix(UNTRACKED) {
            let (number, image) = match rest.split_once('/') {
                Some((number, image)) => (number, Some(ImageIdentity::read(image)?)),
                None => (rest, None),
            };
            return number.parse().ok().map(|number| Self::Untracked { number, image });
        }
        let (name, rest) = mark.0.split_once('/')?;
        let (size, image) = rest.split_once('/')?;
        let size = Length(size.parse().ok()?);
        Some(Self::Checkpoint { name: name.to_owned(), size, image: ImageIdentity::read(image)? })
    }

    /// The disk's image at that moment, where it is known.
    pub(super) fn image(&self) -> Option<&ImageIdentity> {
        match self {
            Self::Checkpoint { image, .. } => Some(image),
            Self::Untracked { image, .. } => image.as_ref(),
        }
    }

    /// The checkpoint that it needs.
    pub(super) fn checkpoint(&self) -> Option<&str> {
        match self {
            Self::Checkpoint { name, .. } => Some(name),
            Self::Untracked { .. } => None,
        }
    }
}

/// The prefix of the names of all checkpoints of warmd.
pub(super) const PREFIX: &str = "warmd-";

/// The prefix of the names of a migration's checkpoints.
pub(super) fn prefix(owner: MigrationId) -> String {
    format!("{PREFIX}{}-", owner.short())
}

/// The description of a migration's checkpoints; the name has only a part of the id.
pub(super) fn description(owner: MigrationId) -> String {
    format!("warmd, migration {owner}: what changed since its last pass")
}

/// A number above all that this migration ever used: above those of its checkpoints and of the ledgers'
/// anchors.
pub(super) fn next_number<'a>(
    owner: MigrationId,
    checkpoints: impl IntoIterator<Item = &'a str>,
    anchors: impl IntoIterator<Item = &'a LibvirtMark>,
) -> u64 {
    let prefix = prefix(owner);
    let of_name = |name: &str| name.strip_prefix(&prefix).and_then(|number| number.parse::<u64>().ok());
    let used = checkpoints.into_iter().filter_map(of_name);
    let anchored = anchors.into_iter().filter_map(|mark| match mark {
        LibvirtMark::Checkpoint { name, .. } => of_name(name),
        LibvirtMark::Untracked { number, .. } => Some(*number),
    });
    used.chain(anchored).max().unwrap_or(0).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_read_back() {
        let image = |identity: Option<&str>| ImageIdentity {
            place: "/a/b c/../d.qcow2".to_owned(),
            identity: identity.map(str::to_owned),
        };
        let of = |identity: Option<&str>| LibvirtMark::Checkpoint {
            name: "warmd-x-7".to_owned(),
            size: Length(42),
            image: image(identity),
        };
        let untracked = |image| LibvirtMark::Untracked { number: 3, image };
        let marks = [of(None), of(Some("5-1f")), untracked(None), untracked(Some(image(None)))];
        let marks = marks.into_iter().chain([untracked(Some(image(Some("5-1f"))))]);
        for mark in marks {
            assert_eq!(LibvirtMark::read(&mark.write()), Some(mark));
        }
        for odd in ["", "x", "x/y", "x/y/z", "untracked-", "untracked-x", "untracked--1"] {
            assert_eq!(LibvirtMark::read(&ChangeMark(odd.to_owned())), None, "{odd}");
        }
    }

    #[test]
    fn numbers_only_rise() {
        let owner = MigrationId::generate();
        let name = |number: u64| format!("{}{number}", prefix(owner));
        assert_eq!(next_number(owner, [], []), 1);
        let (two, five) = (name(2), name(5));
        let image = ImageIdentity { place: String::new(), identity: None };
        let anchor = LibvirtMark::Checkpoint { name: five, size: Length(1), image };
        assert_eq!(next_number(owner, [two.as_str(), "warmd-other-99", "x"], []), 3);
        assert_eq!(next_number(owner, [two.as_str()], [&anchor]), 6);
        assert_eq!(
            next_number(owner, [two.as_str()], [&LibvirtMark::Untracked { number: 9, image: None }]),
            10
        );
    }
}
