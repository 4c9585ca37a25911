//! The free space that scratch files need: a minimum, and more where the guest writes fast.
//!
//! Rule: pure but for the memory of the last rates. The needed space is what is filled in the time to
//! notice the shortage and to end the job. A rate is measured over some seconds, from the first check on: a
//! short burst is not a trend.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::libvirt::DomainId;

/// The usual longest time of one check, libvirt's answer on the job, its end, and the removal of its files.
const NOTICE_AND_END: u64 = 5;
/// The factor on that: guests write faster, and libvirt answers more slowly, when much is written.
const MARGIN: u64 = 2;
/// The period of a rate.
const WINDOW: Duration = Duration::from_secs(5);
/// Below this nothing is reported.
const LEAST: Duration = Duration::from_millis(500);
/// A rate that was measured so long ago counts half.
const HALF_LIFE: Duration = Duration::from_mins(10);

/// The figures of one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct FreeSpaceSample {
    pub(super) at: Instant,
    /// Bytes free in the file system.
    pub(super) free: u64,
    /// Bytes that the job's scratch files take.
    pub(super) scratch: u64,
}

/// The last few seconds of a job.
#[derive(Debug, Default)]
pub(super) struct Trend(VecDeque<FreeSpaceSample>);

impl Trend {
    /// Adds a check; checks come in order of time.
    pub(super) fn add(&mut self, look: FreeSpaceSample) {
        self.0.push_back(look);
        // The last one at or before the window's start stays: it is where the window begins.
        while self.0.get(1).is_some_and(|second| look.at.saturating_duration_since(second.at) >= WINDOW) {
            self.0.pop_front();
        }
    }

    /// Bytes a second by which the job's scratch files grow.
    pub(super) fn growth(&self) -> u64 {
        self.rate(|first, last| last.scratch.saturating_sub(first.scratch))
    }

    /// Bytes a second by which free space shrinks: other jobs and other programs fill the same file system.
    pub(super) fn loss(&self) -> u64 {
        self.rate(|first, last| first.free.saturating_sub(last.free)).max(self.growth())
    }

    fn rate(&self, change: impl Fn(&FreeSpaceSample, &FreeSpaceSample) -> u64) -> u64 {
        let (Some(first), Some(last)) = (self.0.front(), self.0.back()) else { return 0 };
        let took = last.at.saturating_duration_since(first.at);
        if took < LEAST {
            return 0;
        }
        // Nothing is known before the first check: the writes at a snapshot's begin count as the burst
        // that they are.
        let millis = u64::try_from(took.max(WINDOW).as_millis()).unwrap_or(u64::MAX);
        change(first, last).saturating_mul(1000) / millis
    }
}

/// The needed free space, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) bytes: u64,
    /// Bytes a second that raise it above the setting.
    rate: Option<u64>,
}

impl Need {
    /// The larger of the setting and of the space filled at this rate while the job is ended.
    pub(super) fn at(minimum: u64, rate: u64) -> Self {
        let filled = rate.saturating_mul(NOTICE_AND_END * MARGIN);
        if filled > minimum {
            Self { bytes: filled, rate: Some(rate) }
        } else {
            Self { bytes: minimum, rate: None }
        }
    }

    /// The remedy.
    pub(super) fn advice(self) -> &'static str {
        match self.rate {
            None => "make room, set `scratch_dir` to a larger file system, or lower `scratch_reserve_mib`",
            Some(_) => "make room, set `scratch_dir` to a larger file system, or copy when less is written",
        }
    }

    /// Whether the free space is too small for a snapshot.
    pub(super) fn exceeds(self, free: u64) -> bool {
        free < self.bytes
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = self.bytes >> 20;
        match self.rate {
            None => write!(f, "{needed} MiB must be (`scratch_reserve_mib`)"),
            Some(rate) => write!(
                f,
                "{needed} MiB must be, because the room is filled at {} MiB a second and {} s of that must fit",
                rate >> 20,
                NOTICE_AND_END * MARGIN
            ),
        }
    }
}

/// The highest rate of each VM's snapshots, the older the less it counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates(Arc<Mutex<BTreeMap<DomainId, (u64, Instant)>>>);

impl Rates {
    /// The VM's scratch files grow by so many bytes a second now.
    pub(super) fn measured(&self, domain: DomainId, rate: u64, now: Instant) {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = rates.entry(domain).or_insert((rate, now));
        if rate >= faded(known.0, now.saturating_duration_since(known.1)) {
            *known = (rate, now);
        }
    }

    /// The expected growth of the VM's scratch files, from earlier measurements.
    pub(super) fn expected(&self, domain: DomainId, now: Instant) -> u64 {
        let rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rates.get(&domain).map_or(0, |(rate, at)| faded(*rate, now.saturating_duration_since(*at)))
    }
}

