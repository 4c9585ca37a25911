//! The daemon killed, as by `kill -9`, at every point of its work on a real guest: after each restart it
//! continues automatically from the last commit, and the guest arrives whole.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warmd_report::signing::ReportKey;
use warmd_tests::{
    Rig, RigSpec,
    daemon::program,
    rig::{Pass, WORK, assert_nothing_twice},
    run, tool,
};

/// From nothing to synced. The sixth is in the middle of the full pass.
const SEEDING: [&str; 8] = [
    "disks.prepared",
    "state.seeding",
    "snapshot.taken",
    "advance.committed",
    "commit.before:4",
    "commit.after:12",
    "snapshot.released",
    "marks.released",
];

const DELTA: [&str; 7] = [
    "state.syncing",
    "snapshot.taken",
    "advance.committed",
    "commit.before:3",
    "commit.after:3",
    "snapshot.released",
    "marks.released",
];

/// A whole cutover; a target VM whose start was not saved is found running.
const CUTOVER: [&str; 21] = [
    "phase.catch-up-delta.begin",
    "phase.catch-up-delta.end",
    "phase.stop-source.begin",
    "phase.stop-source.end",
    "phase.final-delta.begin",
    "snapshot.taken",
    "phase.final-delta.end",
    "phase.verify.begin",
    "root.recorded",
    "phase.verify.end",
    "phase.convert.begin",
    "phase.convert.end",
    "phase.create-vm.begin",
    "phase.create-vm.end",
    "phase.start-vm.begin",
    "target.start",
    "phase.start-vm.end",
    "phase.boot-check.begin",
    "phase.boot-check.end",
    "phase.cleanup.begin",
    "phase.cleanup.end",
];

#[test]
fn killed_in_passes_it_goes_on_from_the_last_commit() {
    run(|dir| {
        let mut rig = Rig::running(dir, &RigSpec::new("passes", 64))?;
        rig.crash(SEEDING[0], Rig::apply)?;
        for point in SEEDING.into_iter().skip(1) {
            rig.crash(point, |_| Ok(()))?;
        }
        rig.daemon.start()?;
        rig.wait_for("synced")?;
        let full: Vec<Pass> = rig.passes()?.into_iter().filter(|pass| pass.kind == "full").collect();
        assert_nothing_twice(&full)?;
        let cut_short = full.iter().filter(|pass| pass.drained > 0 && pass.drained < pass.pending).count();
        ensure!(cut_short >= 1, "no pass was cut short in the middle: {full:#?}");
        // Measured now, because the guest writes its cache back in bursts, also before the first pass is
        // recorded.
        let data = rig.data()?;
        let (read, changed): (u64, u64) =
            (full.iter().map(|p| p.read).sum(), full.iter().skip(1).map(|p| p.changed).sum());
        ensure!(read <= data + data / 8 + changed, "read {read} of {data}, {changed} changed: {full:#?}");

        rig.daemon.stop()?;
        rig.crash(DELTA[0], |rig| rig.try_verb("sync", &["--no-wait"]).map(drop))?;
        for point in DELTA.into_iter().skip(1) {
            rig.crash(point, |_| Ok(()))?;
        }
        rig.daemon.start()?;
        rig.wait_for("synced")?;
        rig.cut_over_and_prove()
    });
}

#[test]
fn killed_in_every_phase_of_a_cutover_it_comes_to_its_end() {
    run(|dir| {
        let mut rig = Rig::running(dir, &RigSpec::new("cutover", 16))?;
        rig.daemon.start()?;
        rig.apply()?;
        let view = rig.wait_for("synced")?;
        let volumes: Vec<(String, u64)> = view["disks"]
            .as_array()
            .context("no disks")?
            .iter()
            .filter_map(|disk| Some((disk["location"].as_str()?.to_owned(), disk["size_bytes"].as_u64()?)))
            .collect();
        rig.daemon.stop()?;
        rig.crash(CUTOVER[0], |rig| rig.try_verb("cutover", &["--no-wait"]).map(drop))?;
        let mut roots = Vec::new();
        for point in CUTOVER.into_iter().skip(1) {
            rig.crash(point, |_| Ok(()))?;
            if point == "target.start" {
                // The last moment at which the target's disks equal the copy.
                roots = recomputed(&volumes)?;
            }
        }
        rig.daemon.start()?;
        rig.wait_for("done")?;
        proven_by_report(&rig, dir.path(), &roots)?;
        let left = rig.old.virsh(["checkpoint-list", &rig.guest.name, "--name"])?;
        ensure!(left.trim().is_empty(), "left on the source: {left}");
        rig.assert_moved()
    });
}

