//! The meters of a pass at one moment, as plain values.

use serde::{Deserialize, Serialize};

use super::{
    PassMeter,
    blame::{StageLoad, blame},
    histogram::HistogramCounts,
    stage::{Stage, StageMeter},
    wait::Wait,
};

/// The stages and waits of a pass until now. Times are in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// How long the pass has run, or ran.
    pub elapsed: f64,
    /// The stages that were used or waited for, in the data's order.
    pub stages: Vec<StageView>,
    /// Where the pass waited, if at all.
    pub waits: Vec<WaitView>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageView {
    pub stage: Stage,
    pub bytes: u64,
    pub requests: u64,
    /// Requests in flight now, and the most that ever were.
    pub in_flight: u64,
    pub in_flight_max: u64,
    /// The sum of all requests' times, those in flight included until now.
    pub busy: f64,
    pub latency: LatencyFigures,
    /// Time spent computing: for the digest the time of its thread, which is that of a core if one was free.
    /// Zero elsewhere, where it is not known by stage.
    pub cpu: f64,
    /// How long the pass waited for this stage: the measured waits, booked on the stage that caused them.
    pub stalled: f64,
}

/// How long the requests took; see [`super::Histogram`] for its exactness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyFigures {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    /// Exact.
    pub max: f64,
}

/// One place at which the pass waited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitView {
    pub wait: Wait,
    pub count: u64,
    /// Time in which at least one waited.
    pub time: f64,
}

impl Telemetry {
    /// The figures of a stage, if it was used or waited for.
    pub fn stage(&self, stage: Stage) -> Option<&StageView> {
        self.stages.iter().find(|view| view.stage == stage)
    }
}

impl StageView {
    /// Bytes per second of a pass that ran for `elapsed` seconds.
    pub fn rate(&self, elapsed: f64) -> f64 {
        if elapsed > 0.0 { self.bytes as f64 / elapsed } else { 0.0 }
    }
}

impl From<&HistogramCounts> for LatencyFigures {
    fn from(counts: &HistogramCounts) -> Self {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|of| counts.quantile(of).as_secs_f64());
        Self { p50, p90, p99, max: counts.max().as_secs_f64() }
    }
}

impl PassMeter {
    /// The values now.
    pub fn view(&self) -> Telemetry {
        let load = StageLoad::of(self);
        let stalled = blame(&load);
        let stages = Stage::ALL
            .into_iter()
            .map(|stage| stage_view(stage, self.stage(stage), stalled[stage as usize]))
            .filter(|view| view.in_flight_max > 0 || view.stalled > 0.0);
        let waits = Wait::ALL.into_iter().map(|wait| {
            let meter = self.wait(wait);
            WaitView { wait, count: meter.count(), time: meter.time().as_secs_f64() }
        });
        Telemetry {
            elapsed: self.elapsed().as_secs_f64(),
            stages: stages.collect(),
            waits: waits.filter(|view| view.count > 0).collect(),
        }
    }
}

fn stage_view(stage: Stage, meter: &StageMeter, stalled: f64) -> StageView {
    let counts = meter.latency().counts();
    StageView {
        stage,
        bytes: meter.bytes(),
        requests: meter.requests(),
        in_flight: meter.in_flight(),
        in_flight_max: meter.in_flight_max(),
        busy: meter.busy().as_secs_f64(),
        latency: LatencyFigures::from(&counts),
        cpu: meter.cpu().as_secs_f64(),
        stalled,
    }
}
