//! Production first: reads that take much longer than before mean that the source is strained, and warmd
//! backs off.
//!
//! Rule: a disk is compared with itself only, and reads with reads of about the same size. Whether production
//! or warmd's own queue made them slow makes no difference to the other readers there.

use std::time::Duration;

/// Size classes of reads that are judged apart: up to 64 KiB, 128 KiB, and so on by doubling.
const CLASSES: usize = 8;
/// Median latencies below this are never strain: a cache hit or a busy processor causes them.
const FLOOR: Duration = Duration::from_millis(20);
/// In this time a baseline that is never reached any more grows on its own: a source may have become slower
/// for good.
const FORGETTING: f64 = 1800.0;
/// The longest pause between two reads of a disk.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The usual latencies of a disk's reads, learnt from its passes; to be kept from pass to pass.
#[derive(Clone, Debug, Default)]
pub struct LatencyBaseline {
    seconds: [Option<f64>; CLASSES],
}

impl LatencyBaseline {
    /// The known values, to be kept: the size class, and its latency.
    pub fn known(&self) -> impl Iterator<Item = (usize, Duration)> + '_ {
        let known = self.seconds.iter().enumerate();
        known.filter_map(|(class, seconds)| Some((class, Duration::try_from_secs_f64((*seconds)?).ok()?)))
    }

    /// The kept values. An unknown class is left out.
    pub fn of(known: impl IntoIterator<Item = (usize, Duration)>) -> Self {
        let mut baseline = Self::default();
        for (class, time) in known {
            if let Some(seconds) = baseline.seconds.get_mut(class) {
                *seconds = Some(time.as_secs_f64());
            }
        }
        baseline
    }
}

/// How far warmd has backed off.
#[derive(Debug)]
pub(super) struct LatencyBackoff {
    /// Reads that take this many times the baseline are strained; `None` switches the backoff off.
    factor: Option<f64>,
    ceiling: usize,
    cap: usize,
    pause: Duration,
}

impl LatencyBackoff {
    pub(super) fn new(factor: Option<f64>, ceiling: usize) -> Self {
        Self { factor, ceiling, cap: ceiling, pause: Duration::ZERO }
    }

    /// The most reads in flight that it allows.
    pub(super) fn cap(&self) -> usize {
        self.cap
    }

    /// The least time between the starts of two reads.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// Whether it limits the reads.
    pub(super) fn is_holding(&self) -> bool {
        self.cap < self.ceiling || !self.pause.is_zero()
    }

    /// Evaluates a round by its latencies, each with its bytes, that ran at `depth` and took `seconds`.
    pub(super) fn evaluate(
        &mut self,
        baseline: &mut LatencyBaseline,
        latencies: &mut [(u32, Duration)],
        depth: usize,
        seconds: f64,
    ) {
        let Some(factor) = self.factor else { return };
        let Some((class, median)) = usual(latencies) else { return };
        let known = &mut baseline.seconds[class];
        let median = median.as_secs_f64();
        let base = known.map_or(median, |known| (known * (1.0 + seconds / FORGETTING)).min(median));
        *known = Some(base);
        if median > (base * factor).max(FLOOR.as_secs_f64()) {
            if depth <= 1 {
                let longer = self.pause.max(Duration::from_secs_f64(median / 2.0)) * 2;
                self.pause = longer.min(LONGEST_PAUSE);
            }
            self.cap = (depth / 2).max(1);
        } else if !self.pause.is_zero() {
            self.pause /= 2;
            if self.pause < Duration::from_millis(1) {
                self.pause = Duration::ZERO;
            }
        } else {
            self.cap = (self.cap + (self.cap / 8).max(1)).min(self.ceiling);
        }
    }
}

