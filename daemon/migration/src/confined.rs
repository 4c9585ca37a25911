//! What the daemon's service forbids to the daemon's child processes, which share its sandbox.
//!
//! Rule: for information only. Restrictions are found by trying, or read from the kernel, not from a unit
//! file; a restriction that cannot be determined is not reported.

use std::{fmt, fs};

/// Memory that tools which convert a guest in a VM (virt-v2v, libguestfs) need beside the daemon.
const WANTED: u64 = 3 << 30;
/// Memory without which virt-v2v is killed, as warmd calls it.
const V2V_WANTS: u64 = 3 << 29;
/// Bit of `CAP_SYS_ADMIN`.
const SYS_ADMIN: u32 = 21;

/// The restrictions of this process, and so of its children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Confinement {
    no_code_at_run_time: bool,
    /// The memory limit of all processes of the service, in bytes, if it is small.
    little_memory: Option<u64>,
    read_only_root: bool,
    own_tmp: bool,
    no_new_privileges: bool,
    filtered: bool,
    cannot_mount: bool,
}

impl Confinement {
    /// Reads the restrictions of this process.
    pub(super) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut confinement = Self::read(&read("/proc/self/status"), &read("/proc/self/mountinfo"));
        confinement.no_code_at_run_time = denies_code_at_run_time();
        let limits = service_group(&read("/proc/self/cgroup"))
            .map(|group| read(&format!("/sys/fs/cgroup{group}/memory.max")));
        confinement.little_memory = limits.as_deref().and_then(little);
        confinement
    }

    fn read(status: &str, mounts: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim)
        };
        let capabilities = field("CapBnd").and_then(|bits| u64::from_str_radix(bits, 16).ok());
        // ID, parent, device, root, mount point, options; of mounts at one place the last one counts.
        let mount = |point: &str| {
            let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            fields.rfind(|fields| fields.get(4) == Some(&point) && fields.len() > 5)
        };
        let is_read_only = |fields: &Vec<&str>| fields[5].split(',').any(|option| option == "ro");
        Self {
            no_new_privileges: field("NoNewPrivs") == Some("1"),
            filtered: field("Seccomp") == Some("2"),
            cannot_mount: capabilities.is_some_and(|bits| bits >> SYS_ADMIN & 1 == 0),
            read_only_root: mount("/").as_ref().is_some_and(is_read_only),
            own_tmp: mount("/tmp").is_some_and(|fields| fields[3].contains("systemd-private-")),
            ..Self::default()
        }
    }

    /// Whether a program that converts a guest by running a VM is known to fail under these restrictions.
    pub(super) fn binds(&self) -> bool {
        self.no_code_at_run_time || self.little_memory.is_some()
    }

    /// Whether virt-v2v fails too, although warmd starts it to work under the other restrictions.
    pub(super) fn kills_virt_v2v(&self) -> bool {
        self.little_memory.is_some_and(|bytes| bytes < V2V_WANTS)
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.little_memory.map(|bytes| {
            format!("`MemoryMax` (the daemon and its programs have {} MiB together)", bytes >> 20)
        });
        let told = |holds: bool, text: &str| holds.then(|| text.to_owned());
        let all = [
            told(
                self.no_code_at_run_time,
                "`MemoryDenyWriteExecute` (QEMU without KVM, and whatever makes code as it runs, ends at once)",
            ),
            memory,
            told(self.read_only_root, "`ProtectSystem` (only what `ReadWritePaths` names can be written)"),
            told(
                self.own_tmp,
                "`PrivateTmp` (/tmp and /var/tmp are the service's own, and empty at its start)",
            ),
            told(self.no_new_privileges, "`NoNewPrivileges` (sudo does nothing)"),
            told(self.filtered, "`SystemCallFilter`"),
            told(self.cannot_mount, "`CapabilityBoundingSet` (nothing can be mounted)"),
        ];
        f.write_str(&all.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// The path of this process's group, if it is a service's.
fn service_group(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::")).filter(|group| group.ends_with(".service"))
}

fn little(limit: &str) -> Option<u64> {
    limit.trim().parse().ok().filter(|bytes| *bytes < WANTED)
}

/// Whether written memory cannot be executed.
fn denies_code_at_run_time() -> bool {
    const PAGE: usize = 4096;
    let written = memmap2::MmapMut::map_anon(PAGE);
    let executed = written.and_then(memmap2::MmapMut::make_exec);
    executed.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        31 1 8:1 / / ro,relatime shared:2 - ext4 /dev/sda1 rw\n\
        40 31 8:1 /tmp/systemd-private-7f-warmd.service-x/tmp /tmp rw,relatime - ext4 /dev/sda1 rw\n";
    const STATUS: &str = "Name:\twarmd\nCapBnd:\t00000000000c100f\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    #[test]
    fn a_hardened_service_is_read_from_the_kernels_words() {
        let found = Confinement::read(STATUS, MOUNTS);
        let wanted = Confinement {
            read_only_root: true,
            own_tmp: true,
            no_new_privileges: true,
            filtered: true,
            cannot_mount: true,
            ..Confinement::default()
        };
        assert_eq!(found, wanted);
        assert!(!found.binds(), "none of these stops a conversion as such");
        let text = found.to_string();
        for name in
            ["ProtectSystem", "PrivateTmp", "NoNewPrivileges", "SystemCallFilter", "CapabilityBoundingSet"]
        {
            assert!(text.contains(name), "{name}: {text}");
        }
    }

    #[test]
    fn a_process_that_is_free_is_not_said_to_be_bound() {
        let status = "CapBnd:\t000001ffffffffff\nNoNewPrivs:\t0\nSeccomp:\t0\n";
        let mounts = "30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n";
        for (status, mounts) in [(status, mounts), ("", ""), ("CapBnd:\tx\n", "30 1\n")] {
            let found = Confinement::read(status, mounts);
            assert_eq!(found, Confinement::default());
            assert!(!found.binds() && found.to_string().is_empty());
        }
    }

    #[test]
    fn what_stops_a_vm_inside_of_a_conversion_binds_and_is_named() {
        let code = Confinement { no_code_at_run_time: true, ..Confinement::default() };
        assert!(code.binds() && code.to_string().contains("MemoryDenyWriteExecute"));
        let memory = Confinement { little_memory: little("2147483648\n"), ..Confinement::default() };
        assert!(memory.binds() && memory.to_string().contains("2048 MiB"), "{memory}");
        assert!(!memory.kills_virt_v2v() && !code.kills_virt_v2v());
        let least = Confinement { little_memory: little("1073741824\n"), ..Confinement::default() };
        assert!(least.kills_virt_v2v());
        assert_eq!((little("max\n"), little("4294967296\n"), little("")), (None, None, None));
    }

    #[test]
    fn only_a_services_own_limit_counts() {
        assert_eq!(service_group("0::/system.slice/warmd.service\n"), Some("/system.slice/warmd.service"));
        assert_eq!(service_group("0::/user.slice/user-0.slice/session-1.scope\n"), None);
        assert_eq!(service_group("3:memory:/x.service\n"), None);
    }

    #[test]
    fn memory_that_is_written_and_executed_is_tried() {
        assert!(!denies_code_at_run_time(), "the test runs under such a restriction");
    }
}
