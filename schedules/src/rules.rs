//! A schedule ready to be asked: may a pass start now, and if not, when, and why?
//!
//! Rule: everything comes in ([`PassHistory`] and the time), and every answer says why. A pass is due by the
//! schedule's cadence, or earlier, so that it ends just before a cutover may begin; it starts when it is due
//! and copying is allowed.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use crate::{
    adaptive::Adaptive,
    calendar::{Calendar, CalendarEdge},
    change_rate::ExpectedChange,
    cron::Cron,
    quota::Quotas,
    text::about_span,
    zone::moment,
};

/// When passes are due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cadence {
    /// So long after the end of the last one.
    Every(Duration),
    /// At these times; one that was missed comes as soon as it may.
    Cron(Box<Cron>),
    /// As learned from the passes before.
    Adaptive(Adaptive),
}

/// The last finished pass. One that broke off counts too, so that it is not repeated at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastPass {
    /// When its snapshot was taken.
    pub snapshot: DateTime<Utc>,
    /// When it ended.
    pub ended: DateTime<Utc>,
}

/// The known facts of a migration.
#[derive(Clone, Debug)]
pub struct PassHistory {
    pub last: Option<LastPass>,
    /// The change rate of its disks, by the hour.
    pub change: ExpectedChange,
    /// Bytes that its passes drain in a second; `None` before a pass.
    pub drained_per_second: Option<f64>,
    /// The time of a pass beside copying: its snapshot, flushes, commits.
    pub overhead: Duration,
    /// When an operator asked a cutover to begin.
    pub cutover_at: Option<DateTime<Utc>>,
}

impl PassHistory {
    /// Of a migration that has just begun.
    pub fn unknown(zone: Tz) -> Self {
        let change = ExpectedChange::of([], zone);
        Self { last: None, change, drained_per_second: None, overhead: Duration::ZERO, cutover_at: None }
    }

    pub(crate) fn throughput(&self) -> Option<f64> {
        self.drained_per_second.filter(|rate| rate.is_finite() && *rate > 0.0)
    }

    /// Seconds that a pass takes whose snapshot is taken at `at`; as long as the last one, while no rate is
    /// learned.
    pub fn pass_takes(&self, at: DateTime<Utc>) -> f64 {
        let Some(last) = self.last else { return self.overhead.as_secs_f64() };
        let copying = match self.throughput() {
            Some(throughput) if self.change.known => self.change.between(last.snapshot, at) / throughput,
            _ => (last.ended - last.snapshot).as_seconds_f64().max(0.0),
        };
        self.overhead.as_secs_f64() + copying
    }
}

/// When a pass is due, and why then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueTime {
    pub at: DateTime<Utc>,
    pub why: String,
}

/// Whether a pass may start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassDecision {
    /// Now.
    Start { why: String },
    /// Not before `until`: ask again then, or when a fact changes.
    Wait { until: DateTime<Utc>, why: String },
    /// Never, by the present schedule.
    Never { why: String },
}

/// The operation is not allowed yet: until when, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotBefore {
    /// `None`: never, by the present schedule.
    pub until: Option<DateTime<Utc>>,
    pub why: String,
}

/// A schedule with its zones known and its problems excluded: see [`crate::Schedule::rules`].
#[derive(Clone, Debug)]
pub struct Rules {
    pub cadence: Cadence,
    /// When data may be copied: also a pass that runs is suspended outside it.
    pub copy: Calendar,
    /// When a cutover may begin.
    pub cutover: Calendar,
    pub quotas: Quotas,
    /// In which times are shown.
    pub zone: Tz,
}

/// The beginning of the reason for a pass that comes before it is due.
pub(crate) const PULLED: &str = "pulled forward";
/// A pass before a cutover is planned to take so many times what is expected,
const LEAD: f64 = 1.5;
/// and so many seconds more,
const SPARE: f64 = 10.0;
/// and is left out if the last snapshot is not older, when it would start, than so many times its length
const FRESH: f64 = 2.0;
/// or so many seconds.
const FRESH_SECONDS: f64 = 60.0;
/// Openings of a calendar that are checked before a cutover.
const OPENINGS: usize = 1000;

impl Rules {
    /// Whether a pass may start at `now`.
    pub fn pass(&self, facts: &PassHistory, now: DateTime<Utc>) -> PassDecision {
        let due = self.due(facts, now);
        match self.shut(&self.copy, due.at.max(now)) {
            Some(NotBefore { until: Some(until), why }) => PassDecision::Wait { until, why },
            Some(NotBefore { until: None, why }) => PassDecision::Never { why },
            None if due.at <= now => PassDecision::Start { why: due.why },
            None => {
                let why = format!("due at {}: {}", moment(self.zone, due.at), due.why);
                PassDecision::Wait { until: due.at, why }
            }
        }
    }

    /// The obstacle at `at` for an operation that follows `calendar`, one of these rules; `None` if it is
    /// allowed.
    pub fn shut(&self, calendar: &Calendar, at: DateTime<Utc>) -> Option<NotBefore> {
        let (is_open, because) = calendar.state(at);
        if is_open {
            return None;
        }
        Some(match calendar.next_open(at) {
            Ok(open) => {
                let why = format!("blocked until {}, because {because}", moment(self.zone, open.at));
                NotBefore { until: Some(open.at), why }
            }
            Err(never) => NotBefore { until: None, why: never.to_string() },
        })
    }

