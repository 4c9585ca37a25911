//! One call of `virsh`: a child process that cannot outlive its deadline, whatever it waits for.

use std::{io, process::Stdio, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
    sync::Semaphore,
    time::timeout,
};

use super::error::{LibvirtError, LibvirtErrorKind};

/// How long a call may take. libvirt itself waits 30 s for a domain that another job holds.
pub const CALL_DEADLINE: Duration = Duration::from_mins(1);

/// The most bytes that an answer may have.
pub const MAX_OUTPUT: usize = 4 << 20;

const MAX_STDERR: usize = 64 << 10;
const PARALLEL_CALLS: usize = 8;

/// Runs `virsh` against one connection URI.
#[derive(Clone, Debug)]
pub(super) struct Virsh {
    uri: Arc<str>,
    permits: Arc<Semaphore>,
    deadline: Duration,
}

impl Virsh {
    pub(super) fn new(uri: &str, deadline: Duration) -> Self {
        Self { uri: uri.into(), permits: Arc::new(Semaphore::new(PARALLEL_CALLS)), deadline }
    }

    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    /// Runs one call and answers what it printed. `input` is its stdin, `/dev/stdin` among `args`.
    pub(super) async fn run(&self, args: &[&str], input: Option<&str>) -> Result<String, LibvirtError> {
        let call = args.join(" ");
        let Ok(_permit) = self.permits.acquire().await else {
            unreachable!("the semaphore is never closed");
        };
        match timeout(self.deadline, self.child(&call, args, input)).await {
            Ok(answer) => answer,
            Err(elapsed) => {
                let why = format!(
                    "no answer within {} s, given up: look at libvirtd ({elapsed})",
                    self.deadline.as_secs_f32()
                );
                Err(LibvirtError::new(LibvirtErrorKind::Timeout, call, why))
            }
        }
    }

    async fn child(&self, call: &str, args: &[&str], input: Option<&str>) -> Result<String, LibvirtError> {
        let failed = |error: io::Error| LibvirtError::new(LibvirtErrorKind::Failed, call, error);
        let mut child = self.command(args, input.is_some()).spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => LibvirtError::new(
                LibvirtErrorKind::NoVirsh,
                call,
                "virsh is not installed: install libvirt's client tools (Debian: libvirt-clients)",
            ),
            _ => failed(error),
        })?;
        let stdin = child.stdin.take();
        let feed = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A virsh that ends early says why on stderr; the broken pipe says less.
                stdin.write_all(input.as_bytes()).await.ok();
            }
        };
        let ((), stdout, stderr) =
            tokio::join!(feed, read(child.stdout.take(), MAX_OUTPUT), read(child.stderr.take(), MAX_STDERR));
        let Some(stdout) = stdout.map_err(failed)? else {
            // Dropping the child kills it.
            return Err(LibvirtError::malformed(call, format!("the answer is above {MAX_OUTPUT} bytes")));
        };
        let stderr = stderr.map_err(failed)?.unwrap_or_else(|| b"error: (a very long error)".to_vec());
        let status = child.wait().await.map_err(failed)?;
        if !status.success() {
            return Err(LibvirtError::of_stderr(call, &String::from_utf8_lossy(&stderr)));
        }
        String::from_utf8(stdout).map_err(|error| LibvirtError::malformed(call, error))
    }

    fn command(&self, args: &[&str], with_input: bool) -> Command {
        let mut command = Command::new("virsh");
        command
            .args(["-q", "-c", &self.uri])
            .args(args)
            .env("LC_ALL", "C")
            .env_remove("VIRSH_DEBUG")
            .env_remove("LIBVIRT_DEBUG")
            .stdin(if with_input { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C for the daemon is not one for a call that it is in the middle of.
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

/// All of `stream`; `None` if it holds more than `limit` bytes.
async fn read(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    }
    Ok((bytes.len() <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_endpoint_that_is_not_there_is_unreachable() {
        let virsh = Virsh::new("qemu:///system?socket=/nonexistent/warmd-test", CALL_DEADLINE);
        let error = virsh.run(&["list"], None).await.unwrap_err();
        assert_eq!(error.kind, LibvirtErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains("/nonexistent/warmd-test"), "{error}");
    }

    #[tokio::test]
    async fn a_listener_that_never_answers_costs_one_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deaf");
        let _deaf = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let uri = format!("qemu:///system?socket={}", path.display());
        let virsh = Virsh::new(&uri, Duration::from_millis(300));
        let error = virsh.run(&["list"], None).await.unwrap_err();
        assert_eq!(error.kind, LibvirtErrorKind::Timeout, "{error}");
    }

    #[tokio::test]
    async fn output_is_bounded() {
        assert_eq!(read(Some(&[7_u8; 10][..]), 10).await.unwrap(), Some(vec![7; 10]));
        assert_eq!(read(Some(&[7_u8; 11][..]), 10).await.unwrap(), None);
    }
}
