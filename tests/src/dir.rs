//! How a test runs, and its own directory. Rule: removed after success; after a failure it is kept, and its
//! path and logs are printed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

/// How much of each log a failure shows, in bytes.
const TAIL: u64 = 6000;

/// A directory for everything that one test makes. Its path is short: sockets live here.
#[derive(Debug)]
pub struct TestDir {
    dir: TempDir,
}

impl TestDir {
    pub fn new() -> Result<Self> {
        Self::below(&std::env::temp_dir())
    }

    /// Like [`Self::new`], in another parent directory.
    pub fn below(parent: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("warmd-").tempdir_in(parent);
        Ok(Self { dir: dir.context("no temporary directory")? })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Keeps the directory for inspection.
    pub fn keep(mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.path().to_owned()
    }
}

/// Runs the body of a test: `#[test] fn name() { run(|dir| { …; Ok(()) }) }`.
///
/// On failure it prints the error, the ends of all logs in the directory, and its path.
#[allow(clippy::panic, reason = "how a test fails")]
pub fn run(body: impl FnOnce(&TestDir) -> Result<()>) {
    let dir = TestDir::new().unwrap_or_else(|err| panic!("{err:?}"));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&dir)));
    if matches!(result, Ok(Ok(()))) {
        return;
    }
    let path = dir.keep();
    show_logs(&path);
    eprintln!("---- kept for a look: {}", path.display());
    match result {
        Ok(Err(err)) => panic!("{err:#}"),
        Err(panic) => std::panic::resume_unwind(panic),
        Ok(Ok(())) => {}
    }
}

/// Runs the part of a test that calls warmd's own code, on threads as the daemon has them.
pub fn asynchronous(test: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(test)
}

fn show_logs(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            show_logs(&path);
        } else if path.extension().is_some_and(|e| e == "log")
            && let Ok(text) = tail(&path)
        {
            eprintln!("---- {}\n{text}", path.display());
        }
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_leaves_nothing() {
        let mut seen = PathBuf::new();
        run(|dir| {
            seen = dir.path().to_owned();
            std::fs::write(dir.join("x.log"), "words")?;
            Ok(())
        });
        assert!(seen.is_absolute() && !seen.exists());
    }

    #[test]
    fn failure_keeps_everything() {
        let mut seen = PathBuf::new();
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            run(|dir| {
                seen = dir.path().to_owned();
                anyhow::bail!("on purpose")
            });
        }));
        assert!(failed.is_err() && seen.exists());
        std::fs::remove_dir_all(seen).unwrap();
    }
}
