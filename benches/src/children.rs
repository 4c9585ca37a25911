//! Child processes that end with their owner, together with all their descendants.

use std::{
    io::Read as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use warmd_tests::wait_until;

/// A child in its own process group; dropping it ends the group.
#[derive(Debug)]
pub struct ProcessGroup(Child);

impl ProcessGroup {
    /// Starts it without input. [`ProcessGroup::output`] reads its standard output; its standard error is
    /// shown.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let child = command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        Ok(Self(
            child
                .with_context(|| format!("cannot run {command:?}: is it installed? benches/run does that"))?,
        ))
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Waits for its end and returns its output, which must fit a pipe. It must succeed.
    pub fn output(mut self, deadline: Duration) -> Result<String> {
        let status = wait_until("a process to end", deadline, || self.ended())?;
        let mut text = String::new();
        self.0.stdout.take().context("no output")?.read_to_string(&mut text)?;
        ensure!(status.success(), "a process ended with {status}: {text}");
        Ok(text)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        }
        let _ = self.0.wait();
    }
}
