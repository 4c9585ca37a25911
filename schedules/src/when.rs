//! A moment in a user's words.
//!
//! Rule: a text without a zone is read in the zone of the plan or VM that is asked, and a moment that a clock
//! skips or shows twice is the one at which a window would open then ([`crate::zone::reaches`]).

use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Utc};
use chrono_tz::Tz;

use crate::{
    error::ParseError,
    text::parse_span,
    zone::{local, parse_zone, reaches},
};

const HELP: &str = "write it like \"2026-11-28 22:00\", \"2026-11-28 22:00 Europe/Berlin\", \"22:00\" (the next time that it \
                    is), \"+2h\", or \"2026-11-28T22:00:00+01:00\"";

/// The moment that `text` means to a user in `zone` at `now`.
pub fn parse_when(text: &str, zone: Tz, now: DateTime<Utc>) -> Result<DateTime<Utc>, ParseError> {
    let wrong = |wrong: String| ParseError::new("a time", text, wrong, HELP);
    let text = text.trim();
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    if let Some(span) = text.strip_prefix('+') {
        let span = parse_span(span).map_err(|error| wrong(error.wrong))?;
        let at = TimeDelta::from_std(span).ok().and_then(|span| now.checked_add_signed(span));
        return at.ok_or_else(|| wrong("it is too far away".to_owned()));
    }
    let (clock, zone) = match text.rsplit_once(' ') {
        Some((before, name)) if name.starts_with(|first: char| first.is_ascii_alphabetic()) => {
            (before.trim_end(), parse_zone(name).map_err(|error| wrong(error.to_string()))?)
        }
        _ => (text, zone),
    };
    if let Some(time) = time(clock) {
        let today = local(zone, now).date();
        let days = (0..=2).filter_map(|days| today.checked_add_days(Days::new(days)));
        let next = days.map(|day| reaches(zone, day.and_time(time))).find(|at| *at > now);
        return next.ok_or_else(|| wrong("it does not come any more".to_owned()));
    }
    let (date, clock) = clock.split_once([' ', 'T']).unwrap_or((clock, ""));
    let date = NaiveDate::parse_from_str(date, "%Y-%m-%d")
        .map_err(|_| wrong(format!("{date:?} is neither a date nor a time")))?;
    let time = time(clock.trim()).ok_or_else(|| wrong(format!("{clock:?} is no time of the day")))?;
    Ok(reaches(zone, NaiveDateTime::new(date, time)))
}

fn time(text: &str) -> Option<NaiveTime> {
    ["%H:%M", "%H:%M:%S"].iter().find_map(|form| NaiveTime::parse_from_str(text, form).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let now = "2026-11-28T21:30:00Z".parse().unwrap();
        parse_when(text, Tz::Europe__Berlin, now).map(|at| at.to_rfc3339()).map_err(|error| error.to_string())
    }

    #[test]
    fn people_write_times_in_many_ways() {
        for (text, wanted) in [
            ("2026-11-28T22:00:00+01:00", "2026-11-28T21:00:00+00:00"),
            ("2026-11-29 04:00", "2026-11-29T03:00:00+00:00"),
            ("2026-11-29T04:00:30", "2026-11-29T03:00:30+00:00"),
            ("2026-11-29 04:00 UTC", "2026-11-29T04:00:00+00:00"),
            ("2026-11-29  04:00   America/New_York", "2026-11-29T09:00:00+00:00"),
            ("23:00", "2026-11-28T22:00:00+00:00"),
            ("22:00", "2026-11-29T21:00:00+00:00"),
            ("22:00 UTC", "2026-11-28T22:00:00+00:00"),
            ("+90m", "2026-11-28T23:00:00+00:00"),
            // Skipped, and twice.
            ("2027-03-28 02:30", "2027-03-28T01:00:00+00:00"),
            ("2026-10-25 02:30", "2026-10-25T00:30:00+00:00"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(wanted), "{text}");
        }
        for (text, wrong) in [
            ("", "\"\" is neither a date nor a time"),
            ("soon", "is neither a date nor a time"),
            ("2026-11-31 22:00", "\"2026-11-31\" is neither a date"),
            ("2026-11-28", "\"\" is no time of the day"),
            ("2026-11-28 25:00", "\"25:00\" is no time of the day"),
            ("2026-11-28 22:00 Berlin", "did you mean"),
            ("+soon", "expected number"),
            ("+99999999999999y", "too"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(wrong) && told.contains("write it like"), "{text}: {told}");
        }
    }
}
