//! What is wrong with a text that a person wrote.
//!
//! Rule: an error says what was read, what is wrong with it, and what to write instead.

use std::fmt;

/// A text that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// What it should have been, with its article: `a window`.
    pub what: &'static str,
    /// As it was written, cut short if it is long.
    pub text: String,
    /// What is wrong, naming the part that is.
    pub wrong: String,
    /// What to do, with an example.
    pub help: String,
}

/// More of a wrong text is not repeated, in characters.
const SHOWN: usize = 80;

impl ParseError {
    pub(crate) fn new(
        what: &'static str,
        text: &str,
        wrong: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            what,
            text: shortened(text, SHOWN),
            wrong: shortened(&wrong.into(), 4 * SHOWN),
            help: help.into(),
        }
    }
}

fn shortened(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not {}: {}; {}", self.text, self.what, self.wrong, self.help)
    }
}

impl std::error::Error for ParseError {}
