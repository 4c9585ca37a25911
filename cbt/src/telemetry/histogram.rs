//! The durations of requests: counts in buckets of about equal relative width, in fixed memory.
//!
//! Rule: recording is three atomic additions; a reading is not of one exact moment, and need not be.
//!
//! The idea is that of log-linear histograms, as HdrHistogram (Gil Tene) made them known: each doubling of
//! the value is cut into the same number of equal buckets. With 8 to the doubling, the middle of a bucket is
//! at most 1/16 off.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::nanos;

/// Nanoseconds in a tick, the width of the smallest buckets: 1 µs is then 8 ticks, where the doublings begin.
const TICK: u64 = 125;
/// Buckets to a doubling are `1 << PARTS`.
const PARTS: u32 = 3;
/// Values of up to so many bits of ticks, of less than 71 minutes, are in buckets of bounded width.
const BITS: u32 = 35;
/// The bucket of all larger values: it has no width, so no middle.
const OVERFLOW: usize = ((BITS - PARTS + 1) << PARTS) as usize;
const BUCKETS: usize = OVERFLOW + 1;

/// Durations, counted by any number of threads. From 1 µs to 71 minutes a quantile is at most 6.25 % off,
/// below at most 63 ns; longer ones are only known by their maximum.
pub struct Histogram {
    buckets: Box<[AtomicU64; BUCKETS]>,
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: Box::new(std::array::from_fn(|_| AtomicU64::new(0))),
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, took: Duration) {
        let took = nanos(took);
        self.buckets[bucket(took)].fetch_add(1, Relaxed);
        self.sum.fetch_add(took, Relaxed);
        if took > self.max.load(Relaxed) {
            self.max.fetch_max(took, Relaxed);
        }
    }

    /// All durations together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum.load(Relaxed))
    }

    /// The counts now.
    pub fn counts(&self) -> HistogramCounts {
        let buckets: Vec<u64> = self.buckets.iter().map(|count| count.load(Relaxed)).collect();
        HistogramCounts {
            count: buckets.iter().sum(),
            buckets,
            sum: self.sum.load(Relaxed),
            max: self.max.load(Relaxed),
        }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts().fmt(f)
    }
}

/// The counts of a [`Histogram`] at one moment, or sums and differences of such counts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SparseCounts", into = "SparseCounts")]
pub struct HistogramCounts {
    buckets: Vec<u64>,
    count: u64,
    sum: u64,
    max: u64,
}

/// The counts in a message: only the buckets that are not empty.
#[derive(Serialize, Deserialize)]
struct SparseCounts {
    buckets: Vec<(u16, u64)>,
    sum: u64,
    max: u64,
}

impl From<HistogramCounts> for SparseCounts {
    fn from(counts: HistogramCounts) -> Self {
        let buckets = (0..).zip(counts.buckets).filter(|(_, count)| *count > 0).collect();
        Self { buckets, sum: counts.sum, max: counts.max }
    }
}

impl TryFrom<SparseCounts> for HistogramCounts {
    type Error = String;
    fn try_from(sparse: SparseCounts) -> Result<Self, String> {
        let mut counts = Self { sum: sparse.sum, max: sparse.max, ..Self::default() };
        for (at, count) in sparse.buckets {
            counts.count = counts.count.checked_add(count).ok_or("the counts of a histogram overflow")?;
            let bucket = counts.buckets.get_mut(usize::from(at));
            *bucket.ok_or_else(|| format!("a histogram has no bucket {at}"))? += count;
        }
        Ok(counts)
    }
}

impl Default for HistogramCounts {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, sum: 0, max: 0 }
    }
}

impl HistogramCounts {
    /// Durations counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// Their mean, exact; zero if there are none.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum.checked_div(self.count).unwrap_or(0))
    }

    /// The longest duration, exact; for a difference, the longest until its later moment.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The duration that a share `of` them (0 to 1) did not exceed; zero if there are none.
    pub fn quantile(&self, of: f64) -> Duration {
        let wanted = (of.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                let (from, to) = bounds(at);
                let middle = if at == OVERFLOW { u64::MAX } else { from + (to - from) / 2 };
                return Duration::from_nanos(middle.min(self.max));
            }
        }
        Duration::ZERO
    }

    /// How many took less than `time`: exact if that is 1 µs times a power of two, else perhaps a bucket's
    /// off.
    pub fn below(&self, time: Duration) -> u64 {
        self.buckets[..bucket(nanos(time))].iter().sum()
    }

    /// The counts since `earlier`, a snapshot of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = self.buckets.iter().zip(&earlier.buckets);
        let buckets: Vec<u64> = pairs.map(|(now, then)| now.saturating_sub(*then)).collect();
        Self {
            count: buckets.iter().sum(),
            buckets,
            sum: self.sum.saturating_sub(earlier.sum),
            max: self.max,
        }
    }
}

