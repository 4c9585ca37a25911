//! Running other programs. Rule: each has a deadline, each failure is reported, and a missing one is named.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::wait::wait_until;

/// Long enough for any operation of a tool on a test's disk.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// The result of a program.
#[derive(Debug, Clone)]
pub struct ToolOutput {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end, whatever its exit code.
pub fn outcome(command: &mut Command, deadline: Duration) -> Result<ToolOutput> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {shown}: is it installed? tests/setup does that"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let stdout = std::thread::spawn(move || drain(stdout));
    let stderr = std::thread::spawn(move || drain(stderr));
    let status = wait_until("its end", deadline, || Ok(child.try_wait()?)).or_else(|_| {
        child.kill()?;
        child.wait()?;
        bail!("{shown} did not end within {deadline:?}");
    })?;
    let text = |t: std::thread::JoinHandle<_>| t.join().map_err(|_| anyhow!("the reader of {shown} died"));
    Ok(ToolOutput { code: status.code(), stdout: text(stdout)?, stderr: text(stderr)? })
}

/// Runs a program that must succeed, and returns its stdout.
pub fn output(command: &mut Command, deadline: Duration) -> Result<String> {
    let shown = format!("{command:?}");
    let out = outcome(command, deadline)?;
    if out.code != Some(0) {
        bail!("{shown} ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
    }
    Ok(out.stdout)
}

/// `output` of `program args…` under the usual deadline.
pub fn call<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    output(Command::new(program).args(args), DEADLINE)
}

fn drain(from: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        // A broken pipe ends the output; the exit code has the result.
        let _ = from.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_the_code_and_the_words() {
        let err = call("sh", ["-c", "echo so sorry >&2; exit 3"]).unwrap_err().to_string();
        assert!(err.contains("Some(3)") && err.contains("so sorry"), "{err}");
    }

    #[test]
    fn a_missing_tool_is_named() {
        let err = call("no-such-tool", ["x"]).unwrap_err().to_string();
        assert!(err.contains("no-such-tool") && err.contains("installed"), "{err}");
    }

    #[test]
    fn what_never_ends_is_ended() {
        let err = output(Command::new("sleep").arg("1000"), Duration::ZERO).unwrap_err().to_string();
        assert!(err.contains("did not end"), "{err}");
    }
}
