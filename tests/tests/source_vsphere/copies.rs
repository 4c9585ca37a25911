//! Full copies and deltas, byte by byte, by the port alone.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use warmd_cbt::units::{Extent, Length, Offset};
use warmd_core::{
    model::{
        machine::PowerState,
        plan::snapshots::{Quiesce, SnapshotPolicy},
    },
    sources::{HowStopped, Source, SourceErrorKind},
};
use warmd_tests::{VsphereRig, vsphere::NAME};

use super::bench::{Bench, GRACEFUL, MIB, SIZES, assert_error, assert_unknown, block_on, read_extents};

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
fn a_vm_that_is_off_is_copied_beside_snapshots_of_others() {
    block_on(async |dir| {
        let mut bench = Bench::start(dir, &[]).await?;
        bench.source.shut_down(&bench.vm, GRACEFUL).await?;
        bench.rig.order("snapshot", &json!({"machine": NAME, "name": "Backup"}))?;
        assert_unknown(&bench.pass(false).await?, 2, "not been copied")?;
        assert_unknown(&bench.pass(true).await?, 2, "")?;
        ensure!(bench.rig.snapshots()? == 1, "the snapshot of others is gone, or ours stays");
        ensure!(bench.rig.machine()?["tracking_wanted"] == false, "tracking was switched on with snapshots");
        bench.rig.order("power", &json!({"machine": NAME, "do": "on"}))?;
        assert_error(bench.snapshot().await, SourceErrorKind::Blocked, "Backup")
    });
}

#[test]
fn tracking_from_before_snapshots_of_others_is_not_believed() {
    block_on(async |dir| {
        let mut bench = Bench::start(dir, &[]).await?;
        bench.rig.order("tracking", &json!({"machine": NAME, "do": "set", "on": true}))?;
        bench.source.shut_down(&bench.vm, GRACEFUL).await?;
        let other = bench.rig.order("snapshot", &json!({"machine": NAME, "name": "Backup"}))?;
        bench.pass(false).await?;
        bench.rig.order("remove", &json!({"machine": NAME, "snapshot": other["snapshot"]}))?;
        bench.rig.write(0, 2 * MIB, 1000, 101)?;
        assert_unknown(&bench.pass(true).await?, 2, "not tracked at the last pass")?;
        // From here on it is tracked.
        bench.rig.write(0, 3 * MIB, 1000, 102)?;
        ensure!(bench.pass(true).await?.is_empty());
        // With snapshots again, a tracked pass is not followed by one that cannot be believed.
        bench.rig.order("snapshot", &json!({"machine": NAME, "name": "Backup"}))?;
        assert_error(bench.source.snapshot(&bench.request(true)).await, SourceErrorKind::Blocked, "Backup")
    });
}

#[test]
fn a_plan_decides_about_tracking_and_quiescing() {
    block_on(async |dir| {
        let mut bench = Bench::start(dir, &[]).await?;
        let never = SnapshotPolicy { enable_change_tracking: Some(false), quiesce: None };
        let careful = bench.source.with_policy(never).context("no policy")?;
        careful.snapshot(&bench.request(false)).await?.release().await?;
        ensure!(bench.rig.machine()?["tracking_wanted"] == false);
        let quiesce = SnapshotPolicy { enable_change_tracking: None, quiesce: Some(Quiesce::Try) };
        let quiescing = bench.source.with_policy(quiesce).context("no policy")?;
        bench.rig.order("guest", &json!({"machine": NAME, "do": "no_tools", "on": true}))?;
        // It cannot be quiesced: the snapshot is made without.
        quiescing.snapshot(&bench.request(false)).await?.release().await?;
        ensure!(bench.rig.machine()?["tracking_wanted"] == true);
        bench.pass(false).await?;
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
            read_extents(&disk, &whole, &mut bytes).await?;
            ensure!(bytes == bench.rig.contents(0)?, "it reads something else");
            ensure!(snapshot.ended_early().is_none());
        }
        drop(disk);
        snapshot.release().await?;
        bench.rig.assert_clean()
    });
}

#[test]
fn any_range_can_be_asked_what_is_allocated() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &[]).await?;
        for at in 0..8 {
            bench.rig.write(0, at * 2 * MIB + 65_536, 131_072, 110 + at)?;
        }
        let snapshot = bench.snapshot().await?;
        let disk = snapshot.open(&bench.disks[0].key).await?;
        for length in [2 * MIB, MIB, 65_536, 3 * MIB] {
            for at in (0..SIZES[0]).step_by(length as usize) {
                let range = Extent::between(Offset(at), Offset((at + length).min(SIZES[0])));
                let range = range.context("an empty range")?;
                let known = disk.allocation(range).await.with_context(|| format!("{length} at {at}"))?;
                let first = known.first().context("nothing is known")?.extent;
                ensure!(first.start() == range.start() && first.within(Length(SIZES[0])), "{known:?}");
            }
        }
        let mut bytes = vec![0xee; SIZES[0] as usize];
        let whole: Vec<Extent> = Extent::whole(disk.size()).into_iter().collect();
        read_extents(&disk, &whole, &mut bytes).await?;
        ensure!(bytes == bench.rig.contents(0)?, "it reads something else");
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
