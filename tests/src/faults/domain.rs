//! The source VM: crashed, paused, taken away, changed, used by other tools.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{
    Row, row,
    stage::{FaultEnd, FaultStage},
};
use crate::{Rig, rig::WORK, tool};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row("source", "vm-crashed", "QEMU is killed in a pass, and the VM started again", false, crashed),
    row("source", "vm-reset", "the guest is reset in a pass", false, reset),
    row("source", "vm-paused", "the VM is paused when a delta is due", false, paused),
    row("source", "vm-gone", "the domain is migrated away: it is not there any more", false, gone),
    row("source", "vm-back", "the domain is undefined, and defined again as it was", false, back),
    row("source", "vm-replaced", "another domain of the same name is in its place", false, replaced),
    row("source", "disk-added", "a disk is added", true, disk_added),
    row("source", "disk-hot-added", "a disk is added to the running VM", false, disk_hot_added),
    row("source", "disk-grown", "a disk grows", false, disk_grown),
    row("source", "disk-removed", "a disk is taken out", false, disk_removed),
    row("source", "disk-replaced", "a disk's image is replaced by another of the same size", false, disk_replaced),
    row("source", "disk-replaced-in-place", "another image is put at the path of a disk's", false, disk_in_place),
    row("source", "foreign-backup", "another tool's backup job runs when a delta is due", false, foreign_backup),
    row("source", "foreign-checkpoint", "another tool makes checkpoints between two passes, and deletes them", false, foreign_checkpoint),
];

fn crashed(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(48, |_| {})?;
    stage.freeze(4 << 20)?;
    let rig = stage.rig()?;
    let killed = rig.guest.kill_qemu();
    stage.thaw()?;
    killed?;
    rig.wait_for("synced")?;
    // The pass after the interrupted one must detect it.
    let passes = rig.passes()?;
    ensure!(passes.iter().any(|pass| pass.unknown), "the bitmaps outlived QEMU: {passes:#?}");
    rig.guest.power_on(&rig.old)?;
    stage.sync().map(drop)
}

fn reset(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(24, |_| {})?;
    stage.freeze(2 << 20)?;
    let rig = stage.rig()?;
    let reset = rig.guest.reset(&rig.old);
    stage.thaw()?;
    reset?;
    rig.wait_for("synced")?;
    stage.sync().map(drop)
}

fn paused(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(16, |_| {})?;
    stage.seed()?;
    let rig = stage.rig()?;
    rig.old.virsh(["suspend", "guest"])?;
    stage.sync_waits("virsh resume", || {
        let state = rig.guest.state(&rig.old)?;
        ensure!(state == "paused", "another tool's paused VM is {state:?} now");
        rig.old.virsh(["resume", "guest"]).map(drop)
    })
}

fn gone(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(16, |_| {})?;
    stage.seed()?;
    stage.rig()?.old.virsh(["undefine", "guest", "--checkpoints-metadata"])?;
    give_up(stage, "removed from the source")?;
    stage.source_gone = true;
    Ok(())
}

/// The next delta fails with this word, and the migration is cancelled.
fn give_up(stage: &mut FaultStage<'_>, word: &str) -> Result<()> {
    let reason = stage.sync_fails(word)?;
    ensure!(reason.contains("cancel"), "the reason does not say what to do: {reason}");
    stage.rig()?.verb("cancel")?;
    stage.ends = FaultEnd::Cancelled;
    Ok(())
}

fn back(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(16, |_| {})?;
    stage.seed()?;
    let rig = stage.rig()?;
    let xml = rig.old.virsh(["dumpxml", "guest"])?;
    rig.old.virsh(["undefine", "guest", "--checkpoints-metadata"])?;
    stage.sync_fails("removed from the source")?;
    stage.scribble(3)?;
    define(stage, &xml)?;
    stage.resume()
}

fn define(stage: &FaultStage<'_>, xml: &str) -> Result<()> {
    let path = stage.dir.join("again.xml");
    fs::write(&path, xml)?;
    stage.rig()?.old.virsh(["define", &path.to_string_lossy()]).map(drop)
}

fn replaced(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(16, |_| {})?;
    stage.seed()?;
    let rig = stage.rig()?;
    let xml = rig.old.virsh(["dumpxml", "guest"])?;
    let uuid = xml.split("<uuid>").nth(1).and_then(|rest| rest.split('<').next()).context("no uuid")?;
    rig.old.virsh(["undefine", "guest", "--checkpoints-metadata"])?;
    define(stage, &xml.replace(uuid, "00000000-1111-2222-3333-444444444444"))?;
    give_up(stage, "removed from the source")?;
    stage.source_gone = true;
    Ok(())
}

/// A qcow2 image of the disks' size.
fn new_image(stage: &FaultStage<'_>, name: &str) -> Result<String> {
    let path = stage.dir.join(name).display().to_string();
    tool::call("qemu-img", ["create", "-q", "-f", "qcow2", &path, "256M"])?;
    tool::call("qemu-io", ["-f", "qcow2", "-c", "write -P 77 3M 5M", &path])?;
    Ok(path)
}

/// `how`: `--config` or `--live`.
fn attach(rig: &Rig, image: &str, disk: &str, how: &str) -> Result<()> {
    let format = "--subdriver=qcow2";
    rig.old
        .virsh(["attach-disk", "guest", image, disk, "--driver=qemu", format, "--targetbus=virtio", how])
        .map(drop)
}

