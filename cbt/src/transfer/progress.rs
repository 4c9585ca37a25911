//! The live figures of a running pass, for whoever watches it.
//!
//! Rule: they only inform. What is durable is in the ledger; these may run ahead of it and die with the process.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of one pass, in bytes unless said otherwise. All begin at zero.
#[derive(Debug, Default)]
pub struct PassProgress {
    pub(crate) total: AtomicU64,
    pub(crate) drained: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) zeroed: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) reads_in_flight: AtomicU64,
    pub(crate) writes_in_flight: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Found already right on the target.
    pub skipped: u64,
    /// Requests to the source that wait for their answer.
    pub reads_in_flight: u64,
    /// Requests to the target that wait for their answer.
    pub writes_in_flight: u64,
}

impl PassProgress {
    /// The counters now; each by itself is right, together they may be a request apart.
    pub fn view(&self) -> ProgressView {
        ProgressView {
            total: self.total.load(Relaxed),
            drained: self.drained.load(Relaxed),
            read: self.read.load(Relaxed),
            written: self.written.load(Relaxed),
            zeroed: self.zeroed.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            reads_in_flight: self.reads_in_flight.load(Relaxed),
            writes_in_flight: self.writes_in_flight.load(Relaxed),
        }
    }
}

/// Counts one request as in flight while it lives.
pub(crate) struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    pub(crate) fn enter(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Relaxed);
        Self(counter)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
