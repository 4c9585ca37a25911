//! Whole migrations of VMs that are off, not tracked, moved between hosts, or beside snapshots of others.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use warmd_tests::{run, vsphere::NAME, vsphere::SOURCE, wait_until};

use super::{
    bench::MIB,
    migration::{CUTOVER, Move, SIZES, WORK},
};

/// A figure of all disks in these passes, together.
fn figure(passes: &[Value], name: &str) -> Result<u64> {
    let mut sum = 0;
    for pass in passes {
        for disk in pass["disks"].as_array().context("a pass without disks")? {
            sum += disk["figures"][name].as_u64().with_context(|| format!("no {name}: {disk}"))?;
        }
    }
    Ok(sum)
}

fn passes(this: &Move) -> Result<Vec<Value>> {
    let report = this.report()?;
    ensure!(report["state"]["name"] == "done", "{}", report["state"]);
    for disk in report["verify_result"]["disks"].as_array().context("no result")? {
        ensure!(disk["mismatched_bytes"] == 0 && disk["checked"] != 0, "{disk}");
    }
    Ok(report["passes"].as_array().context("no passes")?.clone())
}

#[test]
fn a_vm_that_is_off_is_moved_by_one_full_pass() {
    run(|dir| {
        let mut this = Move::new(dir)?;
        this.rig.order("power", &json!({"machine": NAME, "do": "off"}))?;
        this.daemon.start()?;
        this.apply()?;
        this.wait_for("synced")?;
        this.must("cutover")?;
        this.assert_equal()?;
        ensure!(this.power()? == "poweredOff");
        this.rig.assert_clean()?;
        let passes = passes(&this)?;
        ensure!(passes[0]["kind"] == "full", "{passes:?}");
        let (first, later) = passes.split_at(1);
        let whole: u64 = SIZES.iter().sum();
        // Holes are not read.
        let (full, again) = (figure(first, "drained")?, figure(later, "drained")?);
        ensure!(full == whole && again == 0, "{full} and {again}: {passes:?}");
        Ok(())
    });
}

#[test]
fn a_vm_without_tracking_is_moved_by_comparison() {
    run(|dir| {
        let mut this = Move::new(dir)?;
        this.write_plan(&format!("{CUTOVER}\n\n[snapshots]\nenable_change_tracking = false"))?;
        this.daemon.start()?;
        let found = this.ctl().text(&["plan", "validate", "-f", &this.plan.to_string_lossy()])?;
        ensure!(found.contains("tracking-unavailable"), "{found}");
        this.apply()?;
        this.wait_for("synced")?;
        this.rig.write(0, 20 * MIB, 300_000, 31)?;
        this.must("sync")?;
        this.wait_for("synced")?;
        this.assert_equal()?;
        this.rig.write(1, 4 * MIB, 100_000, 32)?;
        this.must("cutover")?;
        this.assert_equal()?;
        this.rig.assert_clean()?;
        ensure!(this.rig.machine()?["tracking_wanted"] == false, "the plan allows no tracking");
        let passes = passes(&this)?;
        let later = &passes[1..];
        for pass in later {
            let disks = pass["disks"].as_array().context("a pass without disks")?;
            ensure!(disks.iter().all(|disk| !disk["unknown"].is_null()), "{pass}");
        }
        // All of it is compared, and only what differs is sent.
        let (drained, written) = (figure(later, "drained")?, figure(later, "written")?);
        let whole: u64 = SIZES.iter().sum();
        ensure!(drained >= whole && written < 2 * MIB, "{drained} compared, {written} written");
        Ok(())
    });
}

#[test]
fn a_plan_is_refused_while_others_have_snapshots() {
    run(|dir| {
        let mut this = Move::new(dir)?;
        this.daemon.start()?;
        let other = this.rig.order("snapshot", &json!({"machine": NAME, "name": "Backup"}))?;
        let plan = this.plan.to_string_lossy().into_owned();
        let out = this.ctl().outcome(&["plan", "apply", "-f", &plan], WORK)?;
        let said = format!("{}{}", out.stdout, out.stderr);
        ensure!(out.code != Some(0) && said.contains("foreign-snapshots"), "{said}");
        ensure!(said.contains("Backup"), "{said}");
        this.rig.order("remove", &json!({"machine": NAME, "snapshot": other["snapshot"]}))?;
        this.apply()?;
        this.wait_for("synced")?;
        this.assert_equal()?;
        this.rig.assert_clean()
    });
}

#[test]
fn moved_vm_counts_at_its_new_host_and_snapshots_are_measured() {
    run(|dir| {
        let mut this = Move::new(dir)?;
        this.daemon.start()?;
        this.apply()?;
        this.wait_for("synced")?;
        let quotas = || this.ctl().text(&["limit", "quotas"]);
        let host = |number: u8| format!("host/{SOURCE}:DC0_C0_H{number}");
        let before = quotas()?;
        ensure!(before.contains(&host(0)) && !before.contains(&host(1)), "{before}");
        this.rig.order("move", &json!({"machine": NAME, "host": "DC0_C0_H1"}))?;
        this.must("sync")?;
        this.wait_for("synced")?;
        let after = quotas()?;
        ensure!(after.contains(&host(1)), "{after}");
        this.assert_equal()?;
        let report = this.report()?;
        for pass in report["passes"].as_array().context("no passes")? {
            let cost = &pass["snapshot"];
            let (made, removed) = (cost["made"].as_f64(), cost["removed"].as_f64());
            ensure!(made.is_some_and(|made| made > 0.0) && removed.is_some_and(|it| it > 0.0), "{pass}");
        }
        let text = this.ctl().text(&["migration", "report", NAME, "--format", "markdown"])?;
        ensure!(text.contains("snapshot made in"), "{text}");
        let text = this.ctl().text(&["migration", "show", NAME])?;
        ensure!(text.contains("snapshot made in"), "{text}");
        Ok(())
    });
}

#[test]
fn a_library_that_is_gone_ends_the_pass_and_leaves_no_snapshot() {
    run(|dir| {
        let mut this = Move::new(dir)?;
        this.daemon.start()?;
        this.apply()?;
        this.wait_for("synced")?;
        let library = Path::new(this.rig.place("libdir")?).join("lib64/libvixDiskLib.so.8");
        let away = library.with_extension("away");
        std::fs::rename(&library, &away)?;
        this.rig.write(0, 7 * MIB, 100_000, 51)?;
        this.verb("sync").ok();
        wait_until("the reason to be shown", WORK, || {
            let text = this.ctl().text(&["migration", "show", NAME])?;
            Ok(text.contains("libvixDiskLib").then_some(()))
        })?;
        wait_until("the snapshot to be gone", WORK, || Ok((this.rig.snapshots()? == 0).then_some(())))?;
        std::fs::rename(&away, &library)?;
        wait_until("the migration to go on", WORK, || {
            this.verb("resume").ok();
            this.verb("sync").ok();
            Ok((this.show()?["state"] == "synced" && this.assert_equal().is_ok()).then_some(()))
        })?;
        this.rig.assert_clean()
    });
}