fn disk_added(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(16, |_| {})?;
    stage.seed()?;
    let image = new_image(stage, "added.qcow2")?;
    let rig = stage.rig()?;
    attach(rig, &image, "vdc", "--config")?;
    not_left_behind(rig)?;
    stage.rig()?.old.virsh(["detach-disk", "guest", "vdc", "--config"])?;
    stage.sync().map(drop)
}

/// No data is left behind unreported.
fn not_left_behind(rig: &Rig) -> Result<()> {
    let out = rig.try_verb("cutover", &[])?;
    ensure!(out.code == Some(1), "a disk was left behind: {}{}", out.stdout, out.stderr);
    ensure!(out.stderr.contains("vdc"), "the disk is not named: {}", out.stderr);
    rig.wait_for("synced").map(drop)
}

fn disk_hot_added(stage: &mut FaultStage<'_>) -> Result<()> {
    // Its bus has free slots, as in most VMs.
    stage.running(16, |spec| spec.guest.machine = "pc")?;
    stage.seed()?;
    let image = new_image(stage, "added.qcow2")?;
    let rig = stage.rig()?;
    attach(rig, &image, "vdc", "--live")?;
    not_left_behind(rig)?;
    let state = rig.guest.state(&rig.old)?;
    ensure!(state == "running", "after the refused cutover the source is {state:?}");
    // It exists only as long as the VM runs.
    rig.guest.shut_down(&rig.old)?;
    rig.guest.power_on(&rig.old)?;
    stage.sync().map(drop)
}

fn disk_grown(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(16, |_| {})?;
    stage.seed()?;
    let image = stage.rig()?.guest.disks.last().context("no disks")?.display().to_string();
    tool::call("qemu-img", ["resize", "-q", &image, "272M"])?;
    give_up(stage, "vdb")
}

fn disk_removed(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(16, |_| {})?;
    stage.seed()?;
    stage.rig()?.old.virsh(["detach-disk", "guest", "vdb", "--config"])?;
    stage.sync_fails("vdb")?;
    // The operator undoes the mistake.
    let image = stage.rig()?.guest.disks.last().context("no disks")?.display().to_string();
    attach(stage.rig()?, &image, "vdb", "--config")?;
    stage.scribble(3)?;
    stage.resume()
}

fn disk_replaced(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(16, |_| {})?;
    stage.seed()?;
    let image = new_image(stage, "other.qcow2")?;
    let rig = stage.rig_mut()?;
    let xml = rig.old.virsh(["dumpxml", "guest"])?;
    let old = rig.guest.disks.pop().context("no disks")?;
    rig.guest.disks.push(image.clone().into());
    define(stage, &xml.replace(&*old.to_string_lossy(), &image))?;
    fs::remove_file(old)?;
    unknown(stage)
}

fn disk_in_place(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.off(16, |_| {})?;
    stage.seed()?;
    let image = new_image(stage, "other.qcow2")?;
    let old = stage.rig()?.guest.disks.last().cloned().context("no disks")?;
    fs::rename(&image, &old)?;
    unknown(stage)
}

fn unknown(stage: &FaultStage<'_>) -> Result<()> {
    let since = stage.sync()?;
    ensure!(since.iter().any(|pass| pass.unknown), "another image went unnoticed: {since:#?}");
    Ok(())
}

fn foreign_backup(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(16, |_| {})?;
    stage.seed()?;
    let folder = stage.dir.join("theirs");
    fs::create_dir(&folder)?;
    let xml = folder.join("theirs.xml");
    let at = folder.display();
    fs::write(
        &xml,
        format!(
            "<domainbackup mode='pull'><server transport='unix' socket='{at}/sock'/><disks>\
             <disk name='vda' backup='yes' type='file'><driver type='qcow2'/><scratch file='{at}/vda'/></disk>\
             <disk name='vdb' backup='no'/></disks></domainbackup>"
        ),
    )?;
    let rig = stage.rig()?;
    rig.old.virsh(["backup-begin", "guest", &xml.to_string_lossy()])?;
    stage.sync_waits("not warmd's", || {
        let job = rig.old.virsh(["backup-dumpxml", "guest"])?;
        ensure!(job.contains(&format!("{at}/sock")), "another tool's job was ended: {job}");
        rig.old.virsh(["domjobabort", "guest"])?;
        crate::wait_until("their job to end", WORK, || {
            Ok((rig.old.try_virsh(["backup-dumpxml", "guest"])?.code != Some(0)).then_some(()))
        })
    })
}

fn foreign_checkpoint(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(16, |_| {})?;
    stage.seed()?;
    let make = |name: &str| -> Result<()> {
        stage.rig()?.old.virsh(["checkpoint-create-as", "guest", name]).map(drop)
    };
    make("theirs-1")?;
    stage.sync()?;
    make("theirs-2")?;
    stage.sync()?;
    let rig = stage.rig()?;
    rig.old.virsh(["checkpoint-delete", "guest", "theirs-1"])?;
    stage.sync()?;
    let left = stage.rig()?.old.virsh(["checkpoint-list", "guest", "--name"])?;
    ensure!(left.contains("theirs-2"), "another tool's checkpoint was deleted: {left}");
    stage.rig()?.old.virsh(["checkpoint-delete", "guest", "theirs-2"])?;
    stage.sync().map(drop)
}
