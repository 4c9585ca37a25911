//! How many reads of one disk are in flight: the source's latencies and rate decide.
//!
//! ```text
//! enter ─▶ calm ─▶ read ─▶ done(bytes) ─▶ a round is done? ─▶ probe: what pays │ backoff: what is borne
//!    ▲                                                                        │
//!    └────────────────── the smaller of both ─────────────────────────────────┘
//! ```
//!
//! Rule: never more than the ceiling, never none. A slot that is dropped in any way comes back.

mod backoff;
mod probe;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

pub use self::backoff::LatencyBaseline;
use self::{
    backoff::LatencyBackoff,
    probe::{Probe, ProbeRound},
};

/// The shortest round: shorter ones measure the scheduler more than the source.
const SHORTEST: Duration = Duration::from_millis(10);
/// The shortest round while the depth is still being doubled: a final delta may finish before two of the
/// others.
const SHORTEST_AT_FIRST: Duration = Duration::from_millis(2);
/// Latencies of a round that are kept for its median.
const SAMPLES: usize = 256;

/// The read slots of one disk's pass.
pub(crate) struct QueueDepth {
    slots: Arc<Semaphore>,
    /// A read found no free slot in this round.
    wanted: AtomicBool,
    /// Slots still to be removed, as they come back.
    state: Mutex<State>,
}

struct State {
    probe: Probe,
    backoff: LatencyBackoff,
    baseline: Arc<Mutex<LatencyBaseline>>,
    /// Slots in use or free; the semaphore's permits and those taken, less what is owed.
    depth: usize,
    owed: usize,
    began: Instant,
    bytes: u64,
    reads: usize,
    latencies: Vec<(u32, Duration)>,
    last_begun: Instant,
    held_back: Duration,
}

/// A read slot. The read's time runs from [`ReadSlot::begin`] to [`ReadSlot::done`].
pub(crate) struct ReadSlot {
    depth: Arc<QueueDepth>,
    permit: Option<OwnedSemaphorePermit>,
    begun: Option<Instant>,
}

impl QueueDepth {
    /// At most `ceiling` reads in flight. `factor` is the backoff's; what it learns goes into `baseline`.
    pub(crate) fn new(
        ceiling: usize,
        factor: Option<f64>,
        baseline: Arc<Mutex<LatencyBaseline>>,
    ) -> Arc<Self> {
        let probe = Probe::new(ceiling);
        let (depth, now) = (probe.depth(), Instant::now());
        let state = State {
            probe,
            backoff: LatencyBackoff::new(factor, ceiling.max(1)),
            baseline,
            depth,
            owed: 0,
            began: now,
            bytes: 0,
            reads: 0,
            latencies: Vec::with_capacity(SAMPLES),
            last_begun: now,
            held_back: Duration::ZERO,
        };
        let slots = Arc::new(Semaphore::new(depth));
        Arc::new(Self { slots, wanted: AtomicBool::new(false), state: Mutex::new(state) })
    }

    /// Waits for a slot. Dropping the wait loses nothing.
    pub(crate) async fn enter(self: &Arc<Self>) -> ReadSlot {
        let free = Arc::clone(&self.slots).try_acquire_owned();
        let permit = if let Ok(permit) = free {
            Some(permit)
        } else {
            self.wanted.store(true, Relaxed);
            // Never closed.
            Arc::clone(&self.slots).acquire_owned().await.ok()
        };
        ReadSlot { depth: Arc::clone(self), permit, begun: None }
    }

    /// Waits for the backoff's time between two reads.
    pub(crate) async fn calm(&self) {
        let next = {
            let state = self.state();
            (!state.backoff.pause().is_zero()).then(|| state.last_begun + state.backoff.pause())
        };
        if let Some(next) = next {
            sleep_until(next).await;
        }
    }

    /// For how long the backoff has delayed reads in this pass.
    pub(crate) fn held_back(&self) -> Duration {
        self.state().held_back
    }

    fn record(&self, bytes: usize, latency: Duration) {
        let mut state = self.state();
        state.bytes += bytes as u64;
        state.reads += 1;
        if state.latencies.len() < SAMPLES {
            state.latencies.push((bytes as u32, latency));
        }
        let elapsed = state.began.elapsed();
        let shortest = if state.probe.is_doubling() { SHORTEST_AT_FIRST } else { SHORTEST };
        if state.reads >= state.depth && elapsed >= shortest {
            let wanted = self.wanted.swap(false, Relaxed);
            self.round(&mut state, elapsed, wanted);
        }
    }

