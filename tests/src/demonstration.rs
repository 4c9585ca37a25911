//! What demonstrations print, and how they run `warmctl`.

use std::{
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{Console, TestDir, Warmctl, daemon::program, interrupt, wait_until};

/// Runs a demonstration in a directory of its own, which stays if it fails.
pub fn run(name: &str, demo: fn(&TestDir) -> Result<()>) -> ExitCode {
    let in_directory = || {
        interrupt::catch()?;
        let dir = TestDir::new()?;
        let result = demo(&dir);
        if result.is_err() && interrupt::check().is_ok() {
            let kept = dir.keep();
            eprintln!("\n{name}: what it left is in {} (logs: *.log)", kept.display());
        }
        result
    };
    match in_directory() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A headline.
pub fn say(text: &str) {
    println!("\n== {text}");
}

/// Runs `warmctl` with its output on the screen; it must succeed.
pub fn show(ctl: &Warmctl, deadline: Duration, arguments: &[&str]) -> Result<()> {
    let mut child = Command::new(program("warmctl")?)
        .arg("--socket")
        .arg(ctl.socket())
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run warmctl")?;
    let status = wait_until("warmctl to end", deadline, || Ok(child.try_wait()?));
    if status.is_err() {
        child.kill().and_then(|()| child.wait()).ok();
    }
    let status = status?;
    ensure!(status.success(), "warmctl {} ended with {status}", arguments.join(" "));
    Ok(())
}

/// The target guest's console: the one log file below the target's directory.
pub fn target_console(volumes: &Path, deadline: Duration) -> Result<Console> {
    let found = wait_until("the target guest's console", deadline, || {
        for entry in std::fs::read_dir(volumes)? {
            let log = entry?.path().join("console.log");
            if log.exists() {
                return Ok(Some(log));
            }
        }
        Ok(None)
    })?;
    Ok(Console::new(found))
}

/// Checks the log that the target's guest found: complete up to a record, and the last one that the source
/// acknowledged is in it. Returns the guest's last record.
pub fn check_log(console: &Console, last: u64, deadline: Duration) -> Result<u64> {
    let boot = console.wait_for_boot(1, deadline)?;
    let found = boot.log.context("the target guest did not look at its log")?;
    let found = found.map_err(|bad| anyhow::anyhow!("the log on the target is broken: {bad}"))?;
    ensure!(found >= last, "the target's log ends at {found}, and {last} was acknowledged: records are LOST");
    Ok(found)
}

/// Waits until the migration of `vm` is synced.
pub fn wait_synced(ctl: &Warmctl, vm: &str, deadline: Duration) -> Result<()> {
    ctl.wait_for("the migration to be synced", &["migration", "show", vm], deadline, |view| {
        (view["state"] == "synced").then_some(())
    })
}
