//! The fixtures prove themselves: a guest that writes all the time is copied step by step, as warmd does it.

use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use warmd_tests::image::{assert_equal, read_log, read_ring};
use warmd_tests::tool::call;
use warmd_tests::{Boot, Format, Guest, GuestDisk, GuestSpec, Libvirtd, TestDir, run};

const LATER: Duration = Duration::from_mins(1);
const NAMES: [&str; 2] = ["vda", "vdb"];

/// Snapshots of a guest's disks over NBD, and the copies made from them.
struct Copy<'a> {
    libvirt: &'a Libvirtd,
    guest: &'a Guest,
    socket: PathBuf,
    dir: PathBuf,
    targets: [PathBuf; 2],
}

impl<'a> Copy<'a> {
    fn new(dir: &TestDir, libvirt: &'a Libvirtd, guest: &'a Guest) -> Self {
        let targets = NAMES.map(|d| dir.join(format!("{d}.raw")));
        Self { libvirt, guest, socket: dir.join("nbd.sock"), dir: dir.path().to_owned(), targets }
    }

    fn begin(&self, checkpoint: &str, since: Option<&str>) -> Result<()> {
        let mut backup = String::from("<domainbackup mode='pull'>");
        if let Some(since) = since {
            write!(backup, "<incremental>{since}</incremental>")?;
        }
        write!(backup, "<server transport='unix' socket='{}'/><disks>", self.socket.display())?;
        let mut marks = format!("<domaincheckpoint><name>{checkpoint}</name><disks>");
        for disk in NAMES {
            let scratch = self.dir.join(format!("{checkpoint}-{disk}.scratch"));
            write!(
                backup,
                "<disk name='{disk}' backup='yes' type='file'><scratch file='{}'/></disk>",
                scratch.display()
            )?;
            write!(marks, "<disk name='{disk}' checkpoint='bitmap'/>")?;
        }
        let (backup_xml, marks_xml) = (self.dir.join("backup.xml"), self.dir.join("marks.xml"));
        std::fs::write(&backup_xml, backup + "</disks></domainbackup>")?;
        std::fs::write(&marks_xml, marks + "</disks></domaincheckpoint>")?;
        let (backup_xml, marks_xml) = (backup_xml.to_string_lossy(), marks_xml.to_string_lossy());
        self.libvirt.virsh(["backup-begin", &self.guest.name, &backup_xml, &marks_xml]).map(drop)
    }

    fn end(&self) -> Result<()> {
        self.libvirt.virsh(["domjobabort", &self.guest.name]).map(drop)
    }

    fn uri(&self, disk: &str) -> String {
        format!("nbd+unix:///{disk}?socket={}", self.socket.display())
    }

    fn full(&self) -> Result<()> {
        for (disk, target) in NAMES.iter().zip(&self.targets) {
            call("nbdcopy", [&self.uri(disk), &target.to_string_lossy().into_owned()])?;
        }
        Ok(())
    }

    /// Copies the dirty extents; returns their number of bytes.
    fn delta(&self) -> Result<u64> {
        let mut copied = 0;
        for (disk, target) in NAMES.iter().zip(&self.targets) {
            let map = format!("--map=qemu:dirty-bitmap:backup-{disk}");
            let map: serde_json::Value =
                serde_json::from_str(&call("nbdinfo", ["--json", &map, &self.uri(disk)])?)?;
            let stream = UnixStream::connect(&self.socket)?;
            let mut stream = stream;
            let export = nbd::client::handshake(&mut stream, disk.as_bytes())?;
            let mut source = nbd::client::NbdClient::new(&mut stream, &export);
            let mut target = std::fs::File::options().write(true).open(target)?;
            for extent in map.as_array().context("the map is no list")? {
                let field =
                    |name: &str| extent[name].as_u64().with_context(|| format!("no {name} in {extent}"));
                if field("type")? & 1 == 0 {
                    continue;
                }
                let (offset, length) = (field("offset")?, field("length")?);
                let mut bytes = vec![0; usize::try_from(length)?];
                source.seek(SeekFrom::Start(offset))?;
                source.read_exact(&mut bytes)?;
                target.seek(SeekFrom::Start(offset))?;
                target.write_all(&bytes)?;
                copied += length;
            }
        }
        Ok(copied)
    }

    /// The copies hold every record up to `acked`, as of one moment; returns the last one.
    fn check(&self, acked: u64) -> Result<u64> {
        let log = read_log(&self.targets[0])?.last;
        let ring = read_ring(&self.targets[1])?;
        ensure!(ring >= acked, "the guest acknowledged {acked}, the second disk has {ring}");
        ensure!(log == ring || log == ring + 1, "not one moment: log {log}, ring {ring}");
        Ok(log)
    }
}

