//! The next decisions of a schedule, in words.
//!
//! Rule: the answers are those that [`crate::rules`] gives at these times if no new measurement comes
//! meanwhile: the passes are simulated with their forecasts. Times never go back. Of passes that follow each
//! other without another event, the first two are listed and the rest is counted.

use std::fmt;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use crate::{
    calendar::Calendar,
    rules::{LastPass, NotBefore, PULLED, PassDecision, PassHistory, Rules, later},
    text::about_span,
    zone::moment,
};

/// How many decisions are shown by default.
pub const DECISIONS: usize = 20;
/// Passes of one stretch that are listed one by one.
const TOLD: usize = 2;
/// Passes of one stretch that are simulated.
const PLAYED: usize = 5_000;

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExplainedDecision {
    /// Data may be copied from now on.
    PassAllowed,
    /// No data may be copied from now on.
    PassBlocked,
    /// A pass starts.
    Pass,
    /// Passes go on as before.
    Passes,
    /// A cutover may begin from now on.
    CutoverAllowed,
    /// No cutover may begin from now on.
    CutoverBlocked,
    /// Other limits apply from now on.
    Limits,
}

impl fmt::Display for ExplainedDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PassAllowed => "pass allowed",
            Self::PassBlocked => "pass blocked",
            Self::Pass => "pass starts",
            Self::Passes => "passes go on",
            Self::CutoverAllowed => "cutover allowed",
            Self::CutoverBlocked => "cutover blocked",
            Self::Limits => "limits",
        })
    }
}

/// One decision: `2026-11-28 22:00 CET  pass allowed     window Sat 22:00–Sun 04:00 Europe/Berlin is open`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleDecision {
    pub at: DateTime<Utc>,
    /// In which its times are shown.
    pub zone: Tz,
    pub what: ExplainedDecision,
    pub why: String,
}

impl fmt::Display for ScheduleDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {:<15}  {}", moment(self.zone, self.at), self.what, self.why)
    }
}

/// The next decisions, at most `count`: the situation at `now`, and then what changes.
pub fn explain(
    rules: &Rules,
    facts: &PassHistory,
    now: DateTime<Utc>,
    count: usize,
) -> Vec<ScheduleDecision> {
    let mut story = Timeline { rules, facts: facts.clone(), told: Vec::new(), count };
    story.copying(now);
    if !rules.cutover.is_unbound() {
        story.cutover(now);
    }
    if rules.quotas.at(now) != crate::quota::Allowance::default() {
        story.limits(now);
    }
    story.go_on(now);
    story.told.truncate(count);
    story.told
}

struct Timeline<'a> {
    rules: &'a Rules,
    facts: PassHistory,
    told: Vec<ScheduleDecision>,
    count: usize,
}

