//! Limits in the form that users write and see.
//!
//! Rule: no limit is the absence of one. A limit of zero is refused: to stop copying, pause the migration.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroU64},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use warmd_cbt::limit::{Limit, LimitLoad};

use super::id::{DiskKey, MigrationId};

/// The least rate, in bytes per second: one block. With less, a request would take minutes and miss every
/// deadline.
pub const LEAST_RATE: u64 = 64 << 10;

/// `limits = { rate = "200MiB/s", requests = 64 }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitTable {
    /// Bytes per second.
    #[serde(with = "rate", skip_serializing_if = "Option::is_none")]
    pub rate: Option<NonZeroU64>,
    /// Requests in flight.
    #[serde(with = "requests", skip_serializing_if = "Option::is_none")]
    pub requests: Option<NonZeroU32>,
}

impl From<LimitTable> for Limit {
    fn from(table: LimitTable) -> Self {
        Self { rate: table.rate, requests: table.requests }
    }
}

/// What a limit applies to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitScope {
    /// All reads of the daemon.
    Global,
    Source(String),
    Target(String),
    /// A migration, or one of its disks.
    Migration(MigrationId, Option<DiskKey>),
}

impl fmt::Display for LimitScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Source(name) => write!(f, "source/{name}"),
            Self::Target(name) => write!(f, "target/{name}"),
            Self::Migration(id, None) => write!(f, "migration/{id}"),
            Self::Migration(id, Some(disk)) => write!(f, "migration/{id}/{disk}"),
        }
    }
}

/// A scope as users write it: a migration by any of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeName<'a> {
    Global,
    Source(&'a str),
    Target(&'a str),
    Migration(&'a str, Option<&'a str>),
}

impl<'a> ScopeName<'a> {
    /// Reads `global`, `source/NAME`, `target/NAME`, `migration/ID` or `migration/ID/DISK`.
    pub fn parse(text: &'a str) -> Option<Self> {
        if text == "global" {
            return Some(Self::Global);
        }
        let (sort, name) = text.split_once('/').filter(|(_, name)| !name.is_empty())?;
        match sort {
            "source" => Some(Self::Source(name)),
            "target" => Some(Self::Target(name)),
            "migration" => match name.split_once('/') {
                None => Some(Self::Migration(name, None)),
                Some(("", _) | (_, "")) => None,
                Some((key, disk)) => Some(Self::Migration(key, Some(disk))),
            },
            _ => None,
        }
    }
}

/// Who set a limit at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetBy {
    pub by: String,
    pub at: DateTime<Utc>,
}

/// A limit that was set at run time; kept across a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedLimit {
    pub limit: Limit,
    /// The limit of configuration or plan at that time. Once that changes, the new value there holds.
    pub instead_of: Limit,
    pub set: SetBy,
}

/// A change of a limit; `None` leaves a value unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitChange {
    To {
        rate: Option<Option<NonZeroU64>>,
        requests: Option<Option<NonZeroU32>>,
    },
    /// Back to the limit of configuration or plan.
    Reset,
}

/// A limit with its present use.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitView {
    pub scope: LimitScope,
    /// The name of the migration's VM; empty for other scopes.
    pub vm_name: String,
    pub limit: Limit,
    /// `None` if the limit is that of configuration or plan.
    pub set: Option<SetBy>,
    pub load: LimitLoad,
}

/// `50 MiB/s, 8 requests`, `no limit`.
pub fn in_words(limit: &Limit) -> String {
    let rate = limit.rate.map(|rate| rate::text(rate.get()));
    let requests = limit.requests.map(|requests| match requests.get() {
        1 => "1 request".to_owned(),
        count => format!("{count} requests"),
    });
    match (rate, requests) {
        (None, None) => "no limit".to_owned(),
        (Some(only), None) | (None, Some(only)) => only,
        (Some(rate), Some(requests)) => format!("{rate}, {requests}"),
    }
}

/// Rates as users write them: `200MiB/s`, or a number of bytes per second.
pub mod rate {
    use std::num::NonZeroU64;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::LEAST_RATE;

    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

    /// The shortest exact form.
    pub fn text(rate: u64) -> String {
        let unit = UNITS.iter().find(|(_, shift)| rate.trailing_zeros() >= *shift && rate > 0);
        unit.map_or(format!("{rate}B/s"), |(name, shift)| format!("{}{name}/s", rate >> shift))
    }