#[test]
fn guest_writes_on_while_copied_and_its_copy_counts_on() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let guest = Guest::start(&libvirt, dir, &GuestSpec::new("source"))?;
        guest.console.wait_for_acked(20, LATER)?;
        let copy = Copy::new(dir, &libvirt, &guest);

        let acked = guest.console.acked()?;
        copy.begin("cp1", None)?;
        copy.full()?;
        copy.end()?;
        copy.check(acked)?;

        let acked = guest.console.wait_for_acked(guest.console.acked()? + 20, LATER)?;
        copy.begin("cp2", Some("cp1"))?;
        let size = 2 * 256 * 1024 * 1024;
        let copied = copy.delta()?;
        ensure!(copied > 0 && copied < size / 4, "a delta of {copied} bytes");
        copy.end()?;
        copy.check(acked)?;
        libvirt.virsh(["checkpoint-delete", &guest.name, "cp1"])?;

        guest.shut_down(&libvirt)?;
        let boots = guest.console.boots()?;
        ensure!(boots.len() == 1 && boots[0].clean, "no clean shutdown: {boots:?}");
        libvirt.virsh(["start", &guest.name, "--paused"])?;
        copy.begin("cp3", Some("cp2"))?;
        copy.delta()?;
        copy.end()?;
        guest.destroy(&libvirt)?;
        let last = copy.check(boots[0].acked)?;
        for (source, target) in guest.disks.iter().zip(&copy.targets) {
            assert_equal(source, target)?;
        }

        let raw = GuestDisk { format: Format::Raw, ..GuestDisk::default() };
        let spec = GuestSpec { disks: vec![raw.clone(), raw], ..GuestSpec::new("target") };
        let target = Guest::define_over(&libvirt, dir, &spec, copy.targets.to_vec())?;
        target.power_on(&libvirt)?;
        let boot = target.console.wait_for_boot(1, LATER)?;
        ensure!(boot.n == 2 && boot.uuid != boots[0].uuid && boot.mac == spec.mac, "{boot:?}");
        ensure!(boot.log == Some(Ok(last)) && boot.resume == Some(last + 1), "{boot:?}, copied up to {last}");
        Ok(())
    });
}

#[test]
fn guest_without_acpi_writes_on_after_a_polite_request() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let spec = GuestSpec { noacpi: true, boot: Boot::Direct, ..GuestSpec::new("stubborn") };
        let guest = Guest::start(&libvirt, dir, &spec)?;
        libvirt.virsh(["shutdown", &guest.name])?;
        guest.console.wait_for_acked(guest.console.acked()? + 30, LATER)?;
        ensure!(guest.state(&libvirt)? == "running");
        guest.destroy(&libvirt)?;
        let acked = guest.console.acked()?;
        let log = read_log(&guest.disks[0])?;
        ensure!(log.last >= acked, "the log ends at {log:?}, acknowledged was {acked}");
        Ok(())
    });
}

#[test]
fn guest_survives_reset_a_killed_host_and_restarts_of_libvirtd() {
    run(|dir| {
        let mut libvirt = Libvirtd::start(dir)?;
        let guest = Guest::start(&libvirt, dir, &GuestSpec::new("survivor"))?;
        guest.reset(&libvirt)?;
        libvirt.kill()?;
        libvirt.resume()?;
        ensure!(guest.state(&libvirt)? == "running");
        libvirt.suspend()?;
        libvirt.resume()?;
        ensure!(guest.state(&libvirt)? == "running");
        guest.kill_qemu()?;
        guest.wait_for_state(&libvirt, "shut off", LATER)?;
        let acked = guest.console.acked()?;
        guest.power_on(&libvirt)?;
        let boots = guest.console.boots()?;
        ensure!(boots.len() == 3, "{boots:?}");
        ensure!(matches!(boots[2].log, Some(Ok(last)) if last >= acked), "{boots:?}");
        Ok(())
    });
}

#[test]
fn an_image_with_one_wrong_byte_is_refused() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        let raw = GuestDisk { format: Format::Raw, size_mib: 80, ..GuestDisk::default() };
        let spec = GuestSpec { disks: vec![raw.clone(), raw], churn_mib: 8, ..GuestSpec::new("victim") };
        let guest = Guest::start(&libvirt, dir, &spec)?;
        guest.console.wait_for_acked(10, LATER)?;
        guest.shut_down(&libvirt)?;
        read_log(&guest.disks[0])?;
        read_ring(&guest.disks[1])?;

        let record = warmd_tests::record::encode(5, 1);
        damage(&guest.disks[0], &record)?;
        damage(&guest.disks[1], &record)?;
        let log = read_log(&guest.disks[0]).map(|l| l.last).unwrap_err();
        ensure!(format!("{log:#}").contains("no record 5"), "{log:#}");
        let ring = read_ring(&guest.disks[1]).unwrap_err();
        ensure!(format!("{ring:#}").contains("neither a record nor zeroes"), "{ring:#}");
        Ok(())
    });
}

/// Flips one bit of every copy of these bytes.
fn damage(image: &Path, bytes: &[u8]) -> Result<()> {
    let mut image_bytes = std::fs::read(image)?;
    let mut hits = 0;
    // Records are at multiples of their own size.
    for chunk in image_bytes.chunks_exact_mut(bytes.len()).filter(|c| c == &bytes) {
        chunk[7] ^= 1;
        hits += 1;
    }
    ensure!(hits > 0, "nothing to damage in {}", image.display());
    std::fs::write(image, image_bytes)?;
    Ok(())
}

#[test]
fn guest_boots_from_other_controllers() {
    run(|dir| {
        let libvirt = Libvirtd::start(dir)?;
        for (machine, bus) in [("q35", "scsi"), ("pc", "ide")] {
            let disk = GuestDisk { bus, ..GuestDisk::default() };
            let spec = GuestSpec { machine, disks: vec![disk.clone(), disk], ..GuestSpec::new(bus) };
            let guest = Guest::start(&libvirt, dir, &spec)?;
            // Emulated controllers are slow, and the kernel retries where they miss their deadline.
            guest.console.wait_for_acked(5, 4 * LATER)?;
            guest.shut_down(&libvirt)?;
            let (log, ring) = (read_log(&guest.disks[0])?.last, read_ring(&guest.disks[1])?);
            ensure!(log >= 5 && (ring == log || ring + 1 == log), "{bus}: log {log}, ring {ring}");
        }
        Ok(())
    });
}
