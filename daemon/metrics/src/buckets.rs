//! Buckets of a Prometheus histogram.

use std::time::Duration;

use warmd_cbt::telemetry::HistogramCounts;

/// A histogram as it is exposed: the sum, and for each bound how many lie between it and the one before.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Buckets {
    pub(super) sum: f64,
    pub(super) count: u64,
    pub(super) bounds: Vec<(f64, u64)>,
}

/// Microseconds: powers of four, at which the engine's histograms count exactly. From 16 µs to 67 s.
const LATENCIES: [u64; 12] =
    [1 << 4, 1 << 6, 1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26];

/// Of short times: requests, commits.
pub(super) fn latencies(counts: &HistogramCounts) -> Buckets {
    let mut before = 0;
    let mut bounds: Vec<_> = LATENCIES
        .into_iter()
        .map(|micros| {
            let below = counts.below(Duration::from_micros(micros));
            let own = below - before;
            before = below;
            (micros as f64 / 1e6, own)
        })
        .collect();
    bounds.push((f64::INFINITY, counts.count() - before));
    Buckets { sum: counts.sum().as_secs_f64(), count: counts.count(), bounds }
}

/// Seconds that passes take: from a second to two days.
const SPANS: [f64; 11] =
    [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 172_800.0];

/// Long times, counted one by one.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans {
    sum: f64,
    counts: [u64; SPANS.len() + 1],
}

impl Spans {
    pub(super) fn add(&mut self, seconds: f64) {
        self.sum += seconds;
        self.counts[SPANS.partition_point(|bound| *bound < seconds)] += 1;
    }

    pub(super) fn buckets(&self) -> Buckets {
        let bounds = SPANS.into_iter().chain([f64::INFINITY]).zip(self.counts).collect();
        Buckets { sum: self.sum, count: self.counts.iter().sum(), bounds }
    }
}

#[cfg(test)]
mod tests {
    use warmd_cbt::telemetry::Histogram;

    use super::*;

    #[test]
    fn every_time_is_in_one_bucket() {
        let histogram = Histogram::default();
        for micros in [0, 15, 17, 5_000, 200_000_000] {
            histogram.record(Duration::from_micros(micros));
        }
        let buckets = latencies(&histogram.counts());
        let filled: Vec<_> = buckets.bounds.iter().copied().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.000_016, 2), (0.000_064, 1), (0.016_384, 1), (f64::INFINITY, 1)]);
        assert_eq!(buckets.count, 5);
        let mut spans = Spans::default();
        for seconds in [0.5, 1.0, 1.5, 1e9] {
            spans.add(seconds);
        }
        let buckets = spans.buckets();
        assert_eq!((buckets.count, buckets.bounds.len()), (4, SPANS.len() + 1));
        assert_eq!((buckets.bounds[0], buckets.bounds[1]), ((1.0, 2), (5.0, 1)));
        assert_eq!(buckets.bounds[SPANS.len()], (f64::INFINITY, 1));
    }
}
