//! Spacing passes by learned change rates, so that a goal is met with the least copying.
//!
//! Rule: the next pass starts as late as the goal allows, with a tenth to spare: for an RPO, so late that the
//! copy is not older than that when the pass *ends*; for a final delta, so late that not more than that has
//! changed. Where cutovers have windows, a final delta has to be small in these only: outside, the longest
//! spacing holds, and [`crate::rules`] pulls passes forward before a window.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    error::ParseError,
    rules::{DueTime, LastPass, PassHistory, later},
    text::{self, about, about_span},
};

/// The part of a goal that is planned with.
const PLANNED: f64 = 0.9;
/// Spacing until a rate is learned, in seconds.
const UNLEARNED: f64 = 900.0;

/// The goals, and the limits of the spacing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adaptive {
    /// The target is never to be older than this.
    #[serde(default, with = "text::optional_duration", skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Duration>,
    /// The final delta is never to be larger, or to take longer, than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_delta: Option<FinalDelta>,
    /// The least time from one pass's start to the next.
    #[serde(default = "shortest", with = "text::duration")]
    pub shortest: Duration,
    /// The longest time from one pass's start to the next.
    #[serde(default = "longest", with = "text::duration")]
    pub longest: Duration,
}

fn shortest() -> Duration {
    Duration::from_mins(1)
}

fn longest() -> Duration {
    Duration::from_hours(24)
}

/// A final delta: bytes, or the time to copy it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FinalDelta {
    Bytes(u64),
    Span(Duration),
}

impl TryFrom<String> for FinalDelta {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        if let Ok(bytes) = text::parse_bytes(&text) {
            return Ok(Self::Bytes(bytes));
        }
        text::parse_span(&text).map(Self::Span).map_err(|_| {
            let wrong = "it is neither a size nor a length of time";
            ParseError::new("a final delta", &text, wrong, "write it like \"1GiB\" or \"30s\"")
        })
    }
}

impl From<FinalDelta> for String {
    fn from(delta: FinalDelta) -> Self {
        match delta {
            FinalDelta::Bytes(bytes) => text::bytes(bytes),
            FinalDelta::Span(span) => text::span(span),
        }
    }
}

impl Adaptive {
    /// Its faults, as `(key, problem)`.
    pub(crate) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.rpo.is_none() && self.final_delta.is_none() {
            problems
                .push(("", "has no target: give it `rpo = \"10m\"` or `final_delta = \"1GiB\"`".to_owned()));
        }
        if self.shortest < Duration::from_secs(1) {
            problems.push((".shortest", "is under 1s: passes would never end".to_owned()));
        }
        if self.longest < self.shortest {
            problems.push((".longest", "is under `shortest`: make it longer".to_owned()));
        }
        if self.rpo.is_some_and(|rpo| rpo < self.shortest) {
            problems
                .push((".rpo", "is under `shortest`: it could not hold; make `shortest` shorter".to_owned()));
        }
        if matches!(self.final_delta, Some(FinalDelta::Bytes(0) | FinalDelta::Span(Duration::ZERO))) {
            problems
                .push((".final_delta", "is nothing: a running guest always changes something".to_owned()));
        }
        problems
    }

    /// When the pass after `last` is due. `near` says that a cutover may come: a final delta must be small
    /// now.
    pub(crate) fn due(&self, last: LastPass, facts: &PassHistory, near: bool) -> DueTime {
        let (shortest, longest) = (self.shortest.as_secs_f64(), self.longest.as_secs_f64());
        let (wanted, why) = self.wanted(last.snapshot, facts, near);
        let spacing = wanted.clamp(shortest, longest.max(shortest));
        let at = later(last.snapshot, spacing).max(last.ended);
        let bytes = about(facts.change.between(last.snapshot, at));
        let why = if wanted < spacing {
            format!(
                "{why} asks for less than {}, the shortest spacing: it may not hold",
                about_span(shortest)
            )
        } else if wanted > spacing {
            format!("longest spacing, {}; about {bytes} will have changed", about_span(longest))
        } else {
            format!("{why}; about {bytes} will have changed")
        };
        DueTime { at, why }
    }

    /// Seconds between the snapshots, and why.
    fn wanted(&self, since: DateTime<Utc>, facts: &PassHistory, near: bool) -> (f64, String) {
        let rpo = self.rpo.map(|rpo| rpo.as_secs_f64());
        if !facts.change.known || facts.throughput().is_none() {
            let spacing = rpo.map_or(UNLEARNED, |rpo| (rpo / 2.0).min(UNLEARNED));
            return (spacing, "no delta has been measured yet".to_owned());
        }
        let per_byte = facts.throughput().map_or(0.0, |throughput| 1.0 / throughput);
        let longest = self.longest.as_secs_f64() * 2.0;
        let used_up =
            |per_second, per_byte, quota| facts.change.used_up(since, per_second, per_byte, quota, longest);
        let of_rpo = rpo.map(|rpo| {
            let seconds = used_up(1.0, per_byte, PLANNED * rpo - facts.overhead.as_secs_f64());
            (seconds, format!("RPO {}", about_span(rpo)))
        });
        let of_delta = self.final_delta.filter(|_| near).map(|delta| {
            let seconds = match delta {
                FinalDelta::Bytes(bytes) => used_up(0.0, 1.0, PLANNED * bytes as f64),
                FinalDelta::Span(span) => used_up(0.0, per_byte, PLANNED * span.as_secs_f64()),
            };
            (seconds, format!("final delta up to {}", String::from(delta)))
        });
        let least = of_rpo.into_iter().chain(of_delta).min_by(|(one, _), (other, _)| one.total_cmp(other));
        least.unwrap_or((f64::INFINITY, String::new()))
    }
}
