//! Wall clocks: their times, and the moments of these times.
//!
//! Rule: a clock that is put forward or back makes wall-clock times that do not exist, or exist twice. Each
//! edge of a window is still one moment:
//!
//! | wall-clock time | [`reaches`] (opens; a window closes) | [`leaves`] (a blackout or a quota closes) |
//! | --- | --- | --- |
//! | exists once | that moment | that moment |
//! | is skipped (put forward) | the moment of the jump | the moment of the jump |
//! | exists twice (put back) | the first of the two | the second of the two |
//!
//! Both never go backwards when the wall-clock time goes forwards. Zones are IANA's as chrono-tz has them:
//! known changes and rules up to 2100, after that the last offset.

use chrono::{DateTime, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc, offset::LocalResult};
use chrono_tz::{TZ_VARIANTS, Tz};

use crate::error::ParseError;

/// No clock on Earth is farther than this from UTC, a skipped day included.
const FARTHEST: TimeDelta = TimeDelta::hours(40);

/// The first moment at which the wall clock shows `time` or later.
pub fn reaches(zone: Tz, time: NaiveDateTime) -> DateTime<Utc> {
    match zone.from_local_datetime(&time) {
        LocalResult::Single(only) => only.to_utc(),
        LocalResult::Ambiguous(first, second) => first.min(second).to_utc(),
        LocalResult::None => jump(zone, time),
    }
}

/// The moment after the last one at which the wall clock shows less than `time`.
pub fn leaves(zone: Tz, time: NaiveDateTime) -> DateTime<Utc> {
    match zone.from_local_datetime(&time) {
        LocalResult::Single(only) => only.to_utc(),
        LocalResult::Ambiguous(one, other) => {
            let (first, second) = (one.min(other), one.max(other));
            // The first moment of a repeated hour: just before it comes again, the clock shows more.
            let before = local(zone, second.to_utc() - TimeDelta::seconds(1));
            if before < time { second.to_utc() } else { first.to_utc() }
        }
        LocalResult::None => jump(zone, time),
    }
}

/// What the wall clock shows.
pub fn local(zone: Tz, at: DateTime<Utc>) -> NaiveDateTime {
    // Near the ends of what can be shown an offset may lead out of it.
    let offset = zone.offset_from_utc_datetime(&at.naive_utc()).fix();
    at.naive_utc().checked_add_offset(offset).unwrap_or(at.naive_utc())
}

/// The moment at which a clock is put forward over `time`, which it never shows.
fn jump(zone: Tz, time: NaiveDateTime) -> DateTime<Utc> {
    let around = time.and_utc();
    let mut before = around.checked_sub_signed(FARTHEST).unwrap_or(DateTime::<Utc>::MIN_UTC);
    let mut after = around.checked_add_signed(FARTHEST).unwrap_or(DateTime::<Utc>::MAX_UTC);
    while after - before > TimeDelta::seconds(1) {
        let half = before + TimeDelta::seconds((after - before).num_seconds() / 2);
        if local(zone, half) < time {
            before = half;
        } else {
            after = half;
        }
    }
    after
}

/// A moment as users in the zone read it: `2026-11-28 22:00 CET`, with seconds if there are any.
pub fn moment(zone: Tz, at: DateTime<Utc>) -> String {
    if at >= DateTime::<Utc>::MAX_UTC - FARTHEST {
        return "never".to_owned();
    }
    let time = zone.from_utc_datetime(&at.naive_utc());
    let form = if at.timestamp() % 60 == 0 { "%Y-%m-%d %H:%M %Z" } else { "%Y-%m-%d %H:%M:%S %Z" };
    time.format(form).to_string()
}

/// A zone by its IANA name.
pub fn parse_zone(text: &str) -> Result<Tz, ParseError> {
    text.parse().map_err(|_| {
        let help = match nearest(text) {
            Some(near) => format!("did you mean {:?}?", near.name()),
            None => "write an IANA name such as \"Europe/Berlin\" or \"UTC\"".to_owned(),
        };
        ParseError::new("a time zone", text, "IANA has no zone of this name", help)
    })
}

