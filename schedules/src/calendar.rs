//! A calendar: windows in which an operation is allowed, and blackouts in which it is not.
//!
//! Rule: it is open in each of its windows, or always if it has none, and never in a blackout. Every answer
//! says which window or blackout it comes from. All changes happen at edges, so a search goes from edge to
//! edge, and ends.

use std::fmt;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use crate::{
    window::{Holidays, Interval, Reading, Window, is_beyond},
    zone::moment,
};

/// Windows and blackouts, each with its zone.
#[derive(Clone, Debug, Default)]
pub struct Calendar {
    windows: Vec<Window>,
    blackouts: Vec<Window>,
    holidays: Holidays,
}

/// Why a calendar is open or closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CalendarReason {
    /// It has no windows, and no blackout now.
    Unbound,
    /// This window is open.
    Window(String),
    /// This blackout holds.
    Blackout(String),
    /// It has windows, but none is open now.
    Closed,
}

impl fmt::Display for CalendarReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unbound => f.write_str("no window or blackout forbids it"),
            Self::Window(window) => write!(f, "window {window} is open"),
            Self::Blackout(window) => write!(f, "blackout {window} holds"),
            Self::Closed => f.write_str("no window is open"),
        }
    }
}

/// When, and why then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalendarEdge {
    pub at: DateTime<Utc>,
    pub because: CalendarReason,
}

/// It is not open again within ten years.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: correct the windows or the blackouts")]
pub struct Never {
    /// Its windows, and its obstacles.
    pub reason: String,
}

impl Calendar {
    /// Of windows whose zones are known: one without a zone is never open, and [`crate::Schedule::problems`]
    /// reports it.
    pub(crate) fn new(windows: Vec<Window>, blackouts: Vec<Window>, holidays: Holidays) -> Self {
        Self { windows, blackouts, holidays }
    }

    /// The zone for its times: that of its first window or blackout.
    pub fn zone(&self) -> Option<Tz> {
        self.windows.iter().chain(&self.blackouts).find_map(Window::zone)
    }

    /// Whether it has windows or blackouts.
    pub fn is_unbound(&self) -> bool {
        self.windows.is_empty() && self.blackouts.is_empty()
    }

    /// Whether it has windows: without windows, there is no time to prepare a cutover for.
    pub fn has_windows(&self) -> bool {
        !self.windows.is_empty()
    }

    /// Whether it is open at that moment.
    pub fn is_open(&self, at: DateTime<Utc>) -> bool {
        self.state(at).0
    }

    /// Whether it is open at that moment, and why.
    pub fn state(&self, at: DateTime<Utc>) -> (bool, CalendarReason) {
        if let Some((blackout, _)) = self.blackout(at) {
            return (false, CalendarReason::Blackout(blackout.to_string()));
        }
        match self.window(at) {
            Some((window, _)) => (true, CalendarReason::Window(window.to_string())),
            None if self.windows.is_empty() => (true, CalendarReason::Unbound),
            None => (false, CalendarReason::Closed),
        }
    }

    /// The first moment from `at` on at which it is open.
    pub fn next_open(&self, at: DateTime<Utc>) -> Result<CalendarEdge, Never> {
        let mut now = at;
        while !is_beyond(at, now) {
            if let Some((_, interval)) = self.blackout(now) {
                now = interval.end;
                continue;
            }
            if self.windows.is_empty() || self.window(now).is_some() {
                return Ok(CalendarEdge { at: now, because: self.state(now).1 });
            }
            let starts =
                self.windows.iter().filter_map(|each| each.after(now, Reading::Narrow, &self.holidays));
            match starts.map(|interval| interval.start).min() {
                Some(start) => now = start,
                None => return Err(self.never(at, "does not open any more")),
            }
        }
        Err(self.never(at, "lies in blackouts whenever it would open, for ten years"))
    }

    /// The first moment from `at` on at which it is closed; none if it does not close within ten years.
    pub fn next_close(&self, at: DateTime<Utc>) -> Option<CalendarEdge> {
        let mut now = at;
        while !is_beyond(at, now) {
            let (open, because) = self.state(now);
            if !open {
                return Some(CalendarEdge { at: now, because });
            }
            let blackouts =
                self.blackouts.iter().filter_map(|each| each.after(now, Reading::Wide, &self.holidays));
            let blackout = blackouts.map(|interval| interval.start).min();
            let closes = self.window(now).map(|(_, interval)| interval.end);
            now = match (blackout, closes) {
                (Some(one), Some(other)) => one.min(other),
                (one, other) => one.or(other)?,
            };
        }
        None
    }

    /// The first moment after `at` at which it opens or closes, and whether it opens; none within ten years.
    pub fn next_change(&self, at: DateTime<Utc>) -> Option<(CalendarEdge, bool)> {
        if self.is_open(at) {
            self.next_close(at).map(|answer| (answer, false))
        } else {
            self.next_open(at).ok().map(|answer| (answer, true))
        }
    }

    fn window(&self, at: DateTime<Utc>) -> Option<(&Window, Interval)> {
        longest(&self.windows, at, Reading::Narrow, &self.holidays)
    }

    fn blackout(&self, at: DateTime<Utc>) -> Option<(&Window, Interval)> {
        longest(&self.blackouts, at, Reading::Wide, &self.holidays)
    }

    fn never(&self, at: DateTime<Utc>, why: &str) -> Never {
        let names: Vec<_> = self.windows.iter().map(ToString::to_string).collect();
        let windows = match names.as_slice() {
            [] => "everything".to_owned(),
            [one] => format!("window {one}"),
            several => format!("each of the windows {}", several.join("; ")),
        };
        let since = moment(self.zone().unwrap_or(Tz::UTC), at);
        Never { reason: format!("from {since} on, {windows} {why}") }
    }
}

/// The first moment from `at` on, but before `end`, at which all of the calendars are open.
pub fn meet(calendars: &[&Calendar], at: DateTime<Utc>, end: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let mut now = at;
    while now < end {
        // No window is open before, so no opening is skipped.
        let opens = calendars.iter().map(|each| each.next_open(now).ok().map(|open| open.at));
        let latest = opens.collect::<Option<Vec<_>>>()?.into_iter().max().unwrap_or(now);
        if latest == now {
            return Some(now);
        }
        now = latest;
    }
    None
}

/// Of the windows that are open, the one that stays open longest.
fn longest<'a>(
    windows: &'a [Window],
    at: DateTime<Utc>,
    reading: Reading,
    holidays: &Holidays,
) -> Option<(&'a Window, Interval)> {
    let open = windows.iter().filter_map(|window| Some((window, window.at(at, reading, holidays)?)));
    open.max_by_key(|(_, interval)| interval.end)
}
