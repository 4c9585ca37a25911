//! How fast a disk changes, hour by hour of its day, learned from passes.
//!
//! Rule: a pass shows only what changed in the whole time since the snapshot before it. These bytes are
//! spread over the hours of that time as they were spread so far, and the days before count less and less: an
//! hour that was observed for three more hours has forgotten half (exponentially weighted means). A block
//! that changed twice counts once, so short spacings show more change than long ones; predictions from them
//! err on the safe side.

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::zone::local;

/// Observed hours after which half of what an hour of the day knew is forgotten.
const HALF_LIFE: f64 = 3.0;
/// Likewise for the mean of all hours.
const MEAN_HALF_LIFE: f64 = 24.0;
/// Share of new bytes that is spread evenly, so that an hour that was quiet can be busy again.
const EVENLY: f64 = 0.1;
/// Longer times between snapshots say nothing about hours, in hours.
const LONGEST_SPAN: f64 = 8.0 * 24.0;

/// One disk's change rate. It is saved with the disk; without any observation nothing is predicted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HourlyChangeRate {
    mean: Mean,
    /// By the hour that the wall clock of the schedule's zone shows.
    hours: [Mean; 24],
}

/// A weighted mean of bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Mean {
    rate: f64,
    /// Hours observed.
    weight: f64,
}

impl Mean {
    fn learn(&mut self, rate: f64, hours: f64, half_life: f64) {
        let weight = self.weight.max(0.0) + hours;
        // The first observations count in full, not against a zero that was never measured.
        let share = (1.0 - 0.5_f64.powf(hours / half_life)).max(hours / weight);
        self.rate += share * (rate - self.rate);
        self.weight = weight.min(1e6);
    }
}

impl HourlyChangeRate {
    /// Learns that `bytes` changed between two snapshots.
    pub fn observe(&mut self, bytes: u64, from: DateTime<Utc>, to: DateTime<Utc>, zone: Tz) {
        let seconds = (to - from).as_seconds_f64();
        if seconds <= 0.0 {
            return;
        }
        let rate = bytes as f64 / seconds;
        if seconds / 3600.0 <= LONGEST_SPAN {
            let even = EVENLY * rate + f64::MIN_POSITIVE;
            let slices: Vec<_> = slices(from, to, zone).collect();
            let known = |hour: usize| self.hour(hour).unwrap_or(rate) + even;
            let sum: f64 = slices.iter().map(|slice| known(slice.hour) * slice.seconds).sum();
            let told: Vec<_> =
                slices.iter().map(|slice| (*slice, bytes as f64 * (known(slice.hour) / sum))).collect();
            for (slice, rate) in told {
                self.hours[slice.hour].learn(rate, slice.seconds / 3600.0, HALF_LIFE);
            }
        }
        self.mean.learn(rate, seconds / 3600.0, MEAN_HALF_LIFE);
    }

    /// Whether a prediction is possible.
    pub fn knows(&self) -> bool {
        self.mean.weight > 0.0
    }

    /// Bytes per second expected in an hour of the day; the mean of all hours as far as the hour is little
    /// known.
    fn hour(&self, hour: usize) -> Option<f64> {
        let Mean { rate, weight } = self.hours[hour];
        let trust = weight.max(0.0) / (weight.max(0.0) + 0.25);
        let expected = trust * rate + (1.0 - trust) * self.mean.rate;
        self.knows().then_some(if expected.is_finite() { expected.max(0.0) } else { 0.0 })
    }
}

/// The expected change of all disks of a migration.
#[derive(Clone, Debug)]
pub struct ExpectedChange {
    rates: [f64; 24],
    zone: Tz,
    /// Whether any of the disks has been observed.
    pub known: bool,
}

/// The search ends there: ten years, in hours.
const LONGEST_WALK: usize = 10 * 366 * 24;

impl ExpectedChange {
    /// The sum over `disks`, by the hours of `zone`.
    pub fn of<'a>(disks: impl IntoIterator<Item = &'a HourlyChangeRate>, zone: Tz) -> Self {
        let mut change = Self { rates: [0.0; 24], zone, known: false };
        for disk in disks {
            change.known |= disk.knows();
            for (hour, rate) in change.rates.iter_mut().enumerate() {
                *rate += disk.hour(hour).unwrap_or(0.0);
            }
        }
        change
    }

    /// Bytes per second at that moment.
    pub fn rate(&self, at: DateTime<Utc>) -> f64 {
        self.rates[local(self.zone, at).hour() as usize]
    }

    /// Bytes expected to change from one moment to another.
    pub fn between(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
        let days = ((to - from).num_days() - 8).max(0);
        let near = to - TimeDelta::days(days);
        let walked: f64 =
            slices(from, near, self.zone).map(|slice| self.rates[slice.hour] * slice.seconds).sum();
        walked + days as f64 * 3600.0 * self.rates.iter().sum::<f64>()
    }

    /// How many seconds after `from` the time `t` and the bytes until then have used up `quota`, both
    /// weighted: the `t` at which `t · per_second + bytes · per_byte = quota`. At most `longest` seconds.
    pub fn used_up(
        &self,
        from: DateTime<Utc>,
        per_second: f64,
        per_byte: f64,
        quota: f64,
        longest: f64,
    ) -> f64 {
        let (mut spent, mut passed) = (0.0, 0.0);
        let end = from + TimeDelta::milliseconds((longest.clamp(0.0, 3e8) * 1e3) as i64);
        for slice in slices(from, end, self.zone).take(LONGEST_WALK) {
            let cost = per_second + per_byte * self.rates[slice.hour];
            if spent + cost * slice.seconds >= quota {
                return (passed + ((quota - spent) / cost).max(0.0)).min(longest);
            }
            spent += cost * slice.seconds;
            passed += slice.seconds;
        }
        longest
    }
}

