//! After a crash of warmd, of QEMU or of libvirtd, at any moment.

use anyhow::ensure;
use warmd_core::model::id::MigrationId;
use warmd_core::sources::Source;

use super::bench::{Bench, MIB, Marks, UUID, assert_changed, assert_unknown, block_on, marks, qemu_img};

const DISK: [(&str, u64); 1] = [("qcow2", 8)];

#[test]
fn a_job_left_by_a_crash_is_ended_by_the_next_snapshot() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &DISK)?;
        let key = bench.disks[0].key.clone();
        let first = bench.pass(&Marks::new()).await?;
        bench.write(0, 1, 0, 512)?;
        // Dropped, not released: as after kill -9. Its marks were not committed.
        drop(bench.snapshot(&first).await?);
        bench.write(0, 2, MIB, 512)?;
        drop(bench.snapshot(&first).await?);
        bench.write(0, 3, 2 * MIB, 512)?;
        let again = bench.snapshot(&first).await?;
        assert_changed(&*again, &key, &[(0, 512), (MIB, 512), (2 * MIB, 512)]).await?;
        bench.assert_contents(&*again).await?;
        let count = bench.checkpoints()?.len();
        ensure!(count == 2, "the anchor's and the new one are to be left: {:?}", bench.checkpoints()?);
        let second = marks(&*again);
        drop(again);
        // The crash came after the commit: now the ledger names the second, and the first is the one left
        // over.
        bench.write(0, 4, 3 * MIB, 512)?;
        let next = bench.snapshot(&second).await?;
        assert_changed(&*next, &key, &[(3 * MIB, 512)]).await?;
        next.release().await?;

        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        bench.assert_nothing_runs()
    });
}

#[test]
fn files_that_cannot_be_removed_keep_no_job_from_being_ended() {
    block_on(async |dir| {
        let bench = Bench::started(dir, &DISK)?;
        drop(bench.snapshot(&Marks::new()).await?);
        let scratch = dir.join("scratch").join(bench.owner.to_string());
        std::fs::remove_dir_all(&scratch)?;
        std::fs::write(&scratch, "no directory")?;
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        ensure!(scratch.exists(), "they can be removed");
        std::fs::remove_file(&scratch)?;
        bench.assert_nothing_runs()
    });
}

#[test]
fn snapshot_outlives_a_libvirtd_restart_and_is_then_released() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &DISK)?;
        let first = bench.pass(&Marks::new()).await?;
        bench.write(0, 1, 0, 512)?;
        let held = bench.snapshot(&first).await?;
        bench.libvirt.kill()?;
        bench.libvirt.resume()?;
        assert_changed(&*held, &bench.disks[0].key, &[(0, 512)]).await?;
        bench.assert_contents(&*held).await?;
        drop(held);
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        bench.assert_nothing_runs()?;
        let again = bench.snapshot(&first).await?;
        assert_changed(&*again, &bench.disks[0].key, &[(0, 512)]).await?;
        Ok(again.release().await?)
    });
}

#[test]
fn changes_after_a_qemu_crash_are_unknown_and_tracking_restarts() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &[("qcow2", 8), ("qcow2", 8)])?;
        let keys: Vec<_> = bench.disks.iter().map(|disk| disk.key.clone()).collect();
        let mut anchor = bench.pass(&Marks::new()).await?;
        // The first time the bitmaps were never stored; the second time they are stored and marked as in use.
        for round in 0..2_u8 {
            bench.write(0, 10 + round, 0, MIB)?;
            // What a guest flushed is on its disk after the crash.
            for disk in 0..2 {
                bench.flush(disk)?;
            }
            if round == 1 {
                drop(bench.snapshot(&anchor).await?);
            }
            bench.kill_qemu()?;
            bench.virsh(["start", UUID])?;
            let snapshot = bench.snapshot(&anchor).await?;
            for key in &keys {
                assert_unknown(&*snapshot, key, "bitmap").await?;
            }
            bench.assert_contents(&*snapshot).await?;
            anchor = marks(&*snapshot);
            snapshot.release().await?;
            bench.keep(&anchor).await?;
            ensure!(bench.checkpoints()?.len() == 1, "{:?}", bench.checkpoints()?);
            bench.virsh(["destroy", UUID])?;
            bench.virsh(["start", UUID])?;
            bench.write(1, 20 + round, MIB, 512)?;
            let delta = bench.snapshot(&anchor).await?;
            assert_changed(&*delta, &keys[0], &[]).await?;
            assert_changed(&*delta, &keys[1], &[(MIB, 512)]).await?;
            anchor = marks(&*delta);
            delta.release().await?;
            bench.keep(&anchor).await?;
        }
        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        bench.virsh(["destroy", UUID])?;
        bench.assert_no_trace()
    });
}

