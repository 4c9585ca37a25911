//! The words of a window: days, dates, times and the dashes between them.
//!
//! Rule: a hyphen, an en dash and an em dash mean the same, with blanks around them or without.

use std::fmt;

use chrono::{NaiveDate, NaiveTime, Weekday};

/// A wall-clock time; `24:00` is the end of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Clock {
    pub(crate) minutes: u32,
}

impl Clock {
    pub(crate) const MIDNIGHT: Self = Self { minutes: 0 };
    pub(crate) const END: Self = Self { minutes: 24 * 60 };

    /// Days to be added to a date, and the time on that day.
    pub(crate) fn on(self) -> (u32, NaiveTime) {
        let minutes = self.minutes % Self::END.minutes;
        let time = NaiveTime::from_num_seconds_from_midnight_opt(minutes * 60, 0).unwrap_or(NaiveTime::MIN);
        (self.minutes / Self::END.minutes, time)
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.minutes / 60, self.minutes % 60)
    }
}

/// A day of every year; 29 February only of leap years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct YearDay {
    pub(crate) month: u32,
    pub(crate) day: u32,
}

impl fmt::Display for YearDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}-{:02}", self.month, self.day)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Day(Weekday),
    Date(NaiveDate),
    YearDay(YearDay),
    Time(Clock),
    Daily,
    Holidays,
    Except,
    Dash,
    Comma,
}

/// The words of `text`; the error says what is wrong.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            _ if first.is_whitespace() => first.len_utf8(),
            '-' | '–' | '—' | '−' => {
                found.push(Token::Dash);
                first.len_utf8()
            }
            ',' => {
                found.push(Token::Comma);
                1
            }
            _ if first.is_ascii_digit() => {
                let (token, length) = figures(rest)?;
                found.push(token);
                length
            }
            _ => {
                let word = rest.split(|each: char| !each.is_alphanumeric()).next().unwrap_or_default();
                if word.is_empty() {
                    return Err(format!("{first:?} has no meaning here"));
                }
                found.push(named(word)?);
                word.len()
            }
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(found)
}

fn named(word: &str) -> Result<Token, String> {
    Ok(match word.to_lowercase().as_str() {
        "daily" | "always" => Token::Daily,
        "holidays" | "holiday" => Token::Holidays,
        "except" => Token::Except,
        lower => {
            let is_name = lower.len() == 3 || lower.ends_with("day");
            let day = lower.parse().ok().filter(|_| is_name);
            Token::Day(day.ok_or_else(|| {
                format!("{word:?} is no day such as Mon, no \"daily\", \"holidays\" or \"except\"")
            })?)
        }
    })
}

/// `2026-12-24`, `12-24` or `08:00`, and how long it is.
fn figures(text: &str) -> Result<(Token, usize), String> {
    let end =
        text.find(|each: char| !each.is_ascii_digit() && each != '-' && each != ':').unwrap_or(text.len());
    let run = &text[..end];
    let digits = |from: usize, to: usize| -> Option<u32> {
        let part = run.get(from..to).filter(|part| part.bytes().all(|each| each.is_ascii_digit()))?;
        part.parse().ok()
    };
    let sign = |at: usize, sign: char| run.as_bytes().get(at) == Some(&(sign as u8));
    if let (Some(year), Some(month), Some(day), true, true) =
        (digits(0, 4), digits(5, 7), digits(8, 10), sign(4, '-'), sign(7, '-'))
    {
        let date = i32::try_from(year).ok().and_then(|year| NaiveDate::from_ymd_opt(year, month, day));
        let date = date.ok_or_else(|| format!("{} is in no calendar", &run[..10]))?;
        return Ok((Token::Date(date), 10));
    }
    let colon = run.find(':').filter(|at| (1..=2).contains(at));
    if let Some(colon) = colon
        && let (Some(hour), Some(minute)) = (digits(0, colon), digits(colon + 1, colon + 3))
    {
        let time = Clock { minutes: hour * 60 + minute };
        return if minute < 60 && time <= Clock::END {
            Ok((Token::Time(time), colon + 3))
        } else {
            Err(format!("{} is on no clock", &run[..colon + 3]))
        };
    }
    if let (Some(month), Some(day), true) = (digits(0, 2), digits(3, 5), sign(2, '-')) {
        // In a leap year every day is there.
        return match NaiveDate::from_ymd_opt(2024, month, day) {
            Some(_) => Ok((Token::YearDay(YearDay { month, day }), 5)),
            None => Err(format!("{} is no month and day; times have a colon", &run[..5])),
        };
    }
    Err(format!(
        "{run:?} is no date such as 2026-12-24, no day of the year such as 12-24, no time such as 08:00"
    ))
}
