//! `warmd.v1` messages as JSON: the form that `warmctl -o json` prints.
//!
//! Rule: field names as in the `.proto` file, and every field always there, `null` where it is absent. Enum
//! values in lower-kebab without their prefix (`cutting-over`) and `null` if unspecified, timestamps in RFC
//! 3339, durations in seconds with an `s` (`"12.5s"`), 64-bit numbers as numbers. It is the standard JSON
//! form except for the numbers and the enum values.

use std::fmt::Display;

use serde::{Serialize, Serializer};

/// An enum field, which prost keeps as a number. Unspecified is `null`, and a value that this version does
/// not know is `unknown-N`.
pub(crate) fn kebab<E, S>(value: &i32, serializer: S) -> Result<S::Ok, S::Error>
where
    E: TryFrom<i32> + Serialize,
    S: Serializer,
{
    if *value == 0 {
        return serializer.serialize_none();
    }
    match E::try_from(*value) {
        Ok(known) => known.serialize(serializer),
        Err(_) => serializer.collect_str(&format_args!("unknown-{value}")),
    }
}

/// A timestamp or a duration: prost's text form is the standard JSON one.
pub(crate) fn text<T, S>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
where
    T: Display,
    S: Serializer,
{
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
