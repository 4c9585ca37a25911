//! The waits of a pass, and their lengths.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::nanos;

/// A place at which a pass waits. All but [`Wait::WriteSlot`] are waited at by the pass itself, one at a
/// time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wait {
    /// For the next window of the plan.
    Plan,
    /// For room in the batch: the most uncommitted work is reached.
    Room,
    /// For a configured limit, or for the latency backoff.
    Limit,
    /// For a read slot: as many reads as the source takes are in flight.
    ReadSlot,
    /// For one of the buffers that this disk may hold: its own pieces use them all.
    Buffer,
    /// For a buffer of the pool: other work uses them too.
    Memory,
    /// Pieces for a write slot: as many writes as the target takes are in flight.
    WriteSlot,
    /// After the last issue: for the last pieces.
    LastPieces,
    /// After the last piece: for the last batch to be flushed and committed.
    LastBatch,
}

impl Wait {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Plan,
        Self::Room,
        Self::Limit,
        Self::ReadSlot,
        Self::Buffer,
        Self::Memory,
        Self::WriteSlot,
        Self::LastPieces,
        Self::LastBatch,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Room => "room",
            Self::Limit => "limit",
            Self::ReadSlot => "read-slot",
            Self::Buffer => "buffer",
            Self::Memory => "memory",
            Self::WriteSlot => "write-slot",
            Self::LastPieces => "last-pieces",
            Self::LastBatch => "last-batch",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Bits of [`WaitMeter::now`] that count; the others are a time.
const COUNT: u32 = 16;
/// Nanoseconds in one unit of that time, which then reaches for 208 days.
const UNIT: u64 = 64;

/// Measures one wait: how long at least one task waited, and the sum over all waiting tasks.
#[derive(Debug)]
pub struct WaitMeter {
    made: Instant,
    /// The number of waiters now, and above that since when there has been one, without a break.
    now: AtomicU64,
    count: AtomicU64,
    /// Nanoseconds with at least one waiter.
    time: AtomicU64,
    /// Nanoseconds of all waiters.
    together: AtomicU64,
}

impl Default for WaitMeter {
    fn default() -> Self {
        Self {
            made: Instant::now(),
            now: AtomicU64::new(0),
            count: AtomicU64::new(0),
            time: AtomicU64::new(0),
            together: AtomicU64::new(0),
        }
    }
}

impl WaitMeter {
    /// Waits until the returned value is dropped.
    pub fn begin(&self) -> WaitTimer<'_> {
        let began = Instant::now();
        // The clock is read again in each attempt: one read before would count what another's wait has
        // counted already. Both are infallible: the closures always give a value.
        let _ = self.now.fetch_update(Relaxed, Relaxed, |now| {
            Some(if now == 0 { self.units(Instant::now()) << COUNT | 1 } else { now + 1 })
        });
        self.count.fetch_add(1, Relaxed);
        WaitTimer { meter: self, began }
    }

    /// How many waits there were.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// The time with at least one waiter, present ones included.
    pub fn time(&self) -> Duration {
        let now = self.now.load(Relaxed);
        let running = if now == 0 { 0 } else { self.since(now, Instant::now()) };
        Duration::from_nanos(self.time.load(Relaxed) + running)
    }

    /// The sum of all waits; present ones do not count yet.
    pub fn together(&self) -> Duration {
        Duration::from_nanos(self.together.load(Relaxed))
    }

    fn units(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.made)) / UNIT
    }

    fn since(&self, now: u64, until: Instant) -> u64 {
        self.units(until).saturating_sub(now >> COUNT) * UNIT
    }
}

/// A wait lasts while this value lives.
#[derive(Debug)]
pub struct WaitTimer<'a> {
    meter: &'a WaitMeter,
    began: Instant,
}

impl Drop for WaitTimer<'_> {
    fn drop(&mut self) {
        let ended = Instant::now();
        let last = |now: u64| now & ((1 << COUNT) - 1) == 1;
        let before =
            self.meter.now.fetch_update(Relaxed, Relaxed, |now| Some(if last(now) { 0 } else { now - 1 }));
        if let Ok(before) = before
            && last(before)
        {
            self.meter.time.fetch_add(self.meter.since(before, ended), Relaxed);
        }
        self.meter.together.fetch_add(nanos(ended - self.began), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_at_the_same_time_count_once_and_together_each() {
        let meter = WaitMeter::default();
        let second = || tokio::time::advance(Duration::from_secs(1));
        second().await;
        let first = meter.begin();
        second().await;
        let other = meter.begin();
        second().await;
        drop(first);
        assert_eq!(meter.time(), Duration::from_secs(2), "what still goes on counts");
        second().await;
        drop(other);
        second().await;
        assert_eq!((meter.time(), meter.together()), (Duration::from_secs(3), Duration::from_secs(4)));
        drop(meter.begin());
        let again = meter.begin();
        second().await;
        drop(again);
        assert_eq!((meter.time(), meter.count()), (Duration::from_secs(4), 4));
    }

    #[test]
    fn many_threads_lose_none() {
        let meter = WaitMeter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| drop(meter.begin())));
            }
        });
        assert_eq!((meter.count(), meter.now.load(Relaxed)), (40_000, 0));
    }
}
