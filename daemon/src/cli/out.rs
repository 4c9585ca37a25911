//! Standard output: tables for people, JSON for machines.
//!
//! Rule: nothing else writes there, and to standard error. A reader that goes away ends the command in peace.

use std::io::{self, IsTerminal, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::{
    args::Format,
    failure::{Exit, Failure},
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

    /// Whether a person looks at it.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A line, or several.
    pub(super) fn text(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = self.stdout.lock();
        stdout.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        Ok(stdout.flush()?)
    }

    /// One value over several lines.
    pub(super) fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        self.text(&serde_json::to_string_pretty(value).map_err(|error| unwritable(&error))?)
    }

    /// One value on one line.
    pub(super) fn json_line<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        self.text(&serde_json::to_string(value).map_err(|error| unwritable(&error))?)
    }

    /// Rows under heads; heads that begin with `>` are for figures, at the right. On a terminal the cells wrap to its
    /// width, in a pipe every row is one line.
    pub(super) fn table<const N: usize>(
        &self,
        heads: [&str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) -> Result<(), Failure> {
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

    /// Names and what they have, one under the other.
    pub(super) fn pairs(&self, pairs: &[(&str, String)]) -> Result<(), Failure> {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in pairs {
            let name = format!("{name}:");
            self.text(&format!("{name:<0$}{1}", width + 3, one_line(value)))?;
        }
        Ok(())
    }
}

/// Text on standard error. If nobody reads it, there is nobody to tell.
pub(super) fn complain(text: &str) {
    let lines: Vec<_> = text.lines().map(one_line).collect();
    writeln!(io::stderr().lock(), "warmctl: {}", lines.join("\n")).ok();
}

/// Text from outside may hold line ends and escape sequences: none reaches the terminal.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

fn unwritable(error: &serde_json::Error) -> Failure {
    Failure::new(Exit::Failed, format!("the answer cannot be written as JSON: {error}"))
}
