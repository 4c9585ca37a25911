//! The case `daemon`: the first pass of a migration, from the request to the end, through the whole daemon
//! and a libvirt host, against the bare engine on the same kind of export.
//!
//! Rule: both read a backup job of the same guest, which is off (its domain exists, paused, during the job),
//! both write a new file, and both files are compared. The daemon's time is the pass's own, from its own
//! report.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, Utc};
use serde_json::Value;
use warmd_cbt::store::PassFigures;
use warmd_tests::{Daemon, Guest, GuestDisk, GuestSpec, Libvirtd, TestDir, tool, wait_until};

use crate::{
    bars::{self, Bar, BarLimit},
    compare,
    engine::Done,
    fixture::DEADLINE,
    image::{self, BenchImage, Fill},
    measure::BenchMeasurement,
    pairs::{Bench, Pair},
    report::{BenchTotals, Row},
};

/// The name of the case.
pub const NAME: &str = "daemon";
/// Bytes on the guest's disk.
const FULL: u64 = 4 << 30;
const QUICK: u64 = 64 << 20;
const VM: &str = "bench";
/// Connections per disk that the libvirt source uses by default.
const CONNECTIONS: &str = "--connections=2";

/// A host with a guest that is off, and another host.
struct World {
    old: Libvirtd,
    new: Libvirtd,
    _guest: Guest,
    image: BenchImage,
    /// Content of the guest's disk.
    raw: PathBuf,
    dir: TestDir,
}

/// Runs it.
pub fn run(bench: &Bench) -> Result<(Vec<Row>, Vec<Bar>)> {
    let size = if bench.quick { QUICK } else { FULL };
    let world = World::make(bench, size)?;
    let warm_up = usize::from(!bench.quick);
    let (mut pairs, mut requests) = (Vec::new(), Vec::new());
    for round in 0..bench.pairs + warm_up {
        let (warmd, done, request_s) = world.daemon(round).context("the daemon")?;
        let peer = world.engine(bench, round).context("the bare engine")?;
        if round >= warm_up {
            pairs.push(Pair { warmd, done, peer });
            requests.push(request_s);
        }
    }
    requests.sort_by(f64::total_cmp);
    let runs = world.image.fill.runs(size);
    let changed = runs.iter().map(|run| run.end - run.start).sum();
    let note =
        format!("request to synced: {:.2} s", requests.get(requests.len() / 2).copied().unwrap_or_default());
    let row = Row::new(NAME, "engine", BenchTotals { changed, touched: changed }, note, &pairs);
    let bars = vec![
        Bar::new(NAME, "speed against the bare engine", row.ratio, BarLimit::AtLeast(0.97)),
        Bar::new(NAME, "peak RSS in MiB", row.rss_mib, BarLimit::AtMost(bars::MEMORY)),
    ];
    Ok((vec![row], bars))
}

impl World {
    fn make(bench: &Bench, size: u64) -> Result<Self> {
        let dir = TestDir::below(&bench.below)?;
        let image = BenchImage { number: 0, size, fill: Fill::Half };
        let (raw, disk) = (dir.join("d0"), dir.join("d0.qcow2"));
        image.make(&raw)?;
        let args = ["convert", "-W", "-m", "16", "-f", "raw", "-O", "qcow2"].map(Path::new);
        let mut convert = std::process::Command::new("qemu-img");
        tool::output(convert.args(args).args([&raw, &disk]), DEADLINE)?;
        let (old, new) = (Libvirtd::start_at(dir.join("old"))?, Libvirtd::start_at(dir.join("new"))?);
        let mut spec = GuestSpec::new(VM);
        spec.disks = vec![GuestDisk { size_mib: size >> 20, ..GuestDisk::default() }];
        let guest = Guest::define_over(&old, &dir, &spec, vec![disk])?;
        Ok(Self { old, new, _guest: guest, image, raw, dir })
    }

