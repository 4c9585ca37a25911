//! One call of `virsh`.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{
    child::{self, ChildError},
    error::{LibvirtError, LibvirtErrorKind},
};

/// How long a call may take. libvirt itself waits 30 s for a domain that another job holds.
pub const CALL_DEADLINE: Duration = Duration::from_mins(1);

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
        let call = format!("virsh {}", args.join(" "));
        let Ok(_permit) = self.permits.acquire().await else {
            unreachable!("the semaphore is never closed");
        };
        let args = [&["-q", "-c", self.uri()], args].concat();
        match child::run("virsh", &args, input, self.deadline).await {
            Ok(done) if done.success => {
                String::from_utf8(done.stdout).map_err(|error| LibvirtError::malformed(call, error))
            }
            Ok(done) => Err(LibvirtError::of_stderr(call, &done.stderr)),
            Err(error) => Err(of_child(call, error)),
        }
    }
}

pub(super) fn of_child(call: String, error: ChildError) -> LibvirtError {
    let kind = match &error {
        ChildError::Missing(_) => LibvirtErrorKind::MissingTool,
        ChildError::Timeout(_) => LibvirtErrorKind::Timeout,
        ChildError::TooLong(_) => LibvirtErrorKind::Malformed,
        ChildError::Io(_) => LibvirtErrorKind::Failed,
    };
    LibvirtError::new(kind, call, error)
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
}
