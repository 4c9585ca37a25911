//! Exactly the changes: across passes, power cycles, raw disks, and replaced disks.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::ensure;
use warmd_core::model::id::DiskKey;
use warmd_core::sources::{Source, SourceErrorKind};

use super::bench::{
    Bench, MIB, Marks, UUID, assert_changed, assert_error, assert_unknown, block_on, marks, qemu_img,
};

const QCOW2: [(&str, u64); 2] = [("qcow2", 16), ("qcow2", 8)];

#[test]
fn a_full_pass_and_deltas_give_exactly_what_changed() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &QCOW2)?;
        let keys: Vec<_> = bench.disks.iter().map(|disk| disk.key.clone()).collect();
        bench.write(0, 1, 0, 3 * MIB)?;
        bench.write(1, 2, 5 * MIB, 512)?;

        let full = bench.snapshot(&Marks::new()).await?;
        let sizes: Vec<_> = full.disks().iter().map(|disk| disk.size.0).collect();
        ensure!(sizes == [16 * MIB, 8 * MIB], "{sizes:?}");
        assert_unknown(&*full, &keys[0], "no earlier mark").await?;
        bench.assert_contents(&*full).await?;
        // What the guest writes while the snapshot is open is not in it.
        let before: Vec<_> = bench.disks.iter().map(|disk| disk.bytes.clone()).collect();
        bench.write(0, 9, MIB, 4096)?;
        bench.write(1, 9, 0, MIB)?;
        for (disk, bytes) in bench.disks.iter().zip(&before) {
            let read = super::bench::read_all(full.open(&disk.key).await?).await?;
            ensure!(read == *bytes, "the snapshot of {} moved", disk.key);
        }
        let first = marks(&*full);
        full.release().await?;
        bench.assert_nothing_runs()?;

        bench.write(0, 3, 8 * MIB + 70_000 / 512 * 512, 512)?;
        let delta = bench.snapshot(&first).await?;
        assert_changed(&*delta, &keys[0], &[(MIB, 4096), (8 * MIB + 69_632, 512)]).await?;
        assert_changed(&*delta, &keys[1], &[(0, MIB)]).await?;
        bench.assert_contents(&*delta).await?;
        let second = marks(&*delta);
        ensure!(second != first, "two moments have one mark");
        // The advance is committed while the snapshot is open.
        bench.keep(&second).await?;
        assert_changed(&*delta, &keys[1], &[(0, MIB)]).await?;
        delta.release().await?;

        let idle = bench.snapshot(&second).await?;
        assert_changed(&*idle, &keys[0], &[]).await?;
        assert_changed(&*idle, &keys[1], &[]).await?;
        let third = marks(&*idle);
        idle.release().await?;
        bench.keep(&third).await?;
        ensure!(bench.checkpoints()?.len() == 1, "{:?}", bench.checkpoints()?);

        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        bench.virsh(["destroy", UUID])?;
        bench.assert_no_trace()
    });
}

#[test]
fn marks_outlive_power_cycles_and_a_guest_reset() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &QCOW2)?;
        let first = bench.pass(&Marks::new()).await?;
        bench.write(0, 1, 0, 512)?;
        bench.virsh(["reset", UUID])?;
        bench.write(0, 2, MIB, 512)?;
        bench.virsh(["destroy", UUID])?;
        bench.virsh(["start", UUID])?;
        bench.write(0, 3, 2 * MIB, 512)?;
        let delta = bench.snapshot(&first).await?;
        assert_changed(&*delta, &bench.disks[0].key, &[(0, 512), (MIB, 512), (2 * MIB, 512)]).await?;
        assert_changed(&*delta, &bench.disks[1].key, &[]).await?;
        bench.assert_contents(&*delta).await?;
        Ok(delta.release().await?)
    });
}

#[test]
fn a_raw_disk_is_read_at_the_same_moment_but_never_tracked() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &[("qcow2", 8), ("raw", 8)])?;
        let (tracked, raw) = (bench.disks[0].key.clone(), bench.disks[1].key.clone());
        bench.write(1, 1, 0, MIB)?;
        let first = bench.pass(&Marks::new()).await?;
        bench.write(0, 2, 0, 512)?;
        bench.write(1, 2, 0, 512)?;
        for _ in 0..2 {
            let delta = bench.snapshot(&first).await?;
            assert_changed(&*delta, &tracked, &[(0, 512)]).await?;
            assert_unknown(&*delta, &raw, "raw").await?;
            bench.assert_contents(&*delta).await?;
            delta.release().await?;
            bench.virsh(["destroy", UUID])?;
            bench.virsh(["start", UUID])?;
        }
        Ok(())
    });
}

#[test]
fn a_vm_of_raw_disks_alone_has_snapshots_without_checkpoints() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &[("raw", 4)])?;
        bench.write(0, 7, MIB, 512)?;
        let first = bench.pass(&Marks::new()).await?;
        let second = bench.pass(&first).await?;
        ensure!(first != second && bench.checkpoints()?.is_empty(), "{first:?} {second:?}");
        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        bench.virsh(["destroy", UUID])?;
        bench.assert_no_trace()
    });
}

