//! Standard output: tables for reading, JSON for programs.
//!
//! Rule: nothing else writes there, and to standard error. A reader that goes away ends the command without
//! an error. What a terminal shows fits its width; a pipe or a file gets all of it, a row a line, unless
//! COLUMNS gives it a width, as `watch` does.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use rustix::termios::tcgetwinsize;
use serde::Serialize;

use super::{
    args::Format,
    failure::{CliFailure, Exit},
    table::{self, Column},
    width::{width, wrap},
};

/// Under this many cells for the values, names stand beside them no more.
const LEAST_VALUE: usize = 24;

/// Where answers go, and in which form.
#[derive(Debug)]
pub(super) struct Out {
    stdout: io::Stdout,
    format: Format,
    terminal: bool,
    /// The width that the output has to fit, if any.
    screen: Option<usize>,
}

impl Out {
    /// With `wide`, nothing is cut or goes over several lines.
    pub(super) fn new(format: Format, wide: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let screen = if wide { None } else { screen(&stdout, terminal) };
        Self { stdout, format, terminal, screen }
    }

    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether it is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The width that the output has to fit, if any.
    pub(super) fn screen(&self) -> Option<usize> {
        self.screen
    }

    /// A line, or several.
    pub(super) fn text(&self, text: &str) -> Result<(), CliFailure> {
        self.write(&harmless(text))
    }

    /// JSON that is text already.
    pub(super) fn json_text(&self, text: &str) -> Result<(), CliFailure> {
        self.write(&harmless_json(text))
    }

    fn write(&self, text: &str) -> Result<(), CliFailure> {
        let mut stdout = self.stdout.lock();
        stdout.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        Ok(stdout.flush()?)
    }

    /// One value over several lines.
    pub(super) fn json<T: Serialize>(&self, value: &T) -> Result<(), CliFailure> {
        self.json_text(&serde_json::to_string_pretty(value).map_err(|error| unwritable(&error))?)
    }

    /// One value on one line.
    pub(super) fn json_line<T: Serialize>(&self, value: &T) -> Result<(), CliFailure> {
        self.json_text(&serde_json::to_string(value).map_err(|error| unwritable(&error))?)
    }

    /// Rows under headings.
    pub(super) fn table<const N: usize>(
        &self,
        columns: &[Column; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) -> Result<(), CliFailure> {
        let rows: Vec<_> = rows.into_iter().map(|row| row.map(|cell| one_line(&cell))).collect();
        self.text(&table::lines(columns, &rows, self.screen).join("\n"))
    }

    /// Names and their values, one under the other.
    pub(super) fn pairs(&self, pairs: &[(&str, String)]) -> Result<(), CliFailure> {
        let indent = pairs.iter().map(|(name, _)| width(name)).max().unwrap_or_default() + 3;
        for (name, value) in pairs {
            let name = format!("{name}:");
            self.hanging(&format!("{name:<indent$}"), value)?;
        }
        Ok(())
    }

    /// A line of prose; where the screen ends it goes on in the next line, indented.
    pub(super) fn prose(&self, text: &str) -> Result<(), CliFailure> {
        match self.screen {
            Some(screen) if width(text) > screen => {
                // The first line needs no indentation, and gets none.
                let lines = wrap(&one_line(text), screen.saturating_sub(2));
                self.text(&lines.join("\n  "))
            }
            _ => self.text(&one_line(text)),
        }
    }

    /// Prose behind `begin`, under which the next lines leave room.
    fn hanging(&self, begin: &str, text: &str) -> Result<(), CliFailure> {
        let (text, indent) = (one_line(text), width(begin));
        let room = self.screen.map(|screen| screen.saturating_sub(indent));
        let lines = match room {
            Some(room) if room >= LEAST_VALUE && width(&text) > room => wrap(&text, room),
            _ => vec![text],
        };
        self.text(&format!("{begin}{}", lines.join(&format!("\n{}", " ".repeat(indent)))))
    }
}

/// The width that COLUMNS gives, or else the terminal.
fn screen(stdout: &io::Stdout, terminal: bool) -> Option<usize> {
    let given = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let of_terminal = || {
        let size = tcgetwinsize(stdout).ok().filter(|_| terminal)?;
        Some(usize::from(size.ws_col))
    };
    given.or_else(of_terminal).filter(|columns| *columns > 0)
}

/// Text on standard error. If it is closed, the failure cannot be reported.
pub(super) fn complain(text: &str) {
    let lines: Vec<_> = text.lines().map(one_line).collect();
    writeln!(io::stderr().lock(), "warmctl: {}", lines.join("\n")).ok();
}

/// Text from outside may hold line ends and escape sequences: they never reach the terminal.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|character| if steers(character) { ' ' } else { character }).collect()
}

/// The same for several lines.
fn harmless(text: &str) -> String {
    text.chars().map(|each| if steers(each) && each != '\n' { ' ' } else { each }).collect()
}

/// The same for JSON, which says it otherwise and means the same: such characters are only ever in its texts.
fn harmless_json(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, each| {
        if steers(each) && each != '\n' {
            // Writing to a string cannot fail.
            write!(out, "\\u{:04x}", u32::from(each)).ok();
        } else {
            out.push(each);
        }
        out
    })
}

/// Whether a terminal does not show it but acts on it: controls, those of ISO 6429 above 0x7f too, and what
/// changes the direction of writing, so that a name could look like another.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{061c}')
        || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn unwritable(error: &serde_json::Error) -> CliFailure {
    CliFailure::new(Exit::Failed, format!("the answer cannot be written as JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\u{1b}[31m\u{9b}2J\u{202e}\r\u{7f}\u{2066}b\tc\u{2028}ü";

    #[test]
    fn nothing_steers_the_terminal() {
        for text in [one_line(EVIL), harmless(EVIL), harmless_json(EVIL)] {
            assert!(!text.chars().any(steers), "{text:?}");
            assert!(text.contains('ü'), "{text:?}");
        }
        assert_eq!(harmless("a\nb\r\n"), "a\nb \n");
    }

    #[test]
    fn json_says_the_same() {
        let value = serde_json::json!({ "name": EVIL, EVIL: [EVIL] });
        let text = harmless_json(&serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
