//! `kill -9` at every named point of the daemon, in random order, with a guest that writes.
//!
//! Rule: the points are read from the daemon's sources, so a new one is covered automatically; one that is
//! reached in no situation is a failure.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use warmd_core::model::phase::Phase;

use super::{Row, row, stage::FaultStage};
use crate::{Rig, rig::WORK, wait_until};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row("daemon", "kill-at-points", "kill -9 at every named point in random order, while the guest writes", false, every_point),
    row("daemon", "kill-anywhere", "kill -9 at random moments of passes, cutovers and their undoing, while the guest writes", true, anywhere),
];

/// States on whose entry a daemon can be killed, by the driver's names.
const STATES: [&str; 12] = [
    "defined",
    "preparing",
    "seeding",
    "synced",
    "syncing",
    "cutting-over",
    "undoing",
    "paused",
    "failed",
    "cancelling",
    "done",
    "cancelled",
];

/// The situation that brings the daemon to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Seeding,
    Sync,
    Pause,
    /// A cutover that is aborted.
    Undo,
    /// A cutover to its end.
    Cutover,
    Cancel,
}

/// All points that the sources name.
fn points() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon"), &mut found)?;
    ensure!(found.len() > 20, "only {} points found", found.len());
    Ok(found)
}

fn collect(folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("crash.rs") {
            let text = std::fs::read_to_string(&path)?;
            for call in text.split("crash::point(").skip(1) {
                let name = call.split('"').nth(1).context("a crash point without a name")?;
                let names: Vec<String> = match name.split_once('{').map(|(_, rest)| rest.split('}').next()) {
                    None => vec![name.to_owned()],
                    Some(Some("phase")) => {
                        Phase::ALL.iter().map(|phase| name.replace("{phase}", phase.name())).collect()
                    }
                    Some(Some("")) if name.starts_with("state.") => {
                        STATES.iter().map(|state| name.replace("{}", state)).collect()
                    }
                    Some(_) => bail!("{}: what can {name:?} be? say so here", path.display()),
                };
                found.extend(names);
            }
        }
    }
    Ok(())
}

/// The way to a point; a point without an entry here is tried on the way of passes.
fn way(point: &str) -> Way {
    match point {
        "disks.prepared" | "state.preparing" | "state.seeding" => Way::Seeding,
        "state.paused" => Way::Pause,
        "state.undoing" => Way::Undo,
        "state.cancelling" | "state.cancelled" => Way::Cancel,
        "root.recorded" | "target.start" | "state.cutting-over" | "state.done" => Way::Cutover,
        _ if point.starts_with("undo.") => Way::Undo,
        _ if point.starts_with("phase.") => Way::Cutover,
        _ => Way::Sync,
    }
}

/// Points that no successful migration passes: never requested, or only after a failure. Those of a
/// conversion have their own test, `end_to_end::conversion`: no migration here has one.
fn is_unreachable(point: &str) -> bool {
    matches!(point, "state.defined" | "state.failed") || point.starts_with("conversion.")
}

