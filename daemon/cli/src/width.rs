//! Text that fits a terminal: its width in cells, cut in the middle, or over several lines.
//!
//! Rule: a cell is what the terminal draws, not a byte or a `char`. Text is only divided between graphemes,
//! so that no character loses its accent.

use unicode_segmentation::UnicodeSegmentation as _;
use unicode_width::UnicodeWidthStr as _;

/// The cells that a terminal needs for `text`.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

/// `text` in at most `room` cells; what is in its middle gives way to an ellipsis, because both ends of a
/// path or of an id say more.
pub(super) fn cut(text: &str, room: usize) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    let Some(kept) = room.checked_sub(1) else { return String::new() };
    let begin: String = taken(text.graphemes(true), kept.div_ceil(2)).concat();
    let mut end = taken(text.graphemes(true).rev(), kept.saturating_sub(width(&begin)));
    end.reverse();
    format!("{begin}…{}", end.concat())
}

/// As many graphemes as fit.
fn taken<'a>(graphemes: impl Iterator<Item = &'a str>, room: usize) -> Vec<&'a str> {
    let mut left = room;
    graphemes
        .map_while(|grapheme| {
            left = left.checked_sub(width(grapheme))?;
            Some(grapheme)
        })
        .collect()
}

/// Lines of at most `room` cells, divided between words. A word that is longer has a line of its own: a path
/// that is to be copied stays in one piece, and so does a command in backticks.
pub(super) fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in words(text) {
        let needed = width(&word);
        match lines.last_mut() {
            Some(line) if used > 0 && used + 1 + needed <= room => {
                line.push(' ');
                line.push_str(&word);
                used += 1 + needed;
            }
            Some(line) if used == 0 => {
                line.push_str(&word);
                used = needed;
            }
            _ => {
                lines.push(word);
                used = needed;
            }
        }
    }
    lines
}

/// Words, where what is between two backticks is one.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_open = false;
    for word in text.split_whitespace() {
        match words.last_mut() {
            Some(last) if is_open => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
        is_open ^= word.matches('`').count() % 2 == 1;
    }
    // One that is never closed opens nothing.
    if is_open { text.split_whitespace().map(str::to_owned).collect() } else { words }
}

/// The same, and words that are longer than a line are divided too.
pub(super) fn wrap_all(text: &str, room: usize) -> Vec<String> {
    wrap(text, room).iter().flat_map(|line| pieces(line, room)).collect()
}

/// Pieces of at most `room` cells; of one grapheme at least.
fn pieces(line: &str, room: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut used = 0;
    for grapheme in line.graphemes(true) {
        let needed = width(grapheme);
        if used > 0 && used + needed > room {
            pieces.push(String::new());
            used = 0;
        }
        if let Some(piece) = pieces.last_mut() {
            piece.push_str(grapheme);
        }
        used += needed;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_text_keeps_both_ends_and_never_exceeds_its_room() {
        for (text, room, wanted) in [
            ("/srv/vms/vda.img", 16, "/srv/vms/vda.img"),
            ("/srv/vms/vda.img", 11, "/srv/…a.img"),
            ("/srv/vms/vda.img", 2, "/…"),
            ("/srv/vms/vda.img", 1, "…"),
            ("/srv/vms/vda.img", 0, ""),
            // Two cells each: the odd one stays empty.
            ("データベース", 12, "データベース"),
            ("データベース", 9, "デー…ース"),
            ("データベース", 8, "デー…ス"),
            ("e\u{301}e\u{301}e\u{301}e\u{301}", 3, "e\u{301}…e\u{301}"),
            ("", 0, ""),
        ] {
            let have = cut(text, room);
            assert_eq!(have, wanted, "{text:?} in {room}");
            assert!(width(&have) <= room, "{have:?} in {room}");
        }
    }

    #[test]
    fn wrapped_text_loses_no_word() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a /very/long/path b", 6), ["a", "/very/long/path", "b"]);
        assert_eq!(wrap_all("a /very/long/path b", 6), ["a", "/very/", "long/p", "ath", "b"]);
        assert_eq!(wrap_all("日本語 x", 3), ["日", "本", "語", "x"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("say `a b c`; or", 8), ["say", "`a b c`;", "or"]);
        assert_eq!(wrap("an `odd one", 8), ["an `odd", "one"]);
        for room in 0..12 {
            let text = "the source far does not answer: start libvirtd ディスク";
            let joined = wrap_all(text, room).concat().replace(' ', "");
            assert_eq!(joined, text.replace(' ', ""), "{room}");
        }
    }
}
