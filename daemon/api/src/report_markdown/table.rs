//! Tables in Markdown.

/// A table with `N` columns.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    text: String,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(heads: [&str; N]) -> Self {
        let mut table = Self { text: String::new() };
        table.row(heads.map(str::to_owned));
        table.row(heads.map(|_| "---".to_owned()));
        table
    }

    /// Adds a row of cells that went through [`inline`] or [`code`], or hold nothing from outside.
    pub(super) fn row(&mut self, cells: [String; N]) {
        self.text.push('|');
        for cell in cells {
            self.text.push(' ');
            self.text.push_str(&cell);
            self.text.push_str(" |");
        }
        self.text.push('\n');
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// Text from outside as plain text of one line, whatever is in it.
pub(super) fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '|' | '*' | '_' | '`' | '<' | '>' | '[' | ']' | '\\' | '#' => {
                out.push('\\');
                out.push(character);
            }
            character if character.is_control() => out.push(' '),
            character => out.push(character),
        }
    }
    out
}

/// Text from outside as code of one line.
pub(super) fn code(text: &str) -> String {
    let safe: String = text
        .chars()
        .map(|character| match character {
            '`' => '\'',
            character if character.is_control() => ' ',
            character => character,
        })
        .collect();
    if safe.is_empty() { "-".to_owned() } else { format!("`{}`", safe.replace('|', "\\|")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_text_stays_in_its_cell() {
        let mut table = Table::new(["a", "b"]);
        table.row([inline("x | y\n<b>*z*"), code("p|q`r\ns")]);
        assert_eq!(table.finish(), "| a | b |\n| --- | --- |\n| x \\| y \\<b\\>\\*z\\* | `p\\|q'r s` |\n");
    }
}
