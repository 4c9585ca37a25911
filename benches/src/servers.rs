//! The NBD servers between which disks are copied: nbdkit over a directory of images.
//!
//! Rule: they are started again for each run, by the same command for all sides.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail};
use warmd_tests::wait_until;

use crate::children::ProcessGroup;

/// What slows a server down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Brake {
    /// Each read waits so many milliseconds; as many reads wait at once as the server has threads.
    pub read_delay_ms: u64,
    /// Bytes per second for all connections together; 0 for no limit.
    pub rate: u64,
}

/// A running server; each image is an export by its file's name.
#[derive(Debug)]
pub struct Server {
    socket: PathBuf,
    _process: ProcessGroup,
}

impl Server {
    /// Serves all images in `images` on a new socket.
    pub fn start(images: &Path, socket: PathBuf, brake: Brake) -> Result<Self> {
        let (mut filters, mut parameters) = (Vec::new(), vec![format!("dir={}", images.display())]);
        if brake.read_delay_ms > 0 {
            filters.push("--filter=delay".to_owned());
            parameters.push(format!("rdelay={}ms", brake.read_delay_ms));
        }
        if brake.rate > 0 {
            filters.push("--filter=rate".to_owned());
            parameters.push(format!("rate={}", brake.rate * 8));
        }
        filters.push("file".to_owned());
        Self::nbdkit(socket, filters.into_iter().chain(parameters))
    }

    /// nbdkit with these filters, plugin and parameters; waits until it accepts connections.
    pub fn nbdkit(socket: PathBuf, words: impl IntoIterator<Item = String>) -> Result<Self> {
        let ready = socket.with_extension("pid");
        let mut command = Command::new("nbdkit");
        command
            .args(["--exit-with-parent", "--foreground", "--unix"])
            .arg(&socket)
            .arg("--pidfile")
            .arg(&ready);
        let mut process = ProcessGroup::spawn(command.args(words))?;
        wait_until("nbdkit to listen", Duration::from_secs(30), || {
            if let Some(status) = process.ended()? {
                bail!("nbdkit ended with {status}");
            }
            // nbdkit writes this file when it accepts connections.
            Ok(ready.exists().then_some(()))
        })?;
        Ok(Self { socket, _process: process })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for left in [&self.socket, &self.socket.with_extension("pid")] {
            let _ = std::fs::remove_file(left);
        }
    }
}
