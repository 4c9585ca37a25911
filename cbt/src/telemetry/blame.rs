//! The stages that a pass waited for, and its bottleneck.
//!
//! Rule: a wait is booked on the stage that holds the awaited resource. For some waits that stage is plain;
//! buffers and room in a batch are occupied by pieces in flight, each for as long as its stages take. So
//! these waits are split by the time that pieces spent in each stage.

use std::fmt;

use super::{PassMeter, Telemetry, stage::Stage, wait::Wait};

/// The part of a pass's time below which its longest wait is no bottleneck.
const WORTH_NAMING: f64 = 0.1;

/// The times that decide the split, in seconds.
pub(super) struct StageLoad {
    waits: [f64; Wait::ALL.len()],
    busy: [f64; Stage::ALL.len()],
}

/// Stages in which a piece has its buffer.
const MOVING: [Stage; 4] = [Stage::Read, Stage::Digest, Stage::Write, Stage::Zero];
/// Stages in which a finished piece still uses room.
const COMMITTING: [Stage; 2] = [Stage::Flush, Stage::Commit];

impl StageLoad {
    pub(super) fn of(meter: &PassMeter) -> Self {
        let mut busy = Stage::ALL.map(|stage| meter.stage(stage).busy().as_secs_f64());
        // A piece that waits for its turn at the target counts for the target.
        let queued = meter.wait(Wait::WriteSlot).together().as_secs_f64();
        let zeroing = share(&busy, Stage::Zero, &[Stage::Write, Stage::Zero]).unwrap_or(0.0);
        busy[Stage::Write as usize] += queued * (1.0 - zeroing);
        busy[Stage::Zero as usize] += queued * zeroing;
        Self { waits: Wait::ALL.map(|wait| meter.wait(wait).time().as_secs_f64()), busy }
    }

    fn wait(&self, wait: Wait) -> f64 {
        self.waits[wait as usize]
    }
}

/// Seconds that the pass waited for each stage.
pub(super) fn blame(load: &StageLoad) -> [f64; Stage::ALL.len()] {
    let mut stalled = [0.0; Stage::ALL.len()];
    let mut book = |time: f64, on: &[Stage], otherwise: Stage| {
        for stage in on {
            stalled[*stage as usize] += time * share(&load.busy, *stage, on).unwrap_or(0.0);
        }
        if share(&load.busy, otherwise, on).is_none() {
            stalled[otherwise as usize] += time;
        }
    };
    for (wait, stage) in [
        (Wait::Plan, Stage::Plan),
        (Wait::Limit, Stage::Limit),
        (Wait::Memory, Stage::Memory),
        (Wait::ReadSlot, Stage::Read),
    ] {
        book(load.wait(wait), &[], stage);
    }
    book(load.wait(Wait::Buffer), &MOVING, Stage::Read);
    book(load.wait(Wait::LastPieces), &MOVING, Stage::Read);
    // The last batch was committed in its own time, so the wait for room was for the rest of all committing
    // at most; the excess was for pieces in earlier stages.
    let last = load.wait(Wait::LastBatch);
    book(last, &COMMITTING, Stage::Flush);
    let committing: f64 = COMMITTING.iter().map(|stage| load.busy[*stage as usize]).sum();
    let room = load.wait(Wait::Room);
    let committed = room.min((committing - last).max(0.0));
    book(committed, &COMMITTING, Stage::Flush);
    book(room - committed, &MOVING, Stage::Read);
    stalled
}

/// The share of `stage` in the time of some stages; `None` if they took none.
fn share(busy: &[f64; Stage::ALL.len()], stage: Stage, of: &[Stage]) -> Option<f64> {
    let all: f64 = of.iter().map(|stage| busy[*stage as usize]).sum();
    (all > 0.0).then(|| busy[stage as usize] / all)
}

/// The stage that a pass waited for the most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bottleneck {
    pub stage: Stage,
    /// Its part of the pass's time, 0 to 1.
    pub share: f64,
}

impl Telemetry {
    /// The stage that the pass waited for most, if for at least a tenth of its time.
    pub fn bottleneck(&self) -> Option<Bottleneck> {
        let longest = self.stages.iter().max_by(|a, b| a.stalled.total_cmp(&b.stalled))?;
        let share = self.share_of(longest.stalled);
        (share >= WORTH_NAMING).then_some(Bottleneck { stage: longest.stage, share })
    }

    /// Its share of the pass's time, 0 to 1.
    pub fn share_of(&self, seconds: f64) -> f64 {
        if self.elapsed > 0.0 { (seconds / self.elapsed).clamp(0.0, 1.0) } else { 0.0 }
    }
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (who, what) = match self.stage {
            Stage::Plan => ("the plan", "what the source says of its blocks"),
            Stage::Limit => ("a limit", "leave to go on"),
            Stage::Memory => ("memory", "buffers that other disks hold"),
            Stage::Read => ("the source", "reads"),
            Stage::Digest => ("the processor", "digests"),
            Stage::Write => ("the target", "writes"),
            Stage::Zero => ("the target", "zeroing"),
            Stage::Flush => ("the target", "flushes"),
            Stage::Commit => ("the state's own disk", "commits"),
        };
        write!(
            f,
            "{who} is the bottleneck: the pass waited {:.0} % of its time for {what}",
            self.share * 100.0
        )
    }
}