fn every_point(stage: &mut FaultStage<'_>) -> Result<()> {
    let mut points: Vec<String> = points()?.into_iter().filter(|point| !is_unreachable(point)).collect();
    points.shuffle(&mut stage.random);
    let of =
        |wanted: Way| points.iter().filter(move |point| way(point) == wanted).cloned().collect::<Vec<_>>();
    // Points that are passed once, in their order.
    let in_order = |wanted: Way, first: &[&str]| {
        let mut points = of(wanted);
        points.sort_by_key(|point| first.iter().position(|name| name == point));
        points
    };
    stage.running(24, |_| {})?;
    let mut random = StdRng::seed_from_u64(stage.random.random());
    let taken = stage.dir.join("taken.xml");
    std::fs::write(&taken, TAKEN)?;
    let rig = stage.rig_mut()?;

    // Cancelled, and started again.
    rig.daemon.start()?;
    rig.apply()?;
    rig.wait_for("synced")?;
    rig.daemon.stop()?;
    for point in in_order(Way::Cancel, &["state.cancelling", "state.cancelled"]) {
        rig.crash(&point, |rig| rig.try_verb("cancel", &["--no-wait"]).map(drop))?;
    }
    for point in in_order(Way::Seeding, &["state.preparing", "disks.prepared", "state.seeding"]) {
        rig.crash(&point, Rig::apply)?;
    }
    rig.daemon.start()?;
    rig.wait_for("synced")?;

    for point in of(Way::Sync) {
        rig.daemon.stop()?;
        // Somewhere in the pass, not always at its beginning.
        let nth = if point.starts_with("commit.") { random.random_range(1..=3) } else { 1 };
        rig.crash(&format!("{point}:{nth}"), |rig| rig.try_verb("sync", &["--no-wait"]).map(drop))?;
        settle(rig)?;
    }
    for point in of(Way::Pause) {
        rig.daemon.stop()?;
        rig.crash(&point, |rig| rig.try_verb("pause", &[]).map(drop))?;
        rig.daemon.start()?;
        rig.verb("resume")?;
        rig.wait_for("synced")?;
    }
    rig.new.virsh(["define", &taken.to_string_lossy()])?;
    for point in of(Way::Undo) {
        rig.daemon.stop()?;
        rig.crash(&point, |rig| rig.try_verb("cutover", &["--no-wait"]).map(drop))?;
        settle(rig)?;
        let state = rig.guest.state(&rig.old)?;
        ensure!(state == "running", "after an undone cutover the source is {state:?}");
    }
    rig.new.virsh(["undefine", "guest"])?;
    rig.daemon.stop()?;
    let mut forward = of(Way::Cutover);
    // A cutover passes its phases once, and returns to one only after a crash in it.
    forward.sort_by_key(|point| {
        let phase = Phase::ALL.iter().position(|phase| point.contains(phase.name()));
        match (phase, point.as_str()) {
            (Some(phase), _) => 2 * phase + 1 + usize::from(point.ends_with("end")),
            (None, "state.cutting-over") => 0,
            (None, "root.recorded") => 7,
            (None, "target.start") => 13,
            (None, _) => 99,
        }
    });
    for (nth, point) in forward.iter().enumerate() {
        rig.crash(
            point,
            |rig| {
                if nth == 0 { rig.try_verb("cutover", &["--no-wait"]).map(drop) } else { Ok(()) }
            },
        )?;
    }
    rig.daemon.start()?;
    rig.wait_for("done").map(drop)
}

/// A foreign VM that has the guest's name on the target: the guest's VM cannot be created.
pub(super) const TAKEN: &str = "<domain type='qemu'><name>guest</name><memory unit='MiB'>64</memory>\
                     <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>";

/// The daemon is up again and the migration at rest.
fn settle(rig: &mut Rig) -> Result<()> {
    rig.daemon.start()?;
    rig.wait_for("synced").map(drop)
}

fn anywhere(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(24, |_| {})?;
    let kills = if stage.short { 6 } else { 20 };
    let mut random = StdRng::seed_from_u64(stage.random.random());
    let rig = stage.rig_mut()?;
    rig.daemon.start()?;
    rig.apply()?;
    for _ in 0..kills {
        ask(rig, &mut random)?;
        let calls = random.random_range(0..12_u32);
        for _ in 0..calls {
            // Each query takes a moment; their random number sets the time of the kill.
            rig.show()?;
        }
        rig.daemon.kill()?;
        rig.assert_one_runs()?;
        rig.daemon.start()?;
        let view = rig.show()?;
        if view["state"] == "done" {
            return Ok(());
        }
    }
    let view = wait_until("its rest", WORK, || {
        let view = rig.show()?;
        Ok(matches!(view["state"].as_str(), Some("synced" | "done" | "failed")).then_some(view))
    })?;
    ensure!(view["state"] != "failed", "it failed: {}", view["reason"]);
    if view["state"] == "done" {
        return Ok(());
    }
    rig.cut_over_and_prove()
}

/// One of an operator's requests; a refusal is an answer.
fn ask(rig: &Rig, random: &mut StdRng) -> Result<()> {
    let verbs: [&[&str]; 5] = [
        &["sync", "--no-wait"],
        &["sync", "--no-wait"],
        &["pause"],
        &["cutover", "--no-wait"],
        &["cutover", "--abort", "--no-wait"],
    ];
    let verb = verbs[random.random_range(0..verbs.len())];
    let (verb, more) = verb.split_first().context("no verb")?;
    rig.try_verb(verb, more)?;
    if *verb == "pause" {
        rig.try_verb("resume", &[])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_found_and_expanded() {
        let points = points().unwrap();
        for known in
            ["snapshot.taken", "commit.after", "phase.boot-check.end", "undo.discarded", "state.syncing"]
        {
            assert!(points.contains(known), "{known} is missing: {points:?}");
        }
    }
}
