//! With a real guest: one that writes all the time, and one that ignores the power button.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use warmd_cbt::buffer::Buffer;
use warmd_cbt::mark::Changed;
use warmd_cbt::units::Extent;
use warmd_core::model::id::{DiskKey, MigrationId, VmId};
use warmd_core::model::machine::PowerState;
use warmd_core::sources::{HowStopped, ShutdownPolicy, Snapshot, SnapshotRequest, Source, SourceErrorKind};
use warmd_endpoint_libvirt::source::{LibvirtSource, LibvirtSourceSettings};
use warmd_tests::image::{assert_equal, read_log};
use warmd_tests::{Boot, Guest, GuestDisk, GuestSpec, Libvirtd, TestDir};

use super::bench::{MIB, Marks, assert_error, block_on, marks};

const PATIENCE: Duration = Duration::from_mins(1);

fn source(libvirt: &Libvirtd, dir: &TestDir) -> Result<LibvirtSource> {
    Ok(LibvirtSource::new(&LibvirtSourceSettings {
        uri: libvirt.uri().to_owned(),
        runtime_dir: dir.join("run"),
        scratch_dir: dir.join("scratch"),
        scratch_reserve_mib: 64,
        ..LibvirtSourceSettings::default()
    })?)
}

#[test]
fn a_guest_that_writes_all_the_time_is_copied_to_the_last_byte() {
    block_on(async |dir| {
        let libvirt = Libvirtd::start(dir)?;
        let small = GuestDisk { size_mib: 96, ..GuestDisk::default() };
        let spec = GuestSpec {
            disks: vec![small.clone(), small],
            boot: Boot::Direct,
            churn_kib_s: 2048,
            ..GuestSpec::new("writer")
        };
        let guest = Guest::start(&libvirt, dir, &spec)?;
        let source = source(&libvirt, dir)?;
        let machine = source.describe("writer").await?;
        let (vm, owner) = (machine.id, MigrationId::generate());
        let keys: Vec<DiskKey> = machine.disks.into_iter().map(|disk| disk.key).collect();
        let mut copies: Vec<Vec<u8>> = vec![Vec::new(); keys.len()];
        let mut anchors = Marks::new();
        for pass in 0..4 {
            let is_final = pass == 3;
            let acked = guest.console.acked()?;
            if is_final {
                // Else its own power-off would start it again.
                libvirt.virsh(["set-lifecycle-action", "writer", "poweroff", "restart", "--live"])?;
                let policy = ShutdownPolicy { graceful: PATIENCE, force: false };
                ensure!(source.shut_down(&vm, policy).await? == HowStopped::Gracefully);
            } else {
                guest.console.wait_for_acked(acked + 20, PATIENCE)?;
            }
            let disks = keys.iter().map(|key| (key.clone(), anchors.get(key).cloned())).collect();
            let request = SnapshotRequest { owner, vm: vm.clone(), disks, is_final };
            let snapshot = source.snapshot(&request).await?;
            for (key, copy) in keys.iter().zip(&mut copies) {
                apply(&*snapshot, key, copy, pass > 0).await?;
            }
            anchors = marks(&*snapshot);
            snapshot.release().await?;
            let keep: Vec<_> = anchors.values().cloned().collect();
            source.delete_marks(&vm, owner, &keep).await?;
        }
        let acked = guest.console.acked()?;
        for (n, copy) in copies.iter().enumerate() {
            let path = dir.join(format!("copy{n}.raw"));
            std::fs::write(&path, copy)?;
            assert_equal(&guest.disks[n], &path)?;
        }
        let last = read_log(&dir.join("copy0.raw"))?.last;
        ensure!(last >= acked && acked > 60, "the copy's log ends at {last}, acknowledged were {acked}");
        source.delete_marks(&vm, owner, &[]).await?;
        Ok(())
    });
}

/// Copies the changes; in a delta the source must report them, and they must be few.
async fn apply(snapshot: &dyn Snapshot, key: &DiskKey, copy: &mut Vec<u8>, is_delta: bool) -> Result<()> {
    let disk = snapshot.open(key).await?;
    let size = disk.size();
    let extents = match snapshot.changed(key).await? {
        Changed::Known(blocks) if is_delta => blocks.extents().collect(),
        Changed::Unknown(_) if !is_delta => Extent::whole(size).into_iter().collect::<Vec<_>>(),
        other => bail!("{key}: {other:?}"),
    };
    let bytes: u64 = extents.iter().map(|extent| extent.len().0).sum();
    ensure!(!is_delta || bytes < size.0 / 2, "{key}: a delta of {bytes} bytes");
    copy.resize(size.0 as usize, 0);
    for piece in extents.into_iter().flat_map(|extent| extent.split(MIB)) {
        let buffer = disk.read(piece.start(), Buffer::unpooled(piece.len().0 as usize)).await?;
        let range = piece.start().0 as usize..piece.end().0 as usize;
        copy.get_mut(range).context("past the end")?.copy_from_slice(&buffer);
    }
    Ok(())
}

#[test]
fn guest_ignoring_the_power_button_is_left_or_forced_off() {
    block_on(async |dir| {
        let libvirt = Libvirtd::start(dir)?;
        let spec = GuestSpec {
            disks: vec![GuestDisk { size_mib: 64, ..GuestDisk::default() }],
            boot: Boot::Direct,
            noacpi: true,
            ..GuestSpec::new("deaf")
        };
        let guest = Guest::start(&libvirt, dir, &spec)?;
        let source = source(&libvirt, dir)?;
        let vm: VmId = source.describe("deaf").await?.id;
        let mut policy = ShutdownPolicy { graceful: Duration::from_secs(3), force: false };
        assert_error(source.shut_down(&vm, policy).await, SourceErrorKind::StillRunning, "running")?;
        ensure!(source.power(&vm).await? == PowerState::Running);
        let acked = guest.console.acked()?;
        guest.console.wait_for_acked(acked + 5, PATIENCE)?;
        policy.force = true;
        ensure!(source.shut_down(&vm, policy).await? == HowStopped::Forced);
        ensure!(source.shut_down(&vm, policy).await? == HowStopped::WasOff);
        ensure!(source.power(&vm).await? == PowerState::Off);
        Ok(())
    });
}
