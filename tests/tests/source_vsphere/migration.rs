//! Whole migrations from a vCenter to disks, by the real `warmd` and `warmctl`, and what gets in the way.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use warmd_tests::{
    Daemon, TestDir, VsphereRig, Warmctl, run, tool::ToolOutput, vsphere::NAME, vsphere::SOURCE, wait_until,
};

use super::bench::MIB;

pub(crate) const WORK: Duration = Duration::from_mins(3);
pub(crate) const SIZES: [u64; 2] = [48 * MIB, 10 * MIB + (24 << 10)];
pub(crate) const CUTOVER: &str = "graceful_shutdown = \"30s\"\nforce_power_off = false";

/// A VM on a vCenter, a target of disks, and a daemon between the two.
pub(crate) struct Move {
    // Dropped in this order: the daemon before the vCenter that it talks to.
    pub(crate) daemon: Daemon,
    pub(crate) rig: VsphereRig,
    pub(crate) plan: PathBuf,
}

impl Move {
    pub(crate) fn new(dir: &TestDir) -> Result<Self> {
        let rig = VsphereRig::start(dir, &SIZES, &["-max-areas", "4"])?;
        let here = dir.path().display();
        let disks = dir.join("disks");
        std::fs::create_dir_all(&disks)?;
        let config = format!(
            "state_dir = \"{here}/state\"\n[listen]\nsocket = \"{here}/api/warmd.sock\"\n\
             [engine]\nbuffers = 8\nchunk = \"64KiB\"\nbatch_bytes = \"1MiB\"\nbatch_time = \"100ms\"\n\
             {}[[target]]\nname = \"new\"\nkind = \"disk\"\ndirectory = \"{}\"\n",
            rig.config()?,
            disks.display()
        );
        let daemon = Daemon::configure(dir, dir.join("api/warmd.sock"), &config)?;
        let this = Self { daemon, rig, plan: dir.join("plan.toml") };
        this.write_plan(CUTOVER)?;
        Ok(this)
    }

    pub(crate) fn write_plan(&self, cutover: &str) -> Result<()> {
        let text = format!(
            "name = \"move\"\nsource = \"{SOURCE}\"\ntarget = \"new\"\nvms = [\"{NAME}\"]\n\n[schedule]\n\
             interval = \"1h\"\n\n[cutover]\n{cutover}\n\n[verify]\nmode = \"compare\"\n"
        );
        Ok(std::fs::write(&self.plan, text)?)
    }

    pub(crate) fn ctl(&self) -> Warmctl {
        self.daemon.ctl()
    }

    pub(crate) fn apply(&self) -> Result<()> {
        self.ctl().text(&["plan", "apply", "-f", &self.plan.to_string_lossy()]).map(drop)
    }

    pub(crate) fn verb(&self, verb: &str) -> Result<ToolOutput> {
        self.ctl().outcome(&["migration", verb, NAME], WORK)
    }

