//! The vSphere rig of `tests/vsphere`, started for one test: a simulated vCenter whose disks are files.
//!
//! Rule: what the disks hold is read beside everything that is under test, and the rig ends with its fixture.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use warmd_vsphere::Settings;

use crate::{Console, TestDir, wait_until};

/// For the rig to say where it is.
const START: Duration = Duration::from_mins(1);
/// For an order.
const CONTROL: Duration = Duration::from_mins(1);
/// The one machine's name.
pub const NAME: &str = "web";
/// How the daemon's configuration calls the vCenter.
pub const SOURCE: &str = "old";

/// A running rig with one machine, that is on.
#[derive(Debug)]
pub struct VsphereRig {
    process: Child,
    place: Value,
    run: PathBuf,
    guests: PathBuf,
}

/// The rig's programs.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vsphere")
}

impl Drop for VsphereRig {
    fn drop(&mut self) {
        // It is the leader of a group of its own: what it started ends with it.
        kill_process_group(Pid::from_child(&self.process), Signal::KILL).ok();
        self.process.wait().ok();
    }
}

impl VsphereRig {
    /// With disks of these sizes, written to at both ends, and more of the simulator's flags.
    pub fn start(dir: &TestDir, sizes: &[u64], more: &[&str]) -> Result<Self> {
        let mut files = Vec::new();
        for (number, size) in sizes.iter().enumerate() {
            let path = dir.join(format!("disk-{number}.raw"));
            File::create(&path)?.set_len(*size)?;
            files.push(path);
        }
        let rig = Self::over(dir.path(), &files, more)?;
        for (disk, size) in sizes.iter().enumerate() {
            rig.write(disk, 0, 300_000, 1 + disk as u64)?;
            rig.write(disk, size.saturating_sub(70_000), 70_000, 11 + disk as u64)?;
        }
        Ok(rig)
    }

    /// With these images as its disks. What it makes is in the directory.
    pub fn over(dir: &Path, images: &[PathBuf], more: &[&str]) -> Result<Self> {
        let files: Vec<_> = images.iter().map(|image| image.to_string_lossy()).collect();
        let machine = format!("{NAME}={}", files.join(","));
        Self::launch(dir, &[&["-task-time", "20ms", "-machine", &machine], more].concat())
    }

    /// With one machine as the simulator describes machines, whose guest QEMU runs over its disks' files.
    pub fn start_with_guest(dir: &TestDir, machine: &Value) -> Result<Self> {
        let machines = dir.join("machines.json");
        fs::write(&machines, json!([machine]).to_string())?;
        let (machines, qemu) = (machines.to_string_lossy(), folder().join("qemu"));
        let flags = ["-task-time", "200ms", "-on-power", &qemu.to_string_lossy(), "-machines", &machines];
        Self::launch(dir.path(), &flags)
    }

