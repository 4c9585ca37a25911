//! Reading Rust sources and texts: what is code, what is a comment, what is a text literal, and words.
//!
//! Rule: an approximation for the house rules, of code that compiles. It knows nested comments and raw
//! strings.

/// The source without its test module, which stands last.
pub(crate) fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

/// A word of a text or of an identifier, in lower case.
#[derive(Debug)]
pub(crate) struct Word {
    pub(crate) text: String,
    /// From 1.
    pub(crate) line: usize,
    /// Nothing but space, comment signs, dashes and underscores is between it and the word before.
    pub(crate) continues: bool,
}

/// All words; `camelCase` and `snake_case` names are several.
pub(crate) fn words(text: &str) -> Vec<Word> {
    let mut found: Vec<Word> = Vec::new();
    let (mut line, mut continues, mut before) = (1, false, ' ');
    for letter in text.chars() {
        if letter.is_alphabetic() {
            let begins = !before.is_alphabetic() || (before.is_lowercase() && letter.is_uppercase());
            if begins {
                found.push(Word { text: String::new(), line, continues });
                continues = true;
            }
            if let Some(word) = found.last_mut() {
                word.text.extend(letter.to_lowercase());
            }
        } else {
            continues &= letter.is_whitespace() || "/!#*_-".contains(letter);
            line += usize::from(letter == '\n');
        }
        before = letter;
    }
    found
}

/// A line of Rust.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    /// From 1.
    pub(crate) number: usize,
    pub(crate) columns: usize,
    /// A text literal, or a part of one, is on it.
    pub(crate) has_literal: bool,
    /// The columns to the end of its comment; 0 without one.
    pub(crate) comment_end: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    LineComment,
    BlockComment(usize),
    /// A text literal, with the number of `#` if it is raw.
    Text(Option<usize>),
}

/// The lines of a Rust source.
pub(crate) struct Lines;

impl Lines {
    pub(crate) fn of(source: &str) -> Vec<Line> {
        let letters: Vec<char> = source.chars().collect();
        let is = |at: usize, text: &str| {
            text.chars().enumerate().all(|(i, letter)| letters.get(at + i) == Some(&letter))
        };
        let (mut lines, mut line) = (Vec::new(), Line { number: 1, ..Line::default() });
        let (mut part, mut at) = (Part::Code, 0);
        while at < letters.len() {
            let mut step = 1;
            if letters[at] == '\n' {
                let number = line.number + 1;
                lines.push(std::mem::replace(&mut line, Line { number, ..Line::default() }));
                if part == Part::LineComment {
                    part = Part::Code;
                }
                at += 1;
                continue;
            }
            let before = part;
            match part {
                Part::Code if is(at, "//") => part = Part::LineComment,
                Part::Code if is(at, "/*") => (part, step) = (Part::BlockComment(1), 2),
                Part::Code if letters[at] == '"' => {
                    line.has_literal = true;
                    part = Part::Text(raw_signs(&letters[..at]));
                }
                Part::Code if letters[at] == '\'' => step = char_literal(&letters[at..]),
                Part::BlockComment(depth) if is(at, "*/") => {
                    (part, step) = (if depth == 1 { Part::Code } else { Part::BlockComment(depth - 1) }, 2);
                }
                Part::BlockComment(depth) if is(at, "/*") => {
                    (part, step) = (Part::BlockComment(depth + 1), 2);
                }
                Part::Text(raw) => {
                    line.has_literal = true;
                    match raw {
                        None if letters[at] == '\\' && letters.get(at + 1) != Some(&'\n') => step = 2,
                        None if letters[at] == '"' => part = Part::Code,
                        Some(signs) if is(at, &format!("\"{}", "#".repeat(signs))) => {
                            (part, step) = (Part::Code, 1 + signs);
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
            line.columns += step;
            if [before, part].iter().any(|part| matches!(part, Part::LineComment | Part::BlockComment(_))) {
                line.comment_end = line.columns;
            }
            at += step;
        }
        lines.push(line);
        lines
    }
}

/// The number of `#` if the letters end with the beginning of a raw literal (`r##`).
fn raw_signs(before: &[char]) -> Option<usize> {
    let signs = before.iter().rev().take_while(|letter| **letter == '#').count();
    let rest = &before[..before.len() - signs];
    let is_name = |letter: &char| letter.is_alphanumeric() || *letter == '_';
    match rest {
        [.., a, 'b' | 'c', 'r'] | [.., a, 'r'] if !is_name(a) => Some(signs),
        _ => None,
    }
}

/// The length of a character literal that begins here, or 1 for a lifetime.
fn char_literal(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', ..] => rest.iter().skip(3).position(|letter| *letter == '\'').map_or(1, |end| end + 4),
        ['\'', _, '\'', ..] => 3,
        _ => 1,
    }
}

#[test]
fn literals_and_comments_are_distinguished() {
    let lines =
        Lines::of("let a = '\"'; // \"no\"\nlet b: &'a str = r#\"x // y\n\"z\"#; /* c\nd */ e\n\"f\\\"g\"\n");
    let seen: Vec<_> = lines.iter().map(|line| (line.has_literal, line.comment_end)).collect();
    assert_eq!(seen, [(false, 20), (true, 0), (true, 10), (false, 4), (true, 0), (false, 0)]);
}
