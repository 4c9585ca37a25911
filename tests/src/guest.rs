//! A guest that writes all the time, as a libvirt domain.
//!
//! Rule: its disks boot without help (a boot sector, GRUB, kernel and writer are on the first one), so a
//! migrated copy starts anywhere like the original and continues to count.

mod disk;
mod xml;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::console::Console;
use crate::dir::TestDir;
use crate::libvirt::Libvirtd;
use crate::wait::wait_until;

/// Longest time from power-on to the first record, on a busy machine without KVM.
pub const BOOT: Duration = Duration::from_mins(3);

/// How a guest finds its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// From its own disk, by BIOS and boot loader, like any real machine.
    Disk,
    /// Passed to QEMU by the host.
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Qcow2,
    Raw,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

#[derive(Debug, Clone)]
pub struct GuestDisk {
    /// Virtual size.
    pub size_mib: u64,
    pub format: Format,
    /// Random bytes written beforehand, so that a full pass has data to copy.
    pub noise_mib: u64,
    /// `virtio`, `scsi` (virtio-scsi), or `ide` on the machine `pc`; the guest's kernel knows no SATA. A
    /// guest of an image also `pvscsi` and `sata`.
    pub bus: &'static str,
}

impl Default for GuestDisk {
    fn default() -> Self {
        Self { size_mib: 256, format: Format::Qcow2, noise_mib: 0, bus: "virtio" }
    }
}

#[derive(Debug, Clone)]
pub struct GuestSpec {
    pub name: String,
    pub uuid: Option<String>,
    pub mac: String,
    /// `q35` or `pc`.
    pub machine: &'static str,
    pub memory_mib: u64,
    pub vcpus: u32,
    /// The first one holds the file system and the log, at least 64 MiB; the others a ring.
    pub disks: Vec<GuestDisk>,
    pub boot: Boot,
    /// Pause between two records.
    pub record_ms: u64,
    /// Scattered writes beside the records, in KiB per second over all disks; 0 for none.
    pub churn_kib_s: u64,
    /// The part of each disk over which they are scattered.
    pub churn_mib: u64,
    /// Ignore the power button.
    pub noacpi: bool,
    /// The QEMU that libvirt runs, if not its default.
    pub emulator: Option<PathBuf>,
    /// The image of a guest whose copy is the first disk, in place of one that the harness makes.
    pub image: Option<PathBuf>,
    /// The model of its network interface.
    pub nic: &'static str,
}

impl GuestSpec {
    /// Two qcow2 disks of 256 MiB, ten records and 256 KiB of scattered writes a second.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            uuid: None,
            mac: "52:54:00:77:61:01".to_owned(),
            machine: "q35",
            memory_mib: 256,
            vcpus: 1,
            disks: vec![GuestDisk::default(), GuestDisk::default()],
            boot: Boot::Disk,
            record_ms: 50,
            churn_kib_s: 256,
            churn_mib: 32,
            noacpi: false,
            emulator: None,
            image: None,
            nic: "virtio",
        }
    }

    /// A Debian that looks as if it came from VMware, made by `tests/vmware-guest/setup`: without virtio
    /// in its initramfs, with a static address.
    pub fn from_vmware(name: &str) -> Result<Self> {
        let disk = GuestDisk { bus: "pvscsi", ..GuestDisk::default() };
        Ok(Self {
            machine: "pc",
            memory_mib: 512,
            disks: vec![disk],
            image: Some(vmware_kit("vmware-guest")?.join("disk.qcow2")),
            nic: "vmxnet3",
            ..Self::new(name)
        })
    }
}

/// What `tests/vmware-guest/setup` has built under this name: `vmware-guest` or `appliance` (libguestfs').
pub fn vmware_kit(name: &str) -> Result<PathBuf> {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache").join(name);
    ensure!(kit.join("done").exists(), "{} is missing: run tests/vmware-guest/setup first", kit.display());
    Ok(kit)
}

/// The variables that make libguestfs use the appliance of the set-up.
pub fn appliance() -> Result<Vec<(String, String)>> {
    let path = vmware_kit("appliance")?.to_string_lossy().into_owned();
    Ok(vec![
        ("LIBGUESTFS_PATH".to_owned(), path),
        // /dev/kvm may be there and useless.
        ("LIBGUESTFS_BACKEND_SETTINGS".to_owned(), "force_tcg".to_owned()),
    ])
}