/// A rate of that age. Without a new measurement an old one must not block for ever.
fn faded(rate: u64, age: Duration) -> u64 {
    let halvings = age.as_secs() / HALF_LIFE.as_secs();
    u32::try_from(halvings).ok().and_then(|halvings| rate.checked_shr(halvings)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn trend(start: Instant, looks: &[(u64, u64, u64)]) -> Trend {
        let mut trend = Trend::default();
        for (millis, free, scratch) in looks {
            let at = start + Duration::from_millis(*millis);
            trend.add(FreeSpaceSample { at, free: free * MIB, scratch: scratch * MIB });
        }
        trend
    }

    #[test]
    fn a_fast_guest_needs_more_than_the_minimum() {
        assert_eq!(Need::at(1024 * MIB, 0).bytes, 1024 * MIB);
        assert_eq!(Need::at(1024 * MIB, 102 * MIB).bytes, 1024 * MIB, "less than the minimum is filled");
        let fast = Need::at(1024 * MIB, 500 * MIB);
        assert_eq!(fast.bytes, 5000 * MIB);
        assert!(fast.exceeds(4999 * MIB) && !fast.exceeds(5000 * MIB));
        assert!(Need::at(0, u64::MAX).exceeds(u64::MAX - 1));
    }

    #[test]
    fn the_reason_names_the_rate_and_the_figures() {
        let text = Need::at(1024 * MIB, 500 * MIB).to_string();
        assert!(
            text.contains("5000 MiB") && text.contains("500 MiB a second") && text.contains("10 s"),
            "{text}"
        );
        assert!(!Need::at(0, MIB).advice().contains("scratch_reserve_mib"), "lowering it would not help");
        let least = Need::at(1024 * MIB, 1);
        assert!(
            least.to_string().contains("1024 MiB") && least.advice().contains("lower `scratch_reserve_mib`")
        );
    }

    #[test]
    fn a_rate_is_taken_over_the_last_seconds() {
        let start = Instant::now();
        assert_eq!(trend(start, &[]).loss(), 0);
        assert_eq!(trend(start, &[(0, 9000, 0)]).loss(), 0);
        assert_eq!(trend(start, &[(0, 9000, 0), (100, 8000, 1000)]).loss(), 0, "too short to tell");
        let steady = trend(start, &[(0, 9000, 0), (1000, 8900, 100), (5000, 8500, 500)]);
        assert_eq!((steady.loss(), steady.growth()), (100 * MIB, 100 * MIB));
        let burst = trend(
            start,
            &[(0, 9000, 0), (1000, 9000, 0), (2000, 9000, 0), (4000, 9000, 0), (5000, 8000, 1000)],
        );
        assert_eq!(burst.loss(), 200 * MIB, "a second of a window");
        let looks: Vec<_> = (0..20).map(|n| (n * 1000, 9000 - n.min(10) * 100, n.min(10) * 100)).collect();
        assert_eq!(trend(start, &looks).loss(), 0, "it ended longer ago than the window");
    }

    #[test]
    fn a_burst_between_the_first_two_looks_is_no_trend() {
        let start = Instant::now();
        let begun = [(0, 9000, 0), (1000, 8000, 1000), (3000, 8000, 1000), (5900, 8000, 1000)];
        for seen in 2..=3 {
            let trend = trend(start, &begun[..seen]);
            assert_eq!((trend.loss(), trend.growth()), (200 * MIB, 200 * MIB), "after {seen} looks");
            assert!(!Need::at(1024 * MIB, trend.loss()).exceeds(8000 * MIB), "the pass is given up");
        }
        assert!(trend(start, &begun).loss() < 200 * MIB, "it is long ago");
        // A guest that goes on is noticed all the same, before the space is used up.
        let fast = trend(start, &[(0, 9000, 0), (1000, 8000, 1000), (2000, 7000, 2000), (4000, 5000, 4000)]);
        assert!(Need::at(1024 * MIB, fast.loss()).exceeds(5000 * MIB), "{}", fast.loss());
    }

    #[test]
    fn what_others_fill_counts_for_the_room_and_not_for_the_vm() {
        let trend = trend(Instant::now(), &[(0, 9000, 0), (5000, 4000, 50)]);
        assert_eq!((trend.loss(), trend.growth()), (1000 * MIB, 10 * MIB));
        let made = self::trend(Instant::now(), &[(0, 9000, 0), (5000, 9500, 50)]);
        assert_eq!(made.loss(), 10 * MIB, "room was made, and the files grew all the same");
    }

    #[test]
    fn the_last_rate_is_known_before_the_next_snapshot_and_fades() {
        let (rates, domain, now) = (Rates::default(), "7d228921-0810-4fcd-ba11-1d24023c5149", Instant::now());
        let domain: DomainId = domain.parse().unwrap();
        assert_eq!(rates.expected(domain, now), 0);
        rates.measured(domain, 400 * MIB, now);
        rates.measured(domain, 100 * MIB, now + Duration::from_secs(1));
        assert_eq!(rates.expected(domain, now + Duration::from_secs(2)), 400 * MIB, "the highest counts");
        assert_eq!(rates.expected(domain, now + 2 * HALF_LIFE), 100 * MIB);
        rates.measured(domain, 150 * MIB, now + 2 * HALF_LIFE);
        assert_eq!(rates.expected(domain, now + 2 * HALF_LIFE), 150 * MIB, "newer than what has faded");
        assert_eq!(rates.expected(domain, now + 1000 * HALF_LIFE), 0);
    }
}
