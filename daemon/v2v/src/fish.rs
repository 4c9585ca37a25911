//! A conversation with guestfish: one appliance, many questions.
//!
//! Rule: an answer is bounded, and ends with a mark that no guest knows. Words from a guest are quoted before
//! they become part of a command, and refused where they cannot be.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{appliance::Appliance, tools};

/// The most bytes of one answer.
const MOST: u64 = 1 << 20;

/// A running guestfish.
#[derive(Debug)]
pub(crate) struct Fish {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    mark: String,
}

impl Fish {
    /// Starts it with these arguments. Its error output becomes the run's progress.
    pub(crate) fn start(appliance: &Appliance, arguments: &[String]) -> io::Result<Self> {
        let mut command = appliance.command(tools::STDBUF);
        command.args(["-oL", tools::GUESTFISH]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or_else(|| io::Error::other("guestfish has no output"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let mark = format!("warmd-{}-{now}", std::process::id());
        Ok(Self { child, input, output: BufReader::new(output), mark })
    }

    /// Does what must succeed; returns the answer.
    pub(crate) fn must(&mut self, words: &[&str]) -> io::Result<String> {
        self.send(words, "")?;
        self.answer().map_err(|error| io::Error::other(format!("{}: {error}", words.join(" "))))
    }

    /// Asks what may fail; the answer is empty then.
    pub(crate) fn ask(&mut self, words: &[&str]) -> io::Result<String> {
        self.send(words, "-")?;
        self.answer()
    }

    /// Ends it; what was written is on the disks then.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        drop(self.input.take());
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("guestfish ended with {status}")))
        }
    }

    fn send(&mut self, words: &[&str], prefix: &str) -> io::Result<()> {
        let line =
            line(words).ok_or_else(|| io::Error::other(format!("{words:?} cannot be sent to guestfish")))?;
        let input =
            self.input.as_mut().ok_or_else(|| io::Error::other("the input of guestfish is closed"))?;
        input.write_all(format!("{prefix}{line}\necho {}\n", self.mark).as_bytes())?;
        input.flush()
    }

    fn answer(&mut self) -> io::Result<String> {
        let (mut answer, mut left) = (String::new(), MOST);
        loop {
            let mut bytes = Vec::new();
            let read = self.output.by_ref().take(left).read_until(b'\n', &mut bytes)? as u64;
            if read == 0 && left == 0 {
                return Err(io::Error::other(format!("the answer is longer than {MOST} bytes")));
            }
            if read == 0 {
                return Err(io::Error::other("guestfish ended: its last lines say why"));
            }
            let text = String::from_utf8_lossy(&bytes);
            // An answer without a line feed at its end is on the mark's line.
            if let Some(last) = text.strip_suffix('\n').and_then(|text| text.strip_suffix(&self.mark)) {
                answer.push_str(last);
                return Ok(answer);
            }
            answer.push_str(&text);
            left -= read;
        }
    }
}

/// A command's line; `None` if a word cannot be part of one.
fn line(words: &[&str]) -> Option<String> {
    let mut line = String::new();
    for (at, word) in words.iter().enumerate() {
        if word.chars().any(|char| char.is_control() && char != '\n') {
            return None;
        }
        let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = if at == 0 { write!(line, "{word}") } else { write!(line, " \"{word}\"") };
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_or_refused() {
        assert_eq!(line(&["cat", "/a b\"c\\"]).unwrap(), r#"cat "/a b\"c\\""#);
        assert_eq!(line(&["write", "/x", "a\nb\n"]).unwrap(), r#"write "/x" "a\nb\n""#);
        assert_eq!(line(&["cat", "/\u{1b}[2J"]), None);
    }
}
