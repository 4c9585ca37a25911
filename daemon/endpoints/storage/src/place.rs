//! The location of one disk: the meaning of the plan's text, and safe forms of untrusted names.
//!
//! Rule: two different keys never give the same file name, and no key gives a path.

use std::path::{Path, PathBuf};

use warmd_core::{
    model::id::DiskKey,
    targets::{DiskSpec, TargetError, TargetErrorKind},
};

/// Names longer than this are shortened; file systems take 255 bytes, and a suffix may be appended.
const LONGEST: usize = 200;

/// The container of an existing disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskLocation {
    File(PathBuf),
    Device(PathBuf),
    /// An NBD URI.
    Nbd(String),
}

impl DiskLocation {
    /// The path or URI.
    pub fn location(&self) -> String {
        match self {
            Self::File(path) | Self::Device(path) => path.display().to_string(),
            Self::Nbd(uri) => uri.clone(),
        }
    }
}

/// The location that a disk's specification asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WantedLocation {
    /// A file of warmd's own.
    Own(PathBuf),
    /// A file or block device that the operator created.
    Path(PathBuf),
    /// An export.
    Nbd(String),
}

/// The file of warmd's own for a disk; `folder` is its migration's.
pub(super) fn own(folder: &Path, key: &DiskKey) -> PathBuf {
    folder.join(format!("{}.raw", safe_name(&key.0)))
}

/// The location of `spec`, unless it is a storage; `folder` is its migration's own.
pub(super) fn wanted_location(folder: &Path, spec: &DiskSpec) -> Result<WantedLocation, TargetError> {
    let Some(place) = spec.place.as_deref() else {
        return Ok(WantedLocation::Own(own(folder, &spec.key)));
    };
    if place.starts_with("nbd://") || place.starts_with("nbd+unix://") {
        return Ok(WantedLocation::Nbd(place.to_owned()));
    }
    let path = Path::new(place);
    if path.is_absolute() && !place.contains('\0') {
        return Ok(WantedLocation::Path(path.to_owned()));
    }
    Err(TargetError::new(
        TargetErrorKind::Refused,
        format!("the place {place:?} of disk {}", spec.key),
        "neither an absolute path of a file or block device nor nbd://HOST/EXPORT nor nbd+unix:///EXPORT?socket=PATH nor \
         storage:NAME",
    ))
}

/// A file name for any text: letters, digits, `-`, `_` and dots inside stay, other characters become `%` and
/// two digits.
pub(super) fn safe_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if at > 0 => name.push('.'),
            other => {
                let digit = |value| char::from(b"0123456789ABCDEF"[usize::from(value)]);
                name.extend(['%', digit(other >> 4), digit(other & 15)]);
            }
        }
    }
    if name.is_empty() {
        // No escape has this form.
        "%".to_owned()
    } else if name.len() > LONGEST {
        name.truncate(LONGEST / 2);
        format!("{name}%-{}", blake3::hash(text.as_bytes()).to_hex())
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use warmd_cbt::units::Length;

    use super::*;

    fn spec(key: &str, place: Option<&str>) -> DiskSpec {
        DiskSpec { key: DiskKey(key.to_owned()), size: Length(512), place: place.map(str::to_owned) }
    }

    #[test]
    fn no_key_leaves_the_folder_or_meets_another() {
        let long = "x".repeat(1000);
        let longer = "x".repeat(1001);
        let keys = [
            "vda",
            "VDA",
            "",
            ".",
            "..",
            "%",
            "%2E",
            "../../etc/passwd",
            "/etc/passwd",
            "a/b",
            "a%2Fb",
            "a b",
            "a\0b",
            "ü",
            "-",
            "a.raw",
            &long,
            &longer,
        ];
        let mut names = BTreeSet::new();
        for key in keys {
            let WantedLocation::Own(path) = wanted_location(Path::new("/d/f"), &spec(key, None)).unwrap()
            else {
                panic!("{key:?}")
            };
            assert_eq!(path.parent(), Some(Path::new("/d/f")), "{key:?}");
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert!(name.len() < 240 && !name.starts_with('.'), "{key:?} is {name}");
            assert!(names.insert(name), "{key:?} meets another");
        }
    }

    #[test]
    fn places_are_understood_or_refused() {
        let wanted = |place| wanted_location(Path::new("/f"), &spec("vda", Some(place)));
        assert_eq!(wanted("/dev/vg/vm").unwrap(), WantedLocation::Path("/dev/vg/vm".into()));
        assert_eq!(wanted("nbd://h/x").unwrap(), WantedLocation::Nbd("nbd://h/x".into()));
        for wrong in ["", "vm.raw", "../x", "http://h/x", "/a\0b"] {
            assert_eq!(wanted(wrong).unwrap_err().kind, TargetErrorKind::Refused, "{wrong:?}");
        }
    }
}
