//! The accuracy of the downtime forecast: real guests with workloads of many rates, one after the other moved
//! by one daemon. See `benches/forecast`.
//!
//! Rule: the forecast is the one that `migration show` prints before the cutover is requested; the measured
//! value is the downtime that the daemon stored. Code that shares nothing with warmd also reads the guests'
//! consoles. Each run is a new guest of a seed; the forecast of a run uses the measurements of earlier runs,
//! as for the VMs of a plan.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use serde_json::Value;
use warmd_tests::{Console, Daemon, Guest, GuestSpec, Libvirtd, TestDir, guest::BOOT, interrupt, wait_until};

const WORK: Duration = Duration::from_mins(4);
/// How often the consoles are read.
const LOOK: Duration = Duration::from_millis(20);

/// The workload of a guest, and how it is moved.
#[derive(Clone, Debug, Serialize)]
pub struct Workload {
    /// Scattered writes, in KiB per second, over this many MiB of each disk.
    pub churn_kib_s: u64,
    pub churn_mib: u64,
    /// Other data on each disk.
    pub noise_mib: u64,
    pub verify: &'static str,
    /// Deltas before the cutover, and seconds between them.
    pub deltas: u64,
    pub apart_s: u64,
}

impl Workload {
    /// Rates from 64 KiB to 8 MiB a second, equally likely in each doubling.
    fn draw(random: &mut StdRng) -> Self {
        Self {
            churn_kib_s: (64.0 * 2_f64.powf(random.random_range(0.0..7.0))) as u64,
            churn_mib: random.random_range(16..=64),
            noise_mib: random.random_range(8..=48),
            verify: ["none", "readback", "compare"][random.random_range(0..3)],
            deltas: random.random_range(2..=4),
            apart_s: random.random_range(3..=8),
        }
    }
}

/// One cutover: its forecast and its measurement, in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub workload: Workload,
    pub low: f64,
    pub expected: f64,
    pub high: f64,
    pub measured: f64,
    /// From the last record that the source's guest acknowledged to the first one of the target's, including
    /// the guest's own shutdown and boot.
    pub silent: f64,
    pub is_inside: bool,
    /// Error of the expected downtime, in per cent of the measured one.
    pub error: f64,
}

/// Two hosts, and a daemon between them.
struct Ground {
    daemon: Daemon,
    old: Libvirtd,
    new: Libvirtd,
    volumes: PathBuf,
    dir: TestDir,
}

/// Does this many runs; prints each at its end.
pub fn run(runs: usize, seed: u64) -> Result<Vec<Run>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut ground = Ground::lay()?;
    println!(
        "{:>3}  {:>9} {:>5} {:>8} {:>6}  {:>6} {:>8} {:>6}  {:>8} {:>6} {:>7}  {:>8}",
        "run",
        "writes",
        "disks",
        "verify",
        "deltas",
        "low",
        "expected",
        "high",
        "measured",
        "inside",
        "error",
        "silent"
    );
    let mut done = Vec::new();
    for number in 1..=runs {
        let workload = Workload::draw(&mut random);
        let run =
            ground.cut_over(number, workload).with_context(|| format!("run {number} of seed {seed}"))?;
        let of = &run.workload;
        println!(
            "{number:>3}  {:>5}KiB/s {:>2}MiB {:>8} {:>6}  {:>5.1}s {:>7.1}s {:>5.1}s  {:>7.2}s {:>6} {:>6.0}%  {:>7.1}s",
            of.churn_kib_s,
            of.noise_mib,
            of.verify,
            of.deltas,
            run.low,
            run.expected,
            run.high,
            run.measured,
            if run.is_inside { "yes" } else { "NO" },
            run.error,
            run.silent,
        );
        done.push(run);
    }
    ground.daemon.stop()?;
    Ok(done)
}

impl Ground {
    fn lay() -> Result<Self> {
        let dir = TestDir::new()?;
        let (old, new) = (Libvirtd::start_at(dir.join("old"))?, Libvirtd::start_at(dir.join("new"))?);
        let volumes = dir.join("volumes");
        std::fs::create_dir(&volumes)?;
        let here = dir.path().display();
        let config = format!(
            "state_dir = \"{here}/state\"\n\n[listen]\nsocket = \"{here}/warmd.sock\"\n\n\
             [[source]]\nname = \"old\"\nkind = \"libvirt\"\nuri = \"{}\"\nruntime_dir = \"{here}/run\"\n\
             scratch_dir = \"{here}/scratch\"\nscratch_reserve_mib = 64\n\n\
             [[target]]\nname = \"new\"\nkind = \"libvirt\"\nuri = \"{}\"\ndirectory = \"{}\"\ndomain_type = \"qemu\"\n",
            old.uri(),
            new.uri(),
            volumes.display()
        );
        let mut daemon = Daemon::configure(&dir, dir.join("warmd.sock"), &config)?;
        daemon.start()?;
        Ok(Self { daemon, old, new, volumes, dir })
    }