impl std::ops::AddAssign<&HistogramCounts> for HistogramCounts {
    fn add_assign(&mut self, other: &Self) {
        for (mine, others) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += others;
        }
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }
}

impl fmt::Debug for HistogramCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts")
            .field("count", &self.count)
            .field("mean", &self.mean())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish_non_exhaustive()
    }
}

fn bucket(nanos: u64) -> usize {
    let ticks = nanos / TICK;
    if ticks < 1 << PARTS {
        return ticks as usize;
    }
    let shift = ticks.ilog2() - PARTS;
    let part = (ticks >> shift) - (1 << PARTS);
    let at = (u64::from(shift + 1) << PARTS) + part;
    (at as usize).min(OVERFLOW)
}

/// The nanoseconds that a bucket begins and ends at.
fn bounds(at: usize) -> (u64, u64) {
    let (octave, part) = (at as u64 >> PARTS, at as u64 & ((1 << PARTS) - 1));
    if octave == 0 {
        return (part * TICK, (part + 1) * TICK);
    }
    let width = TICK << (octave - 1);
    let from = ((1 << PARTS) + part) * width;
    (from, from + width)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Evenly over magnitudes, not over values.
    fn magnitudes() -> impl Strategy<Value = u64> {
        (0..42_u32, any::<u64>()).prop_map(|(bits, noise)| (1 << bits) + noise % (1 << bits))
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        let mut end = 0;
        for at in 0..OVERFLOW {
            let (from, to) = bounds(at);
            assert_eq!(from, end, "bucket {at}");
            assert_eq!((bucket(from), bucket(to - 1)), (at, at));
            end = to;
        }
        assert_eq!(end, TICK << BITS);
        assert_eq!((bucket(end), bucket(u64::MAX)), (OVERFLOW, OVERFLOW));
    }

    #[test]
    fn last_bounded_bucket_is_not_the_overflow() {
        let histogram = Histogram::default();
        let end = bounds(OVERFLOW - 1).1;
        for nanos in [end - end / 17, 20 * end] {
            histogram.record(Duration::from_nanos(nanos));
        }
        let told = histogram.counts().quantile(0.5).as_nanos() as u64;
        assert!((end - end / 8..end).contains(&told), "{told}");
        assert_eq!(histogram.counts().quantile(1.0).as_nanos() as u64, 20 * end);
    }

    proptest! {
        #[test]
        fn quantiles_are_as_near_as_promised(
            values in prop::collection::vec(magnitudes(), 1..200),
            of in 0.0..=1.0_f64,
        ) {
            let histogram = Histogram::default();
            for value in &values {
                histogram.record(Duration::from_nanos(*value));
            }
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = ((of * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
            let exact = sorted[rank - 1] as f64;
            let counts = histogram.counts();
            let told = counts.quantile(of).as_nanos() as f64;
            let off = (told - exact).abs();
            prop_assert!(off <= (exact / 16.0).max(63.0), "{told} told for {exact}");
            prop_assert_eq!(counts.max().as_nanos() as u64, sorted[sorted.len() - 1]);
            prop_assert_eq!(counts.sum().as_nanos() as u64, values.iter().sum::<u64>());
            prop_assert_eq!(counts.count(), values.len() as u64);
        }

        #[test]
        fn what_is_below_a_power_of_two_is_counted_exactly(
            values in prop::collection::vec(magnitudes(), 0..200),
            power in 0..28_u32,
        ) {
            let histogram = Histogram::default();
            for value in &values {
                histogram.record(Duration::from_nanos(*value));
            }
            let edge = Duration::from_micros(1 << power);
            let exact = values.iter().filter(|value| u128::from(**value) < edge.as_nanos()).count();
            prop_assert_eq!(histogram.counts().below(edge), exact as u64);
        }

        #[test]
        fn a_difference_has_what_came_since_and_a_sum_has_both(
            before in prop::collection::vec(magnitudes(), 0..50),
            after in prop::collection::vec(magnitudes(), 0..50),
        ) {
            let [all, late] = [Histogram::default(), Histogram::default()];
            for value in &before {
                all.record(Duration::from_nanos(*value));
            }
            let then = all.counts();
            for value in &after {
                all.record(Duration::from_nanos(*value));
                late.record(Duration::from_nanos(*value));
            }
            let since = all.counts().since(&then);
            prop_assert_eq!((&since.buckets, since.sum), (&late.counts().buckets, late.counts().sum));
            let mut sum = then;
            sum += &late.counts();
            prop_assert_eq!(sum, all.counts());
        }
    }
}