#[test]
fn a_disk_that_was_resized_swapped_or_taken_away_is_noticed() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &[("qcow2", 8), ("qcow2", 8)])?;
        let keys: Vec<_> = bench.disks.iter().map(|disk| disk.key.clone()).collect();
        let first = bench.pass(&Marks::new()).await?;

        bench.virsh(["blockresize", UUID, "vda", "12M"])?;
        bench.disks[0].bytes.resize(12 << 20, 0);
        let grown = bench.snapshot(&first).await?;
        assert_unknown(&*grown, &keys[0], "size").await?;
        assert_changed(&*grown, &keys[1], &[]).await?;
        bench.assert_contents(&*grown).await?;
        let second = marks(&*grown);
        grown.release().await?;
        bench.keep(&second).await?;

        // Both images have good bitmaps of that name: each that of the other disk.
        bench.virsh(["destroy", UUID])?;
        bench.disks.reverse();
        for (disk, key) in bench.disks.iter_mut().zip(&keys) {
            disk.key = key.clone();
        }
        bench.define("")?;
        bench.virsh(["start", UUID])?;
        let swapped = bench.snapshot(&second).await?;
        for key in &keys {
            assert_unknown(&*swapped, key, "image").await?;
        }
        bench.assert_contents(&*swapped).await?;
        swapped.release().await?;

        let mut request = bench.request(&Marks::new(), false);
        request.disks.push((DiskKey("vdz".to_owned()), None));
        assert_error(bench.source.snapshot(&request).await, SourceErrorKind::NotFound, "vdz")?;
        request.disks = vec![(DiskKey("sda".to_owned()), None)];
        assert_error(bench.source.snapshot(&request).await, SourceErrorKind::NotFound, "sda")?;
        bench.assert_nothing_runs()
    });
}

#[test]
fn image_of_the_old_version_is_compared_with_a_remedy() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &[("qcow2", 4)])?;
        let path = bench.disks[0].path.to_string_lossy().into_owned();
        qemu_img(["amend", "-f", "qcow2", "-o", "compat=0.10", &path])?;
        bench.virsh(["start", UUID])?;
        let snapshot = bench.snapshot(&Marks::new()).await?;
        assert_unknown(&*snapshot, &bench.disks[0].key, "qemu-img amend").await?;
        bench.assert_contents(&*snapshot).await?;
        snapshot.release().await?;
        let warnings = bench.source.vms().await?.remove(0).warnings;
        ensure!(warnings.iter().any(|warning| warning.contains("qemu-img amend")), "{warnings:?}");
        bench.assert_nothing_runs()
    });
}

#[test]
fn only_some_disks_can_be_asked_for() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &QCOW2)?;
        let mut request = bench.request(&Marks::new(), false);
        request.disks.truncate(1);
        let one = bench.source.snapshot(&request).await?;
        let first = marks(&*one);
        ensure!(first.len() == 1, "{first:?}");
        one.release().await?;
        bench.write(0, 1, 0, 512)?;
        // The second disk is added later: it has no mark, and the first one's stays valid.
        let both = bench.snapshot(&first).await?;
        assert_changed(&*both, &bench.disks[0].key, &[(0, 512)]).await?;
        assert_unknown(&*both, &bench.disks[1].key, "no earlier mark").await?;
        assert_error(both.changed(&DiskKey("vdz".to_owned())).await, SourceErrorKind::NotFound, "vdz")?;
        Ok(both.release().await?)
    });
}

#[test]
fn qemu_may_run_as_a_user_of_its_own() {
    block_on(async |dir| {
        let mut bench = Bench::new(dir, &QCOW2)?;
        let conf = dir.join("libvirt/etc/qemu.conf");
        let text = std::fs::read_to_string(&conf)?
            .replace("user = \"root\"", "user = \"nobody\"")
            .replace("group = \"root\"", "group = \"nogroup\"")
            .replace("dynamic_ownership = 0", "dynamic_ownership = 1");
        ensure!(text.contains("nobody") && text.contains("dynamic_ownership = 1"), "{text}");
        std::fs::write(&conf, text)?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        std::fs::set_permissions(dir.join("libvirt"), std::fs::Permissions::from_mode(0o711))?;
        bench.libvirt.suspend()?;
        bench.libvirt.resume()?;
        bench.virsh(["start", UUID])?;
        ensure!(!bench.virsh(["dumpxml", UUID])?.contains("+0:+0"), "QEMU still runs as root");

        let first = bench.pass(&Marks::new()).await?;
        bench.write(0, 1, 0, 512)?;
        let delta = bench.snapshot(&first).await?;
        let mut modes = Vec::new();
        for owned in ["run", "scratch"] {
            for entry in std::fs::read_dir(dir.join(owned))? {
                let path = entry?.path();
                let path = if owned == "run" { path.join("q") } else { path };
                let metadata = std::fs::metadata(path)?;
                modes.push((metadata.mode() & 0o777, metadata.uid() != 0));
            }
        }
        ensure!(modes == [(0o700, true); 2], "QEMU's directories: {modes:?}");
        assert_changed(&*delta, &bench.disks[0].key, &[(0, 512)]).await?;
        bench.assert_contents(&*delta).await?;
        delta.release().await?;
        bench.assert_nothing_runs()
    });
}