    /// When the next pass is due, whether copying is allowed then or not.
    pub fn due(&self, facts: &PassHistory, now: DateTime<Utc>) -> DueTime {
        let Some(last) = facts.last else {
            return DueTime { at: now, why: "no pass has run yet".to_owned() };
        };
        // The next due time was reported before the clock was set back; the caller counts on from there.
        let last = LastPass { snapshot: last.snapshot.min(now), ended: last.ended.min(now) };
        let opening = self.opening(facts, now);
        let regular = match &self.cadence {
            Cadence::Every(interval) => DueTime {
                at: later(last.ended, interval.as_secs_f64()),
                why: format!("every {}", about_span(interval.as_secs_f64())),
            },
            Cadence::Cron(cron) => {
                let at = cron.after(last.snapshot).unwrap_or(DateTime::<Utc>::MAX_UTC);
                DueTime { at, why: format!("cron {cron}") }
            }
            Cadence::Adaptive(adaptive) => {
                let approaching = opening.as_ref().is_some_and(|opening| {
                    later(now, Self::lead(last, facts, opening.at) * (1.0 + FRESH) + FRESH_SECONDS)
                        >= opening.at
                });
                let near = approaching || !self.cutover.has_windows() || self.cutover.is_open(now);
                adaptive.due(last, facts, near)
            }
        };
        // None is pulled forward to a moment before now.
        if regular.at <= now {
            return regular;
        }
        let pulled = opening.and_then(|opening| self.pulled_forward(&opening, last, facts, now));
        pulled.filter(|pulled| pulled.at < regular.at).unwrap_or(regular)
    }

    /// How long data may be copied without a break from `now` on: until when, and why not longer; `None` is
    /// for ever.
    pub fn copy_until(&self, now: DateTime<Utc>) -> Option<CalendarEdge> {
        self.copy.next_close(now)
    }

    /// When the next cutover may begin that is not possible now.
    fn opening(&self, facts: &PassHistory, now: DateTime<Utc>) -> Option<CalendarEdge> {
        let asked = facts.cutover_at.filter(|at| *at > now);
        let asked = asked.map(|at| CalendarEdge { at, because: crate::calendar::CalendarReason::Unbound });
        let has_opening = self.cutover.has_windows() && !self.cutover.is_open(now);
        let opens = if has_opening { self.cutover.next_open(now).ok() } else { None };
        asked.into_iter().chain(opens).min_by_key(|answer| answer.at)
    }

    /// Seconds before `opening` at which a pass has to start that is to have ended by then.
    fn lead(last: LastPass, facts: &PassHistory, opening: DateTime<Utc>) -> f64 {
        let facts = PassHistory { last: Some(last), ..facts.clone() };
        LEAD * facts.pass_takes(opening) + SPARE
    }

    /// A pass that ends just before the next cutover may begin, so that little is left for the final delta.
    ///
    /// What changes during that pass may be worth one more, and so on: each is shorter, until the last
    /// snapshot is fresh enough.
    fn pulled_forward(
        &self,
        opening: &CalendarEdge,
        last: LastPass,
        facts: &PassHistory,
        now: DateTime<Utc>,
    ) -> Option<DueTime> {
        let lead = Self::lead(last, facts, opening.at);
        let (start, end) = self.last_stretch(now, opening.at)?;
        let at = sooner(end, lead).max(start);
        // Before a delta is measured, the lead comes from a full pass: one delta is worth it, however near
        // the opening.
        let is_measured = facts.change.known && facts.throughput().is_some();
        let fresh = if is_measured { FRESH * lead } else { (last.ended - last.snapshot).as_seconds_f64() };
        if (at.max(now) - last.snapshot).as_seconds_f64() <= fresh.max(FRESH_SECONDS) {
            return None;
        }
        let what = match &opening.because {
            crate::calendar::CalendarReason::Window(window) => format!("cutover window {window} opens"),
            _ => "a cutover may begin".to_owned(),
        };
        let takes = about_span((lead - SPARE) / LEAD);
        let why =
            format!("{PULLED}: {what} at {}, the pass takes about {takes}", moment(self.zone, opening.at));
        Some(DueTime { at, why })
    }

    /// The last time before `end` in which data may be copied without a break.
    fn last_stretch(&self, now: DateTime<Utc>, end: DateTime<Utc>) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let mut found = None;
        let mut at = now;
        for _ in 0..OPENINGS {
            let Ok(open) = self.copy.next_open(at) else { break };
            if open.at >= end {
                break;
            }
            let close = self.copy.next_close(open.at).map_or(end, |answer| answer.at.min(end));
            found = Some((open.at, close));
            at = close;
        }
        found
    }
}

/// `seconds` after `at`, or the end of time.
pub(crate) fn later(at: DateTime<Utc>, seconds: f64) -> DateTime<Utc> {
    let span =
        Duration::try_from_secs_f64(seconds.max(0.0)).ok().and_then(|span| TimeDelta::from_std(span).ok());
    span.and_then(|span| at.checked_add_signed(span)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// `seconds` before `at`, or the beginning of time.
fn sooner(at: DateTime<Utc>, seconds: f64) -> DateTime<Utc> {
    let span =
        Duration::try_from_secs_f64(seconds.max(0.0)).ok().and_then(|span| TimeDelta::from_std(span).ok());
    span.and_then(|span| at.checked_sub_signed(span)).unwrap_or(DateTime::<Utc>::MIN_UTC)
}