/// Part of an hour of the wall clock.
#[derive(Clone, Copy, Debug)]
struct Slice {
    hour: usize,
    seconds: f64,
}

/// The time from `from` to `to`, cut where the wall clock's hour changes.
fn slices(from: DateTime<Utc>, to: DateTime<Utc>, zone: Tz) -> impl Iterator<Item = Slice> {
    let mut at = from;
    std::iter::from_fn(move || {
        if at >= to {
            return None;
        }
        let shown = local(zone, at);
        let into = TimeDelta::seconds(i64::from(shown.num_seconds_from_midnight() % 3600))
            + TimeDelta::nanoseconds(i64::from(shown.nanosecond() % 1_000_000_000));
        let next = at.checked_add_signed(TimeDelta::hours(1) - into).unwrap_or(to).min(to);
        let seconds = (next - at).as_seconds_f64();
        at = next;
        Some(Slice { hour: shown.hour() as usize, seconds })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1024.0 * 1024.0;

    fn start() -> DateTime<Utc> {
        "2026-06-01T00:00:00Z".parse().unwrap()
    }

    /// Busy from 8 to 18, quiet otherwise.
    fn workload(at: DateTime<Utc>, zone: Tz) -> f64 {
        if (8..18).contains(&local(zone, at).hour()) { 10.0 * MIB } else { MIB }
    }

    fn learned(days: i64, spacing: i64, zone: Tz) -> HourlyChangeRate {
        let mut rhythm = HourlyChangeRate::default();
        let mut at = start();
        while at < start() + TimeDelta::days(days) {
            let next = at + TimeDelta::minutes(spacing);
            let minutes = (0..spacing).map(|minute| workload(at + TimeDelta::minutes(minute), zone) * 60.0);
            rhythm.observe(minutes.sum::<f64>() as u64, at, next, zone);
            at = next;
        }
        rhythm
    }

    #[test]
    fn the_days_rhythm_is_learned() {
        for zone in [Tz::UTC, Tz::Asia__Kolkata, Tz::America__New_York] {
            for spacing in [15, 60, 150] {
                let change = ExpectedChange::of([&learned(10, spacing, zone)], zone);
                let from = start() + TimeDelta::days(10);
                for hour in 0..24 {
                    let at = from + TimeDelta::hours(hour);
                    let (told, right) = (change.rate(at), workload(at, zone));
                    let border = [7, 8, 9, 10, 17, 18, 19, 20].contains(&local(zone, at).hour());
                    let off = (told / right).ln().abs();
                    assert!(
                        border && spacing >= 60 || off < if spacing > 60 { 0.5 } else { 0.3 },
                        "{zone} {spacing} {hour}: {told} for {right}"
                    );
                }
                let day = change.between(from, from + TimeDelta::days(1));
                let off = day / (114.0 * 3600.0 * MIB) - 1.0;
                assert!(off.abs() < 0.05, "{zone} {spacing}: {off}");
            }
        }
    }

    #[test]
    fn a_new_load_is_learned_and_an_old_one_forgotten() {
        let mut rhythm = learned(10, 60, Tz::UTC);
        let mut at = start() + TimeDelta::days(10);
        for _ in 0..24 * 14 {
            rhythm.observe((50.0 * MIB * 3600.0) as u64, at, at + TimeDelta::hours(1), Tz::UTC);
            at += TimeDelta::hours(1);
        }
        let change = ExpectedChange::of([&rhythm], Tz::UTC);
        for hour in 0..24 {
            let off = change.rate(at + TimeDelta::hours(hour)) / (50.0 * MIB);
            assert!((0.8..1.2).contains(&off), "{hour}: {off}");
        }
    }

    #[test]
    fn change_rate_is_unknown_unobserved_and_ignores_nonsense() {
        let mut rhythm = HourlyChangeRate::default();
        assert!(!ExpectedChange::of([&rhythm], Tz::UTC).known);
        rhythm.observe(5, start(), start(), Tz::UTC);
        rhythm.observe(5, start(), start() - TimeDelta::hours(1), Tz::UTC);
        assert!(!rhythm.knows());
        rhythm.observe(0, start(), start() + TimeDelta::hours(1), Tz::UTC);
        rhythm.observe(3600, start(), start() + TimeDelta::hours(1), Tz::UTC);
        let change = ExpectedChange::of([&rhythm, &rhythm], Tz::UTC);
        assert!(change.known && change.rate(start()) > 0.0);
        rhythm.observe(u64::MAX, start(), start() + TimeDelta::days(4000), Tz::UTC);
        assert!(ExpectedChange::of([&rhythm], Tz::UTC).rate(start()).is_finite());
    }

    #[test]
    fn the_far_sum_is_the_near_sum_going_on() {
        let change = ExpectedChange::of([&learned(3, 15, Tz::Europe__Berlin)], Tz::Europe__Berlin);
        let day = change.between(start(), start() + TimeDelta::days(1));
        let far = change.between(start(), start() + TimeDelta::days(30));
        assert!((far / day - 30.0).abs() < 1e-6, "{far} {day}");
        assert!(change.between(start(), start() - TimeDelta::days(1)) < 1e-9);
        let used = change.used_up(start(), 0.0, 1.0, day, 1e6);
        assert!((used - 86400.0).abs() < 0.01, "{used}");
        assert!(change.used_up(start(), 0.0, 1.0, f64::MAX, 1e6) >= 1e6);
    }
}
