//! The stages and waits of a pass, measured while it runs.
//!
//! Rule: it only informs, and costs next to nothing: a request takes a few atomic additions, no lock and no
//! memory. It knows none of its readers; a [`Telemetry`] is a copy of one moment, to be stored or sent.
//!
//! ```text
//! plan ─▶ [limit] ─▶ [memory] ─▶ read ─▶ digest ─▶ write / zero ─▶ flush ─▶ commit        each has a meter
//!      a wait of the pass's own is measured where it happens and booked on the stage that it waited for
//! ```

mod blame;
mod histogram;
mod stage;
mod view;
mod wait;

use std::{
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use tokio::time::Instant;

pub use self::{
    blame::Bottleneck,
    histogram::{Histogram, HistogramCounts},
    stage::{RequestTimer, Stage, StageMeter},
    view::{LatencyFigures, StageView, Telemetry, WaitView},
    wait::{Wait, WaitMeter, WaitTimer},
};

/// The meters of one pass over one disk.
#[derive(Debug)]
pub struct PassMeter {
    made: Instant,
    /// Nanoseconds from `made` on, plus 1; 0 is not yet.
    began: AtomicU64,
    ended: AtomicU64,
    stages: [StageMeter; Stage::ALL.len()],
    waits: [WaitMeter; Wait::ALL.len()],
}

impl Default for PassMeter {
    fn default() -> Self {
        Self {
            made: Instant::now(),
            began: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            stages: std::array::from_fn(|_| StageMeter::default()),
            waits: std::array::from_fn(|_| WaitMeter::default()),
        }
    }
}

impl PassMeter {
    /// The meter of one stage. [`Stage::Limit`] and [`Stage::Memory`] have waits, and no requests.
    pub fn stage(&self, stage: Stage) -> &StageMeter {
        &self.stages[stage as usize]
    }

    /// The meter of one wait.
    pub fn wait(&self, wait: Wait) -> &WaitMeter {
        &self.waits[wait as usize]
    }

    /// Awaits `future`, and counts it as a wait unless it is ready at once. Dropping it ends the wait.
    pub async fn waiting<F: Future>(&self, wait: Wait, future: F) -> F::Output {
        let mut future = pin!(future);
        match futures::poll!(future.as_mut()) {
            Poll::Ready(output) => output,
            Poll::Pending => {
                let _clock = self.wait(wait).begin();
                future.await
            }
        }
    }

    /// How long the pass has run, or ran; zero before it began.
    pub fn elapsed(&self) -> Duration {
        let began = self.began.load(Relaxed);
        if began == 0 {
            return Duration::ZERO;
        }
        let until = match self.ended.load(Relaxed) {
            0 => self.clock(),
            ended => ended,
        };
        Duration::from_nanos(until.saturating_sub(began))
    }

    /// Begins the pass; its end is when the returned value is dropped.
    pub(crate) fn run(&self) -> Running<'_> {
        self.began.store(self.clock(), Relaxed);
        self.ended.store(0, Relaxed);
        Running(self)
    }

    fn clock(&self) -> u64 {
        nanos(self.made.elapsed()).saturating_add(1)
    }
}

/// The pass runs while this value lives.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a PassMeter);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.ended.store(self.0.clock(), Relaxed);
    }
}

/// Nanoseconds, for 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
