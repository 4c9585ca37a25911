//! Days: of the week, dates, days of the year, holidays.
//!
//! Rule: a day is a date of the wall clock. Ranges include both ends; those of the week and of the year go
//! round.

use std::fmt;

use chrono::{Datelike, NaiveDate, Weekday};
use serde::{Deserialize, Serialize};

use super::token::{Token, YearDay, tokens};
use crate::error::ParseError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DayPart {
    Daily,
    Week { from: Weekday, to: Weekday },
    Dates { from: NaiveDate, to: NaiveDate },
    Year { from: YearDay, to: YearDay },
    Holidays,
}

impl DayPart {
    fn has(self, day: NaiveDate, holidays: &Holidays) -> bool {
        let around = |from: u32, to: u32, day: u32| {
            if from <= to { (from..=to).contains(&day) } else { day >= from || day <= to }
        };
        match self {
            Self::Daily => true,
            Self::Week { from, to } => around(
                from.num_days_from_monday(),
                to.num_days_from_monday(),
                day.weekday().num_days_from_monday(),
            ),
            Self::Dates { from, to } => (from..=to).contains(&day),
            Self::Year { from, to } => {
                around(from.month * 100 + from.day, to.month * 100 + to.day, day.month() * 100 + day.day())
            }
            Self::Holidays => holidays.has(day),
        }
    }

    /// The first part of `tokens`, and the rest.
    pub(crate) fn read(tokens: &[Token]) -> Result<(Self, &[Token]), String> {
        let is_range = matches!(tokens, [_, Token::Dash, ..]);
        let single = |part| Ok((part, &tokens[1..]));
        match *tokens {
            [Token::Daily, ..] => single(Self::Daily),
            [Token::Holidays, ..] => single(Self::Holidays),
            [Token::Day(from), Token::Dash, Token::Day(to), ..] => {
                Ok((Self::Week { from, to }, &tokens[3..]))
            }
            [Token::Day(day), ..] if !is_range => single(Self::Week { from: day, to: day }),
            [Token::Date(from), Token::Dash, Token::Date(to), ..] => {
                if from > to {
                    return Err(format!("{from} is after {to}"));
                }
                Ok((Self::Dates { from, to }, &tokens[3..]))
            }
            [Token::Date(day), ..] if !is_range => single(Self::Dates { from: day, to: day }),
            [Token::YearDay(from), Token::Dash, Token::YearDay(to), ..] => {
                Ok((Self::Year { from, to }, &tokens[3..]))
            }
            [Token::YearDay(day), ..] if !is_range => single(Self::Year { from: day, to: day }),
            [] => Err("a day is missing at its end".to_owned()),
            [Token::Day(_) | Token::Date(_) | Token::YearDay(_), Token::Dash] => {
                Err("a day is missing after the dash".to_owned())
            }
            [Token::Day(_) | Token::Date(_) | Token::YearDay(_), ..] => {
                Err("a range must have days of one kind at both ends".to_owned())
            }
            _ => Err("a day is expected where none stands".to_owned()),
        }
    }
}

impl fmt::Display for DayPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daily => f.write_str("daily"),
            Self::Holidays => f.write_str("holidays"),
            Self::Week { from, to } if from == to => write!(f, "{from}"),
            Self::Week { from, to } => write!(f, "{from}-{to}"),
            Self::Dates { from, to } if from == to => write!(f, "{from}"),
            Self::Dates { from, to } => write!(f, "{from}–{to}"),
            Self::Year { from, to } if from == to => write!(f, "{from}"),
            Self::Year { from, to } => write!(f, "{from}–{to}"),
        }
    }
}

/// A set of days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Days {
    pub(crate) parts: Vec<DayPart>,
    pub(crate) except_holidays: bool,
}

impl Days {
    pub(crate) const fn of(parts: Vec<DayPart>) -> Self {
        Self { parts, except_holidays: false }
    }

    /// The days at the start of `tokens`, and the rest.
    pub(crate) fn read(tokens: &[Token]) -> Result<(Self, &[Token]), String> {
        let (first, mut rest) = DayPart::read(tokens)?;
        let mut parts = vec![first];
        while let [Token::Comma, more @ ..] = rest {
            let (part, left) = DayPart::read(more)?;
            parts.push(part);
            rest = left;
        }
        let except_holidays = matches!(rest, [Token::Except, Token::Holidays, ..]);
        if except_holidays {
            rest = &rest[2..];
        } else if matches!(rest, [Token::Except, ..]) {
            return Err("only holidays can be excepted: write \"except holidays\"".to_owned());
        }
        Ok((Self { parts, except_holidays }, rest))
    }

    pub(crate) fn has(&self, day: NaiveDate, holidays: &Holidays) -> bool {
        self.parts.iter().any(|part| part.has(day, holidays)) && !(self.except_holidays && holidays.has(day))
    }

    /// Whether it needs a list of holidays.
    pub(crate) fn needs_holidays(&self) -> bool {
        self.except_holidays || self.parts.contains(&DayPart::Holidays)
    }

    /// The last date that can belong to it, if there is one.
    pub(crate) fn last(&self) -> Option<NaiveDate> {
        let ends = self.parts.iter().map(|part| match part {
            DayPart::Dates { to, .. } => Some(*to),
            _ => None,
        });
        ends.collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

/// A holiday, or several in a row: `2026-12-25`, `12-26` for every year, `2026-12-28–2026-12-31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Holiday(DayPart);

impl std::str::FromStr for Holiday {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = |wrong: String| {
            let help = "write a date (\"2026-12-25\"), a day of every year (\"12-25\") or a range of either";
            ParseError::new("a holiday", text, wrong, help)
        };
        let tokens = tokens(text).map_err(wrong)?;
        match DayPart::read(&tokens).map_err(wrong)? {
            (part @ (DayPart::Dates { .. } | DayPart::Year { .. }), []) => Ok(Self(part)),
            (_, []) => Err(wrong("it names no date".to_owned())),
            _ => Err(wrong("something follows the date".to_owned())),
        }
    }
}

impl TryFrom<String> for Holiday {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Holiday> for String {
    fn from(holiday: Holiday) -> Self {
        holiday.0.to_string()
    }
}

/// The holidays that windows may refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Holidays(pub Vec<Holiday>);

impl Holidays {
    /// Whether `day` is one.
    pub fn has(&self, day: NaiveDate) -> bool {
        self.0.iter().any(|holiday| holiday.0.has(day, &Self(Vec::new())))
    }

    /// Whether none is listed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
