//! Windows: spans of wall-clock time that come again, or come once.
//!
//! Rule: a window is written in the user's words, and has one meaning:
//!
//! | written | means |
//! | --- | --- |
//! | `Sat 22:00–Sun 04:00 Europe/Berlin` | without a break from one to the other, every week |
//! | `Mon-Fri 08:00–18:00 …`, `Mon,Thu 22:00–04:00 …` | on each of these days; an end that is not after the start is on the next day |
//! | `Sat-Sun …`, `2026-12-24–2027-01-02 …`, `12-24 …` | whole days: of the week, dates, of every year |
//! | `2026-12-24 18:00–2026-12-27 06:00 …` | once, without a break |
//! | `Mon-Fri except holidays 08:00–18:00 …`, `holidays …` | with the schedule's list of holidays |
//! | `daily 22:00–04:00 …`, `22:00–04:00 …` | every day |
//! | `always` | always |
//!
//! Dates and days are those on which it opens, on the wall clock of its zone. It includes its start and not
//! its end. [`crate::zone`] defines its edges when clocks are put forward or back, in the given [`Reading`].
//! So a window that lies in a skipped hour does not open that night, one across it is an hour shorter, and
//! one across a repeated hour is an hour longer. One that ends within the repeated hour ends at the first of
//! the two moments, a blackout at the second: in doubt it is closed.

mod days;
mod occurrence;
mod token;

use std::fmt;

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

pub(crate) use self::occurrence::is_beyond;
use self::{
    days::{DayPart, Days},
    token::{Clock, Token, tokens},
};
pub use self::{
    days::{Holiday, Holidays},
    occurrence::{HORIZON_DAYS, Interval, Reading},
};
use crate::{error::ParseError, zone::parse_zone};

/// A window as written. Its zone may come from the schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    /// The text without the zone.
    words: String,
    /// The days on which it opens.
    days: Days,
    from: Clock,
    /// How many days after it opens it closes, and when then; `to` is before 24:00.
    over: u32,
    to: Clock,
    zone: Option<Tz>,
}

/// The longest window without a break between dates, in days.
const LONGEST: u32 = 366;

impl Window {
    /// Its zone, if it names one or needs none.
    pub fn zone(&self) -> Option<Tz> {
        self.zone.or(self.is_always().then_some(Tz::UTC))
    }

    /// Whether it never closes, in any zone.
    fn is_always(&self) -> bool {
        self.days.parts.contains(&DayPart::Daily)
            && !self.days.except_holidays
            && (self.from, self.over, self.to) == (Clock::MIDNIGHT, 1, Clock::MIDNIGHT)
    }

    /// The same window, in `zone` if it names none.
    pub fn or_in(mut self, zone: Option<Tz>) -> Self {
        self.zone = self.zone.or(zone.filter(|_| !self.is_always()));
        self
    }

    /// Whether it needs a list of holidays.
    pub fn needs_holidays(&self) -> bool {
        self.days.needs_holidays()
    }

    /// The missing zone or holidays at `key`: the zone and the holidays are those of the file.
    pub(crate) fn problems(&self, key: &str, zone: Option<Tz>, holidays: &Holidays) -> Vec<String> {
        let mut problems = Vec::new();
        if self.clone().or_in(zone).zone().is_none() {
            problems.push(format!(
                "`{key}` is \"{self}\", in no time zone: add one to it, for example Europe/Berlin, or set `zone` for all"
            ));
        }
        if self.needs_holidays() && holidays.is_empty() {
            problems.push(format!(
                "`{key}` speaks of holidays, but none is listed: set `holidays = [\"2026-12-25\", …]`"
            ));
        }
        problems
    }

