//! A fake daemon behind a real socket, clients for it, and `warmctl` run against it.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::UnixStream, process::Command, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use warmd_api::{ApiError, Bound, Listen};

use super::fake_control::FakeControl;

/// The longest time for any step here.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct Served {
    pub dir: TempDir,
    pub socket: PathBuf,
    pub control: FakeControl,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ApiError>>,
}

impl Served {
    pub async fn start(control: FakeControl) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), control).await
    }

    pub async fn start_in(dir: TempDir, control: FakeControl) -> Self {
        let socket = dir.path().join("run/warmd.sock");
        let shutdown = CancellationToken::new();
        let bound = Bound::bind(Listen::unix(socket.clone())).await.unwrap();
        let task = tokio::spawn(bound.serve(Arc::new(control.clone()), shutdown.clone()));
        Self { dir, socket, control, shutdown, task }
    }

    /// Shuts down regularly; the rest is for a successor.
    pub async fn stop(self) -> (TempDir, FakeControl) {
        self.shutdown.cancel();
        timeout(DEADLINE, self.task).await.expect("the API ends").unwrap().unwrap();
        (self.dir, self.control)
    }

    pub async fn channel(&self) -> Channel {
        let path = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        Endpoint::from_static("http://warmd").connect_with_connector(connector).await.unwrap()
    }

    /// `warmctl` with these arguments, against this daemon.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = warmctl(&self.socket);
        command.args(args);
        command
    }

    pub async fn warmctl(&self, args: &[&str]) -> Ran {
        run(self.command(args), "").await
    }
}

/// `warmctl` for the socket at `socket`.
pub fn warmctl(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmctl"));
    // The width of the terminal that the tests run in.
    command.env("WARMD_SOCKET", socket).env_remove("COLUMNS").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end, with this on standard input.
pub async fn run(mut command: Command, input: &str) -> Ran {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that does not read its input may be gone already.
    stdin.write_all(input.as_bytes()).await.ok();
    drop(stdin);
    let ended = timeout(DEADLINE, child.wait_with_output()).await;
    Ran::from(ended.expect("warmctl ends").unwrap())
}

/// Waits until `what` holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(DEADLINE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain until {what}");
}

#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Standard output of a command that ended with `code`.
    #[track_caller]
    pub fn out(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:#?}");
        &self.stdout
    }

    /// Its standard output as JSON.
    #[track_caller]
    pub fn json(&self, code: i32) -> serde_json::Value {
        serde_json::from_str(self.out(code)).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// Standard error of a command that ended with `code`.
    #[track_caller]
    pub fn err(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:#?}");
        &self.stderr
    }
}
