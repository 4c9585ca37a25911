//! A plan's `[schedule]` as an operator writes it.
//!
//! Rule: unknown keys are refused, a window or an expression that cannot be understood is reported where it
//! stands, and all checks that need no clock are in [`Schedule::problems`].

use std::{fmt, time::Duration};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::{
    adaptive::Adaptive,
    admission_queue::PRIORITIES,
    calendar::Calendar,
    cron::Cron,
    quota::{self, Quota, Quotas},
    rules::{Cadence, Rules},
    text::optional_duration,
    window::{Holidays, Window},
    zone::optional_zone,
};

/// When passes run, when cutovers may begin, and how much may be done at a time.
///
/// Passes come by `every`, `cron` or `adaptive`; every 15 minutes if none is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// The zone of all windows and expressions that name none.
    #[serde(with = "optional_zone", skip_serializing_if = "Option::is_none")]
    pub zone: Option<Tz>,
    /// From the end of one pass to the start of the next.
    #[serde(alias = "interval", with = "optional_duration", skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<Cron>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
    /// The holidays that windows may refer to.
    #[serde(skip_serializing_if = "Holidays::is_empty")]
    pub holidays: Holidays,
    /// When data may be copied.
    #[serde(skip_serializing_if = "Times::is_empty")]
    pub copy: Times,
    /// When a cutover may begin.
    #[serde(skip_serializing_if = "Times::is_empty")]
    pub cutover: Times,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[serde(alias = "budgets")]
    pub quotas: Vec<Quota>,
    /// 1 to 10: the plan's weight where several share a quota. 10 gets ten times as much as 1; 1 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
}

/// Windows in which an operation is allowed (any time, if there are none) and blackouts in which it is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Times {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blackouts: Vec<Window>,
}

impl Times {
    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn calendar(&self, zone: Option<Tz>, holidays: &Holidays) -> Calendar {
        let all = |windows: &[Window]| windows.iter().cloned().map(|window| window.or_in(zone)).collect();
        Calendar::new(all(&self.windows), all(&self.blackouts), holidays.clone())
    }
}

/// The faults of a schedule; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

/// Unless the plan says otherwise.
pub const DEFAULT_INTERVAL: Duration = Duration::from_mins(15);
/// The most entries of each list: more is a mistake, and would cost time at each query.
const MOST_WINDOWS: usize = 100;
/// Likewise.
const MOST_HOLIDAYS: usize = 1000;

impl Schedule {
    /// Its faults, each beginning with its key in backquotes and ending with what to do.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.problems_at("schedule.");
        problems.extend(self.quota_problems());
        problems
    }

    /// The same but for the quotas, with `at` before each key.
    pub(crate) fn problems_at(&self, at: &str) -> Vec<String> {
        let mut problems = self.cadence_problems(at);
        for (list, windows) in [
            ("copy.windows", &self.copy.windows),
            ("copy.blackouts", &self.copy.blackouts),
            ("cutover.windows", &self.cutover.windows),
            ("cutover.blackouts", &self.cutover.blackouts),
        ] {
            if windows.len() > MOST_WINDOWS {
                problems.push(format!("`{at}{list}` has more than {MOST_WINDOWS} entries: use ranges"));
            }
            for (index, window) in windows.iter().enumerate() {
                let key = format!("{at}{list}[{index}]");
                problems.extend(window.problems(&key, self.zone, &self.holidays));
            }
        }
        if self.holidays.0.len() > MOST_HOLIDAYS {
            problems.push(format!("`{at}holidays` has more than {MOST_HOLIDAYS} entries: use ranges"));
        }
        if let Some(priority) = self.priority.filter(|priority| !PRIORITIES.contains(priority)) {
            problems.push(format!("`{at}priority` is {priority}: use 1 to 10"));
        }
        problems
    }

    pub(crate) fn quota_problems(&self) -> Vec<String> {
        quota::problems("schedule.quotas", &self.quotas, self.zone, &self.holidays)
    }

    fn cadence_problems(&self, at: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let given: Vec<_> = [
            self.every.map(|_| "every"),
            self.cron.as_ref().map(|_| "cron"),
            self.adaptive.map(|_| "adaptive"),
        ]
        .into_iter()
        .flatten()
        .collect();
        if let [first, second, ..] = given.as_slice() {
            problems.push(format!("`{at}{second}` stands beside `{first}`: keep one of them"));
        }
        if self.every.is_some_and(|every| every < Duration::from_secs(1)) {
            problems.push(format!("`{at}every` is under 1s: passes would never end"));
        }
        if let Some(cron) = &self.cron
            && cron.clone().or_in(self.zone).zone().is_none()
        {
            problems.push(format!(
                "`{at}cron` is \"{cron}\", in no time zone: add one to it, for example Europe/Berlin, or set \
                 `{at}zone`"
            ));
        }
        for (key, problem) in self.adaptive.iter().flat_map(Adaptive::problems) {
            problems.push(format!("`{at}adaptive{key}` {problem}"));
        }
        problems
    }

    /// The schedule, ready to be asked.
    pub fn rules(&self) -> Result<Rules, Problems> {
        let problems = self.problems();
        if problems.is_empty() { Ok(self.ready(self)) } else { Err(Problems(problems)) }
    }

    /// The schedule with the quotas of `shared`; neither has problems.
    pub(crate) fn ready(&self, shared: &Self) -> Rules {
        let cadence = match (&self.cron, self.adaptive) {
            (Some(cron), _) => Cadence::Cron(Box::new(cron.clone().or_in(self.zone))),
            (None, Some(adaptive)) => Cadence::Adaptive(adaptive),
            (None, None) => Cadence::Every(self.every.unwrap_or(DEFAULT_INTERVAL)),
        };
        let copy = self.copy.calendar(self.zone, &self.holidays);
        let cutover = self.cutover.calendar(self.zone, &self.holidays);
        let of_cron = self.cron.as_ref().and_then(Cron::zone);
        let of_quotas = shared.quotas.iter().find_map(|quota| quota.window.as_ref()?.zone());
        let zone = self.zone.or(copy.zone()).or(cutover.zone()).or(of_cron).or(of_quotas).unwrap_or(Tz::UTC);
        let quotas = Quotas::new(&shared.quotas, shared.holidays.clone(), shared.zone);
        Rules { cadence, copy, cutover, quotas, zone }
    }
}

impl Rules {
    /// The operations that can never happen from `now` on, each beginning with its key in backquotes, and
    /// `at` before it.
    pub fn dead_ends(&self, at: &str, now: DateTime<Utc>) -> Vec<String> {
        let of = |key: &str, calendar: &Calendar| {
            let never = calendar.next_open(now).err()?;
            Some(format!("`{at}{key}` never opens: {never}"))
        };
        [of("copy", &self.copy), of("cutover", &self.cutover)].into_iter().flatten().collect()
    }
}
