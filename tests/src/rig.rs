//! A guest on an old host, a new host for it, and warmd between the two: the setting of an end-to-end test.
//!
//! Rule: two private libvirtds stand for the hosts. The daemon is configured and not started, because each
//! test starts it in its own way. It commits often, so that a kill happens between commits.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    Console, Daemon, Guest, GuestSpec, Libvirtd, TestDir, Warmctl,
    demonstration::{check_log, target_console},
    guest::BOOT,
    tool::ToolOutput,
    wait_until,
};

/// Longest time that any operation on a test's disks may take, on a busy machine.
pub const WORK: Duration = Duration::from_mins(4);

/// The exit code of `warmctl` for wrong arguments.
const USAGE: i32 = 2;

/// The settings that a test can change.
#[derive(Debug, Clone)]
pub struct RigSpec {
    pub guest: GuestSpec,
    /// Lines of the plan's `[cutover]`.
    pub cutover: &'static str,
    /// The plan's `verify.mode`.
    pub verify: &'static str,
    /// The plan's `verify.audit`.
    pub audit: &'static str,
    /// The target's directory; created in the test's directory if absent.
    pub volumes: Option<PathBuf>,
    /// Other storages of the target, made in the test's own directory.
    pub storages: Vec<&'static str>,
    /// Other locations of the disks: the target then has kind `disk`, and creates no machine.
    pub places: Vec<(&'static str, String)>,
    /// Whether QEMU has a `/dev` of its own on the old host, as by libvirt's default.
    pub namespaces: bool,
    /// Environment variables of the daemon.
    pub env: Vec<(String, String)>,
}

impl RigSpec {
    /// A guest with this much random data on each of its two disks, with forced power-off and a full
    /// comparison.
    pub fn new(name: &str, noise_mib: u64) -> Self {
        let mut guest = GuestSpec::new(name);
        for disk in &mut guest.disks {
            disk.noise_mib = noise_mib;
        }
        let cutover = "graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"2s\"";
        let (audit, verify) = ("1%", "compare");
        let (storages, places, env) = (Vec::new(), Vec::new(), Vec::new());
        let (volumes, namespaces) = (None, false);
        Self { guest, cutover, verify, audit, volumes, storages, places, namespaces, env }
    }
}

/// Everything that a migration needs; removed when dropped.
#[derive(Debug)]
pub struct Rig {
    // Dropped in this order: the daemon before the hosts that it talks to.
    pub daemon: Daemon,
    pub guest: Guest,
    pub old: Libvirtd,
    pub new: Libvirtd,
    /// The target's directory.
    pub volumes: PathBuf,
    pub plan: PathBuf,
    cutover: &'static str,
    verify: &'static str,
    audit: &'static str,
    places: Vec<(&'static str, String)>,
}

/// The figures of a migration's passes, in bytes over all disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    pub kind: String,
    pub error: Option<String>,
    /// The source could not report the changes of some disk.
    pub unknown: bool,
    pub pending: u64,
    pub changed: u64,
    pub read: u64,
    pub written: u64,
    pub drained: u64,
}

impl Rig {
    /// The hosts, the guest running and writing, the daemon configured.
    pub fn running(dir: &TestDir, spec: &RigSpec) -> Result<Self> {
        let rig = Self::off(dir, spec)?;
        rig.guest.power_on(&rig.old)?;
        Ok(rig)
    }

    /// The same, with the guest defined and shut off.
    pub fn off(dir: &TestDir, spec: &RigSpec) -> Result<Self> {
        let old = if spec.namespaces {
            Libvirtd::start_with_namespaces(dir.join("old"))?
        } else {
            Libvirtd::start_at(dir.join("old"))?
        };
        let new = Libvirtd::start_at(dir.join("new"))?;
        let guest = Guest::define(&old, dir, &spec.guest)?;
        let volumes = spec.volumes.clone().unwrap_or_else(|| dir.join("volumes"));
        std::fs::create_dir_all(&volumes)?;
        let socket = dir.join("api/warmd.sock");
        let mut config = config(dir, &old, &new, &volumes, !spec.places.is_empty());
        if !spec.storages.is_empty() {
            config.push_str("[target.storages]\n");
        }
        for name in &spec.storages {
            let storage = dir.join(name);
            std::fs::create_dir_all(&storage)?;
            config.push_str(&[*name, " = \"", &storage.to_string_lossy(), "\"\n"].concat());
        }
        let daemon = Daemon::configure(dir, socket, &config)?.with_env(spec.env.clone());
        let plan = dir.join("plan.toml");
        let (cutover, verify, audit) = (spec.cutover, spec.verify, spec.audit);
        let places = spec.places.clone();
        let rig = Self { daemon, guest, old, new, volumes, plan, cutover, verify, audit, places };
        rig.write_plan(cutover)?;
        Ok(rig)
    }