    /// Ends a round and sets the next one's depth.
    fn round(&self, state: &mut State, elapsed: Duration, wanted: bool) {
        let seconds = elapsed.as_secs_f64();
        let State { backoff, baseline, latencies, depth, .. } = &mut *state;
        backoff.evaluate(
            &mut baseline.lock().unwrap_or_else(PoisonError::into_inner),
            latencies,
            *depth,
            seconds,
        );
        if state.backoff.is_holding() {
            state.held_back += elapsed;
        } else {
            state.probe.learn(ProbeRound { bytes: state.bytes, seconds, wanted });
        }
        let next = state.probe.depth().min(state.backoff.cap()).max(1);
        if next < state.depth {
            state.owed += state.depth - next;
        } else {
            let more = next - state.depth;
            let paid = more.min(state.owed);
            state.owed -= paid;
            self.slots.add_permits(more - paid);
        }
        state.depth = next;
        (state.began, state.bytes, state.reads) = (Instant::now(), 0, 0);
        state.latencies.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadSlot {
    /// The read begins now.
    pub(crate) fn begin(&mut self) {
        let now = Instant::now();
        self.begun = Some(now);
        self.depth.state().last_begun = now;
    }

    /// The same, with its read begun.
    pub(crate) fn begun(mut self) -> Self {
        self.begin();
        self
    }

    /// The read is done. A failed one is not recorded: drop its slot.
    pub(crate) fn done(self, bytes: usize) {
        if let Some(begun) = self.begun {
            self.depth.record(bytes, begun.elapsed());
        }
    }
}

impl Drop for ReadSlot {
    fn drop(&mut self) {
        let mut state = self.depth.state();
        if state.owed > 0
            && let Some(permit) = self.permit.take()
        {
            state.owed -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(ceiling: usize, factor: Option<f64>) -> Arc<QueueDepth> {
        QueueDepth::new(ceiling, factor, Arc::default())
    }

    /// Reads for a while from a source that answers `width` reads at once, each in `latency`; gives the
    /// depth.
    async fn read(depth: &Arc<QueueDepth>, width: usize, latency: Duration, count: usize) -> usize {
        let server = Arc::new(Semaphore::new(width));
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..count {
            let mut slot = depth.enter().await;
            depth.calm().await;
            let server = Arc::clone(&server);
            reads.spawn(async move {
                slot.begin();
                let _turn = server.acquire().await.unwrap();
                tokio::time::sleep(latency).await;
                slot.done(1 << 19);
            });
        }
        while reads.join_next().await.is_some() {}
        let state = depth.state();
        assert_eq!(depth.slots.available_permits(), state.depth + state.owed, "slots were lost");
        state.depth
    }

    #[tokio::test(start_paused = true)]
    async fn it_finds_what_the_source_answers_at_once() {
        for width in [2, 12, 40] {
            let depth = depth(64, None);
            let found = read(&depth, width, Duration::from_millis(10), 20_000).await;
            assert!(found >= width * 2 / 3 && found <= width + width.div_ceil(2) + 1, "{width}: {found}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_strained_source_gets_one_read_at_a_time_and_is_given_time() {
        let depth = depth(64, Some(4.0));
        let calm = Duration::from_millis(10);
        assert!(read(&depth, 64, calm, 5000).await >= 32);
        assert_eq!(depth.held_back(), Duration::ZERO);
        assert_eq!(read(&depth, 64, Duration::from_millis(200), 500).await, 1);
        assert!(depth.held_back() > Duration::ZERO);
        let begun = Instant::now();
        read(&depth, 64, Duration::from_millis(200), 10).await;
        assert!(
            begun.elapsed() >= Duration::from_secs(8),
            "ten reads, a second apart: {:?}",
            begun.elapsed()
        );
        assert!(read(&depth, 64, calm, 20_000).await >= 32, "it comes back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_dropped_unused_comes_back() {
        let depth = depth(4, None);
        let slots = [depth.enter().await, depth.enter().await, depth.enter().await, depth.enter().await];
        assert!(tokio::time::timeout(Duration::from_secs(1), depth.enter()).await.is_err());
        drop(slots);
        assert_eq!(depth.slots.available_permits(), 4);
    }
}
