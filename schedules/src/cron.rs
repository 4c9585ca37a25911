//! Cron expressions: five fields, and a zone on whose wall clock they are read.
//!
//! Rule: a fixed time of day comes once a day: at the jump if the clock skips it, the first of the two
//! moments if it comes twice. `*`, ranges and steps go with the wall clock, so they come again in a repeated
//! hour. (Fields as in Vixie cron, and `L`, `#`, `W`: what croner knows.)

use std::fmt;

use chrono::{DateTime, TimeZone, Utc};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds, Year};
use serde::{Deserialize, Serialize};

use crate::error::ParseError;

/// A cron expression, such as `0 */2 * * *` or `30 22 * * MON-FRI Europe/Berlin`. Its zone may come from the
/// schedule.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron {
    fields: String,
    parsed: croner::Cron,
    zone: Option<Tz>,
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        (&self.fields, self.zone) == (&other.fields, other.zone)
    }
}

impl Eq for Cron {}

impl Cron {
    /// Its zone, if it names one.
    pub fn zone(&self) -> Option<Tz> {
        self.zone
    }

    /// The same expression, in `zone` if it names none.
    pub fn or_in(mut self, zone: Option<Tz>) -> Self {
        self.zone = self.zone.or(zone);
        self
    }

    /// The first time after `at`, in UTC's zone if none is known; `None` if it does not come any more.
    pub fn after(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let zone = self.zone.unwrap_or(Tz::UTC);
        let from = zone.from_utc_datetime(&at.naive_utc());
        let next = self.parsed.find_next_occurrence(&from, false).ok()?.to_utc();
        (next > at).then_some(next)
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.zone {
            Some(zone) => write!(f, "{} {}", self.fields, zone.name()),
            None => f.write_str(&self.fields),
        }
    }
}

impl std::str::FromStr for Cron {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = |wrong: String| {
            let help = "write minute, hour, day of month, month and day of week, and a zone if the schedule has \
                        none: \"0 */2 * * *\", \"30 22 * * MON-FRI Europe/Berlin\"";
            ParseError::new("a cron expression", text, wrong, help)
        };
        let mut words: Vec<_> = text.split_whitespace().collect();
        let zone = match words.len() {
            // The sixth word can only be a zone.
            6 => words.pop().map(crate::zone::parse_zone).transpose().map_err(|error| {
                wrong(format!("its sixth word {:?} is no time zone of IANA's ({})", error.text, error.help))
            })?,
            5 => None,
            count => return Err(wrong(format!("it has {count} fields, not 5"))),
        };
        let fields = words.join(" ");
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let parsed = parser.parse(&fields).map_err(|error| wrong(error.to_string()))?;
        let cron = Self { fields, parsed, zone };
        // 30 February is accepted, and never comes.
        if cron.after(DateTime::UNIX_EPOCH).is_none() {
            return Err(wrong("it never comes".to_owned()));
        }
        Ok(cron)
    }
}

impl TryFrom<String> for Cron {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Cron> for String {
    fn from(cron: Cron) -> Self {
        cron.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::moment;

    fn times(cron: &str, from: &str, count: usize) -> Vec<String> {
        let cron: Cron = cron.parse().unwrap();
        let mut at: DateTime<Utc> = from.parse().unwrap();
        let next = |_| {
            at = cron.after(at)?;
            Some(moment(cron.zone()?, at))
        };
        (0..count).filter_map(next).collect()
    }

    #[test]
    fn a_time_of_day_comes_once_on_the_days_of_the_change() {
        let spring = times("30 2 * * * Europe/Berlin", "2026-03-27T12:00:00Z", 3);
        assert_eq!(spring, ["2026-03-28 02:30 CET", "2026-03-29 03:00 CEST", "2026-03-30 02:30 CEST"]);
        let autumn = times("30 2 * * * Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(autumn, ["2026-10-25 02:30 CEST", "2026-10-26 02:30 CET"]);
    }

    #[test]
    fn steps_go_with_the_wall_clock() {
        let autumn = times("*/30 2 * * * Europe/Berlin", "2026-10-24T23:00:00Z", 4);
        let wanted = [
            "2026-10-25 02:00 CEST",
            "2026-10-25 02:30 CEST",
            "2026-10-25 02:00 CET",
            "2026-10-25 02:30 CET",
        ];
        assert_eq!(autumn, wanted);
    }

    #[test]
    fn wrong_expressions_are_explained() {
        for (text, part) in [
            ("", "it has 0 fields, not 5"),
            ("* * * *", "it has 4 fields, not 5"),
            ("0 0 0 * * * UTC", "it has 7 fields"),
            ("0 0 * * * Berlin", "did you mean \"Europe/Berlin\"?"),
            ("61 * * * *", "\"61 * * * *\" is not a cron expression"),
            ("0 0 30 2 *", "it never comes"),
        ] {
            let told = text.parse::<Cron>().unwrap_err().to_string();
            assert!(told.contains(part) && told.contains("MON-FRI"), "{told}");
        }
    }
}
