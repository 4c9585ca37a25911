//! What a running daemon reports about its passes: over HTTP, in `migration show` and in the report.
#![allow(clippy::float_cmp, reason = "counts are whole numbers")]

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warmd_tests::{Rig, RigSpec, run, scrape::scrape};

const MIB: f64 = (1 << 20) as f64;

#[test]
fn a_migration_tells_what_its_stages_did_also_after_a_crash() {
    run(|dir| {
        let mut rig = Rig::running(dir, &RigSpec::new("measured", 16))?;
        rig.daemon.start()?;
        rig.apply()?;
        rig.wait_for("synced")?;
        rig.verb("sync")?;

        let families = scrape(rig.daemon.metrics_address()?)?;
        let sum = |name: &str, suffix: &str, labels: &[(&str, &str)]| -> Result<f64> {
            let family = families.iter().find(|family| family.name == name);
            Ok(family.with_context(|| format!("no {name}"))?.sum(suffix, labels))
        };
        let ours = [("plan", "move"), ("vm", "measured")];
        for name in ["warmd_read_bytes", "warmd_written_bytes", "warmd_drained_bytes"] {
            let bytes = sum(name, "_total", &ours)?;
            ensure!(bytes >= 32.0 * MIB, "{name} is {bytes} for two disks of 16 MiB of noise");
        }
        ensure!(sum("warmd_passes", "_total", &[("kind", "full"), ("outcome", "drained")])? == 1.0);
        ensure!(sum("warmd_migrations", "", &[("state", "synced")])? == 1.0);
        ensure!(sum("process_resident_memory_bytes", "", &[])? > MIB);

        let before = rig.show()?;
        measured(&before)?;
        let text = rig.ctl().text(&["migration", "show", "measured", "--stages"])?;
        for word in ["STAGES of vda", "STAGES of vdb", "WAITED FOR IT", "CPU of all of warmd"] {
            ensure!(text.contains(word), "{word} is not in\n{text}");
        }
        rig.daemon.kill()?;
        rig.daemon.start()?;
        let after = rig.show()?;
        ensure!(after["pass"]["number"] == before["pass"]["number"], "another pass: {after:#}");
        ensure!(figures(&after)? == figures(&before)?, "forgotten: {after:#} was {before:#}");
        rig.cut_over_and_prove()?;
        let report = rig.report()?;
        for pass in report["passes"].as_array().context("a report without passes")? {
            for disk in pass["disks"].as_array().context("a pass without disks")? {
                ensure!(disk["telemetry"]["elapsed"].as_f64().is_some_and(|time| time > 0.0), "{disk:#}");
            }
        }
        Ok(())
    });
}

/// Each disk's stages moved what its figures say.
fn measured(view: &Value) -> Result<()> {
    for disk in view["pass"]["disks"].as_array().context("no disks")? {
        let stages =
            disk["telemetry"]["stages"].as_array().with_context(|| format!("no stages: {disk:#}"))?;
        for (stage, figure) in [("read", "read_bytes"), ("write", "written_bytes"), ("zero", "zeroed_bytes")]
        {
            let moved = stages
                .iter()
                .find(|view| view["stage"] == stage)
                .map_or(0, |view| view["bytes"].as_u64().unwrap_or_default());
            ensure!(Some(moved) == disk[figure].as_u64(), "{stage} moved {moved}: {disk:#}");
        }
    }
    Ok(())
}

/// What was counted in each stage of each disk, and how long it took; without times that are rounded again
/// when stored.
fn figures(view: &Value) -> Result<Vec<Vec<Value>>> {
    let disks = view["pass"]["disks"].as_array().context("no disks")?;
    let mut stages = Vec::new();
    for disk in disks {
        stages.extend(disk["telemetry"]["stages"].as_array().context("no stages")?);
    }
    let fields = ["stage", "bytes", "requests", "in_flight_max", "latency_p50", "latency_p99", "latency_max"];
    Ok(stages.iter().map(|stage| fields.map(|field| stage[field].clone()).to_vec()).collect())
}
