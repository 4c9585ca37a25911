//! Storages of a target, by name: where disks without a location of their own are kept.
//!
//! Rule: a disk's location may be a storage's name after [`SCHEME`]; no path and no URI begins so. It is
//! saved with the disk like any other location. The default storage has no such name: a disk without a
//! location is in it.

/// The target's own directory or pool, under the name for plans.
pub const DEFAULT: &str = "default";
/// The prefix of a location that is a storage's.
const SCHEME: &str = "storage:";

/// The storage as a disk's location.
pub fn place(storage: &str) -> String {
    format!("{SCHEME}{storage}")
}

/// The storage that a disk's location names, if it names one.
pub fn named(place: &str) -> Option<&str> {
    place.strip_prefix(SCHEME)
}

/// A disk's location in words.
pub fn in_words(place: Option<&str>) -> String {
    match place {
        None => "a place of the target's choice".to_owned(),
        Some(place) => named(place).map_or_else(|| place.to_owned(), |storage| format!("storage {storage}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_is_told_from_every_other_place() {
        assert_eq!(named(&place("fast")), Some("fast"));
        for other in ["/dev/vg/vm", "nbd://h/x", "/storage:fast", ""] {
            assert_eq!(named(other), None);
        }
        assert_eq!(in_words(Some("storage:fast")), "storage fast");
        assert_eq!(in_words(Some("/dev/x")), "/dev/x");
        assert_eq!(in_words(None), "a place of the target's choice");
    }
}
