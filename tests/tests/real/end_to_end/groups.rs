//! Two guests that move together: the failure of one undoes the other, which continues to write on its old
//! host; then tier by tier, and no acknowledged record is lost.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warmd_tests::{
    Console, Guest, GuestSpec, Libvirtd, Rig, RigSpec, guest::BOOT, rig::WORK, run, wait_until,
};

const MIB: u64 = 8;

/// A guest beside the rig's guest `db`, which it needs.
struct Pair {
    rig: Rig,
    web: Guest,
    plan: PathBuf,
}

impl Pair {
    fn running(dir: &warmd_tests::TestDir) -> Result<Self> {
        let mut spec = RigSpec::new("db", MIB);
        spec.guest.disks.truncate(1);
        let rig = Rig::running(dir, &spec)?;
        let mut web = GuestSpec { mac: "52:54:00:77:61:02".to_owned(), ..spec.guest.clone() };
        "web".clone_into(&mut web.name);
        let web = Guest::start(&rig.old, dir, &web)?;
        let plan = dir.join("shop.toml");
        Ok(Self { rig, web, plan })
    }

    fn apply(&self, more: &str) -> Result<()> {
        let text = format!(
            "name = \"shop\"\nsource = \"old\"\ntarget = \"new\"\nvms = [\"db\", \"web\"]\n[schedule]\nevery = \"1h\"\n\
             [verify]\nmode = \"compare\"\n[cutover]\ngraceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"3s\"\n{more}"
        );
        std::fs::write(&self.plan, text)?;
        self.rig.ctl().text(&["plan", "apply", "-f", &self.plan.to_string_lossy()]).map(drop)
    }

    fn show(&self, vm: &str) -> Result<Value> {
        self.rig.ctl().json(&["migration", "show", vm])
    }

    fn wait_for(&self, vm: &str, state: &str) -> Result<()> {
        wait_until(&format!("{vm} to be {state}"), WORK, || {
            Ok((self.show(vm)?["state"] == state).then_some(()))
        })
    }

    /// Neither of them runs on both hosts.
    fn assert_one_of_each_runs(&self) -> Result<()> {
        let running = |host: &Libvirtd| host.virsh(["list", "--state-running", "--name"]);
        let (old, new) = (running(&self.rig.old)?, running(&self.rig.new)?);
        let twice = old.split_whitespace().find(|vm| new.split_whitespace().any(|other| other == *vm));
        ensure!(twice.is_none(), "{twice:?} runs twice");
        Ok(())
    }

    /// The target guest's log holds all that the source guest acknowledged, and the source is off.
    fn assert_moved(&self, guest: &Guest) -> Result<()> {
        let last = guest.console.acked()?;
        ensure!(guest.state(&self.rig.old)? == "shut off", "{} runs on its old host", guest.name);
        let view = self.show(&guest.name)?;
        let volume = view["disks"][0]["location"].as_str().context("no location")?;
        let log = Path::new(volume).parent().context("no folder")?.join("console.log");
        let boot = Console::new(log).wait_for_boot(1, BOOT)?;
        let found = boot.log.context("the target guest did not look at its log")?;
        let found = found.map_err(|bad| anyhow::anyhow!("the log of {} is broken: {bad}", guest.name))?;
        ensure!(found >= last, "the log of {} ends at {found}, and {last} was acknowledged", guest.name);
        Ok(())
    }
}

/// When a phase of the last cutover began, and when it ended.
fn phase(view: &Value, name: &str) -> Result<(String, String)> {
    let phases = view["cutover"]["phases"].as_array().context("no phases")?;
    let run = phases.iter().find(|run| run["phase"] == name).with_context(|| format!("no {name}"))?;
    let at = |key: &str| run[key].as_str().map(str::to_owned).with_context(|| format!("{name} has no {key}"));
    Ok((at("started")?, at("ended")?))
}

