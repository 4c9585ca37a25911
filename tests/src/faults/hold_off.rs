//! What starts the source again beside warmd, with a guest that writes: its autostart at a reboot of its
//! host, an operator in the boot check; and a target that does not say whether its VM runs.
//!
//! Rule: a start by an operator is reported and not undone; warmd itself never runs both VMs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{
    Row,
    cutover::take_name_in_the_cutover,
    row,
    stage::{FaultStage, phase_is_seen},
};
use crate::{Libvirtd, rig::WORK, wait_until};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row("hold-off", "autostart", "the source has autostart: undone, moved, and its host reboots", false, autostart),
    row("hold-off", "source-started", "the source is started by hand while the target VM is watched", false, started),
    row("hold-off", "target-silent", "the target's libvirtd hangs while the target VM is started", false, silent),
];

const WATCH: &str = "graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"20s\"";
const SHORT: &str =
    "graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"4s\"\ncreate_deadline = \"8s\"";

fn starts_with_host(libvirt: &Libvirtd) -> Result<bool> {
    let info = libvirt.virsh(["dominfo", "guest"])?;
    let line = info.lines().find(|line| line.starts_with("Autostart:"));
    Ok(line.context("dominfo says nothing of autostart")?.contains("enable"))
}

/// A libvirtd that starts with its host starts VMs with autostart; its mark that it did so is lost at a
/// reboot.
fn reboot(libvirt: &mut Libvirtd, run: &std::path::Path) -> Result<()> {
    libvirt.suspend()?;
    let mut found = false;
    for mark in [run.join("libvirt/qemu/autostarted"), run.join("qemu/autostarted")] {
        found |= std::fs::remove_file(mark).is_ok();
    }
    ensure!(found, "no libvirtd has noted in {} that it autostarted", run.display());
    libvirt.resume()
}

fn autostart(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(16, |spec| spec.cutover = SHORT)?;
    stage.rig()?.old.virsh(["autostart", "guest"])?;
    stage.seed()?;
    take_name_in_the_cutover(stage)?;
    let rig = stage.rig()?;
    rig.wait_for("synced")?;
    ensure!(starts_with_host(&rig.old)?, "an undo does not give the autostart back");
    rig.new.virsh(["undefine", "guest"])?;

    rig.verb("cutover")?;
    ensure!(!starts_with_host(&rig.old)?, "the source still starts with its host");
    ensure!(starts_with_host(&rig.new)?, "the target VM does not start with its host");
    let run = stage.dir.join("old/run");
    let rig = stage.rig_mut()?;
    reboot(&mut rig.old, &run)?;
    rig.assert_one_runs()?;
    let state = rig.guest.state(&rig.old)?;
    ensure!(state == "shut off", "the reboot of its host started the source: {state}");
    Ok(())
}

fn started(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(16, |spec| spec.cutover = WATCH)?;
    stage.seed()?;
    stage.rig()?.try_verb("cutover", &["--no-wait"])?;
    stage.wait_for_phase("boot-check")?;
    // A paused VM is as dangerous, and writes no records that the final checks would not know.
    stage.rig()?.old.virsh(["start", "guest", "--paused"])?;
    stage.wait_for_failure("source VM runs")?;
    let rig = stage.rig()?;
    ensure!(rig.new.virsh(["domstate", "guest"])? == "running", "the target VM was stopped");
    rig.old.virsh(["destroy", "guest"])?;
    rig.verb("resume")?;
    rig.wait_for("done").map(drop)
}

fn silent(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(16, |spec| spec.cutover = SHORT)?;
    stage.seed()?;
    stage.rig()?.try_verb("cutover", &["--no-wait"])?;
    stage.wait_for_phase("create-vm")?;
    stage.rig_mut()?.new.freeze()?;
    let begun = std::time::Instant::now();
    // Longer than any deadline of these phases.
    let wait = Duration::from_secs(30);
    wait_until("the silence to be long enough", WORK, || Ok((begun.elapsed() >= wait).then_some(())))?;
    let view = stage.rig()?.show()?;
    let source = stage.rig()?.guest.state(&stage.rig()?.old)?;
    stage.rig_mut()?.new.thaw()?;
    let is_open = phase_is_seen(&view, "start-vm");
    ensure!(!is_open || source == "shut off", "the target may run, and the source is {source:?}: {view}");
    let rig = stage.rig()?;
    let settled = stage.wait_for_view("its end", WORK, |view| {
        view["state"] == "done" || view["state"] == "synced" && view["cutover"]["failure"].is_string()
    })?;
    rig.assert_one_runs()?;
    if settled["state"] == "synced" {
        // Where the start was not requested yet, or did not happen.
        stage.sync()?;
        stage.rig()?.verb("cutover")?;
    }
    Ok(())
}
