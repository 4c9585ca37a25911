//! vCenter that fails, restarts, loses answers or tracking; people who change the VM in the middle.

use std::fs::File;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use warmd_core::sources::{Source, SourceErrorKind};
use warmd_tests::vsphere::NAME;

use super::bench::{Bench, GRACEFUL, MIB, SIZES, assert_error, assert_unknown, block_on};

#[test]
fn a_task_that_fails_leaves_no_snapshot() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &[]).await?;
        for (what, kind) in [
            (json!({"fault": "NoDiskSpace"}), SourceErrorKind::Blocked),
            (json!({"fault": "FileFault"}), SourceErrorKind::Failed),
            // It was made, and the task fails all the same.
            (json!({"fault": "FileFault", "after": true}), SourceErrorKind::Failed),
        ] {
            let mut order = what.clone();
            order["method"] = "CreateSnapshot_Task".into();
            bench.rig.order("fail", &order)?;
            assert_error(bench.snapshot().await, kind, "")?;
            ensure!(bench.rig.snapshots()? == 0, "{what}");
        }
        let snapshot = bench.snapshot().await?;
        bench.rig.order("fail", &json!({"method": "RemoveSnapshot_Task", "fault": "FileFault"}))?;
        ensure!(snapshot.release().await.is_err(), "a removal that failed is success");
        ensure!(bench.rig.snapshots()? == 1);
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        bench.pass(false).await?;
        bench.rig.assert_clean()
    });
}

#[test]
fn lost_answers_and_sessions_cost_nothing() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &["-max-areas", "2", "-span", "524288"]).await?;
        let made = bench.rig.machine()?["snapshots_made"].as_u64();
        bench.rig.write(0, 0, 1_000_000, 61)?;
        bench.rig.order("fail", &json!({"method": "CreateSnapshot_Task", "drop": true, "after": true}))?;
        let snapshot = bench.snapshot().await?;
        ensure!(bench.rig.machine()?["snapshots_made"].as_u64() == made.map(|made| made + 1), "made twice");
        // In the middle of the pages of one answer.
        let order = json!({"method": "QueryChangedDiskAreas", "fault": "NotAuthenticated", "skip": 3});
        bench.rig.order("fail", &order)?;
        let (_, unknown) = bench.copy(&*snapshot).await?;
        ensure!(unknown.is_empty(), "{unknown:?}");
        bench.rig.order("expire", &json!({}))?;
        bench.rig.order("fail", &json!({"method": "RemoveSnapshot_Task", "drop": true, "after": true}))?;
        snapshot.release().await?;
        bench.assert_equal()?;
        bench.rig.write(0, MIB, 100_000, 62)?;
        bench.rig.order("restart", &json!({"seconds": 1.0}))?;
        ensure!(bench.pass(false).await?.is_empty());
        bench.rig.assert_clean()
    });
}

#[test]
fn tracking_that_was_lost_is_unknown_and_then_tracked_again() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &[]).await?;
        bench.rig.write(0, MIB, 5, 41)?;
        bench.rig.order("tracking", &json!({"machine": NAME, "do": "reset"}))?;
        assert_unknown(&bench.pass(false).await?, 2, "reset")?;
        bench.rig.write(1, MIB, 5, 42)?;
        ensure!(bench.pass(false).await?.is_empty());
        bench.rig.order("fail", &json!({"method": "QueryChangedDiskAreas", "fault": "FileFault"}))?;
        assert_unknown(&bench.pass(false).await?, 1, "tracking file")?;
        let size = 8 * MIB;
        bench.rig.order("disk", &json!({"machine": NAME, "disk": 1, "do": "grow", "size": size}))?;
        bench.rig.write(1, size - 10, 10, 43)?;
        assert_unknown(&bench.pass(false).await?, 1, "capacity")?;
        bench.rig.order("power", &json!({"machine": NAME, "do": "crash"}))?;
        bench.rig.order("power", &json!({"machine": NAME, "do": "on"}))?;
        bench.rig.write(0, 3 * MIB, 5, 44)?;
        assert_unknown(&bench.pass(false).await?, 2, "reset")?;
        // A failure that says nothing of tracking is none of these.
        let snapshot = bench.snapshot().await?;
        bench.rig.order("fail", &json!({"method": "QueryChangedDiskAreas", "fault": "SystemError"}))?;
        let key = bench.disks[0].key.clone();
        assert_error(snapshot.changed(&key).await, SourceErrorKind::Failed, "")?;
        snapshot.changed(&key).await?;
        snapshot.release().await?;
        bench.rig.assert_clean()
    });
}

