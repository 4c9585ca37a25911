//! Snapshots of a VM that is off: it is powered on while it is read, and executes nothing.

use anyhow::{Context as _, ensure};
use warmd_core::model::machine::PowerState;
use warmd_core::sources::{HowStopped, ShutdownPolicy, Source, SourceErrorKind};

use super::bench::{
    Bench, MIB, Marks, SOON, UUID, assert_changed, assert_error, assert_unknown, block_on, marks,
};

const DISKS: [(&str, u64); 2] = [("qcow2", 8), ("raw", 4)];

#[test]
fn the_final_delta_of_a_vm_that_is_off() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &DISKS)?;
        let first = bench.pass(&Marks::new()).await?;
        bench.write(0, 1, MIB, 512)?;
        bench.write(1, 2, 0, 512)?;
        bench.virsh(["destroy", UUID])?;
        let defined = bench.virsh(["dumpxml", "--inactive", UUID])?;

        let last = bench.final_snapshot(&first).await?;
        ensure!(bench.virsh(["domstate", UUID])? == "paused");
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Off, "for all the world it is off");
        assert_changed(&*last, &bench.disks[0].key, &[(MIB, 512)]).await?;
        assert_unknown(&*last, &bench.disks[1].key, "raw").await?;
        bench.assert_contents(&*last).await?;
        let second = marks(&*last);
        bench.keep(&second).await?;
        last.release().await?;

        ensure!(bench.virsh(["domstate", UUID])? == "shut off");
        ensure!(bench.virsh(["dumpxml", UUID])? == defined, "the definition changed");
        bench.assert_nothing_runs()?;

        // The cutover is undone: the VM continues, and so does the tracking.
        bench.source.power_on(&bench.vm).await?;
        bench.source.power_on(&bench.vm).await?;
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Running);
        bench.write(0, 3, 2 * MIB, 512)?;
        let delta = bench.snapshot(&second).await?;
        assert_changed(&*delta, &bench.disks[0].key, &[(2 * MIB, 512)]).await?;
        delta.release().await?;

        bench.virsh(["destroy", UUID])?;
        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        bench.assert_no_trace()
    });
}

#[test]
fn a_vm_that_is_off_all_the_time_is_copied_too() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &DISKS)?;
        let first = bench.pass(&Marks::new()).await?;
        ensure!(bench.virsh(["domstate", UUID])? == "shut off");
        let delta = bench.snapshot(&first).await?;
        assert_changed(&*delta, &bench.disks[0].key, &[]).await?;
        let second = marks(&*delta);
        delta.release().await?;
        bench.keep(&second).await?;
        ensure!(bench.checkpoints()?.len() == 1 && bench.bitmaps(0)?.len() == 1, "{:?}", bench.bitmaps(0)?);
        bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?;
        bench.assert_no_trace()
    });
}

#[test]
fn after_a_crash_in_the_final_delta_the_vm_is_off_again() {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, &DISKS)?;
        let first = bench.pass(&Marks::new()).await?;
        bench.write(0, 1, MIB, 512)?;
        bench.virsh(["destroy", UUID])?;
        drop(bench.final_snapshot(&first).await?);
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        ensure!(bench.virsh(["domstate", UUID])? == "shut off");
        bench.assert_nothing_runs()?;
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;

        // Or the next attempt finds it, or the undo does, or a shutdown.
        drop(bench.final_snapshot(&first).await?);
        let again = bench.final_snapshot(&first).await?;
        assert_changed(&*again, &bench.disks[0].key, &[(MIB, 512)]).await?;
        drop(again);
        let policy = ShutdownPolicy { graceful: SOON, force: false };
        ensure!(bench.source.shut_down(&bench.vm, policy).await? == HowStopped::WasOff);
        ensure!(bench.virsh(["domstate", UUID])? == "shut off");
        drop(bench.final_snapshot(&first).await?);
        bench.source.power_on(&bench.vm).await?;
        ensure!(bench.virsh(["domstate", UUID])? == "running");
        Ok(())
    });
}

#[test]
fn vm_resumed_by_another_tool_is_left_alone() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &DISKS)?;
        let held = bench.final_snapshot(&Marks::new()).await?;
        bench.virsh(["resume", UUID])?;
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Running);
        assert_error(held.release().await, SourceErrorKind::Refused, "the VM was started")?;
        ensure!(bench.virsh(["domstate", UUID])? == "running");
        assert_error(bench.final_snapshot(&Marks::new()).await, SourceErrorKind::Refused, "it was started")?;
        // Now paused by another tool: warmd must not end it.
        bench.virsh(["suspend", UUID])?;
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        ensure!(bench.virsh(["domstate", UUID])? == "paused");
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Paused);
        bench.assert_nothing_runs()
    });
}

