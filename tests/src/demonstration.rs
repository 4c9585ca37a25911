//! What demonstrations print, and how they run `warmctl`.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{Console, Warmctl, daemon::program, wait_until};

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
