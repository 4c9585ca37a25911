//! The stages of a pass, and the meter of each.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{histogram::Histogram, nanos};

/// The stages of the data path, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// A window of the pass is prepared: block status asked, hashes loaded, extents claimed. Its bytes are
    /// the pending ones that it planned.
    Plan,
    /// A configured limit or the latency backoff delays the pass. It has only waits.
    Limit,
    /// All buffers of the pool are used by other work. It has only waits.
    Memory,
    Read,
    /// BLAKE3 and the zero test. Its time is on a core, and the wait for one.
    Digest,
    Write,
    Zero,
    /// The target makes a batch durable.
    Flush,
    /// The ledger drains a batch in the store.
    Commit,
}

impl Stage {
    /// All of them, in the data's order.
    pub const ALL: [Self; 9] = [
        Self::Plan,
        Self::Limit,
        Self::Memory,
        Self::Read,
        Self::Digest,
        Self::Write,
        Self::Zero,
        Self::Flush,
        Self::Commit,
    ];

    /// Whether requests pass through it; the others have only waits.
    pub fn has_requests(self) -> bool {
        !matches!(self, Self::Limit | Self::Memory)
    }

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Limit => "limit",
            Self::Memory => "memory",
            Self::Read => "read",
            Self::Digest => "digest",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Flush => "flush",
            Self::Commit => "commit",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Counts the requests of one stage.
#[derive(Debug)]
pub struct StageMeter {
    made: Instant,
    bytes: AtomicU64,
    requests: AtomicU64,
    in_flight: AtomicU64,
    in_flight_max: AtomicU64,
    /// When each request in flight began, in nanoseconds from `made` on: their sum, which may wrap around.
    begins: AtomicU64,
    cpu: AtomicU64,
    latency: Histogram,
}

impl Default for StageMeter {
    fn default() -> Self {
        Self {
            made: Instant::now(),
            bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            in_flight_max: AtomicU64::new(0),
            begins: AtomicU64::new(0),
            cpu: AtomicU64::new(0),
            latency: Histogram::default(),
        }
    }
}

impl StageMeter {
    /// Begins a request; it is in flight until it is [`RequestTimer::done`] or dropped.
    pub fn begin(&self) -> RequestTimer<'_> {
        let now = self.in_flight.fetch_add(1, Relaxed) + 1;
        if now > self.in_flight_max.load(Relaxed) {
            self.in_flight_max.fetch_max(now, Relaxed);
        }
        let began = Instant::now();
        self.begins.fetch_add(self.since_made(began), Relaxed);
        RequestTimer { meter: self, began }
    }

    /// Bytes of the requests that were done.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Requests that were done; failed and abandoned ones are not counted.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// The most requests that were ever in flight.
    pub fn in_flight_max(&self) -> u64 {
        self.in_flight_max.load(Relaxed)
    }

    /// Time spent computing.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu.load(Relaxed))
    }

    /// How long the requests took that were done.
    pub fn latency(&self) -> &Histogram {
        &self.latency
    }

    /// The sum of the requests' times, those in flight included until now.
    pub fn busy(&self) -> Duration {
        let (count, begins) = (self.in_flight(), self.begins.load(Relaxed));
        let now = self.since_made(Instant::now());
        let open = count.wrapping_mul(now).wrapping_sub(begins);
        // The two were not read at one moment; an impossible value becomes zero.
        let open = if open <= count.saturating_mul(now) { open } else { 0 };
        self.latency.sum() + Duration::from_nanos(open)
    }

    pub(crate) fn add_cpu(&self, time: Duration) {
        self.cpu.fetch_add(nanos(time), Relaxed);
    }

    fn since_made(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.made))
    }
}

/// A request in flight.
#[derive(Debug)]
#[must_use = "dropped, it is not counted"]
pub struct RequestTimer<'a> {
    meter: &'a StageMeter,
    began: Instant,
}

impl RequestTimer<'_> {
    /// It has moved so many bytes.
    pub fn done(self, bytes: u64) {
        self.meter.bytes.fetch_add(bytes, Relaxed);
        self.meter.requests.fetch_add(1, Relaxed);
        self.meter.latency.record(self.began.elapsed());
    }
}

impl Drop for RequestTimer<'_> {
    fn drop(&mut self) {
        self.meter.begins.fetch_sub(self.meter.since_made(self.began), Relaxed);
        self.meter.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use serde::de::value::StrDeserializer;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_counts_when_it_is_done_and_flies_until_it_ends() {
        let meter = StageMeter::default();
        let (first, second) = (meter.begin(), meter.begin());
        tokio::time::advance(Duration::from_millis(3)).await;
        first.done(10);
        tokio::time::advance(Duration::from_millis(4)).await;
        assert_eq!(meter.busy(), Duration::from_millis(3 + 7), "what is in flight counts until now");
        assert_eq!((meter.in_flight(), meter.in_flight_max()), (1, 2));
        drop(second);
        assert_eq!(
            (meter.bytes(), meter.requests(), meter.in_flight(), meter.in_flight_max()),
            (10, 1, 0, 2)
        );
        assert_eq!(
            (meter.busy(), meter.latency().sum()),
            (Duration::from_millis(3), Duration::from_millis(3))
        );
    }

    #[test]
    fn names_are_those_of_json_and_the_order_that_of_the_data() {
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, at);
            let name = StrDeserializer::<serde::de::value::Error>::new(stage.name());
            assert_eq!(Stage::deserialize(name).unwrap(), stage);
        }
    }
}
