//! Storages of a target, by name: where disks are kept that have no place of their own.
//!
//! Rule: a disk's place may be a storage's name behind [`SCHEME`]; no path and no URI begins so. It is kept durably with the
//! disk as any other place. The default storage has no such place: a disk without a place is in it.

/// The target's own directory or pool, by the name that plans may use for it.
pub const DEFAULT: &str = "default";
/// How a place begins that is a storage's.
const SCHEME: &str = "storage:";

/// The storage as a disk's place.
pub fn place(storage: &str) -> String {
    format!("{SCHEME}{storage}")
}

/// The storage that a disk's place names, if it names one.
pub fn named(place: &str) -> Option<&str> {
    place.strip_prefix(SCHEME)
}

/// A disk's place in words.
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
