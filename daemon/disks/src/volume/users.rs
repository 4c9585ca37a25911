//! Who uses a volume, by any name: processes that have it open, mounts, other devices.
//!
//! Rule: volumes are compared by their numbers and never by their paths, because QEMU has a `/dev` of its own
//! under libvirt. No check here can hang on the storage: no file system is queried that needs a server. What
//! this process itself has open does not count. Processes that may not be inspected do not count as unused:
//! [`unseen`] lists them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, major, makedev, minor, statx};

use super::identity::{Identity, VolumeKind};

/// The kinds of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uses {
    /// Reading too: a VM reads its base image, and its writes must not change.
    All,
    /// Only writing, for this migration's own volume: a reader is not disturbed.
    Writing,
}

/// The numbers of a volume, and of files and devices that share bytes with it: a device's partitions or its
/// whole, a loop device's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelatedDevices(Vec<(u64, u64)>);

impl RelatedDevices {
    /// The numbers of the volume at `path`, if it is one.
    pub fn at(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Identity::of(&metadata).ok().map(Self::of)
    }

    pub(super) fn of(identity: Identity) -> Self {
        let own = identity.number();
        let mut all = vec![own];
        if identity.kind == VolumeKind::BlockDevice {
            all.extend(relatives(own.0).into_iter().map(|device| (device, 0)));
            all.extend(backing_of(&sys(own.0)));
        }
        Self(all)
    }

    /// Whether the file at `path` shares bytes with the volume.
    pub fn has(&self, path: &Path) -> bool {
        number_at(path).is_some_and(|number| self.0.contains(&number))
    }

    /// Whether it shares bytes with another volume.
    pub fn meets(&self, other: &Self) -> bool {
        self.0.iter().any(|number| other.0.contains(number))
    }

    /// The volume itself, as text that is unique on this host while the volume exists.
    pub fn name(&self) -> String {
        match self.0.first() {
            Some((device, 0)) => format!("device {}:{}", major(*device), minor(*device)),
            Some((device, inode)) => format!("file {}:{} {inode}", major(*device), minor(*device)),
            None => String::new(),
        }
    }

    /// The users of the volume, in words. Blocks.
    pub fn user(&self, uses: Uses) -> Option<String> {
        let (device, inode) = *self.0.first()?;
        let held = if inode == 0 { device_user(device) } else { loop_on((device, inode)) };
        held.or_else(|| self.process(uses))
    }

    fn process(&self, uses: Uses) -> Option<String> {
        others(fs::read_dir("/proc").ok()?).find_map(|pid| {
            let writes = self.open_in(pid, uses)?;
            let how = if writes { "for writing" } else { "for reading" };
            Some(format!("{} has it open {how}", in_words(pid)))
        })
    }

    /// Whether the process writes, if it has the volume open. Processes and handles that disappear meanwhile
    /// do not count.
    fn open_in(&self, pid: u32, uses: Uses) -> Option<bool> {
        for handle in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
            let path = handle.path();
            // Sockets, pipes and the like have no path.
            let is_file = fs::read_link(&path).is_ok_and(|to| to.is_absolute());
            if !is_file || !self.has(&path) {
                continue;
            }
            let name = handle.file_name();
            let info =
                fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", name.display())).unwrap_or_default();
            let writes = writes(&info);
            if writes || uses == Uses::All {
                return Some(writes);
            }
        }
        None
    }
}

/// Why processes that may use a volume cannot be seen, in words; `None` if they can.
///
/// With the right to inspect all processes, one that is still not accessible (by a security module, or
/// outside the container) counts only if it is QEMU by its name.
pub fn unseen() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    unseen_in(Path::new("/proc"), may_look(&status))
}

/// Whether a process may inspect all others, by the text of its `status`.
fn may_look(status: &str) -> bool {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = held.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    held.is_some_and(|held| held & CAP_SYS_PTRACE != 0)
}

