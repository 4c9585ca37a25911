//! The library that lets system calls fail (`shim.c`), built here and controlled by a file.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::{TestDir, rig::WORK, tool, wait_until};

/// Faults of the system calls of those programs that were started with [`Shim::env`].
#[derive(Clone, Debug)]
pub(super) struct Shim {
    library: PathBuf,
    rules: PathBuf,
}

/// Which calls fail, and how: the fields of `shim.c`.
#[derive(Clone, Debug)]
pub(super) struct Strike {
    pub(super) call: &'static str,
    pub(super) part: String,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) after: u32,
    /// -1: all.
    pub(super) count: i64,
    pub(super) action: String,
}

impl Strike {
    /// All such calls, on every byte.
    pub(super) fn all(call: &'static str, part: impl Into<String>, action: impl std::fmt::Display) -> Self {
        let (part, action) = (part.into(), action.to_string());
        Self { call, part, from: 0, to: i64::MAX as u64, after: 0, count: -1, action }
    }

    pub(super) fn after(self, after: u32) -> Self {
        Self { after, ..self }
    }

    pub(super) fn times(self, count: i64) -> Self {
        Self { count, ..self }
    }

    pub(super) fn within(self, from: u64, to: u64) -> Self {
        Self { from, to, ..self }
    }
}

pub(super) const EIO: i32 = 5;
pub(super) const ENOSPC: i32 = 28;
pub(super) const EROFS: i32 = 30;
pub(super) const EOPNOTSUPP: i32 = 95;

impl Shim {
    /// Builds it in the test's directory.
    pub(super) fn build(dir: &TestDir) -> Result<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/faults/shim.c");
        let library = dir.join("shim.so");
        let args = ["-O2", "-fPIC", "-shared", "-o"].map(Path::new);
        tool::call("gcc", args.into_iter().chain([&*library, &source, Path::new("-ldl")]))?;
        Ok(Self { library, rules: dir.join("shim.rules") })
    }

    /// The environment that preloads the library into a program.
    pub(super) fn env(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![("LD_PRELOAD".to_owned(), text(&self.library)), ("WARMD_FAULTS".to_owned(), text(&self.rules))]
    }

    /// A QEMU for libvirt with the faults.
    pub(super) fn emulator(&self) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.library.with_extension("qemu");
        let env: Vec<String> =
            self.env().into_iter().map(|(key, value)| format!("{key}='{value}'")).collect();
        std::fs::write(
            &path,
            format!("#!/bin/sh\nexec env {} /usr/bin/qemu-system-x86_64 \"$@\"\n", env.join(" ")),
        )?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Replaces all faults by these.
    pub(super) fn set(&self, strikes: &[Strike]) -> Result<()> {
        let lines = strikes.iter().map(|s| {
            format!("{} {} {} {} {} {} {}\n", s.call, s.part, s.from, s.to, s.after, s.count, s.action)
        });
        let new = self.rules.with_extension("new");
        std::fs::write(&new, lines.collect::<String>())?;
        Ok(std::fs::rename(new, &self.rules)?)
    }

    /// No more faults.
    pub(super) fn clear(&self) -> Result<()> {
        self.set(&[])
    }

    /// The faults so far, one line each.
    pub(super) fn struck(&self) -> Result<Vec<String>> {
        let path = format!("{}.struck", self.rules.display());
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for this many faults.
    pub(super) fn wait_for(&self, count: usize) -> Result<()> {
        wait_until(&format!("{count} faults to strike"), WORK, || {
            Ok((self.struck()?.len() >= count).then_some(()))
        })
    }

    /// A test in which no fault struck proves nothing.
    pub(super) fn must_have_struck(&self) -> Result<()> {
        ensure!(!self.struck()?.is_empty(), "the fault never struck");
        Ok(())
    }
}
