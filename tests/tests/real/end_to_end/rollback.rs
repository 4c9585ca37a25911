//! A real guest whose boot check fails on the target: the source is not cleaned up, the daemon is killed at
//! every point of the rollback, the guest continues on the source, and is moved again.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warmd_tests::{Rig, RigSpec, guest::BOOT, run};

/// The exit code of `warmctl` without `--yes`.
const USAGE: i32 = 2;

/// Lines of a plan: what the target guest must say, and a hook at both ends that appends its input to the
/// file.
fn policy(serial: &str, deadline: &str, told: &str) -> String {
    let hook = |phase: &str, when: &str| {
        format!(
            "[[hooks]]\nphase = \"{phase}\"\nwhen = \"{when}\"\n\
             command = [\"/bin/sh\", \"-c\", \"cat >> {told}; echo >> {told}; echo heard of {when} {phase}\"]\n"
        )
    };
    format!(
        "graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"2s\"\n\n\
         [cutover.boot_check]\nserial = \"{serial}\"\ndeadline = \"{deadline}\"\n\n{}\n{}",
        hook("stop-source", "before"),
        hook("start-vm", "after")
    )
}

#[test]
fn a_guest_that_does_not_come_up_goes_back_and_is_moved_again() {
    run(|dir| {
        let told = dir.join("told");
        let policy = |serial, deadline| policy(serial, deadline, &told.to_string_lossy());
        let mut rig = Rig::running(dir, &RigSpec::new("back", 8))?;
        rig.write_plan(&policy("this is never said", "6s"))?;
        rig.daemon.start()?;
        rig.apply()?;
        rig.wait_for("synced")?;

        let out = rig.try_verb("cutover", &[])?;
        ensure!(out.code == Some(1), "the cutover ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        ensure!(out.stderr.contains("the boot check failed: not seen"), "no reason: {}", out.stderr);
        ensure!(rig.show()?["state"] == "failed", "it is {}", rig.show()?["state"]);
        let left = rig.old.virsh(["checkpoint-list", "back", "--name"])?;
        ensure!(!left.trim().is_empty(), "the source's remains were given up");
        heard(&rig, &std::fs::read_to_string(&told)?)?;
        // It runs there, and its writes there will be lost.
        rig.target_console()?.wait_for_acked(1, BOOT)?;
        rig.assert_one_runs()?;
        let last = rig.guest.console.acked()?;

        let out = rig.ctl().outcome(&["migration", "rollback", "back"], BOOT)?;
        ensure!(out.code == Some(USAGE), "without --yes it ended with {:?}: {}", out.code, out.stderr);
        ensure!(out.stderr.contains("is lost"), "it does not say what is lost: {}", out.stderr);
        rig.daemon.stop()?;
        rig.crash("rollback.distrusted", |rig| rig.try_verb("rollback", &["--yes", "--no-wait"]).map(drop))?;
        rig.crash("rollback.discarded", |_| Ok(()))?;
        rig.crash("rollback.powered-on", |_| Ok(()))?;
        rig.daemon.start()?;
        let view = rig.wait_for("paused")?;
        let failure = view["cutover"]["failure"].as_str().unwrap_or_default();
        ensure!(failure.contains("rolled back"), "the cutover's failure: {view}");
        ensure!(rig.new.virsh(["list", "--all", "--name"])?.trim().is_empty(), "the target VM is there");
        let boot = rig.guest.console.wait_for_boot(2, BOOT)?;
        let found = boot.log.context("the source guest did not look at its log")?;
        // One more record may have been written, with the power off before it was acknowledged.
        ensure!(
            found == Ok(last) || found == Ok(last + 1),
            "the source's log ends at {found:?}, and {last} was acknowledged"
        );
        ensure!(!rig.report()?["rolled_back"].is_null(), "the report does not tell of it");

        rig.write_plan(&policy("LOG OK", "2m"))?;
        rig.apply()?;
        rig.verb("resume")?;
        rig.wait_for("synced")?;
        rig.cut_over_and_prove()?;
        let report = rig.report()?;
        let phases = report["cutover"].as_array().context("no phases")?;
        let check =
            phases.iter().find(|phase| phase["phase"] == "boot-check").context("there was no boot check")?;
        let outcome = check["outcome"].as_str().unwrap_or_default();
        ensure!(outcome.contains("its serial console says \"LOG OK\""), "the boot check ended: {outcome}");
        Ok(())
    });
}

/// Both hooks ran with the facts as input, and their output is in the journal.
fn heard(rig: &Rig, told: &str) -> Result<()> {
    let facts = told.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    ensure!(facts.len() == 2, "not two hooks: {told}");
    for (facts, phase) in facts.iter().zip(["stop-source", "start-vm"]) {
        ensure!(facts["hook"]["phase"] == phase, "not in order: {told}");
        ensure!(facts["cutover"]["was_running"] == true, "not told that it ran: {facts}");
        ensure!(facts["disks"].as_array().is_some_and(|disks| disks.len() == 2), "the disks: {facts}");
    }
    let journal = rig.ctl().text(&["events", "back"])?;
    for said in ["heard of before stop-source", "heard of after start-vm"] {
        ensure!(journal.contains(said), "the journal does not tell {said:?}: {journal}");
    }
    Ok(())
}