    /// Parses a rate; the error says what to write.
    pub fn parse(text: &str) -> Result<NonZeroU64, String> {
        let wrong =
            || format!("{text:?} is no rate such as \"200MiB/s\" (KiB, MiB, GiB, TiB) or \"65536B/s\"");
        let number = text.strip_suffix("/s").ok_or_else(wrong)?;
        let digits = number.trim_end_matches(|each: char| !each.is_ascii_digit());
        let shift = match number[digits.len()..].trim_start() {
            "B" => 0,
            unit => UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1,
        };
        let digits: u64 = digits.parse().map_err(|_| wrong())?;
        check(digits.checked_mul(1 << shift).ok_or_else(wrong)?)
    }

    /// Refuses a rate with which no request could finish.
    pub fn check(rate: u64) -> Result<NonZeroU64, String> {
        match NonZeroU64::new(rate) {
            Some(good) if rate >= LEAST_RATE => Ok(good),
            Some(_) => Err(format!("a rate of {} is too low: use at least {}", text(rate), text(LEAST_RATE))),
            None => Err(
                "a rate of nothing would stop everything: leave it out for no limit, or pause the migration"
                    .to_owned(),
            ),
        }
    }

    /// Writes the shortest exact form.
    pub fn serialize<S: Serializer>(rate: &Option<NonZeroU64>, serializer: S) -> Result<S::Ok, S::Error> {
        rate.map(|rate| text(rate.get())).serialize(serializer)
    }

    /// Reads text or a number.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroU64>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a rate such as \"200MiB/s\", or a number of bytes a second")]
        enum Form {
            Bytes(u64),
            Text(String),
        }

        let rate = match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => check(bytes),
            Form::Text(text) => parse(&text),
        };
        rate.map(Some).map_err(D::Error::custom)
    }
}

/// Numbers of requests in flight.
pub mod requests {
    use std::num::NonZeroU32;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    /// Refuses zero.
    pub fn check(requests: u32) -> Result<NonZeroU32, String> {
        NonZeroU32::new(requests).ok_or_else(|| {
            "no requests at all would stop everything: leave it out for no limit, or pause the migration"
                .to_owned()
        })
    }

    /// Writes the number.
    pub fn serialize<S: Serializer>(requests: &Option<NonZeroU32>, serializer: S) -> Result<S::Ok, S::Error> {
        requests.serialize(serializer)
    }

    /// Reads a number.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroU32>, D::Error> {
        check(u32::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("200MiB/s", 200 << 20),
            ("200 MiB/s", 200 << 20),
            ("64KiB/s", 64 << 10),
            ("1536MiB/s", 1536 << 20),
            ("3TiB/s", 3 << 40),
            ("100001B/s", 100_001),
        ] {
            let rate = rate::parse(text).unwrap().get();
            assert_eq!(rate, bytes, "{text}");
            assert_eq!(rate::text(rate), text.replace(' ', ""));
        }
        for wrong in
            ["", "/s", "MiB/s", "200", "200MiB", "200MB/s", "200Mbit/s", "-1MiB/s", "0.5GiB/s", "٣MiB/s"]
        {
            let told = rate::parse(wrong).unwrap_err();
            assert!(told.starts_with(&format!("{wrong:?} is no rate")), "{told}");
        }
        assert!(rate::parse("99999999999999TiB/s").is_err());
        assert!(rate::parse("0MiB/s").unwrap_err().contains("would stop everything"));
        assert!(rate::parse("63KiB/s").unwrap_err().contains("at least 64KiB/s"));
    }

    #[test]
    fn scopes_are_named_by_paths() {
        use ScopeName as S;
        for (text, scope) in [
            ("global", Some(S::Global)),
            ("source/old", Some(S::Source("old"))),
            ("target/new", Some(S::Target("new"))),
            ("migration/shop", Some(S::Migration("shop", None))),
            ("migration/shop/vda", Some(S::Migration("shop", Some("vda")))),
            ("migration/shop/a/b", Some(S::Migration("shop", Some("a/b")))),
            ("", None),
            ("source", None),
            ("source/", None),
            ("migration//vda", None),
            ("migration/shop/", None),
            ("disk/vda", None),
            ("global/", None),
        ] {
            assert_eq!(S::parse(text), scope, "{text}");
        }
    }

    #[test]
    fn limits_in_words() {
        let limit =
            |rate, requests| Limit { rate: NonZeroU64::new(rate), requests: NonZeroU32::new(requests) };
        assert_eq!(in_words(&limit(0, 0)), "no limit");
        assert_eq!(in_words(&limit(50 << 20, 8)), "50MiB/s, 8 requests");
        assert_eq!(in_words(&limit(0, 1)), "1 request");
        assert_eq!(in_words(&limit(65_537, 0)), "65537B/s");
    }
}
