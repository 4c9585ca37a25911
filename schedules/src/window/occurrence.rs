//! When a window is open.
//!
//! Rule: the edges of its occurrences never go backwards from one day to the next, so that the first one
//! found is the next one. A search ends at its horizon.

use chrono::{DateTime, Datelike, Days as Ahead, NaiveDate, Utc};
use chrono_tz::Tz;

use super::{Window, days::Holidays};
use crate::zone::{leaves, local, reaches};

/// How far ahead is searched, in days: ten years, so that 29 February comes at least twice.
pub const HORIZON_DAYS: u64 = 3660;

/// Whether a search that began at `start` has ended.
pub(crate) fn is_beyond(start: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    u64::try_from((now - start).num_days()).is_ok_and(|days| days > HORIZON_DAYS)
}

/// From one moment to another, the second not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub start: DateTime<Utc>,
    pub end: DateTime<Utc>,
}

impl Interval {
    /// Whether `at` is in it.
    pub fn has(&self, at: DateTime<Utc>) -> bool {
        self.start <= at && at < self.end
    }
}

/// How an edge in a repeated hour is read: in doubt the operation is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// For a window that allows: it closes at the first of the two moments.
    Narrow,
    /// For a window that forbids or limits: it closes at the second.
    Wide,
}

impl Window {
    /// The occurrence that `at` is in; of several the one that ends last.
    pub(crate) fn at(&self, at: DateTime<Utc>, reading: Reading, holidays: &Holidays) -> Option<Interval> {
        let zone = self.zone()?;
        if self.is_always() {
            return Some(Interval { start: DateTime::<Utc>::MIN_UTC, end: DateTime::<Utc>::MAX_UTC });
        }
        let day = local(zone, at).date();
        // A clock that is put back over midnight shows the day before again.
        let first = day.checked_sub_days(Ahead::new(u64::from(self.over) + 1))?;
        let days = first.iter_days().take(self.over as usize + 3);
        let there = days.filter_map(|day| self.on(day, zone, reading, holidays)).filter(|each| each.has(at));
        there.max_by_key(|each| each.end)
    }

    /// The next occurrence that starts after `at`.
    pub(crate) fn after(&self, at: DateTime<Utc>, reading: Reading, holidays: &Holidays) -> Option<Interval> {
        let zone = self.zone()?;
        let mut day = local(zone, at).date().checked_sub_days(Ahead::new(1))?;
        let horizon = day.checked_add_days(Ahead::new(HORIZON_DAYS))?;
        let last = self.days.last().map_or(horizon, |last| last.min(horizon));
        while day <= last {
            let next = self.on(day, zone, reading, holidays).filter(|each| each.start > at);
            if next.is_some() {
                return next;
            }
            day = day.succ_opt()?;
        }
        None
    }

    /// The occurrence that opens on `day`; none if it is empty because the clock skips it.
    fn on(&self, day: NaiveDate, zone: Tz, reading: Reading, holidays: &Holidays) -> Option<Interval> {
        if !self.days.has(day, holidays) || day.year() > 9999 {
            return None;
        }
        let edge =
            |ahead: u32, time| Some(day.checked_add_days(Ahead::new(u64::from(ahead)))?.and_time(time));
        let (_, opens) = self.from.on();
        let (_, closes) = self.to.on();
        let start = reaches(zone, edge(0, opens)?);
        let close = edge(self.over, closes)?;
        let end = match reading {
            Reading::Narrow => reaches(zone, close),
            Reading::Wide => leaves(zone, close),
        };
        (start < end).then_some(Interval { start, end })
    }
}
