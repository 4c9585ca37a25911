//! What the source refuses, with messages on which an operator can act.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use warmd_core::model::id::{MigrationId, VmId};
use warmd_core::model::machine::PowerState;
use warmd_core::sources::{Source, SourceErrorKind};
use warmd_tests::tool::call;
use warmd_tests::wait_until;

use super::bench::{Bench, MIB, Marks, SOON, UUID, assert_error, block_on};

const DISK: [(&str, u64); 1] = [("qcow2", 8)];

#[test]
fn a_foreign_backup_job_is_refused_and_lives() {
    block_on(async |dir| {
        let bench = Bench::started(dir, &DISK)?;
        let xml = dir.join("foreign.xml");
        std::fs::write(
            &xml,
            format!(
                "<domainbackup mode='pull'><server transport='unix' socket='{0}/foreign.sock'/><disks>\
                 <disk name='vda' backup='yes' type='file'><scratch file='{0}/foreign.scratch'/></disk>\
                 </disks></domainbackup>",
                dir.path().display()
            ),
        )?;
        bench.virsh(["backup-begin", UUID, &xml.to_string_lossy()])?;
        assert_error(bench.snapshot(&Marks::new()).await, SourceErrorKind::Blocked, "foreign.sock")?;
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        let job = bench.virsh(["backup-dumpxml", UUID])?;
        ensure!(job.contains("foreign.sock"), "the foreign job is gone");
        let warnings = bench.source.vms().await?.remove(0).warnings;
        ensure!(warnings.iter().any(|warning| warning.contains("backup job")), "{warnings:?}");
        bench.virsh(["domjobabort", UUID])?;
        wait_until("the foreign job's end", SOON, || {
            Ok((bench.libvirt.try_virsh(["backup-dumpxml", UUID])?.code != Some(0)).then_some(()))
        })?;
        bench.snapshot(&Marks::new()).await?.release().await?;
        Ok(())
    });
}

#[test]
fn two_migrations_of_one_vm_do_not_end_each_others_snapshots() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &DISK)?;
        let held = bench.snapshot(&Marks::new()).await?;
        bench.owner = MigrationId::generate();
        assert_error(bench.snapshot(&Marks::new()).await, SourceErrorKind::Blocked, "backup job")?;
        bench.assert_contents(&*held).await?;
        held.release().await?;

        bench.virsh(["destroy", UUID])?;
        let held = bench.final_snapshot(&Marks::new()).await?;
        let first = std::mem::replace(&mut bench.owner, MigrationId::generate());
        let result = bench.final_snapshot(&Marks::new()).await;
        assert_error(result, SourceErrorKind::Blocked, &first.to_string())?;
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        bench.assert_contents(&*held).await?;
        Ok(held.release().await?)
    });
}

#[test]
fn a_paused_vm_is_refused_and_left_as_it_is() {
    block_on(async |dir| {
        let bench = Bench::started(dir, &DISK)?;
        bench.virsh(["suspend", UUID])?;
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Paused);
        for is_final in [false, true] {
            let request = bench.request(&Marks::new(), is_final);
            assert_error(bench.source.snapshot(&request).await, SourceErrorKind::Blocked, "virsh resume")?;
        }
        assert_error(bench.source.power_on(&bench.vm).await, SourceErrorKind::Refused, "virsh resume")?;
        ensure!(bench.virsh(["domstate", UUID])? == "paused");
        Ok(())
    });
}

#[test]
fn the_final_snapshot_of_a_running_vm_is_refused() {
    block_on(async |dir| {
        let bench = Bench::started(dir, &DISK)?;
        assert_error(bench.final_snapshot(&Marks::new()).await, SourceErrorKind::Refused, "it was started")?;
        ensure!(bench.virsh(["domstate", UUID])? == "running");
        Ok(())
    });
}

#[test]
fn a_vm_that_is_not_there_is_not_found() {
    block_on(async |dir| {
        let mut bench = Bench::new(dir, &DISK)?;
        for name in ["no-such-vm", "--all", "", "22222222-2222-3333-4444-555555555555"] {
            assert_error(bench.source.describe(name).await, SourceErrorKind::NotFound, "")?;
        }
        for id in ["22222222-2222-3333-4444-555555555555", "--help", "no UUID"] {
            bench.vm = VmId(id.to_owned());
            assert_error(bench.source.power(&bench.vm).await, SourceErrorKind::NotFound, "")?;
            assert_error(bench.snapshot(&Marks::new()).await, SourceErrorKind::NotFound, "")?;
        }
        Ok(())
    });
}

#[test]
fn an_endpoint_that_does_not_answer_is_unreachable() {
    block_on(async |dir| {
        let mut bench = Bench::new(dir, &DISK)?;
        bench.libvirt.suspend()?;
        assert_error(bench.source.check().await, SourceErrorKind::Unreachable, "connect")?;
        assert_error(bench.source.vms().await, SourceErrorKind::Unreachable, "connect")?;
        bench.libvirt.resume()?;
        bench.source.check().await?;
        Ok(())
    });
}

#[test]
fn snapshot_is_dropped_when_scratch_space_runs_out() {
    block_on(async |dir| {
        let small = dir.join("small");
        std::fs::create_dir(&small)?;
        // Before libvirtd starts, so that its namespace has it.
        call(
            "mount",
            [Path::new("-t"), "tmpfs".as_ref(), "-o".as_ref(), "size=24M".as_ref(), "tmpfs".as_ref(), &small],
        )
        .context("a tmpfs needs root")?;
        let result = scratch_room(dir, &small).await;
        call("umount", [Path::new("--lazy"), &small])?;
        result
    });
}

async fn scratch_room(dir: &warmd_tests::TestDir, small: &Path) -> Result<()> {
    let mut bench = Bench::started(dir, &[("qcow2", 32)])?;
    bench.write(0, 1, 0, 32 * MIB)?;
    bench.source = bench.source_with(|settings| {
        settings.scratch_dir = small.into();
        settings.scratch_reserve_mib = 64;
    })?;
    assert_error(bench.snapshot(&Marks::new()).await, SourceErrorKind::Blocked, "scratch_reserve_mib")?;

    bench.source = bench.source_with(|settings| {
        settings.scratch_dir = small.into();
        settings.scratch_reserve_mib = 12;
    })?;
    let held = bench.snapshot(&Marks::new()).await?;
    bench.write(0, 2, 0, 16 * MIB)?;
    wait_until("the snapshot to be given up", SOON, || {
        Ok((bench.libvirt.try_virsh(["backup-dumpxml", UUID])?.code != Some(0)).then_some(()))
    })?;
    // More than the free space.
    bench.write(0, 3, 0, 32 * MIB)?;
    let read = super::bench::read_all(held.open(&bench.disks[0].key).await?).await;
    let why = held.ended_early().map(|error| (error.kind, error.to_string()));
    ensure!(
        why.as_ref()
            .is_some_and(|(kind, why)| *kind == SourceErrorKind::Blocked && why.contains("scratch files")),
        "{why:?}"
    );
    ensure!(read.is_err(), "a snapshot that was given up was read");
    held.release().await?;
    ensure!(std::fs::read_dir(small)?.count() == 0, "scratch files are left");
    Ok(())
}