#[test]
fn two_guests_move_together_or_not_at_all() {
    run(|dir| {
        let mut pair = Pair::running(dir)?;
        let hook = dir.join("hook");
        std::fs::write(
            &hook,
            "#!/bin/sh\ngrep -q '\"target_name\":\"web\"' && { echo the cache is cold; exit 1; }\nexit 0\n",
        )?;
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
        pair.rig.daemon.start()?;
        let hooks = format!(
            "all_or_nothing = true\n[[hooks]]\nphase = \"verify\"\nwhen = \"after\"\ncommand = [{:?}]\n",
            hook.to_string_lossy()
        );
        pair.apply(&hooks)?;
        pair.wait_for("db", "synced")?;
        pair.wait_for("web", "synced")?;

        let out = pair.rig.ctl().outcome(&["plan", "cutover", "shop"], WORK)?;
        ensure!(out.code == Some(1) && out.stderr.contains("VM web: "), "{out:?}");
        for guest in [&pair.rig.guest, &pair.web] {
            pair.wait_for(&guest.name, "synced")?;
            ensure!(guest.state(&pair.rig.old)? == "running", "{} is not back", guest.name);
            let acked = guest.console.acked()?;
            guest.console.wait_for_acked(acked + 5, BOOT)?;
        }
        ensure!(pair.rig.new.virsh(["list", "--all", "--name"])?.trim().is_empty(), "a target VM is left");
        let full = |vm| Ok::<_, anyhow::Error>(pair.show(vm)?["pass"]["kind"] == "full");
        ensure!(!full("db")? && !full("web")?, "copied whole again");

        pair.apply("[[cutover.tiers]]\nvms = [\"db\"]\n[[cutover.tiers]]\nvms = [\"*\"]\n")?;
        let alone = pair.rig.ctl().outcome(&["migration", "cutover", "web"], WORK)?;
        ensure!(alone.code == Some(5) && alone.stderr.contains("plan cutover shop"), "{alone:?}");
        let out = pair.rig.ctl().outcome(&["plan", "cutover", "shop"], WORK)?;
        ensure!(out.code == Some(0), "{out:?}");
        println!("{}", out.stdout);
        pair.assert_one_of_each_runs()?;
        pair.wait_for("web", "done")?;
        let (db, web) = (pair.show("db")?, pair.show("web")?);
        ensure!(
            phase(&web, "catch-up-delta")?.0 >= phase(&db, "boot-check")?.1,
            "tier 2 began before tier 1 was up"
        );
        for guest in [&pair.rig.guest, &pair.web] {
            pair.assert_moved(guest)?;
        }
        println!("{}", pair.rig.ctl().text(&["plan", "show", "shop"])?);
        Ok(())
    });
}

#[test]
fn the_daemon_dies_while_one_waits_at_the_barrier() {
    run(|dir| {
        let mut pair = Pair::running(dir)?;
        // The second guest takes long to stop: the first waits for it, off.
        let slow = dir.join("hook");
        std::fs::write(&slow, "#!/bin/sh\ngrep -q '\"target_name\":\"web\"' && sleep 20\nexit 0\n")?;
        std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755))?;
        pair.rig.daemon.start()?;
        pair.apply(&format!(
            "all_or_nothing = true\n[[hooks]]\nphase = \"stop-source\"\nwhen = \"before\"\ncommand = [{:?}]\n",
            slow.to_string_lossy()
        ))?;
        pair.wait_for("db", "synced")?;
        pair.wait_for("web", "synced")?;
        pair.rig.ctl().text(&["plan", "cutover", "shop", "--no-wait"])?;
        wait_until("db to stand at the barrier", WORK, || {
            let progress = pair.show("db")?["cutover"]["progress"].as_str().unwrap_or_default().to_owned();
            Ok(progress.contains("at the barrier").then_some(()))
        })?;
        ensure!(
            pair.rig.new.virsh(["list", "--state-running", "--name"])?.trim().is_empty(),
            "one was started"
        );
        pair.rig.daemon.kill()?;
        pair.rig.daemon.start()?;
        pair.wait_for("db", "done")?;
        pair.wait_for("web", "done")?;
        pair.assert_one_of_each_runs()?;
        for guest in [&pair.rig.guest, &pair.web] {
            pair.assert_moved(guest)?;
        }
        let journal = pair.rig.ctl().text(&["events", "--limit", "1000"])?;
        ensure!(journal.matches("the barrier opens for db, web").count() == 1, "{journal}");
        Ok(())
    });
}
