//! Disks of a guest: made without root and without mounting anything.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;

use super::{Format, GuestSpec};
use crate::image::PARTITION;
use crate::record::{BLOCK, RING};
use crate::tool::call;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// The kernel's command line where the host passes the kernel; the boot loader has its own copy.
pub(super) const CMDLINE: &str = "console=ttyS0 loglevel=1 panic=5 random.trust_cpu=on nokaslr";

/// The files that guests boot from: built by `tests/guest/build`.
pub(super) fn kit() -> Result<PathBuf> {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/guest");
    ensure!(kit.join("done").exists(), "{} is missing: run tests/setup first", kit.display());
    Ok(kit)
}

/// Makes disk number `n` of a guest.
pub(super) fn make(path: &Path, spec: &GuestSpec, n: usize) -> Result<()> {
    let disk = spec.disks.get(n).context("no such disk")?;
    if let Some(image) = spec.image.as_ref().filter(|_| n == 0) {
        ensure!(disk.format == Format::Qcow2, "images of guests are qcow2");
        fs::copy(image, path).with_context(|| format!("cannot copy {}", image.display()))?;
        return Ok(());
    }
    let raw = path.with_extension("making");
    let file = File::options().read(true).write(true).create_new(true).open(&raw)?;
    file.set_len(disk.size_mib * MIB)?;
    if n == 0 {
        boot_disk(&file, &raw, spec)?;
    } else {
        noise(&file, RING * BLOCK as u64, disk.noise_mib * MIB)?;
    }
    drop(file);
    match disk.format {
        Format::Raw => fs::rename(&raw, path)?,
        Format::Qcow2 => {
            let args = ["convert", "-O", "qcow2"].map(Path::new);
            call("qemu-img", args.into_iter().chain([&raw, path]))?;
            fs::remove_file(&raw)?;
        }
    }
    Ok(())
}

fn boot_disk(mut disk: &File, path: &Path, spec: &GuestSpec) -> Result<()> {
    let size = disk.metadata()?.len();
    ensure!(size >= 64 * MIB, "a boot disk needs 64 MiB");
    let stage = tempfile::tempdir()?;
    let boot = stage.path().join("boot");
    fs::create_dir(&boot)?;
    let kit = kit()?;
    for name in ["vmlinuz", "initrd"] {
        fs::copy(kit.join(name), boot.join(name))?;
    }
    fs::write(stage.path().join("warmd.conf"), conf(spec))?;
    if let Some(first) = spec.disks.first().filter(|d| d.noise_mib > 0) {
        noise(&File::create(stage.path().join("noise"))?, 0, first.noise_mib * MIB)?;
    }
    let blocks = ((size - PARTITION) / 4096).to_string();
    let options =
        format!("offset={PARTITION},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard");
    let args = ["-q", "-F", "-b", "4096", "-E", &options, "-d"].map(Path::new);
    call("mkfs.ext4", args.into_iter().chain([stage.path(), path, Path::new(&blocks)]))?;

    let mut sector = [0; SECTOR as usize];
    File::open(kit.join("boot.img"))?.read_exact(&mut sector)?;
    sector[446..510].fill(0);
    sector[446..462].copy_from_slice(&partition(size));
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.seek(SeekFrom::Start(0))?;
    disk.write_all(&sector)?;
    // Directly behind the boot sector, where both stages look for the next one by default.
    let core = fs::read(kit.join("core.img"))?;
    ensure!((core.len() as u64) < PARTITION - SECTOR, "the boot loader does not fit before the partition");
    disk.write_all(&core)?;
    Ok(())
}

/// The partition table's only entry: bootable, Linux, all of the disk from `PARTITION` on.
fn partition(size: u64) -> [u8; 16] {
    let (start, len) = ((PARTITION / SECTOR) as u32, ((size - PARTITION) / SECTOR) as u32);
    let mut entry = [0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    entry[8..12].copy_from_slice(&start.to_le_bytes());
    entry[12..].copy_from_slice(&len.to_le_bytes());
    entry
}

fn conf(spec: &GuestSpec) -> String {
    format!(
        "disks={}\nrecord_ms={}\nchurn_kib_s={}\nchurn_mib={}\nnoacpi={}\n",
        spec.disks.len(),
        spec.record_ms,
        spec.churn_kib_s,
        spec.churn_mib,
        u8::from(spec.noacpi)
    )
}

fn noise(mut file: &File, at: u64, len: u64) -> Result<()> {
    let mut block = vec![0; MIB as usize];
    file.seek(SeekFrom::Start(at))?;
    for _ in 0..len / MIB {
        rand::rng().fill_bytes(&mut block);
        file.write_all(&block)?;
    }
    Ok(())
}
