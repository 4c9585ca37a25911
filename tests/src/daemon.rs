//! `warmd serve` as a child process, to be killed and started again.
//!
//! Rule: it never outlives its test, and its whole log is in the test's directory.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::crash;
use crate::dir::TestDir;
use crate::tool;
use crate::wait::wait_until;
use crate::warmctl::Warmctl;

/// How long the daemon may take to answer after its start, and to end when asked.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Debug)]
pub struct Daemon {
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    env: Vec<(String, String)>,
    child: Option<Child>,
}

impl Daemon {
    /// Writes `DIR/warmd.toml`; starts nothing yet. `socket` is the configured socket.
    pub fn configure(dir: &TestDir, socket: impl Into<PathBuf>, config: &str) -> Result<Self> {
        let path = dir.join("warmd.toml");
        std::fs::write(&path, config)?;
        Ok(Self {
            config: path,
            socket: socket.into(),
            log: dir.join("warmd.log"),
            env: Vec::new(),
            child: None,
        })
    }

    /// With these environment variables beside its own.
    pub fn with_env(mut self, env: Vec<(String, String)>) -> Self {
        self.env = env;
        self
    }

    /// Starts it and waits until its socket answers.
    pub fn start(&mut self) -> Result<()> {
        self.spawn(None)?;
        wait_until("warmd's socket", PATIENCE, || {
            if let Some(status) = self.exited()? {
                bail!("warmd ended at once: {status}; see {}", self.log.display());
            }
            Ok(UnixStream::connect(&self.socket).ok().map(drop))
        })
    }

    /// Waits until its socket answers; false if it ended before that, as it may before a crash point.
    pub fn wait_for_socket_or_end(&mut self) -> Result<bool> {
        wait_until("warmd's socket or its end", PATIENCE, || {
            if self.exited()?.is_some() {
                return Ok(Some(false));
            }
            Ok(UnixStream::connect(&self.socket).ok().map(|_| true))
        })
    }

    /// Its process id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("warmd does not run")?.id())
    }

    /// Stops its execution until [`Self::thaw`].
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Starts it so that it dies at a named point, `NAME` or `NAME:N`, as `kill -9` would. It may die before
    /// its socket answers, so this does not wait.
    pub fn start_to_crash(&mut self, point: &str) -> Result<()> {
        self.spawn(Some(point))
    }

    /// Waits until it has died at the crash point.
    pub fn wait_for_crash(&mut self, deadline: Duration) -> Result<()> {
        let status = self.wait_for_exit(deadline)?;
        if status.signal() != Some(Signal::KILL.as_raw()) {
            bail!("warmd ended without a crash: {status}; see {}", self.log.display());
        }
        Ok(())
    }

    pub fn wait_for_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let status = wait_until("warmd to end", deadline, || self.exited())?;
        self.child = None;
        Ok(status)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_for_exit(PATIENCE).map(drop)
    }

    /// Asks it for an orderly shutdown.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_for_exit(PATIENCE)
    }

    pub fn ctl(&self) -> Warmctl {
        Warmctl::new(&self.socket)
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Everything logged so far, over all starts.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }

    /// The address of its metrics, if the configuration has them on a free port.
    pub fn metrics_address(&self) -> Result<SocketAddr> {
        let log = self.log()?;
        let told =
            log.lines().rev().find_map(|line| line.split_once("metrics address=")).map(|(_, told)| told);
        let address = told.and_then(|told| told.split_whitespace().next());
        Ok(address.context("the log names no address of the metrics")?.parse()?)
    }

    fn spawn(&mut self, crash_at: Option<&str>) -> Result<()> {
        if self.child.is_some() {
            bail!("warmd runs already");
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(program("warmd")?);
        command.envs(self.env.iter().cloned());
        let config = match crash_at {
            Some(point) => crash::arm(&mut command, &self.config, point)?,
            None => self.config.clone(),
        };
        command.arg("serve").arg("--config").arg(config);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.child = Some(child.with_context(|| format!("cannot run {command:?}"))?);
        Ok(())
    }

    fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.as_mut().context("warmd was not started")?.try_wait()?)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("warmd does not run")?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One of our programs, as it is in the sources now: from `WARMD_BIN_DIR` if the caller of the tests has
/// built them there, else built here.
pub fn program(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let dir = match BUILT.get() {
        Some(dir) => dir,
        None => BUILT.get_or_init({
            let dir = build()?;
            move || dir
        }),
    };
    let path = dir.join(name);
    if !path.exists() {
        bail!("{} is missing", path.display());
    }
    Ok(path)
}

fn build() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("WARMD_BIN_DIR") {
        return Ok(dir.into());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(&workspace);
    tool::output(&mut cargo, Duration::from_mins(10)).context("cannot build warmd")?;
    // A test's program is in target/<profile>/deps, those of the workspace are one up.
    let own = std::env::current_exe()?;
    let up = own.ancestors().find(|d| d.join("warmd").exists());
    up.map(Path::to_owned).with_context(|| format!("no warmd beside {}", own.display()))
}
