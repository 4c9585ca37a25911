//! Errors in a user's text.
//!
//! Rule: an error names the text, its fault, and the correction.

use std::fmt;

/// A text that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// What it should have been, with its article: `a window`.
    pub what: &'static str,
    /// The text as written, cut if it is long.
    pub text: String,
    /// The fault, naming the wrong part.
    pub wrong: String,
    /// What to do, with an example.
    pub help: String,
}

/// The rest of a wrong text is not repeated, in characters.
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