    /// The same; it must succeed.
    pub(crate) fn must(&self, verb: &str) -> Result<()> {
        let out = self.verb(verb)?;
        ensure!(out.code == Some(0), "{verb} ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
        Ok(())
    }

    pub(crate) fn show(&self) -> Result<Value> {
        self.ctl().json(&["migration", "show", NAME])
    }

    pub(crate) fn wait_for(&self, state: &str) -> Result<Value> {
        wait_until(&format!("the migration to be {state}"), WORK, || {
            let view = self.show()?;
            ensure!(view["state"] != "failed" || state == "failed", "it failed: {}", view["reason"]);
            Ok((view["state"] == state).then_some(view))
        })
    }

    pub(crate) fn report(&self) -> Result<Value> {
        let text = self.ctl().text(&["migration", "report", NAME, "--format", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The target's disks hold what the source's do.
    pub(crate) fn assert_equal(&self) -> Result<()> {
        let view = self.show()?;
        let disks = view["disks"].as_array().context("no disks")?;
        ensure!(disks.len() == SIZES.len(), "{} disks", disks.len());
        for (number, disk) in disks.iter().enumerate() {
            let copy = std::fs::read(disk["location"].as_str().context("no location")?)?;
            ensure!(copy == self.rig.contents(number)?, "disk {number} differs: {disk}");
        }
        Ok(())
    }

    pub(crate) fn power(&self) -> Result<String> {
        let machine = self.rig.machine()?;
        Ok(machine["power"].as_str().context("no power")?.to_owned())
    }
}

#[test]
fn a_running_vm_is_moved_by_a_full_pass_deltas_and_a_cutover() {
    run(|dir| {
        let mut this = Move::new(dir)?;
        this.daemon.start()?;
        let said = this.ctl().text(&["source", "check", SOURCE])?;
        ensure!(said.contains("vCenter") && said.contains("VDDK"), "{said}");
        let vms = this.ctl().text(&["source", "vms", SOURCE])?;
        ensure!(vms.contains(NAME), "{vms}");
        this.apply()?;
        this.wait_for("synced")?;
        ensure!(this.rig.snapshots()? == 0, "a snapshot is left between passes");
        this.assert_equal()?;
        for round in 0..2_u64 {
            for at in 0..12 {
                this.rig.write(0, at * 3_333_333, 70_000, 100 * (round + 1) + at)?;
            }
            this.rig.write(1, SIZES[1] - 100, 100, 7 + round)?;
            this.must("sync")?;
            this.wait_for("synced")?;
            this.assert_equal()?;
        }
        this.rig.write(0, 20 * MIB, 300_000, 31)?;
        this.rig.write(1, 0, 10_000, 0)?;
        this.must("cutover")?;
        ensure!(this.power()? == "poweredOff", "the source is {}", this.power()?);
        this.assert_equal()?;
        this.rig.assert_clean()?;
        ensure!(this.rig.machine()?["tracking_wanted"] == false, "tracking was off before, and is on");

        let report = this.report()?;
        ensure!(report["state"]["name"] == "done", "{}", report["state"]);
        let disks = report["verify_result"]["disks"].as_array().context("no result")?;
        ensure!(disks.len() == SIZES.len(), "{disks:?}");
        for disk in disks {
            ensure!(disk["mismatched_bytes"] == 0 && disk["checked"] != 0, "{disk}");
        }
        let passes = report["passes"].as_array().context("no passes")?;
        ensure!(passes.len() >= 5 && passes[0]["kind"] == "full", "{passes:?}");
        ensure!(passes.last().is_some_and(|pass| pass["kind"] == "final"), "{passes:?}");
        let whole: u64 = SIZES.iter().sum();
        for pass in &passes[1..] {
            let disks = pass["disks"].as_array().context("a pass without disks")?;
            let changed: u64 = disks.iter().filter_map(|disk| disk["changed"].as_u64()).sum();
            let unknown = disks.iter().any(|disk| !disk["unknown"].is_null());
            ensure!(!unknown && changed < whole / 4, "a delta of {changed}: {pass}");
        }
        // What is left on the VM says where it went.
        let vms = this.ctl().json(&["source", "vms", SOURCE, "--refresh"])?;
        ensure!(vms.to_string().contains("was moved to new"), "{vms}");
        ensure!(this.daemon.stop()?.code() == Some(0));
        Ok(())
    });
}

#[test]
fn a_daemon_that_is_killed_with_a_snapshot_open_goes_on() {
    run(|dir| {
        let mut this = Move::new(dir)?;
        this.daemon.start()?;
        this.apply()?;
        this.wait_for("synced")?;
        ensure!(this.daemon.stop()?.code() == Some(0));
        for point in ["snapshot.taken", "advance.committed", "commit.after", "snapshot.released"] {
            this.rig.write(0, 3 * MIB, 2 << 20, u64::from(point.as_bytes()[0]) + point.len() as u64)?;
            this.daemon.start_to_crash(point)?;
            if this.daemon.wait_for_socket_or_end()? {
                // It may die before it answers, and warmctl would wait for its return.
                this.ctl().outcome(&["migration", "sync", NAME], Duration::from_secs(5)).ok();
            }
            this.daemon.wait_for_crash(WORK).context(point)?;
            this.daemon.start()?;
            this.must("sync").context(point)?;
            this.wait_for("synced")?;
            this.assert_equal().context(point)?;
            ensure!(this.rig.snapshots()? == 0, "a snapshot is left after {point}");
            ensure!(this.daemon.stop()?.code() == Some(0));
        }
        this.rig.assert_clean()
    });
}

#[test]
fn guest_ignoring_shutdown_is_left_running_and_retried() {
    run(|dir| {
        let mut this = Move::new(dir)?;
        this.write_plan("graceful_shutdown = \"2s\"\nforce_power_off = false")?;
        this.daemon.start()?;
        this.apply()?;
        this.wait_for("synced")?;
        let deaf =
            |on: bool| this.rig.order("guest", &json!({"machine": NAME, "do": "ignores_shutdown", "on": on}));
        deaf(true)?;
        let out = this.verb("cutover")?;
        ensure!(out.code != Some(0), "it is moved: {}", out.stdout);
        this.wait_for("synced")?;
        ensure!(this.power()? == "poweredOn" && this.rig.snapshots()? == 0);
        let vms = this.ctl().json(&["source", "vms", SOURCE, "--refresh"])?;
        ensure!(!vms.to_string().contains("was moved to"), "it is still held off: {vms}");
        deaf(false)?;
        this.must("cutover")?;
        this.assert_equal()?;
        ensure!(this.power()? == "poweredOff");
        this.rig.assert_clean()
    });
}
