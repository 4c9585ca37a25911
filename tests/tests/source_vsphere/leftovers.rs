//! What a daemon that was killed leaves behind, and whose it is.

use anyhow::ensure;
use serde_json::json;
use warmd_core::{
    model::id::MigrationId,
    sources::{Source, SourceErrorKind},
};
use warmd_tests::vsphere::NAME;

use super::bench::{Bench, MIB, assert_error, block_on};

#[test]
fn a_snapshot_of_a_daemon_that_was_killed_is_ended() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &[]).await?;
        // Dropped, not released, with an open reader: as after a kill. Its marks were not committed.
        let left = bench.snapshot().await?;
        drop(left.open(&bench.disks[0].key).await?);
        drop(left);
        ensure!(bench.rig.snapshots()? == 1);
        bench.rig.write(0, 2 * MIB, 512, 5)?;
        bench.source = bench.source_with(|_| ())?;
        ensure!(bench.pass(false).await?.is_empty(), "tracking is lost by a kill");
        drop(bench.snapshot().await?);
        for _ in 0..2 {
            bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        }
        bench.rig.assert_clean()
    });
}

#[test]
fn only_what_is_of_no_known_migration_is_a_leftover() {
    block_on(async |dir| {
        let mut bench = Bench::start(dir, &[]).await?;
        // Tracking has a leftover of its own.
        bench.source = bench.source_with(|settings| settings.enable_change_tracking = false)?;
        ensure!(bench.source.leftovers(&[]).await?.is_empty());
        drop(bench.snapshot().await?);
        ensure!(bench.source.leftovers(&[bench.owner]).await?.is_empty());
        let left = bench.source.leftovers(&[MigrationId::generate()]).await?;
        let [left] = left.as_slice() else { anyhow::bail!("{left:?}") };
        let said = left.to_string();
        ensure!(said.contains(NAME) && said.contains(&bench.owner.to_string()), "{said}");
        ensure!(left.remedy.contains("Snapshots"), "{left:?}");

        // Another migration neither ends it nor copies under it.
        let other = MigrationId::generate();
        bench.source.end_snapshot(&bench.vm, other).await?;
        ensure!(bench.rig.snapshots()? == 1);
        let mut request = bench.request(false);
        request.owner = other;
        let owner = bench.owner.to_string();
        assert_error(bench.source.snapshot(&request).await, SourceErrorKind::Blocked, &owner)?;
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        ensure!(bench.source.leftovers(&[]).await?.is_empty());

        // A snapshot of people that has the name alone is theirs.
        let name = format!("warmd-{}", bench.owner);
        bench.rig.order("snapshot", &json!({"machine": NAME, "name": name, "description": "a copy"}))?;
        ensure!(bench.source.leftovers(&[]).await?.is_empty());
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        ensure!(bench.rig.snapshots()? == 1);
        Ok(())
    });
}

#[test]
fn a_vm_that_is_gone_has_nothing_to_end() {
    block_on(async |dir| {
        let bench = Bench::copied(dir, &[]).await?;
        bench.rig.order("unregister", &json!({"machine": NAME}))?;
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        ensure!(bench.source.vms().await?.is_empty());
        assert_error(bench.snapshot().await, SourceErrorKind::NotFound, &bench.vm.0)
    });
}

#[test]
fn tracking_is_switched_off_again_as_it_was() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &[]).await?;
        let wanted =
            |bench: &Bench| -> anyhow::Result<bool> { Ok(bench.rig.machine()?["tracking_wanted"] == true) };
        ensure!(wanted(&bench)?);
        // Neither a pass's end nor another migration's touches it.
        bench.pass(false).await?;
        let other = MigrationId::generate();
        bench.source.delete_marks(&bench.vm, other, &[]).await?;
        ensure!(wanted(&bench)?, "another migration switched it off");
        ensure!(bench.source.leftovers(&[bench.owner]).await?.is_empty());
        let left = bench.source.leftovers(&[other]).await?;
        ensure!(left.len() == 1 && left[0].what.contains(&bench.owner.to_string()), "{left:?}");
        // What cannot be done now is told, and done by the next call.
        bench.rig.order("fail", &json!({"method": "ReconfigVM_Task", "fault": "FileFault"}))?;
        let left = bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        ensure!(left.len() == 1 && wanted(&bench)?, "{left:?}");
        for _ in 0..2 {
            ensure!(bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?.is_empty());
            ensure!(!wanted(&bench)?);
        }
        ensure!(bench.source.leftovers(&[]).await?.is_empty());

        // As an administrator has it on: it stays.
        bench.rig.order("tracking", &json!({"machine": NAME, "do": "set", "on": true}))?;
        bench.owner = other;
        bench.pass(false).await?;
        bench.source.delete_marks(&bench.vm, other, &[]).await?;
        ensure!(wanted(&bench)?, "it was on before");
        bench.rig.assert_clean()
    });
}
