//! Signs of life of the guest in a domain: what it has written to its console, whether its agent answers.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// So much of the console's end is looked at.
const WINDOW: u64 = 16 << 20;
const PIECE: usize = 64 << 10;

/// Whether `text` stands in the file's last 16 MiB. A file that is not there yet holds nothing.
pub(super) fn says(path: &Path, text: &str) -> io::Result<bool> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
    holds(&mut file.take(WINDOW), text.as_bytes())
}

fn holds(stream: &mut impl Read, wanted: &[u8]) -> io::Result<bool> {
    let keep = wanted.len().saturating_sub(1);
    let mut window = Vec::with_capacity(PIECE + keep);
    loop {
        let before = window.len();
        if stream.take(PIECE as u64).read_to_end(&mut window)? == 0 {
            return Ok(false);
        }
        if window.windows(wanted.len().max(1)).any(|part| part == wanted) {
            return Ok(true);
        }
        debug_assert!(before <= keep, "no more than an overlap is kept");
        window.drain(..window.len().saturating_sub(keep));
    }
}

/// Puts the console of an earlier machine aside, so that nothing of it is taken for this one's.
pub(super) fn set_aside(console: &Path, older: &Path) -> io::Result<()> {
    match std::fs::rename(console, older) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_wherever_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("console.log");
        assert!(!says(&file, "login:").unwrap(), "there is no file");
        for before in [0, 1, PIECE - 7, PIECE - 3, PIECE, 3 * PIECE - 1, (WINDOW as usize) + 5] {
            let mut bytes = vec![b'x'; before];
            bytes.extend(b"web login: ");
            std::fs::write(&file, &bytes).unwrap();
            assert!(says(&file, "login:").unwrap(), "after {before} bytes");
            assert!(!says(&file, "logout:").unwrap(), "after {before} bytes");
        }
        let mut bytes = b"login:".to_vec();
        bytes.extend(vec![b'x'; WINDOW as usize]);
        std::fs::write(&file, &bytes).unwrap();
        assert!(!says(&file, "login:").unwrap(), "it is too long ago");
    }

    #[test]
    fn an_older_console_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (file, older) = (dir.path().join("console.log"), dir.path().join("console.log.1"));
        set_aside(&file, &older).unwrap();
        std::fs::write(&file, "login:").unwrap();
        set_aside(&file, &older).unwrap();
        assert!(!says(&file, "login:").unwrap() && says(&older, "login:").unwrap());
    }
}
