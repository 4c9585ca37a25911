//! The state's SQLite file: no space, no write permission, errors, a torn log, an older copy in its place.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;

use super::{
    Row, row,
    shim::{EIO, ENOSPC, EROFS, Strike},
    stage::FaultStage,
};
use crate::{guest::BOOT, rig::WORK, scratch::Mount};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row("sqlite", "db-full", "the state's file system is full in a pass; later there is room", false, full),
    row("sqlite", "db-no-space", "ENOSPC on writes of the state", false, |stage| errors(stage, "write", ENOSPC)),
    row("sqlite", "db-read-only", "the state cannot be written: EROFS", false, |stage| errors(stage, "write", EROFS)),
    row("sqlite", "db-write-eio", "EIO on writes of the state", false, |stage| errors(stage, "write", EIO)),
    row("sqlite", "db-fsync-eio", "EIO on fsync of the state", true, |stage| errors(stage, "sync", EIO)),
    row("sqlite", "db-wal-cut", "the log of a killed daemon loses its end", false, |stage| torn(stage, false)),
    row("sqlite", "db-wal-garbled", "the log of a killed daemon has garbage in it", false, |stage| torn(stage, true)),
    row("sqlite", "db-restored", "the state is put back from an older copy, and the guest's data goes back too", true, |stage| restored(stage, false)),
    row("sqlite", "db-restored-untracked", "the same, with a disk whose changes nobody tracks", false, |stage| restored(stage, true)),
    row("sqlite", "db-stale", "the state is put back to before a cutover; the target VM has written since, and is off", false, stale_state),
];

fn full(stage: &mut FaultStage<'_>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mount = Mount::tmpfs(stage.dir, "state", 4 << 20)?;
    fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o700))?;
    let filler = mount.join("lost+found");
    stage.keep(mount);
    stage.off(48, |_| {})?;
    stage.freeze(2 << 20)?;
    // All free space.
    fs::write(&filler, vec![7; 8 << 20]).err().context("8 MiB fit into 4")?;
    stage.rig()?.daemon.thaw()?;
    wait_for_trouble(stage, "full")?;
    fs::remove_file(&filler)?;
    go_on(stage)
}

/// The daemon's report of it, wherever it can still report.
fn wait_for_trouble(stage: &FaultStage<'_>, word: &str) -> Result<()> {
    crate::wait_until("the trouble to be told", crate::rig::WORK, || {
        let log = stage.rig()?.daemon.log()?;
        let told = log.lines().any(|line| line.contains("ERROR") && line.contains(word));
        let view = stage.rig()?.show()?;
        let failed =
            view["state"] == "failed" && view["reason"].as_str().is_some_and(|why| why.contains(word));
        Ok((told || failed).then_some(()))
    })
}

/// Automatically, or after a resume.
fn go_on(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.rig()?.lift()?;
    let view = stage.wait_for_view("its rest", crate::rig::WORK, |view| {
        matches!(view["state"].as_str(), Some("synced" | "failed"))
    })?;
    if view["state"] == "failed" {
        stage.resume()?;
    }
    stage.scribble(3)?;
    stage.sync().map(drop)
}

fn errors(stage: &mut FaultStage<'_>, call: &'static str, errno: i32) -> Result<()> {
    let shim = stage.off_with_shim(24)?;
    stage.freeze(2 << 20)?;
    shim.set(&[Strike::all(call, "state/warmd.db", errno).times(6)])?;
    stage.rig()?.daemon.thaw()?;
    shim.wait_for(2)?;
    shim.clear()?;
    go_on(stage)
}

/// The log of a killed daemon, damaged in its second half: SQLite keeps the intact part, and later commits
/// are lost.
fn torn(stage: &mut FaultStage<'_>, garble: bool) -> Result<()> {
    stage.off(24, |_| {})?;
    stage.seed()?;
    let mut forgot = 0;
    for round in 0..if stage.short { 2 } else { 5 } {
        stage.scribble(4)?;
        // From here on the whole log belongs to this case.
        stage.rig_mut()?.daemon.stop()?;
        stage.rig_mut()?.daemon.start()?;
        stage.sync()?;
        let known = stage.rig()?.report()?;
        stage.rig_mut()?.daemon.kill()?;
        let wal = stage.dir.join("state/warmd.db-wal");
        let len = fs::metadata(&wal).context("a killed daemon leaves a log")?.len();
        // Damages all of the last commits, or only the end of the last one; the first time certainly most of
        // them.
        let most = if round == 0 { len / 2 } else { len };
        let at = stage.random.random_range(len / 4..most);
        let file = fs::File::options().write(true).open(&wal)?;
        if garble {
            use std::os::unix::fs::FileExt as _;
            let mut noise = vec![0; 4096];
            stage.random.fill(&mut noise[..]);
            file.write_all_at(&noise, at)?;
        } else {
            file.set_len(at)?;
        }
        // Blocks that a lost commit drained may be as an older commit recorded them.
        stage.rig_mut()?.daemon.start()?;
        let left = stage.rig()?.report()?;
        let lines = |report: &serde_json::Value| report["journal"].as_array().map_or(0, Vec::len);
        forgot += u32::from(left["passes"] != known["passes"] || lines(&left) < lines(&known));
        go_on(stage)?;
    }
    ensure!(forgot > 0, "the log lost nothing that mattered");
    Ok(())
}

