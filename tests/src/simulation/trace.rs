//! The trace of events, line by line.

use std::{
    fmt::{Arguments, Write as _},
    hash::{DefaultHasher, Hasher},
};

use chrono::{DateTime, Utc};

/// How a migration's id begins in errors.
const ID: &str = "migration 0";

/// The hash of all lines so far.
#[derive(Debug, Default)]
pub(super) struct Trace {
    hasher: DefaultHasher,
    /// Whether each line is printed at once.
    tells: bool,
    buffer: String,
}

impl Trace {
    /// A trace that prints its lines if it `tells`.
    pub(super) fn new(tells: bool) -> Self {
        Self { tells, ..Self::default() }
    }

    /// Adds a line.
    pub(super) fn note(&mut self, at: DateTime<Utc>, line: Arguments<'_>) {
        self.buffer.clear();
        // Writing to a string does not fail.
        let _ = write!(self.buffer, "{:>12} {line}", at.timestamp_micros());
        // Ids differ from run to run.
        while let Some(at) = self.buffer.find(ID) {
            let id = at + ID.len() - 1;
            self.buffer.replace_range(id..(id + 36).min(self.buffer.len()), "x");
        }
        self.hasher.write(self.buffer.as_bytes());
        if self.tells {
            println!("{}", self.buffer);
        }
    }

    /// The hash of all lines so far.
    pub(super) fn hash(&self) -> u64 {
        self.hasher.finish()
    }
}