    /// Writes the plan file again, with these lines of `[cutover]`.
    pub fn write_plan(&self, cutover: &str) -> Result<()> {
        let (name, mode, audit) = (&self.guest.name, self.verify, self.audit);
        let mut text = format!(
            "name = \"move\"\nsource = \"old\"\ntarget = \"new\"\nvms = [\"{name}\"]\n\n[schedule]\n\
             interval = \"1h\"\n\n[cutover]\n{cutover}\n\n[verify]\nmode = \"{mode}\"\naudit = \"{audit}\"\n"
        );
        if !self.places.is_empty() {
            let places = self.places.iter().map(|(key, place)| format!("{key} = \"{place}\"\n"));
            text.extend([format!("\n[vm.\"{name}\".disks]\n")].into_iter().chain(places));
        }
        Ok(std::fs::write(&self.plan, text)?)
    }

    pub fn apply(&self) -> Result<()> {
        self.ctl().text(&["plan", "apply", "-f", &self.plan.to_string_lossy()]).map(drop)
    }

    pub fn ctl(&self) -> Warmctl {
        self.daemon.ctl()
    }

    /// Runs `warmctl migration VERB GUEST …` to its end, with any exit code except that of an unknown
    /// command.
    pub fn try_verb(&self, verb: &str, more: &[&str]) -> Result<ToolOutput> {
        let args = [&["migration", verb, &self.guest.name], more].concat();
        let out = self.ctl().outcome(&args, WORK)?;
        ensure!(out.code != Some(USAGE), "{args:?}: {}", out.stderr);
        Ok(out)
    }

