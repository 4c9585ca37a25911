//! Existing NBD servers as children of the test.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use warmd_disks::nbd::{NbdAddress, NbdOptions};

use super::wait_for;

/// A running server on a Unix socket, or on a TCP port, in a directory of its own.
pub struct Server {
    dir: TempDir,
    tool: &'static str,
    arguments: Vec<String>,
    child: Option<Child>,
    pub address: NbdAddress,
}

impl Server {
    /// nbdkit on a Unix socket: filters, plugin and their settings in `arguments`.
    pub async fn nbdkit(arguments: &[&str]) -> Self {
        Self::start(tempdir(), "nbdkit", "-U", arguments).await
    }

    /// As [`Server::nbdkit`], with files that the test has put into `dir`.
    pub async fn nbdkit_in(dir: TempDir, arguments: &[&str]) -> Self {
        Self::start(dir, "nbdkit", "-U", arguments).await
    }

    /// qemu-nbd on a Unix socket, serving any client until it is ended.
    pub async fn qemu(dir: TempDir, arguments: &[&str]) -> Self {
        let arguments: Vec<_> = ["--persistent"].iter().chain(arguments).copied().collect();
        Self::start(dir, "qemu-nbd", "-k", &arguments).await
    }

    /// nbdkit on a TCP port of this machine that was free a moment ago.
    pub async fn nbdkit_tcp(arguments: &[&str]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut own = vec!["-i".into(), "127.0.0.1".into(), "-p".into(), port.to_string()];
        own.extend(arguments.iter().map(ToString::to_string));
        let address = NbdAddress::Tcp { host: "127.0.0.1".into(), port };
        let mut server = Self { dir: tempdir(), tool: "nbdkit", arguments: own, child: None, address };
        server.restart().await;
        server
    }

    async fn start(dir: TempDir, tool: &'static str, socket_flag: &str, arguments: &[&str]) -> Self {
        let socket = dir.path().join("socket");
        let mut own = vec![socket_flag.into(), path_text(&socket)];
        own.extend(arguments.iter().map(ToString::to_string));
        let mut server = Self { dir, tool, arguments: own, child: None, address: NbdAddress::Unix(socket) };
        server.restart().await;
        server
    }

    /// Options for its export with this name.
    pub fn options(&self, export: &str) -> NbdOptions {
        NbdOptions::new(self.address.clone(), export)
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it, again if it ran before, on the same address; returns when it listens.
    pub async fn restart(&mut self) {
        self.kill();
        let pid_file = self.path("pid");
        let _ = std::fs::remove_file(&pid_file);
        let _ = std::fs::remove_file(self.path("socket"));
        let mut command = Command::new(self.tool);
        match self.tool {
            "nbdkit" => command.args(["--foreground", "--pidfile"]).arg(&pid_file),
            _ => command.arg("--pid-file").arg(&pid_file),
        };
        let child = command.args(&self.arguments).current_dir(self.dir.path()).stdin(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("the tool `{}` does not start: {error}", self.tool));
        let child = self.child.insert(child);
        let tool = self.tool;
        wait_for(&format!("{tool} to listen"), || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("{tool} {:?} ended with {status}", self.arguments);
            }
            // Both write it once they listen, and in one go.
            std::fs::read(&pid_file).is_ok_and(|pid| pid.ends_with(b"\n"))
        })
        .await;
    }

    /// Whether its process has ended on its own.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A directory that goes with its handle.
pub fn tempdir() -> TempDir {
    tempfile::Builder::new().prefix("warmd-nbd-").tempdir().expect("a temporary directory")
}

/// A path as text, for arguments.
pub fn path_text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}