/// A defined domain. It ends with its [`Libvirtd`].
#[derive(Debug)]
pub struct Guest {
    pub name: String,
    /// Its disks on the host, in the order of the specification.
    pub disks: Vec<PathBuf>,
    pub console: Console,
}

impl Guest {
    /// Makes the disks in `DIR/<name>/` and defines the domain, shut off.
    pub fn define(libvirt: &Libvirtd, dir: &TestDir, spec: &GuestSpec) -> Result<Self> {
        let home = dir.join(&spec.name);
        std::fs::create_dir_all(&home)?;
        let mut disks = Vec::new();
        for (n, disk) in spec.disks.iter().enumerate() {
            let path = home.join(format!("disk{n}.{}", disk.format.name()));
            disk::make(&path, spec, n).with_context(|| format!("cannot make {}", path.display()))?;
            disks.push(path);
        }
        Self::define_over(libvirt, dir, spec, disks)
    }

    /// Defines the domain over disks that exist, for example copies of another guest's; the specification
    /// gives their formats and buses.
    pub fn define_over(
        libvirt: &Libvirtd,
        dir: &TestDir,
        spec: &GuestSpec,
        disks: Vec<PathBuf>,
    ) -> Result<Self> {
        let home = dir.join(&spec.name);
        std::fs::create_dir_all(&home)?;
        let console = Console::new(home.join("console.log"));
        let xml = home.join("domain.xml");
        std::fs::write(&xml, xml::domain(spec, &disks, console.path())?)?;
        libvirt.virsh(["define", &xml.to_string_lossy()])?;
        Ok(Self { name: spec.name.clone(), disks, console })
    }

    /// Defines it, powers it on and waits for its first record.
    pub fn start(libvirt: &Libvirtd, dir: &TestDir, spec: &GuestSpec) -> Result<Self> {
        let guest = Self::define(libvirt, dir, spec)?;
        libvirt.virsh(["start", &guest.name])?;
        guest.console.wait_for_acked(1, BOOT)?;
        Ok(guest)
    }

    /// `running`, `paused`, `shut off` …
    pub fn state(&self, libvirt: &Libvirtd) -> Result<String> {
        libvirt.virsh(["domstate", &self.name])
    }

    pub fn wait_for_state(&self, libvirt: &Libvirtd, state: &str, deadline: Duration) -> Result<()> {
        wait_until(&format!("{} to be {state}", self.name), deadline, || {
            Ok((self.state(libvirt)? == state).then_some(()))
        })
    }

    /// Powers it on and waits until this boot has acknowledged a record.
    pub fn power_on(&self, libvirt: &Libvirtd) -> Result<()> {
        let boots = self.console.boots()?.len();
        libvirt.virsh(["start", &self.name])?;
        self.console.wait_for_boot(boots + 1, BOOT).map(drop)
    }

    /// Requests a shutdown by ACPI, and waits.
    pub fn shut_down(&self, libvirt: &Libvirtd) -> Result<()> {
        libvirt.virsh(["shutdown", &self.name])?;
        self.wait_for_state(libvirt, "shut off", BOOT)
    }

    /// Powers it off hard; QEMU itself ends in an orderly way.
    pub fn destroy(&self, libvirt: &Libvirtd) -> Result<()> {
        libvirt.virsh(["destroy", &self.name]).map(drop)
    }

    /// Resets the machine, and waits until it writes again.
    pub fn reset(&self, libvirt: &Libvirtd) -> Result<()> {
        let boots = self.console.boots()?.len();
        libvirt.virsh(["reset", &self.name])?;
        self.console.wait_for_boot(boots + 1, BOOT).map(drop)
    }

    /// Kills QEMU, as a failed host would: nothing is flushed, bitmaps are lost.
    pub fn kill_qemu(&self) -> Result<()> {
        let pid = qemu_pid(&self.disks)?.with_context(|| format!("no QEMU runs {}", self.name))?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        Ok(())
    }
}

/// The process that names the first of these disks in its command line.
fn qemu_pid(disks: &[PathBuf]) -> Result<Option<rustix::process::Pid>> {
    let disk = disks.first().context("a guest without disks")?.to_string_lossy().into_owned();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|s| s.parse().ok()) else { continue };
        // Processes come and go while we look.
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line);
        if line.starts_with("/usr/bin/qemu-system") && line.contains(&disk) {
            return Ok(rustix::process::Pid::from_raw(pid));
        }
    }
    Ok(None)
}
