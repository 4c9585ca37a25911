//! The programs that a conversion needs on the daemon's host, and their versions.
//!
//! Rule: a missing or old program is reported with what to install, before anything is stopped.

use std::{
    env, fmt, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Converts a guest on its own disks.
pub const IN_PLACE: &str = "virt-v2v-in-place";
/// Reads and writes files in a guest.
pub const GUESTFISH: &str = "guestfish";
/// Installs scripts for a guest's first start.
pub const CUSTOMIZE: &str = "virt-customize";
/// Serves a disk to virt-v2v.
pub const QEMU_NBD: &str = "qemu-nbd";
/// Makes another program write its output line by line.
pub const STDBUF: &str = "stdbuf";

/// The oldest version whose `virt-v2v-in-place` is a program of its own, and converts as warmd expects.
const OLDEST: Version = Version(2, 0);
/// What to install.
const INSTALL: &str = "on the daemon's host: install virt-v2v 2.0 or later, libguestfs' tools and a kernel that the \
                       daemon's user can read (Debian and Ubuntu: `apt-get install virt-v2v libguestfs-tools qemu-utils`; \
                       Fedora and RHEL: `dnf install virt-v2v guestfs-tools qemu-img`)";

/// A version, by its first two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The version of virt-v2v, if a conversion can start on this host; else why not, and what to do. `scripts`:
/// whether scripts for the first start are to be installed.
pub fn ready(scripts: bool) -> Result<Version, String> {
    present([IN_PLACE, GUESTFISH, QEMU_NBD, STDBUF].into_iter().chain(scripts.then_some(CUSTOMIZE)))?;
    match version()? {
        version if version < OLDEST => Err(format!("{IN_PLACE} {version} is too old {INSTALL}")),
        version => Ok(version),
    }
}

/// Why a guest cannot be inspected on this host, and what to do.
pub fn ready_to_inspect() -> Result<(), String> {
    present([GUESTFISH, STDBUF])
}

fn present(programs: impl IntoIterator<Item = &'static str>) -> Result<(), String> {
    let missing: Vec<_> = programs.into_iter().filter(|program| find(program).is_none()).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("{} cannot be found {INSTALL}", missing.join(", "))) }
}

/// The version of `virt-v2v-in-place`, as it says it.
fn version() -> Result<Version, String> {
    let said = Command::new(IN_PLACE).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let said = said.map_err(|error| format!("{IN_PLACE} cannot be run: {error}; {INSTALL}"))?;
    let text = String::from_utf8_lossy(&said.stdout);
    read_version(&text).ok_or_else(|| {
        let line: String = text.chars().take(80).collect();
        format!("{IN_PLACE} does not say its version, but {line:?}; {INSTALL}")
    })
}

/// The version in `virt-v2v-in-place 2.2.0`.
fn read_version(text: &str) -> Option<Version> {
    let mut numbers = text.lines().next()?.split_whitespace().last()?.split('.');
    let mut number = || numbers.next()?.parse().ok();
    Some(Version(number()?, number()?))
}

/// The program's path, as the daemon's `PATH` finds it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    find_in(program, env::split_paths(&env::var_os("PATH")?))
}

fn find_in(program: &str, mut folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let is_program = |path: &Path| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    folders.find_map(|folder| Some(folder.join(program)).filter(|path| is_program(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_its_line() {
        assert_eq!(read_version("virt-v2v-in-place 2.2.0\n"), Some(Version(2, 2)));
        assert_eq!(read_version("virt-v2v-in-place 2.10.0rhel=10\nmore"), Some(Version(2, 10)));
        assert!(Version(2, 10) > Version(2, 5) && Version(1, 44) < OLDEST);
        for wrong in ["", "virt-v2v-in-place", "virt-v2v 2", "virt-v2v x.y"] {
            assert_eq!(read_version(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_a_file_that_can_be_executed_is_a_program() {
        let folder = tempfile::tempdir().unwrap();
        let find = || find_in("tool", [folder.path().join("none"), folder.path().to_owned()].into_iter());
        let path = folder.path().join("tool");
        assert_eq!(find(), None);
        fs::write(&path, "").unwrap();
        assert_eq!(find(), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(), Some(path));
    }
}