fn unseen_in(proc: &Path, may_look: bool) -> Option<String> {
    let Ok(entries) = fs::read_dir(proc) else { return Some(format!("{} cannot be read", proc.display())) };
    // Process 1 always exists.
    if fs::symlink_metadata(proc.join("1")).is_err() {
        return Some(format!("{} hides the processes of others", proc.display()));
    }
    let closed = others(entries).find_map(|pid| {
        let process = proc.join(pid.to_string());
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let counts = !may_look || name.starts_with("qemu");
        (counts && is_closed(&process.join("fd"))).then(|| (pid, name.trim_end().to_owned()))
    });
    closed.map(|(pid, name)| format!("what process {pid} ({name}) has open cannot be seen"))
}

/// All processes but this one, by `/proc`.
fn others(entries: fs::ReadDir) -> impl Iterator<Item = u32> {
    let own = std::process::id();
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(move |pid| *pid != own)
}

/// Whether a process's folder of handles is not readable. A process that has ended does not count.
fn is_closed(handles: &Path) -> bool {
    let denied = |error: std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    match fs::read_dir(handles) {
        Err(error) => denied(error),
        // Some kernels list the handles, without their targets.
        Ok(handles) => handles.flatten().any(|handle| fs::read_link(handle.path()).is_err_and(denied)),
    }
}

/// Whether a handle is open for writing, by the kernel's text on it. An unknown one counts as writing.
fn writes(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    flags.is_none_or(|flags| flags & 3 != 0)
}

/// The process, and its VM if it is libvirt's QEMU.
fn in_words(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let process = format!("process {pid} ({})", name.trim_end());
    match guest(&String::from_utf8_lossy(&command)) {
        Some(vm) => format!("the running VM {vm} ({process})"),
        None => process,
    }
}

/// The VM in a QEMU's command line, as libvirt writes it.
fn guest(command: &str) -> Option<&str> {
    let named = command.split('\0').find_map(|word| word.strip_prefix("guest="))?;
    named.split(',').next().filter(|name| !name.is_empty())
}

/// The number of the file or device at `path`, without asking a server for it.
fn number_at(path: &Path) -> Option<(u64, u64)> {
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE | StatxFlags::INO).ok()?;
    match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::RegularFile => Some((makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino)),
        FileType::BlockDevice => Some((makedev(found.stx_rdev_major, found.stx_rdev_minor), 0)),
        _ => None,
    }
}

fn sys(device: u64) -> PathBuf {
    format!("/sys/dev/block/{}:{}", major(device), minor(device)).into()
}

/// A device's partitions, or the device that it is a partition of.
fn relatives(device: u64) -> Vec<u64> {
    let Ok(here) = fs::canonicalize(sys(device)) else { return Vec::new() };
    if here.join("partition").exists() {
        return here.parent().and_then(number_of).into_iter().collect();
    }
    let within = fs::read_dir(&here).into_iter().flatten().flatten().map(|entry| entry.path());
    within.filter(|path| path.join("partition").exists()).filter_map(|path| number_of(&path)).collect()
}

/// The number of a device by its folder in `/sys`.
fn number_of(folder: &Path) -> Option<u64> {
    let text = fs::read_to_string(folder.join("dev")).ok()?;
    let (major, minor) = text.trim_end().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The uses of the device by this host: a mount, swap, another device.
fn device_user(device: u64) -> Option<String> {
    let mut all = relatives(device);
    all.push(device);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    all.into_iter().find_map(|device| {
        let number = format!("{}:{}", major(device), minor(device));
        if let Some(at) = mounted_at(&mounts, &number, device) {
            return Some(format!("the device is mounted at {at}"));
        }
        let is_swap = |line: &str| {
            let path = line.split_ascii_whitespace().next().unwrap_or_default();
            device_at(path) == Some(device)
        };
        if swaps.lines().skip(1).any(is_swap) {
            return Some("the host swaps on the device".to_owned());
        }
        let mut holders = fs::read_dir(sys(device).join("holders")).ok()?.flatten();
        holders.next().map(|holder| format!("the device is part of {}", holder.file_name().display()))
    })
}

/// Where the device is mounted, by the text of `/proc/self/mountinfo`.
fn mounted_at<'a>(mounts: &'a str, number: &str, device: u64) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        let (own, rest) = line.split_once(" - ")?;
        let mut own = own.split(' ').skip(2);
        let (is, at) = (own.next()?, own.nth(1)?);
        // btrfs mounts have numbers of their own: their sources are named.
        let source = rest.split(' ').nth(1).unwrap_or_default();
        (is == number || device_at(source) == Some(device)).then_some(at)
    })
}

