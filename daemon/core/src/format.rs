//! Figures for users: sizes in IEC units, lengths of time, moments in UTC.

use chrono::{DateTime, Utc};

const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// A size: `512 B`, `1.50 GiB`. Three digits are shown.
pub fn bytes(bytes: u64) -> String {
    scaled(bytes as f64)
}

/// Bytes as users write them: a number, or one with a unit, such as `512KiB`, `1GiB`.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|each: char| !each.is_ascii_digit());
    let shift = match text[digits.len()..].trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A probability from 0 to 1 as a percentage: `36.6 %`, `2.7e-5 %`.
pub fn probability(probability: f64) -> String {
    let percent = probability * 100.0;
    if percent == 0.0 || percent >= 0.01 { format!("{percent:.2} %") } else { format!("{percent:.1e} %") }
}

/// Bytes per second: `118 MiB/s`.
pub fn rate(bytes_per_second: f64) -> String {
    if bytes_per_second.is_finite() && bytes_per_second >= 0.0 {
        format!("{}/s", scaled(bytes_per_second))
    } else {
        "-".to_owned()
    }
}

/// The rate of `bytes` in `seconds`; a dash if no time passed.
pub fn rate_of(bytes: u64, seconds: f64) -> String {
    if seconds > 0.0 { rate(bytes as f64 / seconds) } else { "-".to_owned() }
}

fn scaled(value: f64) -> String {
    let mut value = value;
    let mut unit = 0;
    // 999.5 would be shown as four digits.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS[unit];
    if unit == 0 || value >= 99.95 {
        format!("{value:.0} {name}")
    } else if value >= 9.995 {
        format!("{value:.1} {name}")
    } else {
        format!("{value:.2} {name}")
    }
}

/// A length of time in seconds: `850 ms`, `3.9 s`, `42 s`, `3m 20s`, `2h 5m`, `3d 4h`.
pub fn span(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".to_owned();
    }
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (large, small) = match whole {
        0..60 => return format!("{whole} s"),
        60..3_600 => ((whole / 60, "m"), (whole % 60, "s")),
        3_600..86_400 => ((whole / 3_600, "h"), (whole % 3_600 / 60, "m")),
        _ => ((whole / 86_400, "d"), (whole % 86_400 / 3_600, "h")),
    };
    match small.0 {
        0 => format!("{}{}", large.0, large.1),
        _ => format!("{}{} {}{}", large.0, large.1, small.0, small.1),
    }
}

/// How long a request took, in seconds, to three digits: `16 µs`, `1.25 ms`, `83.0 ms`, `1.20 s`.
pub fn latency(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".to_owned();
    }
    let (value, unit) = match seconds {
        ..0.000_999_5 => return format!("{:.0} µs", seconds * 1e6),
        ..0.999_5 => (seconds * 1e3, "ms"),
        ..99.95 => (seconds, "s"),
        _ => return span(seconds),
    };
    let digits = if value >= 99.95 { 0 } else { usize::from(value < 9.995) + 1 };
    format!("{value:.digits$} {unit}")
}

/// From one moment to another, in the format of [`span`].
pub fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> String {
    span(seconds_between(from, to))
}

/// Seconds from one moment to another.
pub fn seconds_between(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    (to - from).as_seconds_f64()
}

/// A moment in UTC, to the second, without naming the zone: the column's head names it.
pub fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// A part of the whole, in percent and rounded down: 100 only when the part is the whole. Of nothing, and of
/// what is not known, there is no percentage.
pub fn percent(part: u64, whole: u64) -> Option<u64> {
    (whole > 0).then(|| (u128::from(part.min(whole)) * 100 / u128::from(whole)) as u64)
}

/// An error with its causes, outermost first; a cause that the message already contains is not repeated.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = error.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("making /x: {0}")]
        struct Telling(#[source] std::io::Error);
        #[derive(Debug, thiserror::Error)]
        #[error("the daemon cannot start")]
        struct Silent(#[source] Telling);
        let exists = || std::io::Error::from_raw_os_error(17);
        assert_eq!(chain(&Telling(exists())), "making /x: File exists (os error 17)");
        let all = "the daemon cannot start: making /x: File exists (os error 17)";
        assert_eq!(chain(&Silent(Telling(exists()))), all);
    }

    #[test]
    fn sizes_with_and_without_units() {
        for (text, bytes) in [
            ("7", Some(7)),
            ("7B", Some(7)),
            ("512KiB", Some(512 << 10)),
            ("2 MiB", Some(2 << 20)),
            ("1GiB", Some(1 << 30)),
            ("3TiB", Some(3 << 40)),
            ("", None),
            ("GiB", None),
            ("1GB", None),
            ("-1", None),
            ("1.5GiB", None),
            ("99999999999TiB", None),
            ("1é", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn sizes_show_three_digits() {
        for (size, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1024, "1.00 KiB"),
            (10 << 30, "10.0 GiB"),
            (1023 << 20, "1.00 GiB"),
            (123 << 20, "123 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(size), shown);
        }
    }

    #[test]
    fn spans_are_as_exact_as_they_matter() {
        for (seconds, shown) in [
            (0.0, "0 ms"),
            (0.85, "850 ms"),
            (0.9996, "1.0 s"),
            (3.94, "3.9 s"),
            (9.96, "10 s"),
            (59.6, "1m"),
            (200.0, "3m 20s"),
            (7500.0, "2h 5m"),
            (273_600.0, "3d 4h"),
            (f64::NAN, "-"),
            (-1.0, "-"),
        ] {
            assert_eq!(span(seconds), shown, "{seconds}");
        }
    }

    #[test]
    fn latencies_show_three_digits() {
        for (seconds, shown) in [
            (0.0, "0 µs"),
            (0.000_016_4, "16 µs"),
            (0.000_999_6, "1.00 ms"),
            (0.001_25, "1.25 ms"),
            (0.083, "83.0 ms"),
            (0.9999, "1.00 s"),
            (12.34, "12.3 s"),
            (200.0, "3m 20s"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(latency(seconds), shown, "{seconds}");
        }
    }

    #[test]
    fn a_hundred_percent_is_all() {
        assert_eq!(percent(999_999, 1_000_000), Some(99));
        assert_eq!(percent(5, 5), Some(100));
        assert_eq!(percent(0, 0), None);
        assert_eq!(percent(u64::MAX, u64::MAX), Some(100));
    }
}
