//! The rig: started for one test, spoken to by its control endpoints, ended with the test.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use warmd_cbt::{extents::ExtentSet, mark::ChangeMark, units::Length};
use warmd_vsphere::{
    Owner, Settings, Vsphere,
    client::Patience,
    inventory::Vm,
    reader::Reader,
    snapshot::{Taken, VmSnapshotRequest},
};

/// Of the machine's disks; the second ends within a block.
pub(crate) const SIZES: [u64; 2] = [16 << 20, (6 << 20) + (24 << 10)];
/// For each exchange with a control endpoint.
const CONTROL: Duration = Duration::from_mins(1);

/// A running rig with one machine, `web`.
pub(crate) struct Rig {
    process: Child,
    place: Value,
    dir: TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        // It ends its own at a signal; a killed one's nbdkit children are the test's and end with it.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../tests/vsphere")
        .canonicalize()
        .expect("tests/vsphere is there")
}

impl Rig {
    pub(crate) fn start(more: &[&str]) -> Self {
        let built = folder().join("../.cache/vsphere/simulator");
        assert!(built.exists(), "the vSphere rig is not set up: run tests/vsphere/setup");
        let dir = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (number, size) in SIZES.into_iter().enumerate() {
            let path = dir.path().join(format!("disk-{number}.raw"));
            let file = fs::File::create(&path).unwrap();
            file.set_len(size).unwrap();
            files.push(path.to_str().unwrap().to_owned());
        }
        let mut process = Command::new(folder().join("start"))
            .arg(dir.path().join("rig"))
            .args([
                "-exit-with-parent",
                "-task-time",
                "20ms",
                "-machine",
                &format!("web={}", files.join(",")),
            ])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.path().join("said")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = fs::read_to_string(dir.path().join("said")).unwrap_or_default();
        let place = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the rig did not start: {said}"));
        let rig = Self { process, place, dir };
        for (disk, size) in SIZES.into_iter().enumerate() {
            rig.write(disk, 0, 300_000, 1 + disk as u64);
            rig.write(disk, size - 70_000, 70_000, 11 + disk as u64);
        }
        rig
    }

    pub(crate) fn place(&self, key: &str) -> &str {
        self.place[key].as_str().unwrap_or_else(|| panic!("the rig tells no `{key}`"))
    }

    /// A host that can be reached directly, as the line of JSON describes it.
    pub(crate) fn host(&self, name: &str) -> Value {
        let hosts = self.place["hosts"].as_array().expect("the rig names its hosts");
        hosts
            .iter()
            .find(|host| host["host"] == name)
            .cloned()
            .unwrap_or_else(|| panic!("no host {name}: {hosts:?}"))
    }

    fn exchange(&self, method: &str, name: &str, body: &str) -> Value {
        let mut stream = TcpStream::connect(self.place("control")).unwrap();
        stream.set_read_timeout(Some(CONTROL)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} /{name} HTTP/1.1\r\nHost: rig\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        // A long answer comes in chunks; the lines between them are no JSON of the rig's.
        let body: String =
            if head.to_lowercase().contains("chunked") { unchunk(body) } else { body.to_owned() };
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{name}: {body}"));
        assert!(head.starts_with("HTTP/1.1 200"), "{name} {answer}");
        answer
    }

    /// Sends an order to a control endpoint.
    pub(crate) fn order(&self, name: &str, what: &Value) -> Value {
        self.exchange("POST", name, &what.to_string())
    }

    /// The machine as the simulator knows it.
    pub(crate) fn machine(&self) -> Value {
        self.exchange("GET", "state", "")["machines"][0].clone()
    }

    /// How often a method was called.
    pub(crate) fn calls(&self, method: &str) -> u64 {
        self.state()["calls"][method].as_u64().unwrap_or_default()
    }

    pub(crate) fn state(&self) -> Value {
        self.exchange("GET", "state", "")
    }

    pub(crate) fn snapshots(&self) -> usize {
        self.machine()["snapshots"].as_array().map_or(0, Vec::len)
    }

    /// The guest writes random bytes; with seed 0, zeroes.
    pub(crate) fn write(&self, disk: usize, offset: u64, length: u64, seed: u64) {
        self.order(
            "write",
            &json!({"machine": "web", "disk": disk, "offset": offset, "length": length, "seed": seed}),
        );
    }

    /// What the disk holds now, read beside everything that is under test.
    pub(crate) fn truth(&self, disk: usize) -> Vec<u8> {
        fs::read(self.machine()["disks"][disk]["file"].as_str().unwrap()).unwrap()
    }

