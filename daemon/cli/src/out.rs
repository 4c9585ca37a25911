//! Standard output: tables for reading, JSON for programs.
//!
//! Rule: nothing else writes there, and to standard error. A reader that goes away ends the command without
//! an error.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::{
    args::Format,
    failure::{CliFailure, Exit},
};

/// Where answers go, and in which form.
#[derive(Debug)]
pub(super) struct Out {
    stdout: io::Stdout,
    format: Format,
    terminal: bool,
}

impl Out {
    pub(super) fn new(format: Format) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { stdout, format, terminal }
    }

    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether it is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
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

    /// Rows under headings; a heading that begins with `>` is for figures, aligned right. On a terminal the
    /// cells wrap to its width, in a pipe every row is one line.
    pub(super) fn table<const N: usize>(
        &self,
        heads: [&str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) -> Result<(), CliFailure> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(heads.map(|head| head.trim_start_matches('>')));
        for row in rows {
            table.add_row(row.map(|cell| one_line(&cell)));
        }
        for (index, head) in heads.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, 2));
                if head.starts_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        if self.terminal {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        } else {
            table.force_no_tty();
        }
        self.text(&table.trim_fmt())
    }

    /// Names and their values, one under the other.
    pub(super) fn pairs(&self, pairs: &[(&str, String)]) -> Result<(), CliFailure> {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in pairs {
            let name = format!("{name}:");
            self.text(&format!("{name:<0$}{1}", width + 3, one_line(value)))?;
        }
        Ok(())
    }
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
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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