/// The zone that was probably meant: the same city, or a typing error.
fn nearest(text: &str) -> Option<Tz> {
    let wanted = text.to_lowercase().replace(' ', "_");
    if wanted.len() > 64 {
        return None;
    }
    let city = |zone: &&Tz| zone.name().rsplit('/').next().is_some_and(|city| city.to_lowercase() == wanted);
    TZ_VARIANTS
        .iter()
        .find(|zone| zone.name().to_lowercase() == wanted)
        .or_else(|| TZ_VARIANTS.iter().find(city))
        .copied()
        .or_else(|| {
            let near = TZ_VARIANTS.iter().map(|zone| (slips(&wanted, &zone.name().to_lowercase()), *zone));
            near.filter(|(slips, _)| *slips <= 2 && wanted.contains('/'))
                .min_by_key(|(slips, _)| *slips)
                .map(|(_, zone)| zone)
        })
}

/// How many characters must be changed, added or removed to turn one into the other.
fn slips(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, letter) in from.chars().enumerate() {
        let mut corner = line;
        row[0] = line + 1;
        for column in 0..to.len() {
            let changed = corner + usize::from(letter != to[column]);
            corner = row[column + 1];
            row[column + 1] = changed.min(corner + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// For `#[serde(with)]`: an optional zone by its name.
pub mod optional_zone {
    use chrono_tz::Tz;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    /// Writes its name.
    pub fn serialize<S: Serializer>(zone: &Option<Tz>, serializer: S) -> Result<S::Ok, S::Error> {
        zone.map(Tz::name).serialize(serializer)
    }

    /// Reads its name.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Tz>, D::Error> {
        super::parse_zone(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
    }

    fn both(zone: Tz, text: &str) -> [String; 2] {
        [reaches, leaves].map(|edge| moment(zone, edge(zone, at(text))))
    }

    #[test]
    fn skipped_times_are_the_moment_of_the_jump() {
        let jump = "2026-03-29 03:00 CEST".to_owned();
        for skipped in ["2026-03-29 02:00", "2026-03-29 02:30", "2026-03-29 02:59", "2026-03-29 03:00"] {
            assert_eq!(both(Tz::Europe__Berlin, skipped), [jump.clone(), jump.clone()], "{skipped}");
        }
        // Half an hour, at 02:00.
        assert_eq!(both(Tz::Australia__Lord_Howe, "2026-10-04 02:10")[0], "2026-10-04 02:30 +11");
        // A whole day.
        assert_eq!(both(Tz::Pacific__Kiritimati, "1994-12-31 12:00")[0], "1995-01-01 00:00 +14");
        assert_eq!(both(Tz::Pacific__Apia, "2011-12-30 12:00")[0], "2011-12-31 00:00 +14");
        // Midnight itself.
        assert_eq!(both(Tz::America__Sao_Paulo, "2018-11-04 00:00")[0], "2018-11-04 01:00 -02");
    }

    #[test]
    fn repeated_times_are_reached_first_and_left_last() {
        let berlin = Tz::Europe__Berlin;
        assert_eq!(both(berlin, "2026-10-25 02:30"), ["2026-10-25 02:30 CEST", "2026-10-25 02:30 CET"]);
        assert_eq!(both(berlin, "2026-10-25 02:00"), ["2026-10-25 02:00 CEST"; 2]);
        assert_eq!(both(berlin, "2026-10-25 03:00"), ["2026-10-25 03:00 CET"; 2]);
        let island = both(Tz::Australia__Lord_Howe, "2026-04-05 01:45");
        assert_eq!(island, ["2026-04-05 01:45 +11", "2026-04-05 01:45 +1030"]);
    }

    #[test]
    fn a_wrong_zone_is_answered_with_the_right_one() {
        let told = |text| parse_zone(text).unwrap_err().to_string();
        assert!(told("Berlin").contains("did you mean \"Europe/Berlin\"?"));
        assert!(told("europe/berlin").contains("did you mean \"Europe/Berlin\"?"));
        assert!(told("Europa/Berlin").contains("did you mean \"Europe/Berlin\"?"));
        assert!(told("CEST").contains("write an IANA name such as"), "{}", told("CEST"));
        assert!(told(&"x".repeat(1 << 20)).len() < 500);
    }
}
