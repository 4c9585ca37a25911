//! The lock that keeps a second daemon away from the same state.
//!
//! Rule: the kernel keeps it (`flock`), so it dies with the process; the pid in the file is only for the
//! message. A process that ends regularly drops it before it waits for its hanging threads. One that is
//! killed has it until the last such thread has ended: it may still write, so that is right, and the message
//! says it.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::error::OpenError;

/// The lock lasts as long as this value.
#[derive(Debug)]
pub(super) struct StateLock(File);

impl StateLock {
    pub(super) fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("lock");
        let io = |what| {
            let path = path.clone();
            move |cause| OpenError::Io { what, path, cause }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("open"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let pid = holder(&mut file);
                let dying = pid.and_then(|pid| dying(&Path::new("/proc").join(pid.to_string())));
                return Err(OpenError::Locked { dir: dir.to_owned(), pid, dying });
            }
            Err(errno) => return Err(io("lock")(errno.into())),
        }
        file.set_len(0).map_err(io("write"))?;
        file.rewind().map_err(io("write"))?;
        writeln!(file, "{}", std::process::id()).map_err(io("write"))?;
        Ok(Self(file))
    }
}

impl Drop for StateLock {
    /// Closing the file is not enough: a child process that is just being started may keep it open a moment
    /// longer.
    fn drop(&mut self) {
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "unlocking the state");
        }
    }
}

/// The pid that the holder wrote, once it has written it.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// What keeps a process from ending that was killed, by its folder in `/proc`; `None` if it lives.
fn dying(process: &Path) -> Option<String> {
    if state(process)? != 'Z' {
        return None;
    }
    let threads = std::fs::read_dir(process.join("task")).ok()?.flatten();
    let hanging = threads.filter(|thread| state(&thread.path()) == Some('D')).count();
    (hanging > 0).then(|| format!("{hanging} of its threads wait for storage that does not answer (state D)"))
}

/// As in `ps`. The name before it may have anything in it.
fn state(task: &Path) -> Option<char> {
    let stat = std::fs::read_to_string(task.join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "how a test fails")]
mod tests {
    use super::*;

    #[test]
    fn killed_holder_with_hanging_threads_is_not_taken_for_alive() {
        let dir = tempfile::tempdir().unwrap();
        let put = |task: &str, state: char| {
            let task = dir.path().join(task);
            std::fs::create_dir_all(&task).unwrap();
            std::fs::write(task.join("stat"), format!("7 (a) Z) {state} 1 7 7")).unwrap();
        };
        for (task, state) in [("task/7", 'Z'), ("task/8", 'D'), ("task/9", 'D'), ("task/10", 'S')] {
            put(task, state);
        }
        put("", 'S');
        assert_eq!(dying(dir.path()), None);
        put("", 'Z');
        let why = dying(dir.path()).unwrap();
        assert!(why.starts_with("2 of its threads"), "{why}");
        let error = OpenError::Locked { dir: "/state".into(), pid: Some(7), dying: Some(why) }.to_string();
        assert!(error.contains("process 7") && error.contains("umount -l"), "{error}");
        let lives = OpenError::Locked { dir: "/state".into(), pid: Some(7), dying: None }.to_string();
        assert!(lives.contains("stop that one first"), "{lives}");
        assert_eq!(dying(Path::new("/nowhere")), None);
    }
}
