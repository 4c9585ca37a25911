//! What may happen to the guest while it is moved: its disk server gone in the middle of a pass, power cut,
//! reset, QEMU killed, a power button that the guest ignores, the domain removed. Nothing that it
//! acknowledged is lost in any of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use warmd_tests::{Rig, RigSpec, rig::assert_nothing_twice, run};

const MINUTE: Duration = Duration::from_mins(1);
const SOME: u64 = 4 << 20;

#[test]
fn guest_with_faults_during_its_passes_arrives_whole() {
    run(|dir| {
        let mut spec = RigSpec::new("hurt", 64);
        // So few writes that a comparison finds most of the disk unchanged.
        spec.guest.churn_kib_s = 32;
        let mut rig = Rig::running(dir, &spec)?;
        rig.freeze(SOME)?;
        let stop = rig.old.virsh(["qemu-monitor-command", "hurt", r#"{"execute":"nbd-server-stop"}"#]);
        rig.thaw()?;
        ensure!(stop?.contains("return"), "QEMU goes on serving its disks");
        rig.wait_for("synced")?;
        let full = rig.passes()?;
        ensure!(full.len() == 2, "not an interrupted pass and a good one: {full:#?}");
        ensure!(full[0].error.is_some() && full[0].drained >= SOME, "not interrupted: {:?}", full[0]);
        assert_nothing_twice(&full)?;

        rig.guest.destroy(&rig.old)?;
        rig.guest.power_on(&rig.old)?;
        rig.verb("sync")?;
        rig.guest.reset(&rig.old)?;
        rig.verb("sync")?;
        let passes = rig.passes()?;
        ensure!(passes.iter().skip(1).all(|pass| !pass.unknown), "changes were lost: {passes:#?}");

        rig.guest.kill_qemu()?;
        rig.guest.wait_for_state(&rig.old, "shut off", MINUTE)?;
        rig.guest.power_on(&rig.old)?;
        rig.verb("sync")?;
        let passes = rig.passes()?;
        let last = passes.last().context("no passes")?;
        ensure!(last.unknown, "the bitmaps outlived QEMU: {last:?}");
        ensure!(last.written < last.read / 2, "compared, and yet written: {last:?}");
        rig.cut_over_and_prove()
    });
}

#[test]
fn guest_ignoring_shutdown_is_forced_off_only_if_allowed() {
    run(|dir| {
        let mut spec = RigSpec::new("deaf", 8);
        spec.guest.noacpi = true;
        spec.cutover = "graceful_shutdown = \"3s\"\nmin_uptime = \"2s\"";
        let mut rig = Rig::running(dir, &spec)?;
        rig.daemon.start()?;
        rig.apply()?;
        rig.wait_for("synced")?;

        let out = rig.try_verb("cutover", &[])?;
        ensure!(out.code == Some(1), "the cutover ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        ensure!(out.stderr.contains("still running"), "no reason: {}", out.stderr);
        left_running(&rig)?;

        rig.daemon.stop()?;
        rig.crash("undo.powered-on", |rig| rig.try_verb("cutover", &["--no-wait"]).map(drop))?;
        rig.daemon.start()?;
        rig.wait_for("synced")?;
        left_running(&rig)?;

        rig.write_plan("graceful_shutdown = \"3s\"\nforce_power_off = true\nmin_uptime = \"2s\"")?;
        rig.apply()?;
        rig.cut_over_and_prove()
    });
}

/// The guest was not even restarted, and the migration says why.
fn left_running(rig: &Rig) -> Result<()> {
    let view = rig.show()?;
    ensure!(view["state"] == "synced", "it is {}", view["state"]);
    let failure = view["cutover"]["failure"].as_str().unwrap_or_default();
    ensure!(failure.contains("still running"), "the cutover's failure: {view}");
    let acked = rig.guest.console.acked()?;
    rig.guest.console.wait_for_acked(acked + 10, MINUTE)?;
    let boots = rig.guest.console.boots()?.len();
    ensure!(boots == 1, "the source guest was booted {boots} times");
    rig.assert_one_runs()
}

#[test]
fn a_domain_removed_behind_our_back_is_told_and_can_be_given_up() {
    run(|dir| {
        let mut rig = Rig::off(dir, &RigSpec::new("gone", 8))?;
        rig.daemon.start()?;
        rig.apply()?;
        let view = rig.wait_for("synced")?;
        let volume = view["disks"][0]["location"].as_str().context("no location")?.to_owned();
        ensure!(std::path::Path::new(&volume).exists(), "{volume} is not there");

        rig.old.virsh(["undefine", "gone", "--checkpoints-metadata"])?;
        let out = rig.try_verb("sync", &[])?;
        ensure!(out.code == Some(1), "the sync ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        let view = rig.show()?;
        ensure!(view["state"] == "failed" && view["resumable"] == true, "it is {view}");
        let reason = view["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains("removed from the source"), "the reason: {reason}");
        ensure!(reason.contains("or cancel"), "the reason does not say what to do: {reason}");
        rig.verb("cancel")?;
        ensure!(!std::path::Path::new(&volume).exists(), "{volume} is still there");
        Ok(())
    });
}
