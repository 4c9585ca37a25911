//! The daemon as a child process: when it is ready, what it costs, and its end.

use std::{
    fs,
    io::Write as _,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child as Process, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use warmd_tests::{TestDir, interrupt, wait_until};

use super::{PATIENCE, Size, serve};

/// A daemon that has reported that it is ready. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    begun: Instant,
    /// Seconds from before the process was created until it reported `READY=1` to the service manager.
    pub(super) ready_s: f64,
}

impl Child {
    /// Starts the daemon with simulated endpoints, on the state in `dir`.
    pub(super) fn start(dir: &TestDir, programs: &Path, size: Size) -> Result<Self> {
        let mut command = Command::new(programs.join("bench-scale"));
        command.arg("serve").arg(dir.path()).arg(size.vms.to_string()).arg(size.disks.to_string());
        Self::spawn(dir, command)
    }

    /// Starts `warmd serve` on the same state.
    pub(super) fn warmd(dir: &TestDir, programs: &Path) -> Result<Self> {
        let file = dir.join("warmd.toml");
        fs::write(&file, serve::config(dir.path()))?;
        let mut command = Command::new(programs.join("warmd"));
        command.arg("serve").arg("--config").arg(file);
        Self::spawn(dir, command)
    }

    fn spawn(dir: &TestDir, mut command: Command) -> Result<Self> {
        let place = dir.join("notify");
        fs::remove_file(&place).ok();
        let manager = UnixDatagram::bind(&place)?;
        manager.set_read_timeout(Some(Duration::from_millis(100)))?;
        let log = fs::File::options().create(true).append(true).open(dir.join("daemon.log"))?;
        command.env("NOTIFY_SOCKET", &place).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let begun = Instant::now();
        let process = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut child = Self { process, begun, ready_s: f64::NAN };
        let mut message = [0; 4096];
        while begun.elapsed() < PATIENCE {
            interrupt::check()?;
            if let Ok(length) = manager.recv(&mut message)
                && String::from_utf8_lossy(&message[..length]).lines().any(|line| line == "READY=1")
            {
                child.ready_s = child.since_start_s();
                return Ok(child);
            }
            if let Some(status) = child.process.try_wait()? {
                let log = fs::read_to_string(dir.join("daemon.log")).unwrap_or_default();
                bail!("the daemon ended with {status} before it was ready: {log}");
            }
        }
        bail!("the daemon was not ready within {PATIENCE:?}")
    }

    /// The time since before the process was created.
    pub(super) fn since_start_s(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Sends it one line.
    pub(super) fn say(&mut self, line: &str) -> Result<()> {
        let to = self.process.stdin.as_mut().context("it cannot be told anything")?;
        Ok(writeln!(to, "{line}")?)
    }

    /// CPU time, user and system, of all its threads over the time, in per cent of one core.
    pub(super) fn cpu_per_cent(&self, time: Duration) -> Result<f64> {
        let (before, begun) = (self.cpu_s()?, Instant::now());
        wait_until("the time to pass", time + PATIENCE, || Ok((begun.elapsed() >= time).then_some(())))?;
        Ok((self.cpu_s()? - before) / begun.elapsed().as_secs_f64() * 100.0)
    }

    /// The kernel has nanoseconds for each live thread; threads that ended are only in the ticks of the
    /// process.
    fn cpu_s(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let (_, fields) = stat.rsplit_once(')').context("no name in its stat")?;
        let ticks = |at: usize| -> Result<f64> {
            Ok(fields.split_whitespace().nth(at).context("its stat is short")?.parse()?)
        };
        let a_second = rustix::param::clock_ticks_per_second() as f64;
        Ok((ticks(11)? + ticks(12)?) / a_second)
    }

    /// Resident memory; including the simulated disks.
    pub(super) fn rss_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.split_whitespace().next().context("no number")?.parse()?;
        Ok(kib / 1024.0)
    }

    /// Ends it with an orderly shutdown.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.process.stdin.take();
        let pid = rustix::process::Pid::from_child(&self.process);
        // warmd listens to signals, and not to its input.
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        wait_until("the daemon to end", PATIENCE, || Ok(self.process.try_wait()?)).map(drop)
    }

    /// Kills it.
    pub(super) fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        let status = self.process.wait()?;
        ensure!(!status.success(), "it had ended before it was killed");
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