#[test]
fn one_broken_bitmap_costs_only_its_own_disk() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &[("qcow2", 8), ("qcow2", 8)])?;
        let keys: Vec<_> = bench.disks.iter().map(|disk| disk.key.clone()).collect();
        let first = bench.pass(&Marks::new()).await?;
        bench.write(1, 1, 0, 512)?;
        bench.virsh(["destroy", UUID])?;
        let checkpoint = bench.checkpoints()?.concat();
        qemu_img(["bitmap", "--remove", &bench.disks[0].path.to_string_lossy(), &checkpoint])?;
        bench.virsh(["start", UUID])?;
        let delta = bench.snapshot(&first).await?;
        assert_unknown(&*delta, &keys[0], "bitmap").await?;
        assert_changed(&*delta, &keys[1], &[(0, 512)]).await?;
        bench.assert_contents(&*delta).await?;
        Ok(delta.release().await?)
    });
}

#[test]
fn redefined_vm_is_unknown_and_old_bitmaps_are_no_obstacle() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &DISK)?;
        let first = bench.pass(&Marks::new()).await?;
        // An orphan with a higher number stays in the image, too.
        drop(bench.snapshot(&first).await?);
        bench.write(0, 1, 0, 512)?;
        bench.virsh(["destroy", UUID])?;
        bench.virsh(["undefine", UUID, "--checkpoints-metadata"])?;
        bench.define("")?;
        bench.virsh(["start", UUID])?;
        let snapshot = bench.snapshot(&first).await?;
        assert_unknown(&*snapshot, &bench.disks[0].key, "gone").await?;
        bench.assert_contents(&*snapshot).await?;
        let second = marks(&*snapshot);
        ensure!(second != first, "a name was used twice: {second:?}");
        snapshot.release().await?;
        bench.write(0, 2, MIB, 512)?;
        let delta = bench.snapshot(&second).await?;
        assert_changed(&*delta, &bench.disks[0].key, &[(MIB, 512)]).await?;
        delta.release().await?;
        // All of them are removed in the end, the orphans in the image too.
        bench.virsh(["destroy", UUID])?;
        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        bench.assert_no_trace()
    });
}

#[test]
fn a_guest_that_dies_under_a_snapshot_leaves_nothing_that_hurts() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &DISK)?;
        let first = bench.pass(&Marks::new()).await?;
        bench.write(0, 1, 0, 512)?;
        let held = bench.snapshot(&first).await?;
        bench.virsh(["destroy", UUID])?;
        let read = super::bench::read_all(held.open(&bench.disks[0].key).await?).await;
        ensure!(read.is_err(), "a snapshot of a VM without power was read");
        held.release().await?;
        bench.assert_nothing_runs()?;
        bench.virsh(["start", UUID])?;
        let again = bench.snapshot(&first).await?;
        assert_changed(&*again, &bench.disks[0].key, &[(0, 512)]).await?;
        Ok(again.release().await?)
    });
}

#[test]
fn a_vm_that_is_gone_has_nothing_to_end_or_release() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &DISK)?;
        bench.virsh(["undefine", UUID])?;
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        Ok(())
    });
}

#[test]
fn marks_of_another_migration_are_left_alone() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &DISK)?;
        let mine = bench.pass(&Marks::new()).await?;
        bench.write(0, 1, 0, 512)?;
        let me = std::mem::replace(&mut bench.owner, MigrationId::generate());
        let theirs = bench.snapshot(&mine).await?;
        assert_unknown(&*theirs, &bench.disks[0].key, "another migration").await?;
        theirs.release().await?;
        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        bench.owner = me;
        let delta = bench.snapshot(&mine).await?;
        assert_changed(&*delta, &bench.disks[0].key, &[(0, 512)]).await?;
        Ok(delta.release().await?)
    });
}
