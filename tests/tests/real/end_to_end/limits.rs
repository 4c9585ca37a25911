//! Limits through the real programs: invalid, set, shown, kept, and removed during a pass.

use std::{fs, process::Command};

use anyhow::ensure;
use warmd_tests::{Daemon, Rig, RigSpec, daemon::program, rig::WORK, run, tool, wait_until};

#[test]
fn wrong_limits_are_told_by_their_place() {
    run(|dir| {
        let here = dir.path().display();
        let good = format!(
            "state_dir = \"{here}/state\"\n[listen]\nsocket = \"{here}/warmd.sock\"\n[limits]\nrate = \"100MiB/s\"\n\
             [[source]]\nname = \"old\"\nkind = \"libvirt\"\nuri = \"qemu:///system?socket={here}/none\"\n\
             runtime_dir = \"{here}/run\"\nscratch_dir = \"{here}/scratch\"\nlimits = {{ requests = 4 }}\n\
             [[target]]\nname = \"new\"\nkind = \"disk\"\ndirectory = \"{here}\"\n\
             limits = {{ rate = \"30MiB/s\", requests = 9 }}\n"
        );
        let path = dir.join("bad.toml");
        for (old, new, wanted) in [
            ("\"100MiB/s\"", "\"100MB/s\"", ":5:8: \"100MB/s\" is no rate"),
            ("\"100MiB/s\"", "0", ":5:8: a rate of nothing would stop everything"),
            ("requests = 4", "requests = 0", ":12:23: no requests at all would stop everything"),
            ("requests = 4", "request = 4", ":12:12: unknown key `request`"),
        ] {
            fs::write(&path, good.replace(old, new))?;
            let mut warmd = Command::new(program("warmd")?);
            let out = tool::outcome(warmd.arg("check-config").arg("--config").arg(&path), tool::DEADLINE)?;
            ensure!(out.code == Some(2), "{new}: ended with {:?}: {}", out.code, out.stderr);
            ensure!(out.stderr.contains(wanted), "{new}: it does not say {wanted:?}: {}", out.stderr);
        }

        let mut daemon = Daemon::configure(dir, dir.join("warmd.sock"), &good)?;
        daemon.start()?;
        let plan = dir.join("plan.toml");
        fs::write(
            &plan,
            "name = \"move\"\nsource = \"old\"\ntarget = \"new\"\nvms = [\"shop\"]\n[limits]\ndisk_rate = \"fast\"\n",
        )?;
        let told = daemon.ctl().refusal(&["plan", "apply", "-f", &plan.to_string_lossy()])?;
        ensure!(told.contains("plan.toml:6:13: \"fast\" is no rate"), "{told}");
        for (args, code, wanted) in [
            (&["limit", "set", "source/older", "--rate", "1MiB/s"][..], 4, "which has old"),
            (&["limit", "set", "migration/shop", "--requests", "1"], 4, "no migration \"shop\""),
            (&["limit", "set", "all", "--requests", "1"], 5, "use global, source/NAME"),
            (&["limit", "set", "global"], 2, "--reset"),
            (&["limit", "set", "global", "--rate", "5"], 2, "\"5\" is no rate"),
        ] {
            let out = daemon.ctl().outcome(args, tool::DEADLINE)?;
            ensure!(out.code == Some(code), "{args:?} ended with {:?}: {}", out.code, out.stderr);
            ensure!(out.stderr.contains(wanted), "{args:?} does not say {wanted:?}: {}", out.stderr);
        }
        let limits = daemon.ctl().json(&["limit", "show"])?;
        let rate = limits["limits"][0]["rate_bytes_per_second"].as_u64();
        ensure!(rate == Some(100 << 20) && limits["limits"][1]["requests"] == 4, "{limits}");
        ensure!(limits["limits"][0]["set_by"].is_null(), "something was set: {limits}");
        let target = &limits["limits"][2];
        ensure!(target["rate_bytes_per_second"] == 30 << 20 && target["requests"] == 9, "{limits}");

        // A restart does not replace the limit; a changed configuration does.
        daemon.ctl().text(&["limit", "set", "global", "--rate", "5MiB/s", "--requests", "7"])?;
        daemon.ctl().text(&["limit", "set", "source/old", "--requests", "none"])?;
        daemon.stop()?;
        daemon.start()?;
        let limits = daemon.ctl().json(&["limit", "show"])?;
        let global = &limits["limits"][0];
        ensure!(global["rate_bytes_per_second"] == 5 << 20 && global["requests"] == 7, "not kept: {global}");
        let by = global["set_by"].as_str().unwrap_or_default();
        ensure!(by.starts_with("operator uid="), "nobody set it: {global}");
        ensure!(limits["limits"][1]["requests"].is_null(), "not kept: {limits}");
        daemon.stop()?;
        fs::write(daemon.config(), good.replace("100MiB/s", "90MiB/s"))?;
        daemon.start()?;
        let limits = daemon.ctl().json(&["limit", "show", "global"])?;
        let global = &limits["limits"][0];
        ensure!(global["rate_bytes_per_second"] == 90 << 20 && global["requests"].is_null(), "{global}");
        let events = daemon.ctl().text(&["events"])?;
        for wanted in [
            "limit of global set to 5MiB/s, 7 requests (was 100MiB/s)",
            "is 90MiB/s now: the configuration says so",
        ] {
            ensure!(events.contains(wanted), "no line {wanted:?}: {events}");
        }
        daemon.stop().map(drop)
    });
}

#[test]
fn a_real_pass_keeps_to_its_limit_until_that_is_lifted() {
    run(|dir| {
        let mut rig = Rig::off(dir, &RigSpec::new("held", 64))?;
        // The pass would take longer than any deadline here.
        rig.write_plan("min_uptime = \"2s\"\n[limits]\nrate = \"256KiB/s\"\ndisk_requests = 2")?;
        rig.daemon.start()?;
        rig.apply()?;
        let scope = format!("migration/{}", rig.guest.name);
        let state =
            || Ok::<_, anyhow::Error>(rig.ctl().json(&["limit", "show", &scope])?["limits"][0].clone());
        let held = wait_until("the pass to come up against its limit", WORK, || {
            let state = state()?;
            let now = state["now_bytes_per_second"].as_f64().unwrap_or_default();
            // The rate covers the last five seconds, in which one more request of 64 KiB may have passed.
            ensure!(now < 275.0 * 1024.0 + 16.0 * 1024.0, "faster than its limit: {state}");
            Ok((now > 240.0 * 1024.0 && state["waiting"] == 2).then_some(state))
        })?;
        ensure!(held["rate_bytes_per_second"] == 256 << 10, "{held}");
        println!("{}", rig.ctl().text(&["limit", "show"])?);
        rig.ctl().text(&["limit", "set", &scope, "--rate", "none"])?;
        rig.wait_for("synced")?;
        let idle = state()?;
        ensure!(idle["in_flight"] == 0 && idle["waiting"] == 0, "{idle}");
        rig.verb("verify")
    });
}
