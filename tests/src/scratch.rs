//! File systems, block devices and NBD servers for one test. They need root.
//!
//! Rule: each is removed when it is dropped; one may lie inside another, so tests declare the
//! outer one first.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{dir::TestDir, tool, wait::wait_until};

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// A file system in memory that takes `bytes`.
    pub fn tmpfs(dir: &TestDir, name: &str, bytes: u64) -> Result<Self> {
        Self::new(dir, name, &["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"])
    }

    /// A file system in memory without holes and without O_DIRECT.
    pub fn ramfs(dir: &TestDir, name: &str) -> Result<Self> {
        Self::new(dir, name, &["-t", "ramfs", "none"])
    }

    /// A device with a file system of that kind on it.
    pub fn device(dir: &TestDir, name: &str, kind: &str, device: &Path) -> Result<Self> {
        let device = device.to_string_lossy().into_owned();
        tool::call(&format!("mkfs.{kind}"), ["-q", &device])?;
        Self::new(dir, name, &["-t", kind, &device])
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    fn new(dir: &TestDir, name: &str, args: &[&str]) -> Result<Self> {
        let path = dir.join(name);
        std::fs::create_dir(&path)?;
        let path_text = path.to_string_lossy().into_owned();
        tool::call("mount", args.iter().copied().chain([path_text.as_str()]))?;
        Ok(Self { path })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a file that a failed test still has open must not keep the mount.
        let _ = tool::call("umount", [Path::new("--lazy"), &self.path]);
    }
}

/// A block device over a file.
#[derive(Debug)]
pub struct Loop {
    device: PathBuf,
}

impl Loop {
    /// Over a new sparse file of `bytes`, which must be whole sectors.
    pub fn new(backing: &Path, bytes: u64) -> Result<Self> {
        ensure!(bytes.is_multiple_of(512), "{bytes} bytes are no whole sectors");
        std::fs::File::create(backing)?.set_len(bytes)?;
        let found = tool::call("losetup", [Path::new("--find"), Path::new("--show"), backing])?;
        Ok(Self { device: found.trim().into() })
    }

    pub fn path(&self) -> &Path {
        &self.device
    }

    /// Its path as text.
    pub fn place(&self) -> String {
        self.device.display().to_string()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = tool::call("losetup", [Path::new("--detach"), &self.device]);
    }
}

/// An NBD server on a Unix socket, serving one export to every client.
#[derive(Debug)]
pub struct NbdServer {
    child: Child,
    socket: PathBuf,
}

impl NbdServer {
    /// qemu-nbd over a new raw file of `bytes`.
    pub fn qemu(dir: &TestDir, name: &str, bytes: u64) -> Result<Self> {
        let image = dir.join(format!("{name}.raw"));
        std::fs::File::create(&image)?.set_len(bytes)?;
        let socket = dir.join(format!("{name}.sock"));
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=8", "--format=raw", "--discard=unmap", "--socket"]);
        Self::start(command.arg(&socket).arg(&image), socket)
    }

    /// nbdkit with these filters, plugin and parameters.
    pub fn nbdkit<const N: usize>(dir: &TestDir, name: &str, args: [&str; N]) -> Result<Self> {
        let socket = dir.join(format!("{name}.sock"));
        let mut command = Command::new("nbdkit");
        Self::start(command.args(["--foreground", "--unix"]).arg(&socket).args(args), socket)
    }

    /// Where the export is.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    fn start(command: &mut Command, socket: PathBuf) -> Result<Self> {
        let tool = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot run {tool}"))?;
        let mut server = Self { child, socket };
        wait_until(&format!("{tool} to listen"), Duration::from_mins(2), || {
            ensure!(server.child.try_wait()?.is_none(), "{tool} ended");
            Ok(server.socket.exists().then_some(()))
        })?;
        Ok(server)
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