    /// The same; it must succeed.
    pub fn verb(&self, verb: &str) -> Result<()> {
        let out = self.try_verb(verb, &[])?;
        ensure!(out.code == Some(0), "{verb} ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        Ok(())
    }

    /// `migration show`.
    pub fn show(&self) -> Result<Value> {
        self.ctl().json(&["migration", "show", &self.guest.name])
    }

    /// Waits for a state and returns the migration; a failure on the way is an error.
    pub fn wait_for(&self, state: &str) -> Result<Value> {
        wait_until(&format!("the migration to be {state}"), WORK, || {
            let view = self.show()?;
            if view["state"] == state {
                return Ok(Some(view));
            }
            ensure!(view["state"] != "failed", "it failed: {}", view["reason"]);
            Ok(None)
        })
    }

    /// Waits until the pass of that number has committed this many bytes, and leaves the daemon frozen in it.
    fn freeze_in_pass(&self, number: u64, bytes: u64) -> Result<()> {
        wait_until(&format!("{bytes} bytes of pass {number}"), WORK, || {
            let view = self.show()?;
            ensure!(view["state"] != "failed" && view["state"] != "synced", "too late: {view}");
            let disks = view["disks"].as_array().context("no disks")?;
            let drained: u64 = disks.iter().filter_map(|disk| disk["pass_drained_bytes"].as_u64()).sum();
            Ok((view["pass"]["number"] == number && drained >= bytes).then_some(()))
        })?;
        self.daemon.freeze()
    }

    /// Begins, and leaves the daemon frozen in the full pass once it has committed this many bytes.
    pub fn freeze(&mut self, bytes: u64) -> Result<()> {
        self.begin_slowly()?;
        self.freeze_in_pass(1, bytes)
    }

    /// Starts the daemon and applies the plan, with a limit so that the full pass does not finish before a
    /// test looks at it, on a busy machine too.
    pub fn begin_slowly(&mut self) -> Result<()> {
        self.write_plan(&format!("{}\n[limits]\nrate = \"6MiB/s\"", self.cutover))?;
        self.daemon.start()?;
        self.apply()?;
        self.write_plan(self.cutover)
    }

    /// Lets it continue without a limit.
    pub fn thaw(&self) -> Result<()> {
        self.daemon.thaw()?;
        self.lift()
    }

    /// Removes the limit that makes a pass slow enough to be frozen.
    pub fn lift(&self) -> Result<()> {
        let scope = format!("migration/{}", self.guest.name);
        self.ctl().text(&["limit", "set", &scope, "--rate", "none"]).map(drop)
    }

    /// Where the target's disks are, in the guest's order.
    pub fn locations(&self) -> Result<Vec<PathBuf>> {
        let view = self.show()?;
        let disks = view["disks"].as_array().context("no disks")?;
        disks.iter().map(|disk| Ok(disk["location"].as_str().context("no location")?.into())).collect()
    }

    /// Starts the daemon to die at that point; `request` leads there, where a request is needed.
    pub fn crash(&mut self, point: &str, request: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        self.daemon.start_to_crash(point)?;
        // It may die before it answers.
        let asked = if self.daemon.wait_for_socket_or_end()? { request(self) } else { Ok(()) };
        self.daemon.wait_for_crash(WORK).with_context(|| format!("at {point}; asked: {asked:?}"))?;
        self.assert_one_runs().with_context(|| format!("after the crash at {point}"))
    }

    /// Checks that not both VMs run.
    pub fn assert_one_runs(&self) -> Result<()> {
        let running = |host: &Libvirtd| host.virsh(["list", "--state-running", "--name"]);
        let (old, new) = (running(&self.old)?, running(&self.new)?);
        ensure!(old.trim().is_empty() || new.trim().is_empty(), "the guest runs twice: {old:?} and {new:?}");
        Ok(())
    }

    /// The report in JSON.
    pub fn report(&self) -> Result<Value> {
        let text = self.ctl().text(&["migration", "report", &self.guest.name, "--format", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// All passes, the first one first.
    pub fn passes(&self) -> Result<Vec<Pass>> {
        let report = self.report()?;
        let passes = report["passes"].as_array().context("a report without passes")?;
        passes.iter().map(pass).collect()
    }

    /// Whether the target creates machines, and is not of kind `disk`.
    pub fn makes_machines(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes that the guest's images occupy on the old host.
    pub fn data(&self) -> Result<u64> {
        self.guest.disks.iter().map(|disk| Ok(std::fs::metadata(disk)?.blocks() * 512)).sum()
    }

    /// Cuts over, and proves that nothing was lost.
    pub fn cut_over_and_prove(&self) -> Result<()> {
        self.verb("cutover")?;
        self.assert_moved()
    }

    /// The migration is done and verified, the source is off, and the target continues at the record that the
    /// source acknowledged last.
    pub fn assert_moved(&self) -> Result<()> {
        let last = self.guest.console.acked()?;
        let state = self.guest.state(&self.old)?;
        ensure!(state == "shut off", "the source guest is {state:?}");
        let report = self.report()?;
        ensure!(report["state"]["name"] == "done", "the report says {}", report["state"]);
        let disks = report["verify_result"]["disks"].as_array().context("a report without a result")?;
        for disk in disks {
            ensure!(disk["mismatched_bytes"] == 0 && disk["checked"] != 0, "bad result: {disk}");
        }
        ensure!(disks.len() == self.guest.disks.len(), "the result is of {} disks", disks.len());
        let console = self.target_console()?;
        check_log(&console, last, BOOT)?;
        self.assert_one_runs()
    }

    pub fn target_console(&self) -> Result<Console> {
        target_console(&self.volumes, BOOT)
    }

    /// Checks that no disk of the target has overlays left.
    pub fn assert_no_overlays(&self) -> Result<()> {
        for disk in self.locations()? {
            let left = disk.parent().context("no folder")?.join("conversion");
            ensure!(!left.exists(), "{} was left", left.display());
        }
        Ok(())
    }
}

/// A pass never copies drained blocks again: it copies only pending blocks and reported changes.
pub fn assert_nothing_twice(passes: &[Pass]) -> Result<()> {
    ensure!(passes.len() >= 2, "only {} passes: nothing was interrupted", passes.len());
    let whole = passes.first().map_or(0, |pass| pass.pending);
    for (earlier, later) in passes.iter().zip(passes.iter().skip(1)) {
        let most = earlier.pending.saturating_sub(earlier.drained) + later.changed;
        // A ledger without its anchor would treat the whole disk as changed.
        ensure!(!later.unknown && later.changed < whole / 2, "all is new: {passes:#?}");
        ensure!(later.pending <= most, "a pass began with more than {most} bytes: {passes:#?}");
    }
    Ok(())
}

fn pass(view: &Value) -> Result<Pass> {
    let disks = view["disks"].as_array().context("a pass without disks")?;
    let sum = |of: &dyn Fn(&Value) -> &Value| -> Result<u64> {
        disks.iter().map(|disk| of(disk).as_u64().context("a pass without figures")).sum()
    };
    let Some(kind) = view["kind"].as_str() else { bail!("a pass without kind: {view}") };
    Ok(Pass {
        kind: kind.to_owned(),
        error: view["error"].as_str().map(str::to_owned),
        unknown: disks.iter().any(|disk| !disk["unknown"].is_null()),
        pending: sum(&|disk| &disk["pending"])?,
        changed: sum(&|disk| &disk["changed"])?,
        read: sum(&|disk| &disk["figures"]["read"])?,
        written: sum(&|disk| &disk["figures"]["written"])?,
        drained: sum(&|disk| &disk["figures"]["drained"])?,
    })
}

fn config(dir: &TestDir, old: &Libvirtd, new: &Libvirtd, volumes: &Path, disks_alone: bool) -> String {
    let here = dir.path().display();
    let target = if disks_alone {
        "kind = \"disk\"\n".to_owned()
    } else {
        format!("kind = \"libvirt\"\nuri = \"{}\"\ndomain_type = \"qemu\"\n", new.uri())
    };
    format!(
        "state_dir = \"{here}/state\"\n\n[listen]\nsocket = \"{here}/api/warmd.sock\"\n\n\
         [metrics]\nlisten = \"127.0.0.1:0\"\n\n[engine]\nbuffers = 8\nchunk = \"64KiB\"\nreads_in_flight = 2\nwrites_in_flight = 2\n\
         batch_bytes = \"1MiB\"\nbatch_time = \"100ms\"\n\n\
         [[source]]\nname = \"old\"\nkind = \"libvirt\"\nuri = \"{}\"\nruntime_dir = \"{here}/run\"\n\
         scratch_dir = \"{here}/scratch\"\nscratch_reserve_mib = 64\n\n\
         [[target]]\nname = \"new\"\ndirectory = \"{}\"\n{target}",
        old.uri(),
        volumes.display()
    )
}