/// The roots of raw volumes, by `warmd root`, and by a script written only from the documentation.
fn recomputed(volumes: &[(String, u64)]) -> Result<Vec<String>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/report/root.py");
    let mut roots = Vec::new();
    for (volume, size) in volumes {
        let size = size.to_string();
        let mut ours = Command::new(program("warmd")?);
        let printed = tool::output(ours.args(["root", volume, "--size", &size]), WORK)?;
        let root = printed.split_whitespace().next().context("warmd root printed nothing")?;
        let documented = tool::output(Command::new("python3").args([script, volume, &size]), WORK)?;
        ensure!(documented.trim() == root, "{volume}: {root}, and by the documentation {documented}");
        roots.push(root.to_owned());
    }
    ensure!(!roots.is_empty(), "no disks");
    Ok(roots)
}

/// The recorded roots in the report are those of the copied volumes, and its signature is checked without a
/// daemon.
fn proven_by_report(rig: &Rig, dir: &Path, roots: &[String]) -> Result<()> {
    let base = dir.join("evidence");
    let base = base.to_str().context("no UTF-8")?;
    rig.ctl().text(&["migration", "report", &rig.guest.name, "--save", base])?;
    let text = std::fs::read_to_string(format!("{base}.json"))?;
    let report: Value = serde_json::from_str(&text)?;
    let disks = report["disks"].as_array().context("no disks")?;
    ensure!(
        disks.len() == roots.len(),
        "{} disks are in the report, and {} were copied",
        disks.len(),
        roots.len()
    );
    for (disk, root) in disks.iter().zip(roots) {
        ensure!(
            disk["manifest_root"] == root.as_str() && disk["root_recorded"].is_string(),
            "not {root}: {disk}"
        );
        ensure!(disk["verified_by"] == "readback full" || disk["verified_by"] == "compare full", "{disk}");
    }
    let asked = report["requests"].as_array().context("no requests")?;
    let cutover =
        asked.iter().find(|line| line["text"] == "cutover accepted").context("who asked for it?")?;
    let by = cutover["by"].as_str().unwrap_or_default();
    ensure!(by.starts_with("operator uid=0 pid="), "asked by {by:?}");

    let key = rig.ctl().text(&["report", "key"])?;
    let offline = |args: &[&str]| {
        let socket = dir.join("no/such/socket");
        let mut command = Command::new(program("warmctl")?);
        tool::outcome(command.arg("--socket").arg(socket).args(["report", "verify"]).args(args), WORK)
    };
    let good = offline(&[&format!("{base}.json"), "--key", key.trim()])?;
    ensure!(good.code == Some(0) && good.stdout.contains(roots[0].as_str()), "{good:?}");
    let unchecked = offline(&[&format!("{base}.json")])?;
    ensure!(unchecked.code == Some(0) && unchecked.stdout.contains("NOT CHECKED"), "{unchecked:?}");
    let digest = report["signature"]["digest"].as_str().context("no digest")?;
    ensure!(std::fs::read_to_string(format!("{base}.md"))?.contains(digest), "the text names another report");

    let forged = format!("{base}.forged.json");
    std::fs::write(&forged, text.replacen("cutover accepted", "cutover Accepted", 1))?;
    let bad = offline(&[&forged])?;
    ensure!(bad.code == Some(1) && bad.stderr.contains("NOT VALID"), "{bad:?}");
    let other = ReportKey::from_secret(&[9; 32]).public().to_string();
    let wrong = offline(&[&format!("{base}.json"), "--key", &other])?;
    ensure!(wrong.code == Some(1) && wrong.stderr.contains("signed by another key"), "{wrong:?}");
    let none = offline(&[&format!("{base}.json"), "--key", &"11".repeat(30)])?;
    ensure!(none.code == Some(2), "{none:?}");
    Ok(())
}
