//! The live figures of a running pass, for those who watch it.
//!
//! Rule: they only inform. The ledger has the durable figures; these may be ahead of it and end with the
//! process.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::telemetry::{PassMeter, Stage};

/// Counters and meters of one pass, in bytes unless said otherwise. All begin at zero.
#[derive(Debug, Default)]
pub struct PassProgress {
    pub(crate) total: AtomicU64,
    pub(crate) drained: AtomicU64,
    pub(crate) skipped: AtomicU64,
    /// Milliseconds.
    pub(crate) held_back: AtomicU64,
    pub(crate) meter: PassMeter,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressView {
    /// Pending when the pass began.
    pub total: u64,
    /// Left `pending`, durably.
    pub drained: u64,
    /// Read from the source.
    pub read: u64,
    /// Written to the target as data.
    pub written: u64,
    /// Zeroed on the target.
    pub zeroed: u64,
    /// Found equal on the target.
    pub skipped: u64,
    /// Requests to the source that wait for their answer.
    pub reads_in_flight: u64,
    /// Requests to the target that wait for their answer.
    pub writes_in_flight: u64,
    /// Milliseconds for which reads were delayed to spare a strained source; known at the pass's end.
    pub held_back: u64,
}

impl PassProgress {
    /// The stages of the pass, and its waits.
    pub fn meter(&self) -> &PassMeter {
        &self.meter
    }

    /// The counters now; each alone is right, together they may be a request apart.
    pub fn view(&self) -> ProgressView {
        let [read, write, zero] =
            [Stage::Read, Stage::Write, Stage::Zero].map(|stage| self.meter.stage(stage));
        ProgressView {
            total: self.total.load(Relaxed),
            drained: self.drained.load(Relaxed),
            read: read.bytes(),
            written: write.bytes(),
            zeroed: zero.bytes(),
            skipped: self.skipped.load(Relaxed),
            reads_in_flight: read.in_flight(),
            writes_in_flight: write.in_flight() + zero.in_flight(),
            held_back: self.held_back.load(Relaxed),
        }
    }
}
