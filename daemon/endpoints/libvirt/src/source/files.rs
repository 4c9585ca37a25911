//! Queries of the file systems of images and other files of the host.
//!
//! Rule: a file system may hang, and with it each call on it. Each query runs on the threads of its file
//! system and has a deadline. A file is missing only where the file system says so; any other failure is a
//! doubt.

use std::{io, path::Path, time::Duration};

/// After this time a file system counts as not answering.
const ANSWER: Duration = Duration::from_secs(30);

/// Whether a file exists at a path.
#[derive(Debug)]
pub(super) enum Presence {
    There,
    /// It is surely missing; in the file system's words.
    Missing(io::Error),
    /// Unknown: warmd may not read it, or the file system does not answer.
    Unknown(io::Error),
}

/// Asks the file system of `path`.
pub(super) async fn ask<T: Send + 'static>(
    path: &Path,
    question: impl FnOnce(&Path) -> T + Send + 'static,
) -> io::Result<T> {
    ask_within(ANSWER, path, question).await
}

/// The same with another deadline.
pub(super) async fn ask_within<T: Send + 'static>(
    deadline: Duration,
    path: &Path,
    question: impl FnOnce(&Path) -> T + Send + 'static,
) -> io::Result<T> {
    let (threads, path) = (warmd_threads::on(path)?, path.to_owned());
    let asking = threads.run(move || question(&path));
    let why = || format!("its file system does not answer within {} s", deadline.as_secs());
    tokio::time::timeout(deadline, asking)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, why()))?
}

/// Checks whether the file exists.
pub(super) async fn presence(path: &str) -> Presence {
    presence_by(ask(Path::new(path), |path| std::fs::metadata(path).map(drop)).await.flatten())
}

/// A path as one word of a shell's command: it may contain any character.
pub(super) fn quoted(path: &str) -> String {
    format!("'{}'", path.replace('\'', r"'\''"))
}

fn presence_by(answer: io::Result<()>) -> Presence {
    match answer {
        Ok(()) => Presence::There,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Presence::Missing(error),
        Err(error) => Presence::Unknown(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_not_found_is_missing() {
        assert!(matches!(presence("/proc/self/status").await, Presence::There));
        assert!(matches!(presence("/nonexistent/x").await, Presence::Missing(_)));
        for number in [libc_numbers::EACCES, libc_numbers::EIO, libc_numbers::ESTALE] {
            let told = presence_by(Err(io::Error::from_raw_os_error(number)));
            assert!(matches!(told, Presence::Unknown(_)), "{number}: {told:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_file_system_is_waited_for_until_its_deadline() {
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let error = ask(Path::new("/proc"), move |_| gate.recv().is_ok()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("30 s"), "{error}");
        drop(release);
    }

    #[test]
    fn a_quoted_path_is_one_word() {
        assert_eq!(quoted("/a b"), "'/a b'");
        assert_eq!(quoted("/it's"), r"'/it'\''s'");
    }

    /// Of Linux.
    mod libc_numbers {
        pub(super) const EIO: i32 = 5;
        pub(super) const EACCES: i32 = 13;
        pub(super) const ESTALE: i32 = 116;
    }
}
