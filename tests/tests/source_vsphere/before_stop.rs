//! What is looked at before a VM is stopped: that its last changes can be read, and that it can be held off
//! and started again.

use anyhow::{Context as _, ensure};
use serde_json::json;
use warmd_core::{
    model::{id::MigrationId, machine::PowerState},
    sources::{HoldOff, SnapshotRequest, Source, SourceErrorKind},
};
use warmd_tests::vsphere::NAME;
use warmd_vsphere::Vsphere;

use super::{
    bench::{Bench, GRACEFUL, assert_error, block_on},
    hold_off::host_starts_vms,
};

#[test]
fn snapshots_and_tasks_of_others_keep_a_vm_from_being_stopped() {
    block_on(async |dir| {
        let bench = Bench::copied(dir, &[]).await?;
        let keys: Vec<_> = bench.disks.iter().map(|disk| disk.key.clone()).collect();
        bench.source.can_finish(&bench.vm, bench.owner, &keys).await?;
        let backup = bench.rig.order("snapshot", &json!({"machine": NAME, "name": "Nightly"}))?;
        let finish = bench.source.can_finish(&bench.vm, bench.owner, &keys).await;
        assert_error(finish, SourceErrorKind::Blocked, "Nightly")?;
        bench.rig.order("remove", &json!({"machine": NAME, "snapshot": backup["snapshot"]}))?;

        let vsphere = Vsphere::new(bench.rig.settings()?)?;
        let of = vsphere.find(NAME).await?.of;
        bench.rig.order("limits", &json!({"task_times": {"ReconfigVM_Task": 3.0}}))?;
        let slow = tokio::spawn(async move { vsphere.set_tracking(&of, true).await });
        let finish = async || bench.source.can_finish(&bench.vm, bench.owner, &keys).await;
        let begun = std::time::Instant::now();
        while finish().await.is_ok() {
            ensure!(begun.elapsed().as_secs() < 2, "a task runs on it, and it may be stopped");
        }
        assert_error(finish().await, SourceErrorKind::Blocked, "reconfig")?;
        slow.await??;
        finish().await?;
        // With its own snapshot there, as between a pass and the stop after a crash.
        let snapshot = bench.snapshot().await?;
        finish().await?;
        snapshot.release().await?;
        let other = SnapshotRequest { owner: MigrationId::generate(), ..bench.request(false) };
        let snapshot = bench.source.snapshot(&other).await?;
        assert_error(finish().await, SourceErrorKind::Blocked, &other.owner.to_string())?;
        snapshot.release().await?;
        finish().await?;
        // A VM that is off is finished with others' snapshots, if it was never tracked.
        bench.source.shut_down(&bench.vm, GRACEFUL).await?;
        bench.rig.order("snapshot", &json!({"machine": NAME, "name": "old"}))?;
        finish().await.context("a VM that is off")
    });
}

#[test]
fn a_vm_that_cannot_be_held_off_is_not_stopped() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &[]).await?;
        let keys: Vec<_> = bench.disks.iter().map(|disk| disk.key.clone()).collect();
        let deny = |privilege: &str, on: bool| {
            bench.rig.order("deny", &json!({"privilege": privilege, "on": on})).map(drop)
        };
        // Its host does not start it: nothing is to be taken away.
        deny("Host.Config.AutoStart", true)?;
        bench.source.can_finish(&bench.vm, bench.owner, &keys).await?;
        deny("Host.Config.AutoStart", false)?;
        host_starts_vms(&Vsphere::new(bench.rig.settings()?)?).await?;
        bench.source.let_go(&bench.vm, bench.owner, &HoldOff { autostart: true }).await?;
        bench.source.can_finish(&bench.vm, bench.owner, &keys).await?;
        for privilege in ["Host.Config.AutoStart", "VirtualMachine.Config.DiskLease"] {
            deny(privilege, true)?;
            let finish = bench.source.can_finish(&bench.vm, bench.owner, &keys).await;
            assert_error(finish, SourceErrorKind::Refused, privilege)?;
            deny(privilege, false)?;
        }
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Running);
        Ok(())
    });
}