#[test]
fn what_others_do_to_the_vm_is_refused_and_nothing_is_left() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &[]).await?;
        let other = bench.rig.order("snapshot", &json!({"machine": NAME, "name": "Backup"}))?;
        assert_error(bench.snapshot().await, SourceErrorKind::Blocked, "Backup")?;
        ensure!(bench.rig.snapshots()? == 1, "the snapshot of others is gone, or ours stays");
        bench.rig.order("remove", &json!({"machine": NAME, "snapshot": other["snapshot"]}))?;
        bench.pass(false).await?;
        // Ours is removed by others while it is read.
        let snapshot = bench.snapshot().await?;
        let ours = bench.rig.machine()?["snapshots"][0]["id"].clone();
        bench.rig.order("remove", &json!({"machine": NAME, "snapshot": ours}))?;
        ensure!(
            snapshot.changed(&bench.disks[0].key).await.is_err(),
            "a snapshot that is gone says what changed"
        );
        snapshot.release().await?;
        bench.pass(false).await?;
        bench.rig.assert_clean()?;

        let path = dir.join("other.raw");
        File::create(&path)?.set_len(SIZES[1])?;
        let order = json!({"machine": NAME, "disk": 1, "do": "replace", "spec": {"file": path}});
        bench.rig.order("disk", &order)?;
        assert_error(bench.snapshot().await, SourceErrorKind::NotFound, &bench.disks[1].key.0)?;
        ensure!(bench.rig.snapshots()? == 0);
        Ok(())
    });
}

#[test]
fn a_disk_that_cannot_be_read_says_why_and_what_to_do() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &[]).await?;
        let settings = std::path::Path::new(bench.rig.place("libdir")?).join("standin.conf");
        let text = std::fs::read_to_string(&settings)?;
        std::fs::write(&settings, format!("{text}connections=1\n"))?;
        let snapshot = bench.snapshot().await?;
        let first = snapshot.open(&bench.disks[0].key).await?;
        let second = snapshot.open(&bench.disks[1].key).await.map(drop);
        assert_error(second, SourceErrorKind::Blocked, "disks_per_host")?;
        drop(first);
        snapshot.release().await?;
        bench.rig.assert_clean()
    });
}

#[test]
fn a_guest_that_cannot_be_asked_is_left_running_or_forced_off() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &[]).await?;
        let guest = |what: &str| bench.rig.order("guest", &json!({"machine": NAME, "do": what, "on": true}));
        guest("ignores_shutdown")?;
        let mut policy = GRACEFUL;
        policy.graceful = std::time::Duration::from_secs(2);
        assert_error(
            bench.source.shut_down(&bench.vm, policy).await,
            SourceErrorKind::StillRunning,
            "guest",
        )?;
        guest("no_tools")?;
        assert_error(
            bench.source.shut_down(&bench.vm, policy).await,
            SourceErrorKind::StillRunning,
            "Tools",
        )?;
        ensure!(power(&bench)? == "poweredOn");
        policy.force = true;
        // The answer is lost, and it was done.
        bench.rig.order("fail", &json!({"method": "PowerOffVM_Task", "drop": true, "after": true}))?;
        bench.source.shut_down(&bench.vm, policy).await?;
        ensure!(power(&bench)? == "poweredOff");
        bench.rig.order("fail", &json!({"method": "PowerOnVM_Task", "drop": true, "after": true}))?;
        bench.source.power_on(&bench.vm).await?;
        bench.source.power_on(&bench.vm).await?;
        ensure!(power(&bench)? == "poweredOn");
        Ok(())
    });
}

fn power(bench: &Bench) -> Result<Value> {
    Ok(bench.rig.machine()?["power"].clone())
}

#[test]
fn a_vm_that_moves_while_it_is_read_is_read_on() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &[]).await?;
        ensure!(bench.source.current_host(&bench.vm).await?.as_deref() == Some("DC0_C0_H0"));
        bench.rig.write(0, 4 * MIB, 90_000, 81)?;
        let snapshot = bench.snapshot().await?;
        bench.rig.order("move", &json!({"machine": NAME, "host": "DC0_C0_H1"}))?;
        bench.rig.order("rename", &json!({"machine": NAME, "name": "web-2"}))?;
        ensure!(bench.source.current_host(&bench.vm).await?.as_deref() == Some("DC0_C0_H1"));
        let (_, unknown) = bench.copy(&*snapshot).await?;
        ensure!(unknown.is_empty(), "{unknown:?}");
        snapshot.release().await?;
        bench.assert_equal()?;
        bench.rig.assert_clean()
    });
}

#[test]
fn a_disk_that_is_added_or_removed_is_told_and_leaves_nothing() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &[]).await?;
        let path = dir.join("third.raw");
        File::create(&path)?.set_len(SIZES[0])?;
        bench.rig.order("disk", &json!({"machine": NAME, "do": "add", "spec": {"file": path}}))?;
        // The disks that are copied go on; the new one is described.
        bench.rig.write(0, 5 * MIB, 70_000, 91)?;
        ensure!(bench.pass(false).await?.is_empty());
        ensure!(bench.source.describe(NAME).await?.disks.len() == 3);
        bench.rig.order("disk", &json!({"machine": NAME, "disk": 1, "do": "remove"}))?;
        assert_error(bench.snapshot().await, SourceErrorKind::NotFound, &bench.disks[1].key.0)?;
        bench.rig.assert_clean()
    });
}
