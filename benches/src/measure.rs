//! How a process is measured: by a small parent process, the same for all sides.
//!
//! Rule: the clock runs from before the process is created until it has ended and the targets' files are
//! synced, whatever the side did or did not sync itself. CPU and peak memory are the kernel's figures of the
//! ended child.

use std::{
    fs::File,
    path::PathBuf,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use serde::{Deserialize, Serialize};

/// One process's figures, or those of several that ran at once.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct BenchMeasurement {
    /// Seconds since 1970.
    pub begin: f64,
    pub end: f64,
    /// User and system time, in seconds.
    pub cpu_s: f64,
    /// Peak resident memory; of several processes the sum of their peaks.
    pub rss_mib: f64,
}

impl BenchMeasurement {
    /// In seconds.
    pub fn wall_s(&self) -> f64 {
        self.end - self.begin
    }

    /// From the first start to the last end.
    pub fn together(all: &[Self]) -> Option<Self> {
        all.iter().copied().reduce(|sum, next| Self {
            begin: sum.begin.min(next.begin),
            end: sum.end.max(next.end),
            cpu_s: sum.cpu_s + next.cpu_s,
            rss_mib: sum.rss_mib + next.rss_mib,
        })
    }
}

/// Runs the command, then syncs the files. To be called once in a process: the figures are those of all its
/// children.
pub fn run(command: &[String], sync: &[PathBuf]) -> Result<BenchMeasurement> {
    let (program, arguments) = command.split_first().context("no command")?;
    let begin = now();
    let status = Command::new(program).args(arguments).status();
    let status =
        status.with_context(|| format!("cannot run {program}: is it installed? benches/run does that"))?;
    for file in sync {
        File::open(file).and_then(|file| file.sync_all()).with_context(|| file.display().to_string())?;
    }
    let end = now();
    ensure!(status.success(), "{} ended with {status}", command.join(" "));
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = usage.user_time() + usage.system_time();
    Ok(BenchMeasurement {
        begin,
        end,
        cpu_s: cpu.num_microseconds() as f64 / 1e6,
        rss_mib: usage.max_rss() as f64 / 1024.0,
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
