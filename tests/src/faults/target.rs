//! The target's storage and its VM.

use std::{os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;

use super::{
    Row, row,
    shim::{EIO, EOPNOTSUPP, Strike},
    stage::FaultStage,
};
use crate::{rig::WORK, scratch::Mount, tool};

const MIB: u64 = 1 << 20;

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row("target", "enospc", "the file system is full; later there is room", false, enospc),
    row("target", "write-eio", "EIO on some writes", false, |stage| passing(stage, Strike::all("write", "volumes/", EIO).after(9).times(2))),
    row("target", "fsync-eio", "EIO on fsync only, and what was written since the last one is gone", true, fsync_eio),
    row("target", "short-writes", "writes do half of what they were asked for", false, |stage| struck(stage, Strike::all("write", "volumes/", "short").times(200))),
    row("target", "hang", "writes hang, and go on later", false, hang),
    row("target", "stall", "writes hang longer than a disk is waited for: warmd knows its own lock", false, stall),
    row("target", "punch-refused", "hole punching is refused from the first time on", false, |stage| punch(stage, 0)),
    row("target", "punch-refused-later", "hole punching works once and is refused from then on", true, |stage| punch(stage, 1)),
    row("target", "volume-shrunk", "a volume loses its last MiB, and is made as long again", true, shrunk),
    row("target", "volume-replaced", "a volume is replaced by an empty file of the same size", false, replaced),
    row("target", "volume-older", "a volume is removed, and put back from an older copy", false, older),
    row("target", "volume-gone", "a volume is removed", false, gone),
    row("target", "foreign-write", "another program wrote to a volume: readback finds it", false, foreign),
];

fn enospc(stage: &mut FaultStage<'_>) -> Result<()> {
    let mount = Mount::tmpfs(stage.dir, "small", 40 * MIB)?;
    let path = mount.path().to_owned();
    stage.keep(mount);
    stage.off(48, |spec| spec.volumes = Some(path.clone()))?;
    stage.begin()?;
    stage.wait_for_failure("bytes of room")?;
    tool::call("mount", [Path::new("-o"), Path::new("remount,size=1g"), &path])?;
    stage.resume()?;
    stage.scribble(3)?;
    stage.sync().map(drop)
}

/// A fault in the full pass and one in a delta; both pass without help.
fn passing(stage: &mut FaultStage<'_>, strike: Strike) -> Result<()> {
    let shim = stage.off_with_shim(24)?;
    shim.set(std::slice::from_ref(&strike))?;
    // Slow enough for batches before, during and after the fault: a fast pass has one or two.
    stage.seed_slowly()?;
    shim.must_have_struck()?;
    let passes = stage.rig()?.passes()?;
    ensure!(passes.iter().any(|pass| pass.error.is_some()), "no pass failed: {passes:#?}");
    stage.scribble(6)?;
    shim.set(&[Strike { after: 0, count: 1, ..strike }])?;
    let before = shim.struck()?.len();
    stage.sync()?;
    ensure!(shim.struck()?.len() > before, "nothing struck in the delta");
    shim.clear()
}

/// The same, for faults after which a pass may succeed.
fn struck(stage: &mut FaultStage<'_>, strike: Strike) -> Result<()> {
    let shim = stage.off_with_shim(24)?;
    shim.set(std::slice::from_ref(&strike))?;
    stage.seed()?;
    shim.must_have_struck()?;
    stage.scribble(6)?;
    shim.set(&[strike])?;
    let before = shim.struck()?.len();
    stage.sync()?;
    ensure!(shim.struck()?.len() > before, "nothing struck in the delta");
    shim.clear()
}

fn fsync_eio(stage: &mut FaultStage<'_>) -> Result<()> {
    passing(stage, Strike::all("sync", "vdb.raw", "lose").after(1).times(1))?;
    let passes = stage.rig()?.passes()?;
    for (failed, next) in passes.iter().zip(passes.iter().skip(1)).filter(|(pass, _)| pass.error.is_some()) {
        let left = failed.pending - failed.drained;
        ensure!(left > 0 && next.pending >= left, "the batch is not pending again: {passes:#?}");
    }
    Ok(())
}

fn hang(stage: &mut FaultStage<'_>) -> Result<()> {
    let shim = stage.off_with_shim(24)?;
    shim.set(&[Strike::all("write", "volumes/", "hang").after(9)])?;
    stage.begin()?;
    stage.wait_for_words(&["failure", "the system did not answer"])?;
    shim.clear()?;
    stage.rig()?.wait_for("synced")?;
    shim.must_have_struck()
}

