//! The forecast of a cutover's downtime and of its final delta.
//!
//! Rule: pure. Measurements come in; an unmeasured step comes as an expectation with its deadline.
//!
//! The downtime is the sum of its steps: shutdown, snapshot, final delta, verification, conversion, hooks,
//! creation, boot. Each is a [`PredictedRange`] ([`interval`]), the sum takes those that were measured as
//! partly independent, and the errors of earlier forecasts widen or narrow it ([`calibration`]). Unmeasured
//! steps have errors in common: where one of them is faster than expected, the host or the guest is, and so
//! are the others.

pub mod calibration;
mod go_no_go;
pub mod interval;

use std::fmt;

pub use self::{
    calibration::{PastForecast, calibrate},
    go_no_go::{Blame, Ceiling, Fit, GoNoGo, blame, fit, go_or_no_go},
    interval::{PredictedRange, Prior, predict},
};

/// A step between the source's stop and the target's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CutoverStep {
    Shutdown,
    Snapshot,
    FinalDelta,
    Verify,
    Convert,
    Hooks,
    Create,
    Boot,
}

impl fmt::Display for CutoverStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "shutdown",
            Self::Snapshot => "snapshot",
            Self::FinalDelta => "final delta",
            Self::Verify => "verification",
            Self::Convert => "conversion",
            Self::Hooks => "hooks",
            Self::Create => "creation",
            Self::Boot => "boot",
        })
    }
}

/// A step that does not depend on what has changed.
#[derive(Clone, Copy, Debug)]
pub struct MeasuredStep<'a> {
    pub step: CutoverStep,
    /// Its earlier times, in seconds, the oldest first: in rehearsals, undone cutovers, those of other VMs of
    /// the plan.
    pub seconds: &'a [f64],
    /// Of it, in seconds.
    pub prior: Prior,
}

/// The parts of the final delta.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    /// Bytes that are pending already.
    pub pending: f64,
    /// Bytes expected to change from the last snapshot to the source's stop:
    /// [`crate::change_rate::ExpectedChange::between`].
    pub change: f64,
    /// Of earlier deltas: bytes that changed ÷ bytes that were expected; the oldest first.
    pub change_ratios: &'a [f64],
    /// Bytes per second drained by the last passes together.
    pub throughput: f64,
    /// Of single passes: bytes per second; the oldest first.
    pub throughputs: &'a [f64],
    /// The plan's deadline for it, in seconds; infinite if it has none.
    pub deadline: f64,
}

/// A downtime forecast.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Bytes.
    pub final_delta: PredictedRange,
    /// Seconds, not calibrated: to be kept as [`PastForecast`] when the cutover is finished.
    pub raw: PredictedRange,
    /// Seconds, calibrated: what is shown.
    pub downtime: PredictedRange,
    /// Each step's part of it, in seconds.
    pub steps: Vec<(CutoverStep, PredictedRange)>,
    /// Steps without measurements.
    pub assumed: Vec<CutoverStep>,
}

/// How far change may be off while no delta has shown it.
const CHANGE_PRIOR: Prior = Prior::new(1.0, 3.0);
/// Likewise a single pass's throughput from that of all.
const THROUGHPUT_SPREAD: f64 = 1.5;

/// The part of the variance of steps' errors that is common to all of a cutover: a busy host is slow in each.
const COMMON: f64 = 0.5;

/// The forecast from what was measured; `None` without a throughput.
pub fn forecast(delta: &Delta, measured: &[MeasuredStep], past: &[PastForecast]) -> Option<Forecast> {
    if !(delta.throughput.is_finite() && delta.throughput > 0.0) {
        return None;
    }
    let ratio = predict(delta.change_ratios, CHANGE_PRIOR);
    let of = |ratio: f64| delta.pending.max(0.0) + delta.change.max(0.0) * ratio;
    // The point stays that of the rates: ratios only show how far it may be off.
    let final_delta =
        PredictedRange { low: of(ratio.low.min(1.0)), expected: of(1.0), high: of(ratio.high.max(1.0)) };
    let prior = Prior::new(delta.throughput, delta.throughput * THROUGHPUT_SPREAD);
    let rate = predict(delta.throughputs, prior);
    let copy = PredictedRange {
        low: final_delta.low / rate.high.max(delta.throughput),
        expected: final_delta.expected / delta.throughput,
        high: final_delta.high / rate.low.min(delta.throughput),
    };
    let cap = |seconds: f64| seconds.min(delta.deadline);
    let copy = PredictedRange { low: cap(copy.low), expected: cap(copy.expected), high: cap(copy.high) };
    let mut steps: Vec<_> =
        measured.iter().map(|each| (each.step, predict(each.seconds, each.prior))).collect();
    steps.push((CutoverStep::FinalDelta, copy));
    steps.sort_by_key(|(step, _)| *step);
    let assumed: Vec<_> =
        measured.iter().filter(|each| each.seconds.is_empty()).map(|each| each.step).collect();
    let (unknown, known): (Vec<_>, Vec<_>) = steps.iter().partition(|(step, _)| assumed.contains(step));
    let of = |steps: Vec<(CutoverStep, PredictedRange)>| steps.into_iter().map(|(_, range)| range);
    let raw = PredictedRange::partly(of(known).chain([PredictedRange::along(of(unknown))]), COMMON);
    Some(Forecast { final_delta, raw, downtime: calibrate(raw, past), steps, assumed })
}
