//! The end that all rows have in common: the migration where it should be, the target the same as the source, nothing
//! left behind.
//!
//! Rule: nothing of the engine is used to look; images are compared by QEMU's tools, logs by the guest's own records.

use std::{
    collections::BTreeSet,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::stage::{Ends, Stage};
use crate::{
    Rig,
    guest::BOOT,
    image,
    record::{BLOCK, RECORD, RING, decode, ring_offset},
    tool,
};

/// Bytes or records were lost, or two VMs ran.
#[derive(Debug)]
pub struct Lost(String);

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LOST: {}", self.0)
    }
}

impl std::error::Error for Lost {}

/// Turns a failed look at the data into a loss.
fn lost<T>(looked: Result<T>) -> Result<T> {
    looked.map_err(|error| Lost(format!("{error:#}")).into())
}

/// What must hold after every row.
pub(super) fn check(stage: &mut Stage<'_>) -> Result<()> {
    if stage.ends == Ends::Elsewhere {
        return Ok(());
    }
    let (ends, source_gone) = (stage.ends, stage.source_gone);
    let rig = stage.rig_mut()?;
    if rig.daemon.pid().is_err() {
        rig.daemon.start()?;
    }
    match ends {
        Ends::Moved => moved(rig)?,
        Ends::Cancelled => {
            let view = rig.show()?;
            ensure!(view["state"] == "cancelled", "it is {}", view["state"]);
        }
        Ends::Elsewhere => {}
    }
    lost(rig.assert_one_runs())?;
    let kept = if ends == Ends::Moved { volumes(rig)? } else { Vec::new() };
    let status = rig.daemon.stop()?;
    ensure!(status.code() == Some(0), "warmd ended with {status}");
    nothing_left(rig, &kept, source_gone).context("left behind")?;
    at_home(stage)
}

fn moved(rig: &Rig) -> Result<()> {
    let view = rig.show()?;
    if view["state"] == "done" {
        let state = rig.guest.state(&rig.old)?;
        ensure!(state == "shut off", "the source guest is {state:?}");
        if rig.guest.console.acked()? > 0 {
            return target_counts_on(rig);
        }
        return bytes(rig);
    }
    ensure!(view["state"] == "synced", "it is {} and not synced: {}", view["state"], view["reason"]);
    // The target VM of a source that is off is not started: so its disks can be compared byte for byte.
    if rig.guest.state(&rig.old)? == "running" {
        rig.guest.shut_down(&rig.old)?;
    }
    rig.verb("cutover")?;
    let view = rig.show()?;
    ensure!(view["state"] == "done", "after the cutover it is {}", view["state"]);
    bytes(rig)
}

/// Both sides' disks, by `qemu-img compare`.
fn bytes(rig: &Rig) -> Result<()> {
    for (source, target) in rig.guest.disks.iter().zip(volumes(rig)?) {
        if source.exists() {
            lost(image::assert_equal(source, Path::new(&target)))?;
        }
    }
    Ok(())
}

/// The target VM runs, and has written since: its logs tell whether anything is missing.
fn target_counts_on(rig: &Rig) -> Result<()> {
    let acked = rig.guest.console.acked()?;
    let console = rig.target_console()?;
    let boot = console.wait_for_boot(1, BOOT)?;
    let found = boot.log.context("the target guest did not look at its log")?;
    let found = lost(found.map_err(|bad| anyhow::anyhow!("the log on the target is broken: {bad}")))?;
    lost((|| {
        ensure!(found >= acked, "the target's log ends at {found}, and {acked} was acknowledged");
        Ok(())
    })())?;
    let running = rig.new.virsh(["list", "--state-running", "--name"])?;
    rig.new.virsh(["destroy", running.trim()])?;
    let volumes = volumes(rig)?;
    let log = lost(image::read_log(Path::new(volumes.first().context("no disks")?)))?;
    lost((|| {
        ensure!(log.last >= console.acked()?, "the target's own records are missing: {log:?}");
        Ok(())
    })())?;
    // What a boot finds at the end of its log may have been written there alone, and acknowledged to nobody.
    let mut unheard = BTreeSet::from([log.last]);
    for boot in rig.guest.console.boots()?.into_iter().chain(console.boots()?) {
        unheard.extend(boot.log.and_then(Result::ok));
    }
    for volume in volumes.iter().skip(1) {
        lost(ring(Path::new(volume), log.last, &unheard))?;
    }
    Ok(())
}