    pub(crate) fn settings(&self) -> Settings {
        let text = format!(
            "url = '{}'\nuser = '{}'\npassword_file = '{}'\nthumbprint = '{}'\nenable_change_tracking = true\n\
             [reader]\nlibdir = '{}'\nplugin = '{}'\ntransports = 'nbdssl:nbd'\ncompression = 'none'\n\
             runtime_dir = '{}'\n",
            self.place("url"),
            self.place("user"),
            self.place("password_file"),
            self.place("thumbprint_sha256"),
            self.place("libdir"),
            self.place("plugin"),
            self.run_dir().display(),
        );
        toml::from_str(&text).unwrap()
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn open(&self) -> Vsphere {
        open(self.settings())
    }
}

pub(crate) fn open(settings: Settings) -> Vsphere {
    let patience = Patience { exchange: Duration::from_secs(20), whole: Duration::from_secs(40) };
    Vsphere::with_patience(settings, patience).unwrap()
}

fn unchunk(body: &str) -> String {
    let mut rest = body;
    let mut whole = String::new();
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        if length == 0 {
            break;
        }
        whole.push_str(&after[..length]);
        rest = after[length..].trim_start_matches("\r\n");
    }
    whole
}

pub(crate) fn owner() -> Owner {
    Owner::new("0190f3a4-0000-7000-8000-000000000001")
}

/// A replica of the machine's disks, kept by what the package says.
pub(crate) struct Replica {
    pub(crate) disks: Vec<(String, Vec<u8>, Option<ChangeMark>)>,
}

impl Replica {
    pub(crate) fn of(vm: &Vm) -> Self {
        let disk = |uuid: &Option<String>| uuid.clone().expect("the rig's disks have UUIDs");
        let disks =
            vm.disks.iter().map(|each| (disk(&each.uuid), vec![0xee; each.capacity.0 as usize], None));
        Self { disks: disks.collect() }
    }

    pub(crate) fn request(&self, vm: &Vm, is_final: bool) -> VmSnapshotRequest {
        let disks = self.disks.iter().map(|(uuid, _, mark)| (uuid.clone(), mark.clone())).collect();
        VmSnapshotRequest { owner: owner(), vm: vm.of.clone(), disks, is_final }
    }

    /// Reads what changed, or all where that is not known. Answers the bytes that were read, and the reasons.
    pub(crate) async fn draw(&mut self, vsphere: &Vsphere, taken: &Taken) -> (u64, Vec<String>) {
        let (mut bytes, mut reasons) = (0, Vec::new());
        for (uuid, contents, mark) in &mut self.disks {
            let size = Length(contents.len() as u64);
            let extents = match vsphere.changed(taken, uuid, mark.as_ref()).await.unwrap() {
                warmd_cbt::mark::Changed::Known(set) => set,
                warmd_cbt::mark::Changed::Unknown(why) => {
                    reasons.push(why);
                    ExtentSet::full(size)
                }
            };
            let reader = vsphere.reader(taken, uuid).await.unwrap();
            let mut disk = connect(&reader).expect("the reader serves");
            for extent in extents.extents() {
                let (from, to) = (extent.start().0 as usize, extent.end().0 as usize);
                disk.read(from, &mut contents[from..to]);
                bytes += (to - from) as u64;
            }
            drop(disk);
            reader.close().await;
            *mark = Some(taken.disk(uuid).unwrap().mark.write());
        }
        (bytes, reasons)
    }

    /// Fails unless it holds what the disks hold.
    pub(crate) fn check(&self, rig: &Rig) {
        for (number, (uuid, contents, _)) in self.disks.iter().enumerate() {
            assert!(*contents == rig.truth(number), "disk {number} ({uuid}) differs");
        }
    }
}

/// An open NBD disk.
pub(crate) struct Disk {
    stream: UnixStream,
    export: nbd::Export,
}

impl Disk {
    pub(crate) fn read(&mut self, at: usize, into: &mut [u8]) {
        let mut client = nbd::client::NbdClient::new(&mut self.stream, &self.export);
        for (number, piece) in into.chunks_mut(1 << 20).enumerate() {
            client.seek(SeekFrom::Start((at + (number << 20)) as u64)).unwrap();
            client.read_exact(piece).unwrap();
        }
    }
}

pub(crate) fn connect(reader: &Reader) -> std::io::Result<Disk> {
    let socket = reader.socket().expect("a child serves");
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let export = nbd::client::handshake(&mut stream, b"")?;
    Ok(Disk { stream, export })
}
