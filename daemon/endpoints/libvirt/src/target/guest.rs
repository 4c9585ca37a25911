//! Signs of life of the guest in a domain: its console's output, and whether its agent answers.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use warmd_disks::volume::{self, VolumeError};

use super::domain::CONSOLE;

/// The console of the earlier machine, if a cutover was undone.
const EARLIER: &str = "console.earlier.log";

/// The part of the console's end that is read.
const WINDOW: u64 = 16 << 20;
const PIECE: usize = 64 << 10;

/// Whether the file's last 16 MiB contain `text`. A missing file counts as empty.
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

/// Whether a file in a migration's folder has a guest's console output. libvirt's log daemon moves a file
/// that has grown to `console.log.0`, `.1` and so on.
pub(super) fn is_console(name: &str) -> bool {
    let moved = |rest: &str| {
        rest.strip_prefix('.')
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    name == EARLIER || name.strip_prefix(CONSOLE).is_some_and(|rest| rest.is_empty() || moved(rest))
}

/// Moves the console of an earlier machine aside, so that it is not mistaken for this one's. One is kept.
pub(super) fn set_aside(folder: &Path) -> Result<(), VolumeError> {
    let console = folder.join(CONSOLE);
    match std::fs::rename(&console, folder.join(EARLIER)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(VolumeError::io("renaming", console, error));
        }
        _ => {}
    }
    volume::remove_files(folder, |name| !matches!(name, CONSOLE | EARLIER) && is_console(name))
}

/// Removes the output of earlier machines, and leaves this one's file.
pub(super) fn forget_earlier(folder: &Path) -> Result<(), VolumeError> {
    volume::remove_file(&folder.join(EARLIER))
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
        let (file, older) = (dir.path().join(CONSOLE), dir.path().join(EARLIER));
        set_aside(dir.path()).unwrap();
        std::fs::write(&file, "login:").unwrap();
        set_aside(dir.path()).unwrap();
        assert!(!says(&file, "login:").unwrap() && says(&older, "login:").unwrap());
    }

    #[test]
    fn one_earlier_console_is_kept_until_the_hand_over() {
        let dir = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for name in [CONSOLE, "console.log.0", "console.log.12", "vda.raw"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        set_aside(dir.path()).unwrap();
        assert_eq!(names(), [EARLIER, "vda.raw"]);
        std::fs::write(dir.path().join(CONSOLE), "y").unwrap();
        forget_earlier(dir.path()).unwrap();
        forget_earlier(dir.path()).unwrap();
        assert_eq!(names(), [CONSOLE, "vda.raw"]);
        for name in ["console.log.", "console.log.1a", "console.logs", "console", "vda.raw"] {
            assert!(!is_console(name), "{name}");
        }
    }
}
