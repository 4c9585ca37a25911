//! Looking into disk images without booting them. Rule: the image itself is never written.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::record::{self, BLOCK, Log, RING};
use crate::tool::{DEADLINE, call, outcome};

/// Where the guest's only partition begins, in bytes.
pub const PARTITION: u64 = 1 << 20;

/// The record log of a boot disk (raw, or any format that qemu-img knows), its file system checked first.
///
/// The guest may have lost power: its journal is replayed, on a copy.
pub fn read_log(image: &Path) -> Result<Log> {
    let (dir, raw) = raw_copy(image)?;
    let partition = dir.path().join("partition");
    let (from, to) = (format!("if={}", raw.display()), format!("of={}", partition.display()));
    call("dd", [from.as_str(), &to, &format!("bs={PARTITION}"), "skip=1", "conv=sparse", "status=none"])?;
    let fsck = |mode: &str| outcome(Command::new("e2fsck").arg(mode).arg(&partition), DEADLINE);
    let replay = fsck("-p")?;
    if !matches!(replay.code, Some(0 | 1)) {
        bail!("{}: e2fsck -p: {:?} {}{}", image.display(), replay.code, replay.stdout, replay.stderr);
    }
    let check = fsck("-fn")?;
    if check.code != Some(0) {
        bail!("{}: damaged file system: {}{}", image.display(), check.stdout, check.stderr);
    }
    let log = dir.path().join("log");
    let dump = format!("dump /log {}", log.display());
    call("debugfs", [Path::new("-R"), Path::new(&dump), &partition])?;
    let bytes = std::fs::read(&log).with_context(|| format!("{}: no /log in it", image.display()))?;
    record::verify_log(&bytes).with_context(|| format!("{}: bad log", image.display()))
}

/// Number of the last record in the ring of an extra disk, all of the ring verified.
pub fn read_ring(image: &Path) -> Result<u64> {
    use std::io::Read as _;
    let (_dir, raw) = raw_copy(image)?;
    let mut ring = Vec::new();
    std::fs::File::open(raw)?.take(RING * BLOCK as u64).read_to_end(&mut ring)?;
    record::verify_ring(&ring).with_context(|| format!("{}: bad ring", image.display()))
}

/// Whether two images hold the same bytes, whatever their formats; the first difference is the error.
pub fn assert_equal(a: &Path, b: &Path) -> Result<()> {
    let (size_a, size_b) = (info(a)?.0, info(b)?.0);
    ensure!(size_a == size_b, "{} has {size_a} bytes, {} {size_b}", a.display(), b.display());
    let compare = [Path::new("compare"), Path::new("-U"), a, b];
    call("qemu-img", compare).map(drop).context("the images differ")
}

/// Virtual size in bytes, and format.
pub fn info(image: &Path) -> Result<(u64, String)> {
    let json = call("qemu-img", [Path::new("info"), Path::new("-U"), Path::new("--output=json"), image])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    let size = json["virtual-size"].as_u64().context("qemu-img info without virtual-size")?;
    let format = json["format"].as_str().context("qemu-img info without format")?;
    Ok((size, format.to_owned()))
}

fn raw_copy(image: &Path) -> Result<(TempDir, PathBuf)> {
    let dir = tempfile::Builder::new().prefix("warmd-image-").tempdir()?;
    let raw = dir.path().join("raw");
    let args = ["convert", "-U", "-O", "raw"].map(Path::new);
    call("qemu-img", args.into_iter().chain([image, &raw]))?;
    Ok((dir, raw))
}
