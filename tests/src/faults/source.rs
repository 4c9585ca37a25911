//! The source's disks and their server.

use std::path::Path;

use anyhow::{Result, ensure};
use rand::RngExt as _;

use super::{
    Row, row,
    shim::{EIO, Shim, Strike},
    stage::FaultStage,
};
use crate::tool;

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row("source", "server-dies", "the NBD server ends in a pass", false, server_dies),
    row("source", "server-hangs", "the NBD server answers no read, longer than its deadline, and then does", false, server_hangs),
    row("source", "bad-sector-passing", "EIO for a range of the source, for a while", false, |stage| bad_sector(stage, false)),
    row("source", "bad-sector", "EIO for a range of the source for ever: told with its extent, never called clean", true, |stage| bad_sector(stage, true)),
    row("source", "garbage", "the NBD server answers garbage", true, garbage),
    row("source", "bitmap-lost", "a disk's bitmap is removed between two passes", false, bitmap_lost),
    row("source", "libvirtd-restarted", "libvirtd is killed and started again in a pass", false, libvirtd),
    row("source", "libvirtd-away", "libvirtd is away when a delta is due, and comes back", false, libvirtd_away),
];

fn server_dies(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(48, |_| {})?;
    stage.freeze(4 << 20)?;
    let rig = stage.rig()?;
    let stop = rig.old.virsh(["qemu-monitor-command", "guest", r#"{"execute":"nbd-server-stop"}"#]);
    stage.thaw()?;
    ensure!(stop?.contains("return"), "QEMU goes on serving its disks");
    rig.wait_for("synced")?;
    let passes = rig.passes()?;
    ensure!(passes.first().is_some_and(|pass| pass.error.is_some()), "nothing was interrupted: {passes:#?}");
    crate::rig::assert_nothing_twice(&passes)
}

/// A rig whose QEMU on the source has the faults.
fn struck_source(stage: &mut FaultStage<'_>) -> Result<Shim> {
    let shim = stage.shim()?;
    let emulator = shim.emulator()?;
    stage.off(24, |spec| spec.guest.emulator = Some(emulator.clone()))?;
    Ok(shim)
}

fn server_hangs(stage: &mut FaultStage<'_>) -> Result<()> {
    let shim = struck_source(stage)?;
    stage.freeze(2 << 20)?;
    shim.set(&[Strike::all("read", "disk1.qcow2", "hang")])?;
    stage.thaw()?;
    shim.wait_for(1)?;
    stage.wait_for_words(&["failure"])?;
    shim.clear()?;
    stage.rig()?.wait_for("synced").map(drop)
}

fn bad_sector(stage: &mut FaultStage<'_>, for_ever: bool) -> Result<()> {
    let shim = struck_source(stage)?;
    // In the middle of the random data, at its offset in the image.
    let at = stage.random.random_range(8..16_u64) << 20;
    shim.set(&[Strike::all("read", "disk1.qcow2", EIO).within(at, at + 4096)])?;
    stage.begin()?;
    stage.wait_for_words(&["failure", "read of", "bytes", "vdb"])?;
    shim.must_have_struck()?;
    if for_ever {
        let view = stage.rig()?.show()?;
        ensure!(view["state"] == "seeding", "with a bad sector it is {}", view["state"]);
        let vdb = view["disks"][1]["pending_bytes"].as_u64().unwrap_or_default();
        ensure!(vdb > 0, "a disk with a bad sector is called clean: {view}");
        for verb in ["cutover", "verify"] {
            let out = stage.rig()?.try_verb(verb, &["--no-wait"])?;
            ensure!(out.code != Some(0), "{verb} of a disk with a bad sector was accepted: {}", out.stdout);
        }
    }
    shim.clear()?;
    stage.rig()?.wait_for("synced").map(drop)
}

fn garbage(stage: &mut FaultStage<'_>) -> Result<()> {
    let shim = struck_source(stage)?;
    stage.freeze(2 << 20)?;
    shim.set(&[Strike::all("send", "/run/", "garbage").times(1)])?;
    stage.thaw()?;
    // Each pass of a VM that is off starts a new QEMU, and the fault would strike each one.
    shim.wait_for(1)?;
    shim.clear()?;
    stage.rig()?.wait_for("synced")?;
    let passes = stage.rig()?.passes()?;
    ensure!(passes.iter().any(|pass| pass.error.is_some()), "garbage was taken for an answer: {passes:#?}");
    Ok(())
}

fn bitmap_lost(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(24, |_| {})?;
    stage.seed()?;
    stage.scribble(3)?;
    let rig = stage.rig()?;
    let marks = rig.old.virsh(["checkpoint-list", "guest", "--name"])?;
    let image = rig.guest.disks.last().map_or(Path::new(""), |image| image);
    tool::call("qemu-img", ["bitmap", "--remove", &image.to_string_lossy(), marks.trim()])?;
    let since = stage.sync()?;
    ensure!(since.iter().any(|pass| pass.unknown), "a lost bitmap went unnoticed: {since:#?}");
    Ok(())
}

fn libvirtd(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(48, |_| {})?;
    stage.freeze(4 << 20)?;
    stage.rig_mut()?.old.kill()?;
    stage.thaw()?;
    stage.rig_mut()?.old.resume()?;
    stage.rig()?.wait_for("synced").map(drop)
}

fn libvirtd_away(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(24, |_| {})?;
    stage.seed()?;
    stage.scribble(3)?;
    stage.rig_mut()?.old.suspend()?;
    stage.rig()?.try_verb("sync", &["--no-wait"])?;
    stage.wait_for_words(&["failure"])?;
    stage.rig_mut()?.old.resume()?;
    stage.rig()?.wait_for("synced").map(drop)
}