    fn read(text: &str) -> Result<Self, String> {
        let (spoken, zone) = split_zone(text)?;
        let tokens = tokens(spoken)?;
        let (days, rest) = match tokens.first() {
            None => return Err("it names no day and no time".to_owned()),
            Some(Token::Time(_)) => (Days::of(vec![DayPart::Daily]), tokens.as_slice()),
            Some(_) => Days::read(&tokens)?,
        };
        let words = spoken.split_whitespace().collect::<Vec<_>>().join(" ");
        let whole = Self { words, days, from: Clock::MIDNIGHT, over: 1, to: Clock::MIDNIGHT, zone };
        match *rest {
            [] => Ok(whole),
            [Token::Time(from), Token::Dash, Token::Time(to)] => whole.each_day(from, to),
            [Token::Time(_), Token::Dash, Token::Time(_), ..] => {
                Err("after its two times nothing but a zone is expected".to_owned())
            }
            [Token::Time(from), Token::Dash, ref end @ ..] => match DayPart::read(end)? {
                (part, &[Token::Time(to)]) => whole.through(from, part, to),
                _ => Err("a time is missing after its last day".to_owned()),
            },
            [Token::Time(_)] => Err("it has one time where it needs two".to_owned()),
            _ => Err("after its days, two times with a dash between them are expected".to_owned()),
        }
    }

    fn each_day(self, from: Clock, to: Clock) -> Result<Self, String> {
        if from == to {
            return Err(format!("it ends when it starts, at {to}"));
        }
        if from == Clock::END {
            return Err("a start at 24:00 is 00:00 of the next day".to_owned());
        }
        let over = u32::from(to < from) + u32::from(to == Clock::END);
        let to = Clock { minutes: to.minutes % Clock::END.minutes };
        Ok(Self { from, over, to, ..self })
    }

    fn through(self, from: Clock, last: DayPart, to: Clock) -> Result<Self, String> {
        if from == Clock::END {
            return Err("a start at 24:00 is 00:00 of the next day".to_owned());
        }
        let over = match (self.days.parts.as_slice(), last) {
            _ if self.days.except_holidays => {
                Err("a window over several days cannot except holidays".to_owned())
            }
            (&[DayPart::Week { from: a, to: b }], DayPart::Week { from: c, to: d }) if a == b && c == d => {
                let over = (d.num_days_from_monday() + 7 - a.num_days_from_monday()) % 7;
                if over == 0 && to < from { Ok(7) } else { Ok(over) }
            }
            (&[DayPart::Dates { from: a, to: b }], DayPart::Dates { from: c, to: d }) if a == b && c == d => {
                let over = (c - a).num_days();
                u32::try_from(over).ok().filter(|over| *over <= LONGEST).ok_or_else(|| {
                    if over < 0 {
                        format!("{a} is after {c}")
                    } else {
                        format!("it is longer than {LONGEST} days")
                    }
                })
            }
            _ => {
                Err("from one day to another, both are one day of the week, or both are one date".to_owned())
            }
        }?;
        if over == 0 && from >= to {
            return Err(if from == to {
                format!("it ends when it starts, at {to}")
            } else {
                format!("it ends at {to}, before it starts")
            });
        }
        let over = over + u32::from(to == Clock::END);
        let to = Clock { minutes: to.minutes % Clock::END.minutes };
        Ok(Self { from, over, to, ..self })
    }
}

/// The zone is the last word, unless that is a word of the window.
fn split_zone(text: &str) -> Result<(&str, Option<Tz>), String> {
    let text = text.trim();
    let (rest, last) = text.rsplit_once(char::is_whitespace).unwrap_or(("", text));
    if let Ok(zone) = last.parse() {
        return Ok((rest, Some(zone)));
    }
    let is_name = last.contains('/') || last.chars().next().is_some_and(char::is_alphabetic);
    if is_name && tokens(last).is_err() {
        let wrong = parse_zone(last).err().map_or_else(String::new, |error| format!("; {}", error.help));
        return Err(format!("IANA has no time zone {last:?}{wrong}"));
    }
    Ok((text, None))
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.zone {
            Some(zone) => write!(f, "{} {}", self.words, zone.name()),
            None => f.write_str(&self.words),
        }
    }
}

impl std::str::FromStr for Window {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::read(text).map_err(|wrong| {
            let help = "write it like \"Sat 22:00–Sun 04:00 Europe/Berlin\" or \"Mon-Fri 08:00–18:00 Europe/Berlin\"";
            ParseError::new("a window", text, wrong, help)
        })
    }
}

impl TryFrom<String> for Window {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> Self {
        window.to_string()
    }
}
