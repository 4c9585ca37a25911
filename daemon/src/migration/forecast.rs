//! How long the VM would be down: measured after a cutover, estimated before.
//!
//! Rule: an estimate rests on measured passes of this migration; before there is a delta there is none.

use super::{context::Context, failure::WorkError};
use crate::{
    model::{
        phase::Phase,
        plan::VerifyMode,
        view::{PassKind, PassView, PhaseView},
    },
    store::Cutover,
};

/// What shutting down takes until a cutover of this migration has measured it, in seconds.
const SHUTDOWN: f64 = 5.0;
/// What creating and starting the VM on the target takes, likewise.
const CREATE_AND_START: f64 = 2.0;

/// Seconds that the VM would be down if cut over now; `None` before a pass has been measured.
pub async fn downtime(context: &Context) -> Result<Option<f64>, WorkError> {
    let passes = context.store.passes(context.id).await?;
    let measured: Vec<_> = passes
        .iter()
        .map(|pass| &pass.view)
        .filter(|pass| pass.error.is_none())
        .filter_map(measure)
        .collect();
    let bytes = context.machine.disks.iter().map(|disk| disk.size.0).sum::<u64>() as f64;
    let Some(delta) = final_delta_seconds(&measured) else { return Ok(None) };
    let read_rate = read_rate(&measured);
    let verify = match context.plan().verify.mode {
        VerifyMode::None => 0.0,
        VerifyMode::Readback | VerifyMode::Compare => bytes / read_rate,
    };
    let phases = context.store.phases(context.id).await?;
    let shutdown = seconds(&phases, Phase::StopSource).unwrap_or(SHUTDOWN);
    Ok(Some(shutdown + delta + verify + CREATE_AND_START))
}

/// A pass as it went.
struct Measured {
    is_full: bool,
    /// Seconds since the epoch.
    started: f64,
    seconds: f64,
    /// Bytes.
    changed: u64,
    read: u64,
}

fn measure(pass: &PassView) -> Option<Measured> {
    let seconds = (pass.ended? - pass.started).as_seconds_f64();
    Some(Measured {
        is_full: pass.kind == PassKind::Full,
        started: pass.started.timestamp_millis() as f64 / 1000.0,
        seconds,
        changed: pass.disks.iter().map(|disk| disk.changed).sum(),
        read: pass.disks.iter().map(|disk| disk.figures.read).sum(),
    })
}

/// What the final delta would take. The last live delta comes right before it, so what it copies is what changes while
/// that one runs: a delta's fixed cost (the shortest seen) and the last change rate over the best read rate.
fn final_delta_seconds(measured: &[Measured]) -> Option<f64> {
    let deltas: Vec<_> = measured.iter().filter(|pass| !pass.is_full).collect();
    let last = deltas.last()?;
    let fixed = deltas.iter().map(|pass| pass.seconds).fold(f64::INFINITY, f64::min);
    let before = measured.iter().rev().find(|pass| pass.started < last.started)?;
    let change_rate = last.changed as f64 / (last.started - before.started).max(0.001);
    Some(fixed + change_rate * last.seconds / read_rate(measured))
}

/// The best rate at which a pass has read, in bytes per second; at least 1 MB/s is taken for granted.
fn read_rate(measured: &[Measured]) -> f64 {
    let rates = measured.iter().map(|pass| pass.read as f64 / pass.seconds.max(0.001));
    rates.fold(1e6, f64::max)
}

/// Seconds from the source stopped to the target running; `None` until both have happened.
pub fn measured_downtime(cutover: &Cutover) -> Option<f64> {
    Some((cutover.target_running? - cutover.source_stopped?).as_seconds_f64())
}

fn seconds(phases: &[PhaseView], phase: Phase) -> Option<f64> {
    let view = phases.iter().find(|view| view.phase == phase)?;
    Some((view.ended? - view.started).as_seconds_f64())
}
