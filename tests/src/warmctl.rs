//! `warmctl` as operators and scripts run it. Rule: a test learns about the daemon only through here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::daemon::program;
use crate::tool::{self, ToolOutput};
use crate::wait::wait_until;

/// Long enough for any command that does not follow a migration.
const DEADLINE: Duration = Duration::from_mins(1);

#[derive(Debug, Clone)]
pub struct Warmctl {
    socket: PathBuf,
}

impl Warmctl {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs it to its end, with any exit code.
    pub fn outcome(&self, args: &[&str], deadline: Duration) -> Result<ToolOutput> {
        tool::outcome(
            Command::new(program("warmctl")?).arg("--socket").arg(&self.socket).args(args),
            deadline,
        )
    }

    /// Its output as text; it must succeed.
    pub fn text(&self, args: &[&str]) -> Result<String> {
        let out = self.outcome(args, DEADLINE)?;
        if out.code != Some(0) {
            bail!("warmctl {args:?} ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        }
        Ok(out.stdout)
    }

    /// Its output as JSON; it must succeed.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.text(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("warmctl {args:?} printed no JSON: {text}"))
    }

    /// Its error output; it must fail.
    pub fn refusal(&self, args: &[&str]) -> Result<String> {
        let out = self.outcome(args, DEADLINE)?;
        if out.code == Some(0) {
            bail!("warmctl {args:?} succeeded: {}", out.stdout);
        }
        Ok(out.stderr)
    }

    /// Repeats the command until the answer matches; the last answer is in the error.
    pub fn wait_for<T>(
        &self,
        what: &str,
        args: &[&str],
        deadline: Duration,
        mut wished: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let mut last = Value::Null;
        wait_until(what, deadline, || {
            last = self.json(args)?;
            Ok(wished(&last))
        })
        .with_context(|| format!("the last answer was {last}"))
    }
}
