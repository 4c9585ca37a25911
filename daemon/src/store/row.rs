//! Values as they are saved: text, numbers and JSON that carries its version.
//!
//! Rule: what is saved outlives the type that it was. A saved form keeps its version; when a live type changes so that
//! the golden tests below fail, its old form gets a struct of its own here, and [`Saved::read`] turns it into the new.

use std::fmt::Display;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::error::Fault;
use crate::model::{id::MigrationId, machine::Machine, plan::Plan, state::State, view::Verdict};

/// A type that is saved as JSON.
pub(super) trait Saved: Serialize + DeserializeOwned {
    /// The version that is written.
    const VERSION: u32 = 1;

    /// Reads the body of any version that was ever written.
    fn read(version: u32, body: &str) -> Result<Self, BadJson> {
        match version {
            1 => Ok(serde_json::from_str(body)?),
            other => Err(BadJson::Version(other)),
        }
    }
}

impl Saved for Machine {}
impl Saved for Plan {}
impl Saved for State {}
impl Saved for Verdict {}
impl Saved for Vec<String> {}

/// Why a saved value cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadJson {
    #[error("version {0} of this value is unknown")]
    Version(u32),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

#[derive(Serialize)]
struct Written<'a, T> {
    v: u32,
    is: &'a T,
}

#[derive(Deserialize)]
struct Read<'a> {
    v: u32,
    #[serde(borrow)]
    is: &'a RawValue,
}

pub(super) fn to_json<T: Saved>(table: &'static str, row: impl Display, value: &T) -> Result<String, Fault> {
    serde_json::to_string(&Written { v: T::VERSION, is: value })
        .map_err(|error| Fault::bad(table, row, error))
}

pub(super) fn from_json<T: Saved>(table: &'static str, row: impl Display, text: &str) -> Result<T, Fault> {
    let read = || -> Result<T, BadJson> {
        let outer: Read = serde_json::from_str(text)?;
        T::read(outer.v, outer.is.get())
    };
    read().map_err(|error| Fault::bad(table, row, error))
}

/// A unit enum as the one word that serde makes of it.
pub(super) fn to_word<T: Serialize>(table: &'static str, value: &T) -> Result<String, Fault> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Ok(word),
        Ok(other) => Err(Fault::bad(table, "new", format!("{other} is no single word"))),
        Err(error) => Err(Fault::bad(table, "new", error)),
    }
}

pub(super) fn from_word<T: DeserializeOwned>(
    table: &'static str,
    row: impl Display,
    word: String,
) -> Result<T, Fault> {
    serde_json::from_value(serde_json::Value::String(word)).map_err(|error| Fault::bad(table, row, error))
}

pub(super) fn micros(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros()
}

pub(super) fn moment(table: &'static str, row: impl Display, micros: i64) -> Result<DateTime<Utc>, Fault> {
    DateTime::from_timestamp_micros(micros)
        .ok_or_else(|| Fault::bad(table, row, format!("{micros} is no time")))
}

pub(super) fn migration_id(table: &'static str, row: impl Display, text: &str) -> Result<MigrationId, Fault> {
    text.parse().map_err(|error: uuid::Error| Fault::bad(table, row, error))
}

/// SQLite's integers are signed: a count above 2⁶³ cannot be kept.
pub(super) fn signed(table: &'static str, row: impl Display, value: u64) -> Result<i64, Fault> {
    i64::try_from(value).map_err(|error| Fault::bad(table, row, error))
}

pub(super) fn unsigned<T: TryFrom<i64>>(
    table: &'static str,
    row: impl Display,
    value: i64,
) -> Result<T, Fault> {
    T::try_from(value).map_err(|_| Fault::bad(table, row, format!("{value} is out of range")))
}