fn device_at(path: &str) -> Option<u64> {
    // Only files that are certainly not on a server.
    let (device, inode) = path.starts_with("/dev/").then(|| number_at(Path::new(path)))??;
    // A file has an inode.
    (inode == 0).then_some(device)
}

/// The number of the file that a loop device is on, by the device's folder in `/sys`.
fn backing_of(folder: &Path) -> Option<(u64, u64)> {
    let path = fs::read_to_string(folder.join("loop/backing_file")).ok()?;
    number_at(Path::new(path.trim_end()))
}

/// The loop device on a file.
fn loop_on(file: (u64, u64)) -> Option<String> {
    let devices = fs::read_dir("/sys/block").ok()?.flatten();
    let mut loops = devices.filter(|device| device.file_name().as_encoded_bytes().starts_with(b"loop"));
    let found = loops.find(|device| backing_of(&device.path()) == Some(file))?;
    Some(format!("the loop device /dev/{} is on it", found.file_name().display()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Write as _,
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// A process that has the file open as its stdin or stdout.
    struct Holder(Child);

    impl Holder {
        fn of(file: File, writes: bool) -> Self {
            let (stdin, stdout) =
                if writes { (Stdio::piped(), file.into()) } else { (file.into(), Stdio::null()) };
            Self(Command::new("sleep").arg("60").stdin(stdin).stdout(stdout).spawn().unwrap())
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn processes_that_have_it_open_by_another_name_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("vda.raw"), dir.path().join("other.raw"));
        File::create(&path).unwrap().write_all(b"x").unwrap();
        fs::hard_link(&path, &link).unwrap();
        let kin = RelatedDevices::at(&path).unwrap();
        let own = File::options().write(true).open(&path).unwrap();
        assert_eq!(kin.user(Uses::All), None, "what this process has open does not count");
        drop(own);
        {
            let _reader = Holder::of(File::open(&link).unwrap(), false);
            assert!(kin.user(Uses::All).is_some_and(|by| by.contains("sleep") && by.contains("reading")));
            assert_eq!(kin.user(Uses::Writing), None);
        }
        let writer = Holder::of(File::options().write(true).open(&link).unwrap(), true);
        let by = kin.user(Uses::Writing).unwrap();
        assert!(by.contains(&format!("process {} (sleep)", writer.0.id())) && by.contains("writing"), "{by}");
        drop(writer);
        assert_eq!(kin.user(Uses::All), None);
    }

    #[test]
    fn processes_that_cannot_be_looked_into_are_told_of() {
        assert!(may_look("Name:\tx\nCapEff:\t0000000000080000\n"));
        assert!(!may_look("CapEff:\t000001fffff7ffff\n") && !may_look(""));
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path();
        assert!(unseen_in(proc, true).unwrap().contains("hides the processes"));
        fs::create_dir_all(proc.join("1/fd")).unwrap();
        fs::write(proc.join("1/comm"), "init\n").unwrap();
        assert_eq!(unseen_in(proc, false), None);
        assert!(is_closed(Path::new("/proc/1/fd")) || unseen_in(Path::new("/proc"), true).is_none());
        // As the folder of handles of a process that has ended.
        assert!(!is_closed(&proc.join("2/fd")));
    }

    #[test]
    fn mounts_guests_and_flags_are_read() {
        let mounts =
            "25 1 254:1 / / rw - ext4 /dev/none rw\n30 25 7:3 / /mnt/a rw,x shared:2 - ext4 none rw\n";
        assert_eq!(mounted_at(mounts, "7:3", makedev(7, 3)), Some("/mnt/a"));
        assert_eq!(mounted_at(mounts, "7:30", makedev(7, 30)), None);
        assert_eq!(guest("qemu\0-name\0guest=web1,debug-threads=on\0-S"), Some("web1"));
        assert_eq!(guest("qemu\0-name\0web1"), None);
        assert!(writes("pos:\t0\nflags:\t0100002\n") && writes("flags:\t01\n") && writes(""));
        assert!(!writes("pos:\t0\nflags:\t0100000\n"));
    }
}