    /// Runs a new daemon with a new migration until it is synced for the first time.
    fn daemon(&self, round: usize) -> Result<(BenchMeasurement, Done, f64)> {
        let here = self.dir.join(format!("daemon{round}"));
        std::fs::create_dir_all(here.join("volumes"))?;
        let socket = here.join("warmd.sock");
        let mut daemon = Daemon::configure(&self.dir, &socket, &self.config(&here))?;
        daemon.start()?;
        let ctl = daemon.ctl();
        let plan = here.join("plan.toml");
        std::fs::write(&plan, PLAN)?;
        let asked = Instant::now();
        ctl.text(&["plan", "apply", "-f", &plan.to_string_lossy()])?;
        let view = wait_until("the full pass to end", DEADLINE, || {
            let view = ctl.json(&["migration", "show", VM])?;
            ensure!(view["state"] != "failed", "it failed: {}", view["reason"]);
            Ok((view["state"] == "synced").then_some(view))
        })?;
        let request_s = asked.elapsed().as_secs_f64();
        let location = view["disks"][0]["location"].as_str().context("the disk has no location")?;
        compare::equal(&self.raw, Path::new(location)).context("after the daemon's pass")?;
        let report = ctl.text(&["migration", "report", VM, "--format", "json"])?;
        let report: Value = serde_json::from_str(&report)?;
        let pass = &report["passes"][0];
        let (begin, end) = (seconds(&pass["started"])?, seconds(&pass["ended"])?);
        let (cpu_s, rss_mib) = usage(daemon.pid()?)?;
        let read = pass["disks"][0]["figures"]["read"].as_u64().context("the pass has no figures")?;
        ctl.text(&["migration", "cancel", VM])?;
        daemon.stop()?;
        std::fs::remove_dir_all(&here)?;
        let figures = PassFigures { read, ..PassFigures::default() };
        let done = Done { figures, pass_s: end - begin, ..Done::default() };
        Ok((BenchMeasurement { begin, end, cpu_s, rss_mib }, done, request_s))
    }

    /// The engine alone, over an export such as the daemon makes.
    fn engine(&self, bench: &Bench, round: usize) -> Result<BenchMeasurement> {
        let here = self.dir.join(format!("engine{round}"));
        std::fs::create_dir(&here)?;
        let (state, target) = (here.join("state"), here.join("d0"));
        image::blank(&target, self.image.size)?;
        let engine = bench.programs.join("bench-engine").display().to_string();
        let words = |more: &[&str]| -> Vec<String> {
            let state = state.display().to_string();
            [&[engine.as_str(), "--state", &state], more].concat().into_iter().map(str::to_owned).collect()
        };
        bench.at_once(&[(words(&["init", "--reads-zero", &self.image.size.to_string()]), Vec::new())])?;

        let (socket, scratch, xml) = (here.join("b.sock"), here.join("scratch"), here.join("backup.xml"));
        std::fs::write(
            &xml,
            format!(
                "<domainbackup mode='pull'><server transport='unix' socket='{}'/><disks>\
                 <disk name='vda' backup='yes' type='file'><scratch file='{}'/></disk></disks></domainbackup>",
                socket.display(),
                scratch.display()
            ),
        )?;
        self.old.virsh(["start", VM, "--paused"])?;
        self.old.virsh(["backup-begin", VM, &xml.to_string_lossy()])?;
        let from = format!("nbd+unix:///vda?socket={}", socket.display());
        let pass = words(&["pass", CONNECTIONS, &from, &target.to_string_lossy()]);
        let (mut measured, said) = bench.at_once(&[(pass, vec![target.clone()])])?;
        self.old.virsh(["domjobabort", VM])?;
        self.old.virsh(["destroy", VM])?;
        compare::equal(&self.raw, &target).context("after the engine's pass")?;
        std::fs::remove_dir_all(&here)?;
        // As the daemon's pass: without the start of a process.
        let done: Done =
            serde_json::from_str(&said).with_context(|| format!("bench-engine said {said:?}"))?;
        measured.begin = measured.end - done.pass_s;
        Ok(measured)
    }

    fn config(&self, here: &Path) -> String {
        let (at, old, new) = (here.display(), self.old.uri(), self.new.uri());
        format!(
            "state_dir = \"{at}/state\"\n\n[listen]\nsocket = \"{at}/warmd.sock\"\n\n\
             [[source]]\nname = \"old\"\nkind = \"libvirt\"\nuri = \"{old}\"\nruntime_dir = \"{at}/run\"\n\
             scratch_dir = \"{at}/scratch\"\nscratch_reserve_mib = 64\n\n\
             [[target]]\nname = \"new\"\nkind = \"libvirt\"\nuri = \"{new}\"\ndirectory = \"{at}/volumes\"\n\
             domain_type = \"qemu\"\n"
        )
    }
}

const PLAN: &str = r#"name = "bench"
source = "old"
target = "new"
vms = ["bench"]

[schedule]
interval = "24h"
"#;

fn seconds(time: &Value) -> Result<f64> {
    let text = time.as_str().context("a pass without its times")?;
    let time: DateTime<Utc> = text.parse()?;
    Ok(time.timestamp_micros() as f64 / 1e6)
}

/// User and system time in seconds, and peak resident memory in MiB, of a process that runs.
fn usage(pid: u32) -> Result<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may contain blanks; it ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let cpu = ticks(11).zip(ticks(12)).map(|(user, system)| user + system);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<f64>().ok());
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok((cpu.context("no CPU time")? / ticks_per_second, kib.context("no peak of memory")? / 1024.0))
}
