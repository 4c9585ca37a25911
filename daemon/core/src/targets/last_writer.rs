//! The last writer of a target's disks, as noted beside them.
//!
//! Rule: the note shows a state restored from an older copy what it missed. An unreadable note counts as a
//! writer that no state knows, never as no writer.

use std::fmt;

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// A writer of a target's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastWriter {
    /// A pass of the migration.
    Pass {
        number: u32,
        /// The number of disks with a known tracking fault by then.
        faults: u32,
    },
    /// The conversion of this id.
    Conversion(Uuid),
    /// The target VM, to which a cutover handed the disks over. Its writes are in no ledger.
    Machine {
        /// The cutover, by its moment, to the microsecond.
        since: DateTime<Utc>,
        /// The VM was seen running, or the migration was done: that cutover continued.
        confirmed_running: bool,
    },
    /// An unknown writer: the note is not readable.
    Unknown,
}

const CONVERSION: &str = "conversion ";
const MACHINE: &str = "target VM since ";
const OVER: &str = ", handed over";

impl LastWriter {
    /// The text of a note.
    pub fn to_text(self) -> String {
        match self {
            Self::Pass { number, faults: 0 } => format!("{number}\n"),
            Self::Pass { number, faults } => format!("{number} {faults}\n"),
            Self::Conversion(id) => format!("{CONVERSION}{id}\n"),
            Self::Machine { since, confirmed_running } => {
                let suffix = if confirmed_running { OVER } else { "" };
                format!("{MACHINE}{}{suffix}\n", since.timestamp_micros())
            }
            Self::Unknown => "?\n".to_owned(),
        }
    }

    /// The writer in a note.
    pub fn of_text(text: &str) -> Self {
        let text = text.trim();
        if let Some(id) = text.strip_prefix(CONVERSION) {
            return id.parse().map_or(Self::Unknown, Self::Conversion);
        }
        if let Some(rest) = text.strip_prefix(MACHINE) {
            let (since, confirmed_running) =
                rest.strip_suffix(OVER).map_or((rest, false), |since| (since, true));
            let since = since.parse().ok().and_then(DateTime::from_timestamp_micros);
            return since.map_or(Self::Unknown, |since| Self::Machine { since, confirmed_running });
        }
        let (number, faults) = text.split_once(' ').unwrap_or((text, "0"));
        match (number.parse(), faults.parse()) {
            (Ok(number), Ok(faults)) => Self::Pass { number, faults },
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for LastWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass { number, .. } => write!(f, "pass {number}"),
            Self::Conversion(_) => f.write_str("a conversion"),
            Self::Machine { since, .. } => {
                write!(f, "the target VM since {} UTC", since.format("%Y-%m-%d %H:%M:%S"))
            }
            Self::Unknown => f.write_str("a writer whose note cannot be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_again() {
        let since = DateTime::from_timestamp_micros(1_795_413_704_123_456).unwrap();
        for writer in [
            LastWriter::Pass { number: 1, faults: 0 },
            LastWriter::Pass { number: u32::MAX, faults: 3 },
            LastWriter::Conversion(Uuid::nil()),
            LastWriter::Machine { since, confirmed_running: false },
            LastWriter::Machine { since, confirmed_running: true },
            LastWriter::Unknown,
        ] {
            assert_eq!(LastWriter::of_text(&writer.to_text()), writer, "{writer}");
        }
    }

    #[test]
    fn empty_note_is_an_unknown_writer() {
        for text in
            ["", "x", "-1", "1 x", "1 2 3", "target VM", "target VM since ", "target VM since x, handed over"]
        {
            assert_eq!(LastWriter::of_text(text), LastWriter::Unknown, "{text:?}");
        }
    }
}
