//! A libvirtd for one test: privileged like the real `qemu:///system`, yet private.
//!
//! Rule: it lives in a mount and PID namespace whose end ends it and all its guests. Only libvirt's own
//! directories are private: paths of disks and sockets mean the same inside and outside.

use std::collections::BTreeMap;
use std::fs::{File, create_dir_all, read_to_string};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use warmd_endpoint_libvirt::target::{DiskBus, DomainType, LibvirtTargetSettings};

use crate::dir::TestDir;
use crate::tool::{self, ToolOutput};
use crate::wait::wait_until;

const START: Duration = Duration::from_mins(2);

#[derive(Debug)]
pub struct Libvirtd {
    namespace: Child,
    dir: PathBuf,
    uri: String,
    commands: u32,
}

impl Libvirtd {
    /// Starts it in `DIR/libvirt` and waits until it answers.
    pub fn start(dir: &TestDir) -> Result<Self> {
        Self::start_at(dir.join("libvirt"))
    }

    /// Like [`Self::start`], with the caller's directory: an absolute path of less than 80 bytes.
    pub fn start_at(dir: PathBuf) -> Result<Self> {
        Self::launch(dir, None)
    }

    /// Like [`Self::start_at`], where each QEMU has a mount namespace with a `/dev` of its own, as by
    /// libvirt's default. Guests without devices of the host need none, and nodes that a test makes later are
    /// not seen in it.
    pub fn start_with_namespaces(dir: PathBuf) -> Result<Self> {
        Self::launch(dir, Some("mount"))
    }

    fn launch(dir: PathBuf, namespaces: Option<&str>) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "guests under a private libvirtd need root");
        create_dir_all(&dir)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("libvirt/namespace");
        let log = File::create(dir.join("namespace.log"))?;
        let namespace = Command::new("unshare")
            .args(["--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"])
            .arg(script)
            .arg(&dir)
            .args(namespaces)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run unshare (util-linux)")?;
        let uri = format!("qemu:///system?socket={}/run/libvirt-sock", dir.display());
        let mut libvirt = Self { namespace, dir, uri, commands: 0 };
        libvirt.resume()?;
        Ok(libvirt)
    }

    /// The URI for `virsh -c`; no environment variables are needed.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// This libvirtd as a target, with its disks in that directory, which is made.
    pub fn target_settings(&self, directory: PathBuf, disk_bus: DiskBus) -> Result<LibvirtTargetSettings> {
        create_dir_all(&directory)?;
        Ok(LibvirtTargetSettings {
            uri: self.uri.clone(),
            directory: Some(directory),
            pool: None,
            storages: BTreeMap::new(),
            domain_type: DomainType::Qemu,
            disk_bus,
        })
    }

    /// Runs `virsh` and returns its stdout, without the empty line at its end.
    pub fn virsh<const N: usize>(&self, args: [&str; N]) -> Result<String> {
        Ok(tool::output(&mut self.command(&args), tool::DEADLINE)?.trim_end().to_owned())
    }

    /// Runs `virsh`; a failure is a valid answer.
    pub fn try_virsh<const N: usize>(&self, args: [&str; N]) -> Result<ToolOutput> {
        tool::outcome(&mut self.command(&args), tool::DEADLINE)
    }

    /// Live-migrates a running domain to another libvirt with the same files, and keeps its definition here.
    pub fn migrate(&self, domain: &str, to: &Self) -> Result<()> {
        let socket = format!("unix://{}/migration.sock", to.dir.display());
        let how = ["--live", "--persistent", "--unsafe"];
        self.virsh(["migrate", domain, how[0], how[1], how[2], to.uri(), "--migrateuri", &socket]).map(drop)
    }

    /// Stops libvirtd in order; guests continue.
    pub fn suspend(&mut self) -> Result<()> {
        self.tell("stop")
    }

    /// Kills libvirtd; guests continue.
    pub fn kill(&mut self) -> Result<()> {
        self.tell("kill")
    }

    /// Freezes libvirtd: it keeps its connections and does not answer.
    pub fn freeze(&mut self) -> Result<()> {
        self.tell("freeze")
    }

    /// Lets it continue.
    pub fn thaw(&mut self) -> Result<()> {
        self.tell("thaw")
    }

    /// Starts libvirtd (again) and waits until it answers.
    pub fn resume(&mut self) -> Result<()> {
        self.tell("start")?;
        wait_until("libvirtd's answer", START, || {
            Ok((self.try_virsh(["version"])?.code == Some(0)).then_some(()))
        })?;
        self.tell("ready")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command.args(["-q", "-c", &self.uri]).args(args).env("LC_ALL", "C");
        command
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        self.commands += 1;
        let stdin = self.namespace.stdin.as_mut().context("the namespace has no stdin")?;
        writeln!(stdin, "{command}").with_context(|| format!("see {}/namespace.log", self.dir.display()))?;
        let (handled, want) = (self.dir.join("handled"), self.commands.to_string());
        wait_until(&format!("libvirtd to {command}"), START, || {
            Ok(read_to_string(&handled).is_ok_and(|n| n.trim() == want).then_some(()))
        })
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        // The end of its stdin ends the namespace's first process, and with it everything inside.
        drop(self.namespace.stdin.take());
        let gone = wait_until("the namespace to end", START, || Ok(self.namespace.try_wait()?));
        if gone.is_err() {
            let _ = self.namespace.kill();
            let _ = self.namespace.wait();
        }
    }
}