impl Timeline<'_> {
    fn go_on(&mut self, now: DateTime<Utc>) {
        let rules = self.rules;
        let mut copy = rules.copy.next_change(now).map(|(answer, _)| answer.at);
        let mut cutover = rules.cutover.next_change(now).map(|(answer, _)| answer.at);
        let mut limits = rules.quotas.next_change(now);
        let mut pass = self.next_pass(now);
        let mut passes = 0;
        while self.told.len() < self.count {
            let other = [copy, cutover, limits].into_iter().flatten().min();
            if let Some((at, why)) = pass.take_if(|(at, _)| other.is_none_or(|other| *at < other)) {
                passes += 1;
                if passes > TOLD && !why.starts_with(PULLED) {
                    pass = self.rest(at, other);
                    if other.is_none() {
                        return;
                    }
                } else {
                    let takes = self.facts.pass_takes(at);
                    let length = if takes > 0.0 {
                        format!(", takes about {}", about_span(takes))
                    } else {
                        String::new()
                    };
                    self.tell(at, ExplainedDecision::Pass, format!("{why}{length}"));
                    let ended = self.play(at);
                    pass = self.next_pass(ended);
                }
                continue;
            }
            let Some(at) = other else { return };
            passes = 0;
            // Restrictions come before permissions, so that each line is true when it is read.
            if limits == Some(at) {
                self.limits(at);
                limits = rules.quotas.next_change(at);
            }
            if copy == Some(at) {
                self.copying(at);
                copy = rules.copy.next_change(at).map(|(answer, _)| answer.at);
            }
            if cutover == Some(at) {
                self.cutover(at);
                cutover = rules.cutover.next_change(at).map(|(answer, _)| answer.at);
            }
        }
    }

    /// The rest of a stretch in one line; the first pass after it.
    fn rest(&mut self, first: DateTime<Utc>, end: Option<DateTime<Utc>>) -> Option<(DateTime<Utc>, String)> {
        let (zone, started) = (self.rules.zone, self.facts.last);
        let Some(end) = end else {
            let spacing = started.map(|last| about_span((first - last.snapshot).as_seconds_f64()));
            let why = format!("about {} apart, nothing stops them", spacing.unwrap_or_default());
            self.tell(first, ExplainedDecision::Passes, why);
            return None;
        };
        let (mut count, mut last, mut next) = (0, first, Some((first, String::new())));
        while let Some((at, _)) = next.take_if(|(at, why)| *at < end && !why.starts_with(PULLED)) {
            if count == PLAYED {
                break;
            }
            (count, last) = (count + 1, at);
            let ended = self.play(at);
            next = self.next_pass(ended);
        }
        if count == PLAYED {
            next = self.next_pass(end);
        }
        let end = next.as_ref().map_or(end, |(at, _)| end.min(*at));
        let why = match count {
            1 => "one more".to_owned(),
            PLAYED => format!("more than {PLAYED} until {}", moment(zone, end)),
            _ => {
                let spacing = about_span((last - first).as_seconds_f64() / f64::from(count as u32 - 1));
                format!("{count} more, about {spacing} apart, until {}", moment(zone, end))
            }
        };
        self.tell(first, ExplainedDecision::Passes, why);
        next
    }

    /// When the next pass starts, and why then.
    fn next_pass(&self, from: DateTime<Utc>) -> Option<(DateTime<Utc>, String)> {
        let mut at = from;
        // A due time may move during the wait, but seldom does.
        for _ in 0..100 {
            match self.rules.pass(&self.facts, at) {
                PassDecision::Start { why } => return Some((at, why)),
                PassDecision::Wait { until, .. } if until < DateTime::<Utc>::MAX_UTC => at = until,
                PassDecision::Wait { .. } | PassDecision::Never { .. } => return None,
            }
        }
        None
    }

    /// Simulates a pass that starts at `at`; returns its end. It is suspended while no data may be copied.
    fn play(&mut self, at: DateTime<Utc>) -> DateTime<Utc> {
        let mut left = self.facts.pass_takes(at);
        let mut now = at;
        for _ in 0..1000 {
            let Some(close) = self.rules.copy.next_close(now) else { break };
            let open = (close.at - now).as_seconds_f64();
            if open >= left {
                break;
            }
            left -= open;
            match self.rules.copy.next_open(close.at) {
                Ok(answer) => now = answer.at,
                Err(_) => break,
            }
        }
        let ended = later(now, left);
        self.facts.last = Some(LastPass { snapshot: at, ended });
        ended
    }

    fn copying(&mut self, at: DateTime<Utc>) {
        let rules = self.rules;
        self.stands(at, &rules.copy, ExplainedDecision::PassAllowed, ExplainedDecision::PassBlocked);
    }

    fn cutover(&mut self, at: DateTime<Utc>) {
        let rules = self.rules;
        self.stands(at, &rules.cutover, ExplainedDecision::CutoverAllowed, ExplainedDecision::CutoverBlocked);
    }

    /// The state of `calendar` at that moment, and its end.
    fn stands(
        &mut self,
        at: DateTime<Utc>,
        calendar: &Calendar,
        open: ExplainedDecision,
        closed: ExplainedDecision,
    ) {
        match self.rules.shut(calendar, at) {
            None => {
                let (because, until) = (calendar.state(at).1, calendar.next_close(at).map(|close| close.at));
                self.tell(at, open, format!("{because}{}", self.until(until)));
            }
            Some(NotBefore { until: Some(_), why }) => self.tell(at, closed, why),
            Some(NotBefore { until: None, why }) => {
                self.tell(at, closed, format!("blocked for ever, because {why}"));
            }
        }
    }

    fn limits(&mut self, at: DateTime<Utc>) {
        let quotas = &self.rules.quotas;
        let why = format!("{}: {}", quotas.at(at).in_words(), quotas.why(at));
        self.tell(at, ExplainedDecision::Limits, why);
    }

    fn until(&self, until: Option<DateTime<Utc>>) -> String {
        until.map_or_else(String::new, |until| format!(", until {}", moment(self.rules.zone, until)))
    }

    fn tell(&mut self, at: DateTime<Utc>, what: ExplainedDecision, why: String) {
        self.told.push(ScheduleDecision { at, zone: self.rules.zone, what, why });
    }
}
