//! The daemon itself: stopped, and its clock set.

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use rand::RngExt as _;

use super::{Row, row, shim::Strike, stage::FaultStage};
use crate::rig::{WORK, assert_nothing_twice};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row("daemon", "sigterm", "SIGTERM in the middle of a pass: it drains, and ends within its deadline", false, sigterm),
    row("daemon", "clock-forward", "the clock jumps a day ahead in a pass, and while it waits", false, |stage| clock(stage, 86_400)),
    row("daemon", "clock-back", "the clock jumps a day back in a pass, and while it waits", false, |stage| clock(stage, -86_400)),
];

fn sigterm(stage: &mut FaultStage<'_>) -> anyhow::Result<()> {
    stage.off(48, |_| {})?;
    let some = stage.random.random_range(2..16_u64) << 20;
    stage.freeze(some)?;
    let rig = stage.rig_mut()?;
    rig.daemon.thaw()?;
    let status = rig.daemon.stop()?;
    ensure!(status.code() == Some(0), "warmd ended with {status}");
    rig.daemon.start()?;
    rig.wait_for("synced")?;
    let passes = rig.passes()?;
    let first = passes.first().context("no passes")?;
    ensure!(first.error.is_some() && first.drained >= some, "it was not stopped, or kept nothing: {first:?}");
    assert_nothing_twice(&passes)
}

fn clock(stage: &mut FaultStage<'_>, seconds: i64) -> anyhow::Result<()> {
    let shim = stage.off_with_shim(48)?;
    stage.freeze(2 << 20)?;
    shim.set(&[Strike::all("clock", "-", seconds)])?;
    stage.thaw()?;
    stage.rig()?.wait_for("synced")?;
    jumped(stage, "ended", seconds)?;
    stage.scribble(4)?;
    if seconds < 0 {
        // The schedule starts the passes, before the jump and after it, without a request.
        let plan = &stage.rig()?.plan;
        let often = std::fs::read_to_string(plan)?.replace("interval = \"1h\"", "interval = \"20s\"");
        std::fs::write(plan, often)?;
        stage.rig()?.apply()?;
    }
    shim.set(&[Strike::all("clock", "-", 2 * seconds)])?;
    if seconds < 0 {
        let passes = stage.rig()?.passes()?.len() as u64;
        stage.wait_for_view("a delta by the schedule", WORK, |view| {
            view["state"] == "synced" && view["pass"]["number"].as_u64() >= Some(passes + 2)
        })?;
    } else {
        // When the daemon looks again, the interval of an hour has long passed.
        stage.rig_mut()?.daemon.stop()?;
        stage.rig_mut()?.daemon.start()?;
        stage.wait_for_view("the delta that is due", WORK, |view| {
            view["state"] == "synced" && view["pass"]["number"].as_u64() >= Some(2)
        })?;
    }
    jumped(stage, "started", 2 * seconds)?;
    shim.clear()
}

/// The recorded start of the last pass is at least nearly this many seconds from now.
fn jumped(stage: &FaultStage<'_>, field: &str, seconds: i64) -> anyhow::Result<()> {
    let report = stage.rig()?.report()?;
    let pass = report["passes"].as_array().and_then(|passes| passes.last()).context("no passes")?;
    let at: DateTime<Utc> = pass[field].as_str().context("a pass without times")?.parse()?;
    let away = (at - Utc::now()).num_seconds();
    ensure!((away - seconds).abs() < 3600, "the clock did not jump: a pass {field} {away} s from here");
    Ok(())
}
