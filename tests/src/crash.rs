//! Ends the shipped daemon at a named point (`warmd_core::crash`), by a library that is preloaded into it
//! (`crash.c`).
//!
//! Rule: the daemon has nothing for this but its log.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::tool;

/// Where the daemon must log for it.
const LEVEL: &str = "\n[log]\nlevel = \"info,warmd_core::crash=trace\"\n";

/// Makes `daemon`, whose environment is complete, end at `point`, `NAME` or `NAME:N`. Returns the
/// configuration to start it with: that of `config`, with the log that this needs, beside it.
pub(crate) fn arm(daemon: &mut Command, config: &Path, point: &str) -> Result<PathBuf> {
    let library = library(config)?;
    let other = daemon.get_envs().find(|(name, _)| *name == "LD_PRELOAD").and_then(|(_, other)| other);
    let mut preload = OsString::from(&library);
    if let Some(other) = other {
        preload.push(":");
        preload.push(other);
    }
    daemon.env("LD_PRELOAD", preload).env("WARMD_CRASH_AT", point);

    let text = std::fs::read_to_string(config)?;
    ensure!(!text.contains("[log]"), "the points need a log of their own, and {} has one", config.display());
    let armed = config.with_extension("crash.toml");
    std::fs::write(&armed, text + LEVEL)?;
    Ok(armed)
}

/// The library, built beside the configuration when it is first needed.
fn library(config: &Path) -> Result<PathBuf> {
    let library = config.with_file_name("crash.so");
    if !library.exists() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/crash.c");
        let args = ["-O2", "-fPIC", "-shared", "-o"].map(Path::new);
        tool::call("gcc", args.into_iter().chain([&*library, &source, Path::new("-ldl")]))?;
    }
    Ok(library)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;
    use crate::TestDir;

    #[test]
    fn program_that_logs_its_point_is_killed_there() {
        let dir = TestDir::new().unwrap();
        let config = dir.join("warmd.toml");
        std::fs::write(&config, "state_dir = \"/x\"\n").unwrap();
        let log = r#"for (qw(other point point)) {
            syswrite STDERR, qq(TRACE x: here point="$_"\n);
            syswrite STDOUT, "went on\n";
        }"#;
        for (point, lines) in [("point:2", 2), ("point", 1), ("point:3", 3), ("poin", 3)] {
            let mut program = Command::new("perl");
            let armed = arm(program.args(["-e", log]), &config, point).unwrap();
            let end = program.output().unwrap();
            let went_on = String::from_utf8_lossy(&end.stdout).lines().count();
            assert_eq!(went_on, lines, "{point}: {end:?}");
            assert_eq!(end.status.signal() == Some(9), lines < 3, "{point}: {end:?}");
            assert!(std::fs::read_to_string(armed).unwrap().contains("warmd_core::crash=trace"));
        }
    }
}