#[test]
fn a_vm_that_people_let_run_and_paused_again_is_theirs() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &DISKS)?;
        let held = bench.final_snapshot(&Marks::new()).await?;
        bench.virsh(["resume", UUID])?;
        bench.virsh(["suspend", UUID])?;
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Paused, "its guest ran");
        let policy = ShutdownPolicy { graceful: std::time::Duration::ZERO, force: false };
        assert_error(bench.source.shut_down(&bench.vm, policy).await, SourceErrorKind::StillRunning, "")?;
        assert_error(held.release().await, SourceErrorKind::Refused, "the VM was started")?;
        bench.source.end_snapshot(&bench.vm, bench.owner).await?;
        ensure!(bench.virsh(["domstate", UUID])? == "paused", "it was ended");
        Ok(())
    });
}

#[test]
fn vm_that_ran_between_two_checks_is_noticed() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &DISKS)?;
        let held = bench.final_snapshot(&Marks::new()).await?;
        bench.assert_contents(&*held).await?;
        bench.virsh(["resume", UUID])?;
        bench.virsh(["destroy", UUID])?;
        assert_error(held.release().await, SourceErrorKind::Refused, "the VM was ended")?;
        // The next snapshot works as usual.
        let held = bench.final_snapshot(&Marks::new()).await?;
        Ok(held.release().await?)
    });
}

#[test]
fn vm_that_ran_and_was_reverted_between_checks_is_noticed() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &DISKS)?;
        let held = bench.final_snapshot(&Marks::new()).await?;
        // It ran, and is now as before: paused, tagged, and never running since this start.
        let tagged = dir.join("tagged.xml");
        std::fs::write(&tagged, bench.virsh(["dumpxml", UUID])?)?;
        bench.virsh(["resume", UUID])?;
        bench.virsh(["destroy", UUID])?;
        bench.virsh(["create", &tagged.to_string_lossy(), "--paused"])?;
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Off, "it does not look as it was");
        assert_error(held.release().await, SourceErrorKind::Refused, "was let run")?;
        let held = bench.final_snapshot(&Marks::new()).await?;
        Ok(held.release().await?)
    });
}

#[test]
fn vm_migrated_to_another_host_is_neither_started_nor_off() {
    block_on(async |dir| {
        let bench = Bench::started(dir, &DISKS)?;
        let other = warmd_tests::Libvirtd::start_at(dir.join("other"))?;
        bench.libvirt.migrate(UUID, &other)?;
        let runs_there = |error: Option<warmd_core::sources::SourceError>| {
            let error = error.context("it is taken for off")?;
            ensure!(error.runs_elsewhere() && error.kind == SourceErrorKind::Refused, "{error}");
            Ok(())
        };
        let policy = ShutdownPolicy { graceful: std::time::Duration::ZERO, force: true };
        runs_there(bench.source.power(&bench.vm).await.err())?;
        runs_there(bench.source.power_on(&bench.vm).await.err())?;
        runs_there(bench.source.shut_down(&bench.vm, policy).await.err())?;
        runs_there(bench.final_snapshot(&Marks::new()).await.err())?;
        ensure!(other.virsh(["domstate", UUID])? == "running");
        Ok(())
    });
}

#[test]
fn a_saved_memory_image_or_a_transient_domain_is_refused() {
    block_on(async |dir| {
        let bench = Bench::started(dir, &DISKS)?;
        bench.virsh(["managedsave", UUID])?;
        assert_error(bench.snapshot(&Marks::new()).await, SourceErrorKind::Blocked, "managedsave-remove")?;
        ensure!(bench.virsh(["domstate", UUID])? == "shut off");
        bench.virsh(["managedsave-remove", UUID])?;
        bench.virsh(["start", UUID])?;
        bench.virsh(["undefine", UUID])?;
        let policy = ShutdownPolicy { graceful: SOON, force: true };
        assert_error(bench.source.shut_down(&bench.vm, policy).await, SourceErrorKind::Refused, "transient")?;
        ensure!(bench.virsh(["domstate", UUID])? == "running");
        let warnings = bench.source.vms().await?.concat_warnings();
        ensure!(warnings.contains("transient"), "{warnings}");
        Ok(())
    });
}

trait Warnings {
    fn concat_warnings(&self) -> String;
}

impl Warnings for Vec<warmd_core::model::machine::VmSummary> {
    fn concat_warnings(&self) -> String {
        self.iter().flat_map(|vm| vm.warnings.clone()).collect::<Vec<_>>().join("; ")
    }
}