    fn launch(dir: &Path, flags: &[&str]) -> Result<Self> {
        let mut process = Command::new(folder().join("start"))
            .arg(dir.join("vsphere"))
            .arg("-exit-with-parent")
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(File::create(dir.join("vsphere.log"))?)
            .process_group(0)
            .spawn()
            .context("cannot run tests/vsphere/start")?;
        let told = process.stdout.take().context("no standard output")?;
        let (guests, run) = (dir.join("vsphere/guests"), dir.join("run"));
        let mut rig = Self { process, place: Value::Null, run, guests };
        let (say, hear) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(told).read_line(&mut line).map(|_| line);
            say.send(read).ok();
        });
        let line = hear.recv_timeout(START).context("the vSphere rig says nothing")??;
        rig.place = serde_json::from_str(&line)
            .context("the vSphere rig did not start: see vsphere.log; is it set up (tests/setup)?")?;
        Ok(rig)
    }

    /// The console of the machine's guest.
    pub fn guest_console(&self) -> Result<Console> {
        let found = wait_until("the guest's console", START, || {
            let Ok(entries) = fs::read_dir(&self.guests) else { return Ok(None) };
            Ok(entries.flatten().map(|entry| entry.path().join("console")).find(|path| path.exists()))
        })?;
        Ok(Console::new(found))
    }

    /// What its first line says of itself.
    pub fn place(&self, key: &str) -> Result<&str> {
        self.place[key].as_str().with_context(|| format!("the rig says no `{key}`"))
    }

    /// The source's part of a daemon's configuration.
    pub fn config(&self) -> Result<String> {
        Ok(format!("[[source]]\nname = \"{SOURCE}\"\nkind = \"vsphere\"\n{}", self.lines("source")?))
    }

    /// The same, for a source alone.
    pub fn settings(&self) -> Result<Settings> {
        // Tables of tables: `[reader]` stands at the root here.
        Ok(toml::from_str(&self.lines("")?)?)
    }

    fn lines(&self, below: &str) -> Result<String> {
        let reader = if below.is_empty() { "reader".to_owned() } else { format!("{below}.reader") };
        Ok(format!(
            "url = \"{}\"\nuser = \"{}\"\npassword_file = \"{}\"\nthumbprint = \"{}\"\n\
             enable_change_tracking = true\n[{reader}]\nlibdir = \"{}\"\nplugin = \"{}\"\n\
             transports = \"nbdssl:nbd\"\ncompression = \"none\"\nruntime_dir = \"{}\"\n",
            self.place("url")?,
            self.place("user")?,
            self.place("password_file")?,
            self.place("thumbprint_sha256")?,
            self.place("libdir")?,
            self.place("plugin")?,
            self.run.display(),
        ))
    }

    /// Where the readers are.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    fn exchange(&self, method: &str, name: &str, body: &str) -> Result<Value> {
        let address: SocketAddr = self.place("control")?.parse()?;
        let mut stream = TcpStream::connect_timeout(&address, CONTROL)?;
        stream.set_read_timeout(Some(CONTROL))?;
        let length = body.len();
        // Of HTTP/1.0, an answer comes in one piece and ends with the connection.
        write!(stream, "{method} /{name} HTTP/1.0\r\nHost: rig\r\nContent-Length: {length}\r\n\r\n{body}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        ensure!(head.contains(" 200 "), "{name} {body}");
        serde_json::from_str(body).with_context(|| format!("{name}: {body}"))
    }

    /// Sends an order to a control endpoint.
    pub fn order(&self, name: &str, what: &Value) -> Result<Value> {
        self.exchange("POST", name, &what.to_string())
    }

    /// All that the simulator knows.
    pub fn state(&self) -> Result<Value> {
        self.exchange("GET", "state", "")
    }

    /// The machine as the simulator knows it.
    pub fn machine(&self) -> Result<Value> {
        Ok(self.state()?["machines"][0].clone())
    }

    /// Snapshots that the machine has.
    pub fn snapshots(&self) -> Result<usize> {
        Ok(self.machine()?["snapshots"].as_array().map_or(0, Vec::len))
    }

    /// The guest writes random bytes; with seed 0, zeroes.
    pub fn write(&self, disk: usize, offset: u64, length: u64, seed: u64) -> Result<()> {
        let what = json!({"machine": NAME, "disk": disk, "offset": offset, "length": length, "seed": seed});
        self.order("write", &what).map(drop)
    }

    /// What the disk holds now.
    pub fn contents(&self, disk: usize) -> Result<Vec<u8>> {
        let machine = self.machine()?;
        let file = machine["disks"][disk]["file"].as_str().context("no such disk")?;
        Ok(fs::read(file)?)
    }

    /// Nothing of warmd is left, and nothing was asked for that a real server would not take.
    pub fn assert_clean(&self) -> Result<()> {
        let state = self.state()?;
        let machine = &state["machines"][0];
        let left = machine["snapshots"].as_array().map_or(0, Vec::len);
        ensure!(left == 0, "snapshots are left: {}", machine["snapshots"]);
        ensure!(machine["most_snapshots"].as_u64() <= Some(1), "more than one snapshot at a time: {machine}");
        ensure!(state["overlaps"] == 0, "a snapshot was asked for while one was removed");
        ensure!(
            state["refused"] == json!([]),
            "requests that a real server would not take: {}",
            state["refused"]
        );
        if let Ok(entries) = fs::read_dir(&self.run) {
            let left: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            ensure!(left.is_empty(), "left by readers: {left:?}");
        }
        Ok(())
    }
}
