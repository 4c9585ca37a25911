//! The demo of the main job: a VM that writes all the time is moved from one libvirt to another without a
//! loss.
//!
//! Two private libvirtds stand for two hosts. The guest keeps a log of numbered, checksummed records, and
//! acknowledges each on its serial console once it is on its disk: every acknowledged record must be on the
//! target.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warmd_tests::{
    Daemon, Guest, GuestSpec, Libvirtd, TestDir,
    demonstration::{self, check_log, say, show, target_console, wait_synced},
};

const MINUTE: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    demonstration::run("demo", demo)
}

fn demo(dir: &TestDir) -> Result<()> {
    say("two hosts, each with a libvirtd of its own; on the first a guest that writes all the time");
    let old = Libvirtd::start_at(dir.join("old"))?;
    let new = Libvirtd::start_at(dir.join("new"))?;
    let mut spec = GuestSpec::new("shop");
    spec.churn_kib_s = 512;
    for disk in &mut spec.disks {
        disk.noise_mib = 48;
    }
    let guest = Guest::start(&old, dir, &spec)?;
    let acked = guest.console.wait_for_acked(20, 3 * MINUTE)?;
    println!("guest {} runs; {acked} records acknowledged so far", guest.name);

    say("warmd serve");
    let volumes = dir.join("volumes");
    std::fs::create_dir(&volumes)?;
    let mut daemon = Daemon::configure(dir, dir.join("warmd.sock"), &config(dir, &old, &new, &volumes))?;
    daemon.start()?;
    let ctl = daemon.ctl();
    show(&ctl, 10 * MINUTE, &["source", "vms", "old"])?;

    say("warmctl plan apply -f plan.toml");
    let plan = dir.join("plan.toml");
    std::fs::write(&plan, PLAN)?;
    print!("{PLAN}");
    show(&ctl, 10 * MINUTE, &["plan", "apply", "-f", &plan.to_string_lossy()])?;
    wait_synced(&ctl, "shop", 5 * MINUTE)?;
    show(&ctl, 10 * MINUTE, &["migration", "list"])?;

    say("two deltas, while the guest goes on writing");
    for more in [30, 60] {
        guest.console.wait_for_acked(acked + more, 3 * MINUTE)?;
        show(&ctl, 10 * MINUTE, &["migration", "sync", "shop"])?;
    }

    say("warmctl migration cutover shop");
    show(&ctl, 10 * MINUTE, &["migration", "cutover", "shop"])?;
    let last = guest.console.acked()?;
    let state = guest.state(&old)?;
    ensure!(state == "shut off", "the source guest is {state:?} after the cutover");
    println!("the source is off; the last record that it acknowledged is {last}");

    say("the target guest, booted from the copied disks");
    let console = target_console(&volumes, MINUTE)?;
    let found = check_log(&console, last, 3 * MINUTE)?;
    println!("its log is complete up to record {found}: nothing that was acknowledged is lost");
    let on = console.wait_for_acked(found + 10, 3 * MINUTE)?;
    println!("it goes on counting: record {on} is acknowledged by the target guest");

    say("warmctl migration report shop --format markdown");
    show(&ctl, 10 * MINUTE, &["migration", "report", "shop", "--format", "markdown"])?;
    let report: Value =
        serde_json::from_str(&ctl.text(&["migration", "report", "shop", "--format", "json"])?)?;
    let passes = report["passes"].as_array().map_or(0, Vec::len);
    ensure!(passes >= 3, "only {passes} passes are in the report");
    let downtime = report["downtime"].as_f64().context("the report has no downtime")?;
    say(&format!(
        "moved in {passes} passes with {downtime:.1} s of downtime, no record lost: the demo PASSED"
    ));
    daemon.stop()?;
    Ok(())
}

const PLAN: &str = r#"name = "shop"
source = "old"
target = "new"
vms = ["shop"]

[schedule]
interval = "10m"

[cutover]
graceful_shutdown = "1m"
force_power_off = true
min_uptime = "5s"

[verify]
mode = "compare"
"#;

fn config(dir: &TestDir, old: &Libvirtd, new: &Libvirtd, volumes: &Path) -> String {
    let here = dir.path().display();
    format!(
        "state_dir = \"{here}/state\"\n\n[listen]\nsocket = \"{here}/warmd.sock\"\n\n\
         [[source]]\nname = \"old\"\nkind = \"libvirt\"\nuri = \"{}\"\nruntime_dir = \"{here}/run\"\nscratch_dir = \"{here}/scratch\"\nscratch_reserve_mib = 64\n\n\
         [[target]]\nname = \"new\"\nkind = \"libvirt\"\nuri = \"{}\"\ndirectory = \"{}\"\ndomain_type = \"qemu\"\n",
        old.uri(),
        new.uri(),
        volumes.display()
    )
}