/// The class of sizes that most of the reads had, and its median latency.
fn usual(latencies: &mut [(u32, Duration)]) -> Option<(usize, Duration)> {
    let mut counts = [0_usize; CLASSES];
    for (bytes, _) in latencies.iter() {
        counts[class_of(*bytes)] += 1;
    }
    let class = (0..CLASSES).max_by_key(|class| counts[*class])?;
    let mut times: Vec<_> =
        latencies.iter().filter(|(bytes, _)| class_of(*bytes) == class).map(|(_, time)| *time).collect();
    let middle = times.len() / 2;
    (!times.is_empty()).then(|| (class, *times.select_nth_unstable(middle).1))
}

fn class_of(bytes: u32) -> usize {
    (bytes.div_ceil(64 << 10).max(1).next_power_of_two().trailing_zeros() as usize).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Disk {
        backoff: LatencyBackoff,
        baseline: LatencyBaseline,
    }

    impl Disk {
        fn new() -> Self {
            Self { backoff: LatencyBackoff::new(Some(4.0), 64), baseline: LatencyBaseline::default() }
        }

        /// Rounds of reads of `bytes` that take `ms` each; returns the allowed depth then.
        fn rounds(&mut self, count: usize, bytes: u32, ms: u64) -> (usize, Duration) {
            for _ in 0..count {
                let mut latencies = vec![(bytes, Duration::from_millis(ms)); 9];
                let depth = self.backoff.cap();
                self.backoff.evaluate(&mut self.baseline, &mut latencies, depth, 0.02);
            }
            (self.backoff.cap(), self.backoff.pause())
        }
    }

    #[test]
    fn it_backs_off_while_reads_are_slow_and_comes_back() {
        let mut disk = Disk::new();
        assert_eq!(disk.rounds(50, 1 << 19, 10), (64, Duration::ZERO));
        assert_eq!(disk.rounds(50, 1 << 19, 39), (64, Duration::ZERO), "less than four times as slow");
        assert_eq!(disk.rounds(1, 1 << 19, 50), (32, Duration::ZERO));
        let (cap, pause) = disk.rounds(20, 1 << 19, 50);
        assert_eq!((cap, pause), (1, LONGEST_PAUSE));
        assert!(disk.backoff.is_holding());
        assert_eq!(disk.rounds(100, 1 << 19, 10), (64, Duration::ZERO));
        assert!(!disk.backoff.is_holding());
    }

    #[test]
    fn sizes_are_judged_apart_and_short_times_never() {
        let mut disk = Disk::new();
        disk.rounds(10, 64 << 10, 5);
        assert_eq!(disk.rounds(10, 4 << 20, 80).0, 64, "a large read may take longer than a small one");
        assert_eq!(disk.rounds(1, 64 << 10, 21).0, 32);
        let mut quick = Disk::new();
        quick.rounds(10, 64 << 10, 1);
        assert_eq!(quick.rounds(10, 64 << 10, 19).0, 64, "19 ms is below the floor");
    }

    #[test]
    fn a_source_that_is_slower_for_good_is_believed_in_the_end() {
        let mut disk = Disk::new();
        disk.rounds(10, 1 << 19, 10);
        assert_eq!(disk.rounds(10, 1 << 19, 60).0, 1);
        let day = 24 * 3600 * 50;
        assert_eq!(disk.rounds(day / 10, 1 << 19, 60), (64, Duration::ZERO));
    }

    #[test]
    fn what_was_kept_is_known_again() {
        let mut disk = Disk::new();
        disk.rounds(10, 1 << 19, 10);
        disk.rounds(10, 64 << 10, 5);
        let kept: Vec<_> = disk.baseline.known().chain([(CLASSES, Duration::ZERO)]).collect();
        let mut next = Disk { baseline: LatencyBaseline::of(kept), ..Disk::new() };
        assert_eq!(next.rounds(1, 1 << 19, 50).0, 32, "strained from the first round on");
        assert_eq!(disk.baseline.known().count(), next.baseline.known().count());
    }

    #[test]
    fn without_a_factor_it_never_holds() {
        let mut disk = Disk { backoff: LatencyBackoff::new(None, 8), baseline: LatencyBaseline::default() };
        disk.rounds(5, 1 << 19, 1);
        assert_eq!(disk.rounds(50, 1 << 19, 5000), (8, Duration::ZERO));
    }
}