/// The retry meets the lock of the hung write: it succeeds, and copied blocks stay trusted.
fn stall(stage: &mut FaultStage<'_>) -> Result<()> {
    let shim = stage.off_with_shim(24)?;
    shim.set(&[Strike::all("write", "volumes/", "hang").after(9)])?;
    stage.begin()?;
    stage.wait_for_words(&["failure", "the system did not answer"])?;
    stage.wait_for_words(&["failure", "an earlier call of warmd's own"])?;
    shim.clear()?;
    stage.rig()?.wait_for("synced")?;
    let log = stage.rig()?.daemon.log()?;
    ensure!(!log.contains("all of it will be copied again"), "copied again: {log}");
    shim.must_have_struck()
}

fn punch(stage: &mut FaultStage<'_>, works: u32) -> Result<()> {
    let shim = stage.off_with_shim(24)?;
    stage.seed()?;
    // Data first, then zeroes in its place, often enough for an early and a late refusal.
    for _ in 0..2 {
        let zero = |at: u64| format!("write -z {} {}", at << 20, 300 * 1024 + 512);
        let fill = |at: u64| format!("write -P 171 {} 1M", at << 20);
        let places: Vec<u64> = (0..4).map(|_| stage.random.random_range(200..250)).collect();
        stage.disk_io(1, &places.iter().copied().map(fill).collect::<Vec<_>>())?;
        stage.sync()?;
        shim.set(&[Strike::all("punch", "volumes/", EOPNOTSUPP).after(works)])?;
        stage.disk_io(1, &places.iter().copied().map(zero).collect::<Vec<_>>())?;
        stage.sync()?;
    }
    shim.must_have_struck()?;
    shim.clear()
}

fn shrunk(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(24, |_| {})?;
    stage.seed()?;
    let volume = stage.rig()?.locations()?.pop().context("no volumes")?;
    let size = volume.metadata()?.len();
    // Data that can be lost there.
    stage.disk_io(1, &["write -P 9 255M 1M".to_owned()])?;
    stage.sync()?;
    let file = std::fs::File::options().write(true).open(&volume)?;
    file.set_len(size - MIB)?;
    stage.scribble(2)?;
    stage.sync_fails("bytes long")?;
    file.set_len(size)?;
    drop(file);
    stage.resume()
}

fn older(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(24, |_| {})?;
    stage.seed()?;
    let volume = stage.rig()?.locations()?.pop().context("no volumes")?;
    let copy = stage.dir.join("older.raw");
    tool::call("cp", [Path::new("--sparse=always"), &volume, &copy])?;
    stage.scribble(4)?;
    stage.sync()?;
    std::fs::remove_file(&volume)?;
    stage.sync_fails("is not there")?;
    tool::call("cp", [Path::new("--sparse=always"), &copy, &volume])?;
    std::fs::remove_file(&copy)?;
    stage.resume()
}

fn replaced(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(24, |_| {})?;
    stage.seed()?;
    let volume = stage.rig()?.locations()?.pop().context("no volumes")?;
    let size = volume.metadata()?.len();
    std::fs::remove_file(&volume)?;
    std::fs::File::create(&volume)?.set_len(size)?;
    found_by_readback(stage)
}

fn gone(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(24, |_| {})?;
    stage.seed()?;
    let volume = stage.rig()?.locations()?.pop().context("no volumes")?;
    std::fs::remove_file(&volume)?;
    stage.sync_fails("is not there")?;
    stage.rig()?.verb("cancel")?;
    stage.ends = super::FaultEnd::Cancelled;
    Ok(())
}

fn foreign(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(24, |_| {})?;
    stage.seed()?;
    let volume = stage.rig()?.locations()?.pop().context("no volumes")?;
    let at = stage.random.random_range(0..255_u64) << 20;
    let mut bytes = vec![0; 4096];
    stage.random.fill(&mut bytes[..]);
    // Closed before the verification: a disk that another program has open for writing is not verified.
    std::fs::File::options().write(true).open(&volume)?.write_all_at(&bytes, at)?;
    found_by_readback(stage)
}

/// The verification says which bytes are wrong, and the next pass copies them again.
fn found_by_readback(stage: &mut FaultStage<'_>) -> Result<()> {
    let rig = stage.rig()?;
    let out = rig.try_verb("verify", &[])?;
    ensure!(out.code == Some(1), "the verification ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
    let view = stage.wait_for_view("the result", WORK, |view| !view["verification"]["result"].is_null())?;
    let disks = view["verification"]["result"]["disks"].as_array().context("no result")?;
    let wrong: u64 = disks.iter().filter_map(|disk| disk["mismatched_bytes"].as_u64()).sum();
    ensure!(wrong > 0, "nothing was found wrong: {view}");
    stage.sync()?;
    stage.rig()?.verb("verify")
}
