//! A real guest that is converted by the documentation's example: its file system and its processors
//! change on the target; and the daemon killed at every point of the conversion.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use warmd_tests::{Rig, RigSpec, run, tool};

/// All points of a conversion, in order. If the disks were written, the next start restores them.
const POINTS: [&str; 9] = [
    "phase.convert.begin",
    "conversion.guarded",
    "conversion.ran",
    "conversion.pending",
    "conversion.noted",
    "conversion.written",
    "conversion.committed",
    "conversion.lowered",
    "phase.convert.end",
];

/// Lines of a plan.
fn policy(command: &str) -> String {
    format!(
        "graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"2s\"\n\n\
         [conversion]\ncommand = {command}\ntimeout = \"2m\"\n"
    )
}

fn example() -> String {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/examples/conversion/convert");
    format!("[\"{}\", \".cpu.cores = 2\"]", program.display())
}

#[test]
fn a_converted_guest_runs_whatever_dies_on_the_way() {
    run(|dir| {
        let mut rig = Rig::running(dir, &RigSpec::new("converted", 8))?;
        let fails = "[\"/bin/sh\", \"-c\", \"echo no driver for this one; exit 4\"]";
        rig.write_plan(&policy(fails))?;
        rig.daemon.start()?;
        rig.apply()?;
        rig.wait_for("synced")?;
        let out = rig.try_verb("cutover", &[])?;
        ensure!(out.code == Some(1), "the cutover ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        ensure!(out.stderr.contains("it said last: no driver for this one"), "no reason: {}", out.stderr);
        rig.wait_for("synced")?;
        let state = rig.guest.state(&rig.old)?;
        ensure!(state == "running", "after an undone cutover the source is {state:?}");
        rig.assert_no_overlays()?;

        rig.write_plan(&policy(&example()))?;
        rig.apply()?;
        rig.daemon.stop()?;
        rig.crash(POINTS[0], |rig| rig.try_verb("cutover", &["--no-wait"]).map(drop))?;
        for point in POINTS.into_iter().skip(1) {
            rig.crash(point, |_| Ok(()))?;
        }
        rig.daemon.start()?;
        let view = rig.wait_for("done")?;
        rig.assert_moved()?;
        rig.assert_no_overlays()?;

        let boot = rig.locations()?.into_iter().next().context("no disk")?;
        let disk = format!("{}?offset={}", boot.display(), 1 << 20);
        let note = tool::call("debugfs", ["-R", "cat converted", &disk].map(Path::new))?;
        // Of the several started conversions only one has left its text in the guest.
        ensure!(note.trim() == "converted for new, attempt 2", "in the guest is {note:?}");
        let xml = rig.new.virsh(["dumpxml", "converted"])?;
        ensure!(xml.contains("cores='2'"), "its processors are not others: {xml}");

        let report = rig.report()?;
        let conversion = &report["conversion"];
        ensure!(conversion["command"][1] == ".cpu.cores = 2", "the report has {conversion}");
        ensure!(conversion["disks"][0]["changed"].as_u64() > Some(0), "what was changed: {conversion}");
        ensure!(conversion["disks"][1]["changed"] == 0, "what was changed: {conversion}");
        let pending = |disk: &Value| disk["pending"].as_u64();
        let disks = report["disks"].as_array().context("no disks")?;
        ensure!(disks.iter().all(|disk| pending(disk) == Some(0)), "pending: {disks:?}");
        let phases = report["cutover"].as_array().context("no phases")?;
        let convert = phases.iter().find(|phase| phase["phase"] == "convert").context("no conversion")?;
        let outcome = convert["outcome"].as_str().unwrap_or_default();
        ensure!(
            outcome.contains("of disk vda") && outcome.contains("and the machine"),
            "it ended: {outcome}"
        );
        ensure!(view["cutover"]["progress"].is_null(), "it is over: {view}");
        Ok(())
    });
}