    fn cut_over(&mut self, number: usize, workload: Workload) -> Result<Run> {
        let name = format!("guest-{number}");
        let mut spec = GuestSpec::new(&name);
        spec.mac = format!("52:54:00:77:62:{:02x}", number % 256);
        (spec.churn_kib_s, spec.churn_mib) = (workload.churn_kib_s, workload.churn_mib);
        for disk in &mut spec.disks {
            disk.noise_mib = workload.noise_mib;
        }
        let guest = Guest::start(&self.old, &self.dir, &spec)?;
        let ctl = self.daemon.ctl();
        let plan = self.dir.join(format!("{name}.toml"));
        std::fs::write(&plan, plan_of(&name, workload.verify))?;
        ctl.text(&["plan", "apply", "-f", &plan.to_string_lossy()])?;
        let show = || ctl.json(&["migration", "show", &name]);
        let until = |state: &str| {
            wait_until(&format!("{name} to be {state}"), WORK, || {
                let view = show()?;
                ensure!(view["state"] != "failed", "it failed: {}", view["reason"]);
                Ok((view["state"] == state).then_some(view))
            })
        };
        until("synced")?;
        for _ in 0..workload.deltas {
            pass_time(Duration::from_secs(workload.apart_s))?;
            ctl.text(&["migration", "sync", &name])?;
        }
        pass_time(Duration::from_secs(workload.apart_s))?;

        let told = until("synced")?["forecast"].clone();
        let [low, expected, high] = ["downtime_low", "downtime_expected", "downtime_high"]
            .map(|key| seconds(&told[key]).with_context(|| format!("{key} of the forecast {told}")));
        let (low, expected, high) = (low?, expected?, high?);
        let locations = show()?["disks"][0]["location"].as_str().context("no location")?.to_owned();
        let home = Path::new(&locations).parent().context("no directory")?.to_owned();
        ensure!(home.starts_with(&self.volumes), "the target's disk is at {}", home.display());
        let watch = Silence::watch(guest.console.clone(), Console::new(home.join("console.log")))?;
        let out = ctl.outcome(&["migration", "cutover", &name, "--force"], WORK)?;
        ensure!(out.code == Some(0), "the cutover ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        let view = until("done")?;
        let measured = seconds(&view["cutover"]["downtime"])
            .with_context(|| format!("no downtime of the cutover {}", view["cutover"]))?;
        let silent = watch.end()?;
        self.clear(&home)?;
        let error = (measured - expected) / measured * 100.0;
        let is_inside = (low..=high).contains(&measured);
        Ok(Run { workload, low, expected, high, measured, silent, is_inside, error })
    }

    /// Ends the target's guest, so that the next run is alone on the machine.
    fn clear(&self, home: &Path) -> Result<()> {
        let names = self.new.virsh(["list", "--name"])?;
        for name in names.split_whitespace() {
            self.new.virsh(["destroy", name])?;
        }
        for entry in std::fs::read_dir(home)? {
            let path = entry?.path();
            if path.is_file() {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn plan_of(name: &str, verify: &str) -> String {
    format!(
        "name = \"{name}\"\nsource = \"old\"\ntarget = \"new\"\nvms = [\"{name}\"]\n\n[schedule]\ninterval = \"2h\"\n\n\
         [cutover]\ngraceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"2s\"\n\n[verify]\nmode = \"{verify}\"\n"
    )
}

/// Seconds of `"12.5s"`.
fn seconds(text: &Value) -> Option<f64> {
    text.as_str()?.strip_suffix('s')?.parse().ok()
}

fn pass_time(time: Duration) -> Result<()> {
    let begun = Instant::now();
    wait_until("time to pass", time + WORK, || Ok((begun.elapsed() >= time).then_some(())))
}

/// Measures when the source's guest writes its last line, and the target's guest its first.
struct Silence {
    over: Arc<AtomicBool>,
    watching: JoinHandle<Result<f64>>,
}

impl Silence {
    fn watch(source: Console, target: Console) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let watch = move || {
            let (mut heard, mut last) = (source.acked()?, Instant::now());
            loop {
                if target.acked()? > heard {
                    return Ok(last.elapsed().as_secs_f64());
                }
                let now = source.acked()?;
                if now > heard {
                    (heard, last) = (now, Instant::now());
                }
                ensure!(!is_over.load(Relaxed) || last.elapsed() < BOOT, "the target's guest is not heard");
                interrupt::check()?;
                std::thread::park_timeout(LOOK);
            }
        };
        let watching = std::thread::Builder::new().name("silence".to_owned()).spawn(watch)?;
        Ok(Self { over, watching })
    }

    /// How long neither guest wrote to its console, in seconds.
    fn end(self) -> Result<f64> {
        self.over.store(true, Relaxed);
        self.watching.join().map_err(|_| anyhow::anyhow!("the watcher of the consoles died"))?
    }
}
