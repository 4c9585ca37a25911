//! The environment of a pass: no space on the target, a daemon asked to stop, a second one beside it. A pass
//! that ends early never starts from the beginning. The guests are off: the passes are the same, without the
//! time to boot.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use warmd_tests::{
    Daemon, Rig, RigSpec,
    daemon::program,
    rig::{WORK, assert_nothing_twice},
    run,
    scratch::Mount,
    tool, wait_until,
};

const SOME: u64 = 4 << 20;

#[test]
fn without_room_it_stops_and_goes_on_when_there_is_some() {
    run(|dir| {
        let mount = Mount::tmpfs(dir, "small", 60 << 20)?;
        let mut spec = RigSpec::new("wide", 64);
        spec.volumes = Some(mount.path().to_owned());
        let mut rig = Rig::off(dir, &spec)?;
        rig.daemon.start()?;
        rig.apply()?;
        let view = wait_until("the full file system to be noticed", WORK, || {
            let view = rig.show()?;
            Ok((view["state"] == "failed").then_some(view))
        })?;
        ensure!(view["resumable"] == true, "it cannot be resumed: {view}");
        let reason = view["reason"].as_str().unwrap_or_default();
        ensure!(missing(reason).is_some_and(|bytes| bytes > 0), "no figure of what is missing: {reason}");
        let early = rig.passes()?;
        let drained: u64 = early.iter().map(|pass| pass.drained).sum();
        ensure!(drained > SOME, "nothing was kept of what had room: {early:#?}");

        tool::call("mount", [Path::new("-o"), Path::new("remount,size=1g"), mount.path()])?;
        rig.verb("resume")?;
        rig.wait_for("synced")?;
        let passes = rig.passes()?;
        assert_nothing_twice(&passes)?;
        let read: u64 = passes.iter().map(|pass| pass.read).sum();
        let data = rig.data()?;
        ensure!(read <= data + data / 8, "read {read} of {data}: {passes:#?}");
        rig.verb("verify")
    });
}

/// The figure in "make N bytes of room".
fn missing(reason: &str) -> Option<u64> {
    reason.split_once("make ")?.1.split_once(" bytes of room")?.0.parse().ok()
}

#[test]
fn asked_to_stop_in_a_pass_it_keeps_what_is_drained() {
    run(|dir| {
        let mut rig = Rig::off(dir, &RigSpec::new("calm", 64))?;
        rig.freeze(SOME)?;
        rig.daemon.thaw()?;
        let status = rig.daemon.stop()?;
        ensure!(status.code() == Some(0), "warmd ended with {status}");
        rig.daemon.start()?;
        rig.lift()?;
        rig.wait_for("synced")?;
        let passes = rig.passes()?;
        let first = passes.first().context("no passes")?;
        let error = first.error.as_deref().unwrap_or_default();
        ensure!(error.contains("stopped on request") && first.drained >= SOME, "not stopped: {first:?}");
        assert_nothing_twice(&passes)?;
        private(&rig, dir.path())?;
        second(&rig.daemon, dir.path())?;
        rig.verb("verify")
    });
}

/// Only the daemon's user can open the files that it makes.
fn private(rig: &Rig, dir: &Path) -> Result<()> {
    let mode = |path: &Path| -> Result<u32> {
        Ok(std::fs::symlink_metadata(path).with_context(|| path.display().to_string())?.permissions().mode()
            & 0o777)
    };
    let mut wanted =
        vec![(dir.join("api"), 0o700), (dir.join("api/warmd.sock"), 0o600), (dir.join("state"), 0o700)];
    for entry in std::fs::read_dir(dir.join("state"))? {
        wanted.push((entry?.path(), 0o600));
    }
    for disk in rig.show()?["disks"].as_array().context("no disks")? {
        wanted.push((disk["location"].as_str().context("no location")?.into(), 0o600));
    }
    for (path, wanted) in wanted {
        let mode = mode(&path)?;
        ensure!(mode == wanted, "{} has mode {mode:o}", path.display());
    }
    Ok(())
}

/// A second daemon on the same state is refused, and the first is not disturbed.
fn second(first: &Daemon, dir: &Path) -> Result<()> {
    let config = std::fs::read_to_string(first.config())?;
    let other = dir.join("second.toml");
    std::fs::write(&other, config.replace("/api/warmd.sock", "/api/second.sock"))?;
    let out = tool::outcome(
        Command::new(program("warmd")?).arg("serve").arg("--config").arg(&other),
        tool::DEADLINE,
    )?;
    ensure!(out.code == Some(1), "the second daemon ended with {:?}: {}", out.code, out.stderr);
    let pid = first.pid()?.to_string();
    ensure!(out.stderr.contains(&pid), "it does not name process {pid}: {}", out.stderr);
    ensure!(!dir.join("api/second.sock").exists(), "it left a socket");
    first.ctl().text(&["migration", "list"]).map(drop)
}
