//! Quotas: how much may be done at a time, by the time of day.
//!
//! Rule: of all quotas whose window is open, the least of each quantity applies, in any order; one
//! without a window always counts. In doubt (a repeated hour) a quota applies longer.

use std::num::{NonZeroU32, NonZeroU64};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::{
    text,
    window::{Holidays, Reading, Window, is_beyond},
};

/// More are a mistake.
const MOST: usize = 100;
/// The least allowed rate, in bytes per second.
const LEAST_RATE: u64 = 64 << 10;

/// A quota as it is written. An absent key is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// When it applies; always if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Read in all passes and verifications together.
    #[serde(with = "rate", skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<NonZeroU64>,
    /// That are copied at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks: Option<NonZeroU32>,
    /// That exist at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<NonZeroU32>,
    /// That run at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passes: Option<NonZeroU32>,
}

/// The limits at one moment; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    pub bytes_per_second: Option<NonZeroU64>,
    pub disks: Option<NonZeroU32>,
    pub snapshots: Option<NonZeroU32>,
    pub passes: Option<NonZeroU32>,
}

impl Allowance {
    /// The least of both.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            match (one, other) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            }
        }
        Self {
            bytes_per_second: least(self.bytes_per_second, other.bytes_per_second),
            disks: least(self.disks, other.disks),
            snapshots: least(self.snapshots, other.snapshots),
            passes: least(self.passes, other.passes),
        }
    }

    /// `50MiB/s, 4 disks`, `no limit`.
    pub fn in_words(&self) -> String {
        let count = |count: Option<NonZeroU32>, one: &str, several: &str| {
            count.map(|count| format!("{count} {}", if count.get() == 1 { one } else { several }))
        };
        let words = [
            self.bytes_per_second.map(|rate| format!("{}/s", text::bytes(rate.get()))),
            count(self.passes, "pass", "passes"),
            count(self.disks, "disk", "disks"),
            count(self.snapshots, "snapshot", "snapshots"),
        ];
        let words: Vec<_> = words.into_iter().flatten().collect();
        if words.is_empty() { "no limit".to_owned() } else { words.join(", ") }
    }
}

impl Quota {
    fn allowance(&self) -> Allowance {
        let Self { bytes_per_second, disks, snapshots, passes, .. } = *self;
        Allowance { bytes_per_second, disks, snapshots, passes }
    }

    /// Its fault, if it has one.
    fn problem(&self) -> Option<&'static str> {
        (self.allowance() == Allowance::default()).then_some(
            "limits nothing: give it `bytes_per_second`, `disks`, `snapshots` or `passes`, or remove it",
        )
    }
}

/// The faults of the quotas at `key` of a file with this zone and these holidays, each with its key in
/// backquotes. Quotas with problems must not be used: one in no time zone would never apply.
pub fn problems(key: &str, quotas: &[Quota], zone: Option<Tz>, holidays: &Holidays) -> Vec<String> {
    let mut problems = Vec::new();
    if quotas.len() > MOST {
        problems.push(format!("`{key}` has more than {MOST} entries: remove some"));
    }
    for (at, quota) in quotas.iter().enumerate() {
        problems.extend(quota.problem().map(|problem| format!("`{key}[{at}]` {problem}")));
        let window = quota.window.iter();
        problems.extend(
            window.flat_map(|window| window.problems(&format!("{key}[{at}].window"), zone, holidays)),
        );
    }
    problems
}

/// The quotas of a plan, an endpoint, a host, a datastore, or of all.
#[derive(Clone, Debug, Default)]
pub struct Quotas {
    quotas: Vec<Quota>,
    holidays: Holidays,
}

impl Quotas {
    /// Of quotas without [`problems`]: their windows name their zones, or `zone` applies to them.
    pub fn new(quotas: &[Quota], holidays: Holidays, zone: Option<Tz>) -> Self {
        let quotas = quotas.iter().cloned().map(|quota| {
            let window = quota.window.map(|window| window.or_in(zone));
            Quota { window, ..quota }
        });
        Self { quotas: quotas.collect(), holidays }
    }

    /// The limits at that moment.
    pub fn at(&self, at: DateTime<Utc>) -> Allowance {
        self.hold(at).fold(Allowance::default(), |sum, quota| sum.least(quota.allowance()))
    }

    /// The quotas that set these limits: `window Mon-Fri 08:00–18:00 Europe/Berlin`.
    pub fn why(&self, at: DateTime<Utc>) -> String {
        let names: Vec<_> = self
            .hold(at)
            .map(|quota| {
                quota.window.as_ref().map_or("always".to_owned(), |window| format!("window {window}"))
            })
            .collect();
        if names.is_empty() { "no quota holds".to_owned() } else { names.join(", ") }
    }

    /// The first time at which the limits differ from those at `at`; `None` if not within ten years.
    pub fn next_change(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let before = self.at(at);
        let mut now = at;
        while !is_beyond(at, now) {
            let windows = self.quotas.iter().filter_map(|quota| quota.window.as_ref());
            let edges = windows.flat_map(|window| {
                let end = window.at(now, Reading::Wide, &self.holidays).map(|interval| interval.end);
                let start = window.after(now, Reading::Wide, &self.holidays).map(|interval| interval.start);
                end.into_iter().chain(start)
            });
            now = edges.min()?;
            if self.at(now) != before {
                return Some(now);
            }
        }
        None
    }

    fn hold(&self, at: DateTime<Utc>) -> impl Iterator<Item = &Quota> {
        self.quotas.iter().filter(move |quota| {
            let Some(window) = &quota.window else { return true };
            window.at(at, Reading::Wide, &self.holidays).is_some()
        })
    }
}

/// For `#[serde(with)]`: bytes per second, written `50MiB`; `50MiB/s` is read too.
mod rate {
    use std::num::NonZeroU64;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::LEAST_RATE;
    use crate::{error::ParseError, text};

    #[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(
        rate: &Option<NonZeroU64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        rate.map(|rate| text::bytes(rate.get())).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<NonZeroU64>, D::Error> {
        let written = String::deserialize(deserializer)?;
        let rate = text::parse_bytes(written.trim().strip_suffix("/s").unwrap_or(&written));
        let rate = rate.map_err(D::Error::custom)?;
        if rate < LEAST_RATE {
            let help = "write at least \"64KiB\", or a blackout if nothing may be copied";
            let wrong = ParseError::new("bytes per second", &written, "nothing would get on", help);
            return Err(D::Error::custom(wrong));
        }
        Ok(NonZeroU64::new(rate))
    }
}
