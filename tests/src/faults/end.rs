//! The final checks of all rows: the migration in its expected state, the target equal to the source, nothing
//! left behind.
//!
//! Rule: the checks use no engine code: QEMU's tools compare images, the guest's own records verify logs.

use std::{
    collections::BTreeSet,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::stage::{FaultEnd, FaultStage};
use crate::{
    Rig,
    guest::BOOT,
    image,
    record::{BLOCK, RECORD, RING, decode, ring_offset},
    tool,
};

/// Bytes or records were lost, or two VMs ran.
#[derive(Debug)]
pub struct LostRecords(String);

impl std::fmt::Display for LostRecords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LOST: {}", self.0)
    }
}

impl std::error::Error for LostRecords {}

/// Turns a failed check of the data into a loss.
fn lost<T>(looked: Result<T>) -> Result<T> {
    looked.map_err(|error| LostRecords(format!("{error:#}")).into())
}

/// What must hold after every row.
pub(super) fn check(stage: &mut FaultStage<'_>) -> Result<()> {
    if stage.ends == FaultEnd::Elsewhere {
        return Ok(());
    }
    let (ends, source_gone, as_it_was) = (stage.ends, stage.source_gone, stage.source_state());
    let rig = stage.rig_mut()?;
    if rig.daemon.pid().is_err() {
        rig.daemon.start()?;
    }
    match ends {
        FaultEnd::Moved => moved(rig, as_it_was)?,
        FaultEnd::Cancelled => {
            let view = rig.show()?;
            ensure!(view["state"] == "cancelled", "it is {}", view["state"]);
            if !source_gone {
                let state = rig.guest.state(&rig.old)?;
                ensure!(state == as_it_was, "given up, the source guest is {state:?} and not {as_it_was:?}");
                no_job(rig)?;
            }
        }
        FaultEnd::Elsewhere => {}
    }
    lost(rig.assert_one_runs())?;
    let kept = if ends == FaultEnd::Moved { rig.locations()? } else { Vec::new() };
    let status = rig.daemon.stop()?;
    ensure!(status.code() == Some(0), "warmd ended with {status}");
    nothing_left(rig, &kept, source_gone).context("left behind")?;
    at_home(stage)
}

fn moved(rig: &Rig, as_it_was: &str) -> Result<()> {
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
    let state = rig.guest.state(&rig.old)?;
    ensure!(state == as_it_was, "at rest the source guest is {state:?} and not {as_it_was:?}");
    no_job(rig)?;
    // If the source VM is off, the target VM is not started, so that its disks can be compared byte for byte.
    if state == "running" {
        rig.guest.shut_down(&rig.old)?;
    }
    rig.verb("cutover")?;
    let view = rig.show()?;
    ensure!(view["state"] == "done", "after the cutover it is {}", view["state"]);
    let state = rig.guest.state(&rig.old)?;
    ensure!(state == "shut off", "after the cutover the source guest is {state:?}");
    bytes(rig)
}

/// No source VM has an open snapshot while no pass runs. A domain that is off cannot have a job.
fn no_job(rig: &Rig) -> Result<()> {
    let name = &rig.guest.name;
    if rig.guest.state(&rig.old)? == "shut off" {
        return Ok(());
    }
    let job = rig.old.try_virsh(["backup-dumpxml", name])?;
    ensure!(job.code != Some(0), "a backup job is left: {}", job.stdout);
    let no_job = job.stderr.contains("no domain backup job");
    ensure!(no_job, "libvirt does not say that there is no job: {}", job.stderr);
    Ok(())
}

/// Both sides' disks, by `qemu-img compare`.
fn bytes(rig: &Rig) -> Result<()> {
    let (sources, targets) = (&rig.guest.disks, rig.locations()?);
    ensure!(sources.len() == targets.len(), "{} disks became {targets:?}", sources.len());
    for (source, target) in sources.iter().zip(targets) {
        lost(image::assert_equal(source, &target))?;
    }
    Ok(())
}

/// The target VM runs, and has written since: its logs show whether a record is missing.
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
    let volumes = rig.locations()?;
    let disks = rig.guest.disks.len();
    ensure!(disks == volumes.len(), "{disks} disks became {volumes:?}");
    let log = lost(image::read_log(volumes.first().context("no disks")?))?;
    lost((|| {
        ensure!(log.last >= console.acked()?, "the target's own records are missing: {log:?}");
        Ok(())
    })())?;
    // The last record that a boot finds in its log may be only in the log and never acknowledged.
    let mut unheard = BTreeSet::from([log.last]);
    for boot in rig.guest.console.boots()?.into_iter().chain(console.boots()?) {
        unheard.extend(boot.log.and_then(Result::ok));
    }
    for volume in volumes.iter().skip(1) {
        lost(ring(volume, log.last, &unheard))?;
    }
    Ok(())
}

/// The ring of a raw disk holds the last records up to `last`, whole, except those never acknowledged.
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

fn nothing_left(rig: &Rig, kept: &[PathBuf], source_gone: bool) -> Result<()> {
    let names = |host: &crate::Libvirtd| -> Result<Vec<String>> {
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
        let home = rig.guest.console.path().parent().context("a console without a folder")?;
        let own = |path: &PathBuf| {
            rig.guest.disks.contains(path) || path.ends_with("console.log") || path.ends_with("domain.xml")
        };
        let more: Vec<_> = files(home)?.into_iter().filter(|path| !own(path)).collect();
        ensure!(more.is_empty(), "beside the guest's disks: {more:?}");
    }
    // Without its domain an image cannot be read; an operator removes bitmaps that no domain owns.
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
    let mut expected: BTreeSet<PathBuf> = kept.iter().cloned().collect();
    let machines =
        if kept.is_empty() || !rig.makes_machines() { vec![] } else { vec![rig.guest.name.clone()] };
    let found = names(&rig.new)?;
    ensure!(found == machines, "domains on the target: {found:?} and not {machines:?}");
    for folder in kept.iter().filter_map(|volume| volume.parent()) {
        // libvirt rotates the console's file when a second VM is created from the disks.
        let names = ["console.log", "console.log.1", "last-pass", "machine.json"];
        expected.extend(names.map(|name| folder.join(name)));
    }
    let found: Vec<_> = files(&rig.volumes)?
        .into_iter()
        .filter(|path| {
            !expected.contains(path) && !path.components().any(|part| part.as_os_str() == ".claims")
        })
        // A target of disks alone keeps the machine's description and the last writer in a directory without
        // disks.
        .filter(|path| {
            kept.is_empty() || !["last-pass", "machine.json"].iter().any(|name| path.ends_with(name))
        })
        .collect();
    ensure!(found.is_empty(), "files on the target: {found:?}");
    Ok(())
}

/// Of the daemon only its state is left.
fn at_home(stage: &FaultStage<'_>) -> Result<()> {
    for (folder, allowed) in [
        ("run", &[][..]),
        ("scratch", &[]),
        ("api", &[]),
        ("state", &["warmd.db", "lock", "report.key", "reserve", "lost+found"]),
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

/// All files at any depth; none if the directory does not exist.
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
