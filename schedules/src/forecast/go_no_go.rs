//! Go or no-go, in words, and the limit that is the cause.
//!
//! Rule: the promise is the upper end of a range: nine of ten cutovers keep a downtime that fits.

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use super::{CutoverStep, Forecast, PredictedRange};
use crate::{
    text::{about, about_span},
    zone::moment,
};

/// Whether a range fits a limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fit {
    /// In nine of ten times, with so many seconds to spare.
    Fits { spare: f64 },
    /// Its median fits; its upper end exceeds the limit by so many seconds.
    MayNot { over: f64 },
    /// Its median exceeds the limit by so many seconds.
    DoesNot { over: f64 },
}

/// Whether a step of `range` seconds fits `limit` seconds.
pub fn fit(range: &PredictedRange, limit: f64) -> Fit {
    if range.high <= limit {
        Fit::Fits { spare: limit - range.high }
    } else if range.expected <= limit {
        Fit::MayNot { over: range.high - limit }
    } else {
        Fit::DoesNot { over: range.expected - limit }
    }
}

/// Whether a cutover may go, and the reasons against it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GoNoGo {
    /// Empty if it may go.
    pub against: Vec<String>,
    /// Notes for the operator.
    pub remarks: Vec<String>,
}

impl GoNoGo {
    /// Whether there is no reason against it.
    pub fn is_go(&self) -> bool {
        self.against.is_empty()
    }
}

/// Judges a cutover that begins at `now` against the plan's downtime, in seconds, and the end of its window.
///
/// `before` is the time of the steps while the VM still runs (last live deltas, pre-hooks), in seconds.
pub fn go_or_no_go(
    forecast: &Forecast,
    before: f64,
    max_downtime: Option<f64>,
    window_end: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    zone: Tz,
) -> GoNoGo {
    let mut decision = GoNoGo::default();
    let expected = in_words(&forecast.downtime);
    let longest = forecast.steps.iter().max_by(|(_, one), (_, other)| one.high.total_cmp(&other.high));
    let blamed = longest.map_or_else(String::new, |(step, range)| match step {
        CutoverStep::FinalDelta => {
            format!("; most of it is the final delta of {}", about(forecast.final_delta.high))
        }
        _ => format!("; most of it is the {step}, up to {}", about_span(range.high)),
    });
    if let Some(limit) = max_downtime
        && !matches!(fit(&forecast.downtime, limit), Fit::Fits { .. })
    {
        decision
            .against
            .push(format!("downtime {expected} exceeds the {} allowed{blamed}", about_span(limit)));
    }
    if let Some(end) = window_end {
        let whole = PredictedRange::sum([forecast.downtime, PredictedRange::exact(before.max(0.0))]);
        let left = (end - now).as_seconds_f64();
        if !matches!(fit(&whole, left), Fit::Fits { .. }) {
            let (whole, left, end) = (in_words(&whole), about_span(left), moment(zone, end));
            decision
                .against
                .push(format!("the cutover takes {whole}, but the window closes in {left}, at {end}"));
        }
    }
    if !forecast.assumed.is_empty() {
        let steps: Vec<_> = forecast.assumed.iter().map(ToString::to_string).collect();
        decision.remarks.push(format!("never measured, so taken from the plan: {}", steps.join(", ")));
    }
    decision
}

/// `about 40s (25s to 1m 10s)`.
fn in_words(range: &PredictedRange) -> String {
    let PredictedRange { low, expected, high } = *range;
    format!("of about {} ({} to {})", about_span(expected), about_span(low), about_span(high))
}

/// A ceiling of the passes' rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceiling {
    /// `the quota of plan shop`, `reads of source old`.
    pub name: String,
    /// Bytes per second.
    pub bytes_per_second: f64,
}

/// Whether deltas shrink, and the cause if they do not.
#[derive(Clone, Debug, PartialEq)]
pub struct Blame {
    /// Change rate ÷ throughput: the size of a pass right after another, as a part of that one. Below 1
    /// deltas shrink.
    pub ratio: f64,
    /// Passes right after each other come down to this length in seconds; `None` if they do not shrink.
    pub settles_at: Option<f64>,
    pub words: String,
}

/// A ceiling is the cause if passes come this near to it.
const NEAR: f64 = 0.8;

/// Explains why passes converge or not.
///
/// Rates in bytes per second, `overhead` (the time of a pass beside copying) in seconds.
pub fn blame(change_rate: f64, throughput: f64, overhead: f64, ceilings: &[Ceiling]) -> Blame {
    let ratio = if throughput > 0.0 { change_rate / throughput } else { f64::INFINITY };
    let rates = format!("the guest changes {}/s, passes copy {}/s", about(change_rate), about(throughput));
    if ratio < 1.0 {
        let settles = overhead / (1.0 - ratio);
        let words = format!("{rates}: deltas shrink, to passes of {}", about_span(settles));
        return Blame { ratio, settles_at: Some(settles), words };
    }
    let near = ceilings.iter().filter(|ceiling| throughput >= NEAR * ceiling.bytes_per_second);
    let limit = near.min_by(|one, other| one.bytes_per_second.total_cmp(&other.bytes_per_second));
    let why = match limit {
        Some(Ceiling { name, bytes_per_second }) if *bytes_per_second > change_rate => {
            format!("{name} ({}/s) would allow it, but is shared or not reached", about(*bytes_per_second))
        }
        Some(Ceiling { name, bytes_per_second }) => {
            format!("{name} is to blame: it allows {}/s, more than {}/s is needed", about(*bytes_per_second), about(change_rate))
        }
        None => "no limit is in the way: source, network or target do not go faster, or the guest has to write less".to_owned(),
    };
    Blame { ratio, settles_at: None, words: format!("{rates}: deltas do not shrink; {why}") }
}