/// The state of an earlier pass, after the guest has gone on, and back.
fn restored(stage: &mut FaultStage<'_>, untracked: bool) -> Result<()> {
    stage.off(24, |spec| {
        if untracked && let Some(disk) = spec.guest.disks.last_mut() {
            disk.format = crate::Format::Raw;
        }
    })?;
    let places: Vec<u64> =
        (0..6).map(|nth| (200 + nth * 8 + stage.random.random_range(0..8)) << 20).collect();
    let fill = |byte: u8| places.iter().map(|at| format!("write -P {byte} {at} 64k")).collect::<Vec<_>>();
    let zero: Vec<String> = places.iter().map(|at| format!("write -z {at} 64k")).collect();
    stage.seed()?;
    stage.rig_mut()?.daemon.stop()?;
    let copy = stage.dir.join("copy");
    copy_state(&stage.dir.join("state"), &copy)?;
    // Two passes that the copy does not know, then the copy.
    for round in 0..2 {
        stage.disk_io(1, &fill(round + 1))?;
        stage.rig_mut()?.daemon.start()?;
        stage.sync()?;
        stage.rig_mut()?.daemon.stop()?;
    }
    stage.disk_io(1, &zero)?;
    copy_state(&copy, &stage.dir.join("state"))?;
    stage.rig_mut()?.daemon.start()?;
    let since = stage.sync()?;
    ensure!(
        since.iter().any(|pass| pass.unknown),
        "an older state was taken for the present one: {since:#?}"
    );
    let journal = stage.rig()?.ctl().text(&["events"])?;
    ensure!(journal.contains("put back from a copy"), "nobody was told: {journal}");
    Ok(())
}

/// A state from before a cutover, which takes the target's disks for a mere copy.
fn stale_state(stage: &mut FaultStage<'_>) -> Result<()> {
    stage.running(16, |spec| {
        spec.cutover = "graceful_shutdown = \"1m\"\nforce_power_off = true\nmin_uptime = \"2s\"";
    })?;
    stage.seed()?;
    stage.rig_mut()?.daemon.stop()?;
    let copy = stage.dir.join("copy");
    copy_state(&stage.dir.join("state"), &copy)?;
    stage.rig_mut()?.daemon.start()?;
    let rig = stage.rig_mut()?;
    rig.verb("cutover")?;
    rig.target_console()?.wait_for_boot(1, BOOT)?;
    let acked = rig.target_console()?.acked()?;
    rig.target_console()?.wait_for_acked(acked + 5, WORK)?;
    rig.new.virsh(["destroy", "guest"])?;
    let volumes = rig.locations()?;
    let contents =
        || volumes.iter().map(|path| Ok(blake3::hash(&fs::read(path)?))).collect::<Result<Vec<_>>>();
    let left = contents()?;
    rig.daemon.stop()?;
    copy_state(&copy, &stage.dir.join("state"))?;
    let rig = stage.rig_mut()?;
    rig.daemon.start()?;
    let told = stage.sync_fails("put back from an older copy")?;
    ensure!(told.contains("`cancel`") && told.contains("`rollback`"), "no way out is told: {told}");
    let rig = stage.rig()?;
    ensure!(contents()? == left, "the target's disks were written");
    let (source, target) = (rig.guest.state(&rig.old)?, rig.guest.state(&rig.new)?);
    ensure!(source == "shut off" && target == "shut off", "the source is {source:?}, the target {target:?}");
    // The operator chooses the source and starts it, because the state does not know that it ran before.
    let out = rig.try_verb("rollback", &["--yes"])?;
    ensure!(out.code == Some(0), "the rollback ended with {:?}: {}{}", out.code, out.stdout, out.stderr);
    rig.wait_for("paused")?;
    rig.guest.power_on(&rig.old)?;
    stage.resume()?;
    stage.sync().map(drop)
}

fn copy_state(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let names = |folder: &Path| -> Result<Vec<PathBuf>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .filter(|path| path.as_ref().is_ok_and(|p| p.is_file()))
            .collect()
    };
    for path in names(to)? {
        fs::remove_file(path)?;
    }
    for path in names(from)? {
        fs::copy(&path, to.join(path.file_name().context("no name")?))?;
    }
    Ok(())
}
