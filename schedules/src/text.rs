//! Sizes and lengths of time, as plans have them.
//!
//! Rule: a written value is read back unchanged; binary units only, and a number always has its unit.

use std::time::Duration;

use crate::error::ParseError;

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// A number of bytes: `1GiB`, `512 MiB`, `65536B`.
pub fn parse_bytes(text: &str) -> Result<u64, ParseError> {
    let wrong = |wrong: String| {
        ParseError::new("a size", text, wrong, "write a whole number and B, KiB, MiB, GiB or TiB: \"1GiB\"")
    };
    let number = text.trim();
    let digits = number.trim_end_matches(|each: char| !each.is_ascii_digit());
    let unit = number[digits.len()..].trim();
    let Some((_, shift)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(wrong(if unit.is_empty() {
            "it has no unit".into()
        } else {
            format!("{unit:?} is no unit")
        }));
    };
    let digits: u64 = digits.parse().map_err(|_| wrong(format!("{digits:?} is no whole number")))?;
    digits.checked_mul(1 << shift).ok_or_else(|| wrong("it is too large".into()))
}

/// The shortest exact form of a number of bytes: `1GiB`, `1536MiB`.
pub fn bytes(bytes: u64) -> String {
    let fits = |(_, shift): &&(&str, u32)| bytes > 0 && bytes.trailing_zeros() >= *shift;
    let (name, shift) = UNITS.iter().find(fits).copied().unwrap_or(("B", 0));
    format!("{}{name}", bytes >> shift)
}

/// A number of bytes for reading, rounded to three digits: `1.50 GiB`.
pub fn about(bytes: f64) -> String {
    let (mut value, mut unit) = (if bytes.is_nan() { 0.0 } else { bytes.clamp(0.0, 1e19) }, 4);
    while value >= 999.5 && unit > 0 {
        (value, unit) = (value / 1024.0, unit - 1);
    }
    let digits = if unit == 4 || value >= 99.95 { 0 } else { usize::from(value < 9.995) + 1 };
    format!("{value:.digits$} {}", UNITS[unit].0)
}

/// A length of time: `90s`, `15m`, `1h 30m`.
pub fn parse_span(text: &str) -> Result<Duration, ParseError> {
    humantime::parse_duration(text.trim()).map_err(|error| {
        ParseError::new(
            "a length of time",
            text,
            error.to_string(),
            "write it like \"90s\", \"15m\" or \"1h 30m\"",
        )
    })
}

/// The exact form of a length of time, to the nanosecond.
pub fn span(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}

/// A length of time for reading, to the second, or to the minute from an hour on: `40s`, `3m 20s`, `2h 5m`.
pub fn about_span(seconds: f64) -> String {
    if !seconds.is_finite() || seconds > 1e10 {
        return "for ever".to_owned();
    }
    let seconds = seconds.max(0.0);
    if seconds < 1.0 {
        return if seconds < 0.0005 { "0s".into() } else { format!("{:.0}ms", (seconds * 1e3).ceil()) };
    }
    let step = if seconds < 3600.0 { 1 } else { 60 };
    span(Duration::from_secs((seconds / step as f64).round() as u64 * step))
}

/// For `#[serde(with)]`: a [`Duration`].
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes it as `15m`.
    pub fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::span(*span))
    }

    /// Reads `15m`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::parse_span(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// For `#[serde(with)]`: an optional [`Duration`].
pub mod optional_duration {
    use std::time::Duration;

    use serde::{Deserializer, Serialize, Serializer};

    /// Writes it as `15m`.
    pub fn serialize<S: Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        span.map(super::span).serialize(serializer)
    }

    /// Reads `15m`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        super::duration::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, number) in
            [("1GiB", 1 << 30), ("1536MiB", 1536 << 20), ("7B", 7), ("0B", 0), ("3TiB", 3 << 40)]
        {
            assert_eq!(parse_bytes(text), Ok(number));
            assert_eq!(bytes(number), text);
        }
        assert_eq!(parse_bytes(" 64 KiB "), Ok(64 << 10));
        for (text, wrong) in [
            ("1", "has no unit"),
            ("", "has no unit"),
            ("1GB", "\"GB\" is no unit"),
            ("1.5GiB", "\"1.5\" is no whole number"),
            ("GiB", "\"\" is no whole number"),
            ("99999999999TiB", "too large"),
        ] {
            let told = parse_bytes(text).unwrap_err().to_string();
            assert!(told.contains(wrong) && told.contains("write a whole number"), "{told}");
        }
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(about(1.5 * 1024.0 * 1024.0), "1.50 MiB");
        assert_eq!(about(7.0), "7 B");
        assert_eq!(about(f64::INFINITY), "9094947 TiB");
        assert_eq!(about_span(200.4), "3m 20s");
        assert_eq!(about_span(7500.0), "2h 5m");
        assert_eq!(about_span(0.0123), "13ms");
        assert_eq!(about_span(f64::INFINITY), "for ever");
        assert!(parse_span("soon").unwrap_err().to_string().contains("\"15m\""));
        assert_eq!(parse_span("1h 30m").map(span).as_deref(), Ok("1h 30m"));
    }
}
