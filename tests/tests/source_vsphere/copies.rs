//! Full copies and deltas, byte by byte, by the port alone.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use warmd_cbt::units::Extent;
use warmd_core::{
    model::machine::PowerState,
    sources::{HowStopped, Source, SourceErrorKind},
};
use warmd_tests::{VsphereRig, vsphere::NAME};

use super::bench::{Bench, GRACEFUL, MIB, SIZES, assert_error, assert_unknown, block_on, read};

#[test]
fn a_full_copy_and_deltas_are_equal_to_the_disks() {
    block_on(async |dir| {
        // Short answers, and those of a part of the disk: most describe nothing.
        let mut bench = Bench::start(dir, &["-max-areas", "3", "-span", "1048576"]).await?;
        let snapshot = bench.snapshot().await?;
        ensure!(bench.rig.snapshots()? == 1);
        // The guest goes on while it is read: the snapshot is of its moment.
        let then = [bench.rig.contents(0)?, bench.rig.contents(1)?];
        bench.rig.write(0, 5 * MIB, 200_000, 21)?;
        bench.rig.write(1, 0, 100, 22)?;
        let (bytes, unknown) = bench.copy(&*snapshot).await?;
        ensure!(bytes == SIZES.iter().sum::<u64>() && unknown.len() == 2, "{bytes} {unknown:?}");
        for (disk, then) in bench.disks.iter().zip(then) {
            ensure!(disk.bytes == then, "{} is not of the snapshot's moment", disk.key);
        }
        snapshot.release().await?;
        bench.rig.assert_clean()?;

        for number in 0..20_u64 {
            bench.rig.write(0, number * 700_001, 90_000, number)?;
        }
        bench.rig.write(1, SIZES[1] - 100, 100, 23)?;
        let snapshot = bench.snapshot().await?;
        let (bytes, unknown) = bench.copy(&*snapshot).await?;
        ensure!(unknown.is_empty() && bytes < SIZES.iter().sum::<u64>() / 2, "{bytes} {unknown:?}");
        snapshot.release().await?;
        bench.assert_equal()?;
        // Nothing has changed: nothing is read.
        ensure!(bench.pass(false).await?.is_empty());

        bench.rig.write(0, 8 * MIB, 300_000, 31)?;
        ensure!(bench.source.shut_down(&bench.vm, GRACEFUL).await? == HowStopped::Gracefully);
        ensure!(bench.source.shut_down(&bench.vm, GRACEFUL).await? == HowStopped::WasOff);
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Off);
        ensure!(bench.pass(true).await?.is_empty());
        ensure!(bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?.is_empty());
        bench.rig.assert_clean()
    });
}

#[test]
fn a_disk_that_is_opened_again_is_the_same_reader() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &[]).await?;
        let snapshot = bench.snapshot().await?;
        let key = &bench.disks[0].key;
        let (one, two) = tokio::join!(snapshot.open(key), snapshot.open(key));
        let (one, two) = (one?, two?);
        ensure!(std::sync::Arc::ptr_eq(&one, &two));
        ensure!(readers(&bench.rig)? == 1, "{} readers", readers(&bench.rig)?);
        drop((one, two));
        snapshot.release().await?;
        ensure!(readers(&bench.rig)? == 0, "a reader is left");
        bench.rig.assert_clean()
    });
}

/// Folders of readers.
fn readers(rig: &VsphereRig) -> Result<usize> {
    Ok(std::fs::read_dir(rig.run_dir()).context("no folder of readers")?.count())
}

#[test]
fn a_final_snapshot_is_of_a_vm_that_is_off_and_stays_off() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &[]).await?;
        assert_error(bench.source.snapshot(&bench.request(true)).await, SourceErrorKind::Refused, "off")?;
        bench.source.shut_down(&bench.vm, GRACEFUL).await?;
        let snapshot = bench.source.snapshot(&bench.request(true)).await?;
        bench.copy(&*snapshot).await?;
        // Started by others, and stopped again: each look at its power finds it off.
        bench.rig.order("power", &json!({"machine": NAME, "do": "on"}))?;
        bench.rig.write(1, MIB, 10, 71)?;
        bench.source.shut_down(&bench.vm, GRACEFUL).await?;
        assert_error(snapshot.release().await, SourceErrorKind::Refused, "changed")?;
        ensure!(bench.rig.snapshots()? == 0, "the snapshot is left");

        let snapshot = bench.source.snapshot(&bench.request(true)).await?;
        bench.copy(&*snapshot).await?;
        bench.rig.order("power", &json!({"machine": NAME, "do": "on"}))?;
        assert_error(snapshot.release().await, SourceErrorKind::Refused, "started")?;
        bench.source.shut_down(&bench.vm, GRACEFUL).await?;
        bench.pass(true).await?;
        bench.rig.assert_clean()
    });
}

#[test]
fn a_vm_without_tracking_is_read_whole_each_time() {
    block_on(async |dir| {
        let mut bench = Bench::start(dir, &[]).await?;
        bench.source = bench.source_with(|settings| settings.enable_change_tracking = false)?;
        let machine = bench.source.describe(NAME).await?;
        let why = machine.disks[0].untracked.clone().unwrap_or_default();
        ensure!(why.contains("enable_change_tracking"), "{why}");
        bench.source.shut_down(&bench.vm, GRACEFUL).await?;
        for _ in 0..2 {
            assert_unknown(&bench.pass(true).await?, 2, "")?;
        }
        ensure!(bench.rig.machine()?["tracking_wanted"] == false);
        bench.rig.assert_clean()
    });
}

#[test]
fn a_standalone_esxi_is_a_source_too() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &["-esxi"]).await?;
        bench.rig.write(0, 3 * MIB, 100_000, 91)?;
        ensure!(bench.pass(false).await?.is_empty());
        bench.rig.assert_clean()
    });
}

#[test]
fn a_reader_that_is_killed_is_started_again_and_reads_on() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &[]).await?;
        let snapshot = bench.snapshot().await?;
        let disk = snapshot.open(&bench.disks[0].key).await?;
        let whole: Vec<Extent> = Extent::whole(disk.size()).into_iter().collect();
        let mut bytes = vec![0; SIZES[0] as usize];
        for _ in 0..2 {
            bytes.fill(0xee);
            kill_readers(bench.rig.run_dir())?;
            read(&disk, &whole, &mut bytes).await?;
            ensure!(bytes == bench.rig.contents(0)?, "it reads something else");
            ensure!(snapshot.given_up().is_none());
        }
        drop(disk);
        snapshot.release().await?;
        bench.rig.assert_clean()
    });
}

/// Kills the nbdkit processes that serve below this folder.
fn kill_readers(folder: &std::path::Path) -> Result<()> {
    let folder = folder.to_string_lossy().into_owned();
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("nbdkit") && line.contains(&folder) {
            let pid = rustix::process::Pid::from_raw(pid).context("pid 0")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            killed += 1;
        }
    }
    ensure!(killed > 0, "no reader runs");
    Ok(())
}
