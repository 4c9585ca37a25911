//! How long the VM would be down: measured after a cutover, estimated before.
//!
//! Rule: an estimate rests on measured passes of this migration; before there is a delta there is none.

use std::time::Duration;

use chrono::{DateTime, Utc};
use warmd_cbt::convergence::{self, MeasuredPass};

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
/// What opening the final snapshot takes beside copying, likewise.
const SNAPSHOT: f64 = 2.0;
/// What creating and starting the VM on the target takes, likewise.
const CREATE_AND_START: f64 = 3.0;
/// What is taken for granted of the rate at which a target is read back, in bytes per second.
const VERIFY_RATE: f64 = 500e6;

/// Seconds that the VM would be down if cut over now; `None` before a delta has been measured.
///
/// A last live delta comes first, so what the final one has to copy is what the guest changes while that one runs.
pub async fn downtime(context: &Context) -> Result<Option<f64>, WorkError> {
    let passes = context.store.passes(context.id).await?;
    let measured = measure(passes.iter().map(|pass| &pass.view));
    let Some(last) = measured.last().filter(|last| last.since_last.is_some()) else { return Ok(None) };
    let Some(forecast) = convergence::forecast(&measured, 0, last.took) else { return Ok(None) };
    let bytes = context.machine.disks.iter().map(|disk| disk.size.0).sum::<u64>() as f64;
    let verify = match context.plan().verify.mode {
        VerifyMode::None => 0.0,
        VerifyMode::Readback | VerifyMode::Compare => bytes / VERIFY_RATE,
    };
    let phases = context.store.phases(context.id).await?;
    let shutdown = seconds(&phases, Phase::StopSource).unwrap_or(SHUTDOWN);
    Ok(Some(shutdown + SNAPSHOT + forecast.copy.as_secs_f64() + verify + CREATE_AND_START))
}

/// The passes that came to their end. A final one belongs to a cutover that was undone, and tells nothing.
fn measure<'a>(passes: impl Iterator<Item = &'a PassView>) -> Vec<MeasuredPass> {
    let mut before: Option<DateTime<Utc>> = None;
    let mut measured = Vec::new();
    for pass in passes.filter(|pass| pass.error.is_none() && pass.kind != PassKind::Final) {
        let Some(took) = pass.ended.and_then(|ended| span(pass.started, ended)) else { continue };
        measured.push(MeasuredPass {
            pending: pass.disks.iter().map(|disk| disk.pending).sum(),
            took,
            since_last: before.and_then(|before| span(before, pass.started)),
        });
        before = Some(pass.started);
    }
    measured
}

/// `None` if the clock was set back between them.
fn span(from: DateTime<Utc>, to: DateTime<Utc>) -> Option<Duration> {
    (to - from).to_std().ok()
}

/// Seconds from the source stopped to the target running; `None` until both have happened.
pub fn measured_downtime(cutover: &Cutover) -> Option<f64> {
    Some((cutover.target_running? - cutover.source_stopped?).as_seconds_f64())
}

fn seconds(phases: &[PhaseView], phase: Phase) -> Option<f64> {
    let view = phases.iter().find(|view| view.phase == phase)?;
    Some((view.ended? - view.started).as_seconds_f64())
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::model::{
        id::DiskKey,
        view::{DiskPassView, PassView},
    };

    fn pass(kind: PassKind, starts: i64, took: i64, pending: u64, error: Option<&str>) -> PassView {
        let started = DateTime::from_timestamp(starts, 0).unwrap();
        PassView {
            number: 1,
            kind,
            started,
            ended: Some(started + TimeDelta::seconds(took)),
            error: error.map(str::to_owned),
            cpu: None,
            disks: vec![DiskPassView {
                key: DiskKey("vda".to_owned()),
                pending,
                changed: pending,
                extents: 1,
                unknown: None,
                mark: String::new(),
                figures: warmd_cbt::store::PassFigures::default(),
                telemetry: None,
                audit: None,
            }],
        }
    }

    #[test]
    fn only_passes_that_ended_well_count() {
        let passes = [
            pass(PassKind::Full, 0, 100, 1000, None),
            pass(PassKind::Delta, 200, 1, 1, Some("broken")),
            pass(PassKind::Delta, 300, 10, 50, None),
            pass(PassKind::Final, 400, 1, 1, None),
        ];
        let measured = measure(passes.iter());
        assert_eq!(measured.len(), 2);
        assert_eq!(measured[0].since_last, None);
        assert_eq!(measured[1].since_last, Some(Duration::from_mins(5)));
        assert_eq!((measured[1].pending, measured[1].took), (50, Duration::from_secs(10)));
    }

    #[test]
    fn the_downtime_runs_from_stop_to_start() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0);
        let mut cutover = Cutover { source_stopped: at(10), ..Cutover::default() };
        assert_eq!(measured_downtime(&cutover), None);
        cutover.target_running = at(17);
        assert_eq!(measured_downtime(&cutover), Some(7.0));
    }
}
