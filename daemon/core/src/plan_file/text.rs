//! Files that users write: read within bounds, and every error has a position.
//!
//! Rule: a message begins with `FILE:LINE:COLUMN:` whenever the position is known.

use std::{fmt, fs::File, io, io::Read, ops::Range, path::Path};

use super::error_span;
use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

/// The maximum size of a user's file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A problem of a file, with its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// The file's name as the user gave it.
    pub file: String,
    /// `None` if it concerns the whole file.
    pub position: Option<Position>,
    /// What is wrong, and what to do.
    pub message: String,
}

/// A position in a text, both counted from 1; columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some(Position { line, column }) => {
                write!(f, "{}:{line}:{column}: {}", self.file, self.message)
            }
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for TextError {}

/// A text with its name.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl<'a> Text<'a> {
    /// A problem with these bytes of it.
    pub fn wrong(&self, span: Option<Range<usize>>, message: impl Into<String>) -> TextError {
        let position = span.map(|span| position(self.text, span.start));
        TextError { file: self.file.to_owned(), position, message: message.into() }
    }

    /// The document with the position of each value.
    pub fn parse(&self) -> Result<Spanned<DeTable<'a>>, TextError> {
        DeTable::parse(self.text).map_err(|error| self.toml(&error))
    }

    /// `table` as a `T`.
    pub fn read<T: DeserializeOwned>(&self, table: Spanned<DeTable>) -> Result<T, TextError> {
        read(table).map_err(|error| self.toml(&error))
    }

    /// `table` as a `T` that serde buffers, which loses the positions in it.
    pub fn read_buffered<T: DeserializeOwned>(&self, table: &Spanned<DeTable>) -> Result<T, TextError> {
        read::<T>(table.clone()).map_err(|error| {
            let span = table.span();
            let attempt = |inner: DeTable| match read::<T>(Spanned::new(span.clone(), inner)) {
                Ok(_) => None,
                Err(error) => Some(error.message().to_owned()),
            };
            let place = error_span::find(table.get_ref(), span.clone(), error.message(), &attempt);
            self.wrong(Some(place.unwrap_or(span.clone())), in_words(error.message()))
        })
    }

    fn toml(&self, error: &toml::de::Error) -> TextError {
        self.wrong(error.span(), in_words(error.message()))
    }
}

fn read<T: DeserializeOwned>(table: Spanned<DeTable>) -> Result<T, toml::de::Error> {
    let span = table.span();
    T::deserialize(ValueDeserializer::from(Spanned::new(span, DeValue::Table(table.into_inner()))))
}

/// serde's message in the terms of a configuration.
fn in_words(message: &str) -> String {
    let message = message.trim_end();
    for (theirs, ours) in [
        ("unknown field", "unknown key"),
        ("missing field", "missing key"),
        ("duplicate field", "duplicate key"),
        ("unknown variant", "unknown value"),
    ] {
        if let Some(rest) = message.strip_prefix(theirs) {
            return format!("{ours}{rest}");
        }
    }
    message.to_owned()
}

fn position(text: &str, at: usize) -> Position {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    Position { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
}

/// Reads a file of at most [`MAX_FILE`] bytes of text.
pub fn read_file(path: &Path) -> io::Result<Result<String, TextError>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    Ok(as_text(&path.display().to_string(), bytes))
}

pub(super) fn as_text(file: &str, bytes: Vec<u8>) -> Result<String, TextError> {
    let wrong = |position, message: String| TextError { file: file.to_owned(), position, message };
    if bytes.len() as u64 > MAX_FILE {
        return Err(wrong(None, format!("it has more than {} KiB: is it the right file?", MAX_FILE >> 10)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
        wrong(Some(position(&text, good)), "this is no UTF-8 text: is it the right file?".to_owned())
    })
}