/// The ring of a raw disk holds the last records up to `last`, whole, but for those that nobody heard of.
fn ring(volume: &Path, last: u64, unheard: &BTreeSet<u64>) -> Result<()> {
    let file = std::fs::File::open(volume)?;
    for seq in last.saturating_sub(RING - 1).max(1)..=last {
        let mut block = vec![0; BLOCK];
        file.read_exact_at(&mut block, ring_offset(seq))?;
        let whole =
            block.chunks_exact(RECORD).all(|part| decode(part).is_some_and(|(found, _)| found == seq));
        ensure!(whole || unheard.contains(&seq), "{}: record {seq} of {last} is lost", volume.display());
    }
    Ok(())
}

fn volumes(rig: &Rig) -> Result<Vec<String>> {
    let view = rig.show()?;
    let disks = view["disks"].as_array().context("no disks")?;
    disks.iter().map(|disk| Ok(disk["location"].as_str().context("no location")?.to_owned())).collect()
}

fn nothing_left(rig: &Rig, kept: &[String], source_gone: bool) -> Result<()> {
    let names = |host: &crate::Libvirt| -> Result<Vec<String>> {
        Ok(host.virsh(["list", "--all", "--name"])?.split_whitespace().map(str::to_owned).collect())
    };
    if !source_gone {
        ensure!(
            names(&rig.old)? == [rig.guest.name.clone()],
            "domains on the source: {:?}",
            names(&rig.old)?
        );
        let marks = rig.old.virsh(["checkpoint-list", &rig.guest.name, "--name"])?;
        let marks: Vec<&str> = marks.split_whitespace().filter(|name| name.starts_with("warmd")).collect();
        ensure!(marks.is_empty(), "checkpoints: {marks:?}");
        let job = rig.old.try_virsh(["domjobinfo", &rig.guest.name])?;
        ensure!(!job.stdout.contains("Backup"), "a backup job: {}", job.stdout);
    }
    // Without its domain an image is out of reach; bitmaps of nobody's are what an operator removes.
    for image in rig.guest.disks.iter().filter(|image| !source_gone && image.exists()) {
        let args = ["info", "-U", "--output=json"].map(Path::new);
        let info: Value =
            serde_json::from_str(&tool::call("qemu-img", args.into_iter().chain([image.as_path()]))?)?;
        let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
        let ours = bitmaps
            .iter()
            .any(|bitmap| bitmap["name"].as_str().is_some_and(|name| name.starts_with("warmd")));
        ensure!(!ours, "bitmaps in {}: {bitmaps:?}", image.display());
    }
    let mut expected: BTreeSet<PathBuf> = kept.iter().map(PathBuf::from).collect();
    if kept.is_empty() {
        ensure!(names(&rig.new)?.is_empty(), "domains on the target: {:?}", names(&rig.new)?);
    }
    for folder in kept.iter().filter_map(|volume| Path::new(volume).parent()) {
        expected.extend(["console.log", "machine.json"].map(|name| folder.join(name)));
    }
    let found: Vec<_> = files(&rig.volumes)?
        .into_iter()
        .filter(|path| {
            !expected.contains(path) && !path.components().any(|part| part.as_os_str() == ".claims")
        })
        // A target of disks alone keeps the machine's description in a folder that no disk is in.
        .filter(|path| kept.is_empty() || path.file_name().is_none_or(|name| name != "machine.json"))
        .collect();
    ensure!(found.is_empty(), "files on the target: {found:?}");
    Ok(())
}

/// Nothing of the daemon itself but its state.
fn at_home(stage: &Stage<'_>) -> Result<()> {
    for (folder, allowed) in [
        ("run", &[][..]),
        ("scratch", &[]),
        ("api", &[]),
        ("state", &["warmd.db", "lock", "report.key", "lost+found"]),
    ] {
        let path = stage.dir.join(folder);
        let found: Vec<_> = files(&path)?
            .into_iter()
            .filter(|path| !allowed.iter().any(|name| path.ends_with(name)))
            .collect();
        ensure!(found.is_empty(), "left behind: {found:?}");
    }
    Ok(())
}

/// All that is no directory, at any depth; nothing if the folder is not there.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
