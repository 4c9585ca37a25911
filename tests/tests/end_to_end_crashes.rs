//! The daemon killed, as `kill -9` does it, at every point of its work on a real guest: after each restart it goes on
//! by itself from what was committed last, and the guest arrives whole.

use anyhow::ensure;
use warmd_tests::{
    Rig, RigSpec,
    rig::{Pass, assert_nothing_twice},
    run,
};

/// From nothing to synced. The sixth is in the middle of the full pass.
const SEEDING: [&str; 8] = [
    "disks.prepared",
    "state.seeding",
    "snapshot.taken",
    "advance.committed",
    "commit.before:4",
    "commit.after:12",
    "snapshot.released",
    "marks.released",
];

const DELTA: [&str; 7] = [
    "state.syncing",
    "snapshot.taken",
    "advance.committed",
    "commit.before:3",
    "commit.after:3",
    "snapshot.released",
    "marks.released",
];

/// A whole cutover; a target that was started and not saved as such is found running.
const CUTOVER: [&str; 18] = [
    "phase.last-delta.begin",
    "phase.last-delta.end",
    "phase.stop-source.begin",
    "phase.stop-source.end",
    "phase.final-delta.begin",
    "snapshot.taken",
    "phase.final-delta.end",
    "phase.verify.begin",
    "phase.verify.end",
    "phase.create-vm.begin",
    "phase.create-vm.end",
    "phase.start-vm.begin",
    "target.start",
    "phase.start-vm.end",
    "phase.watch.begin",
    "phase.watch.end",
    "phase.release.begin",
    "phase.release.end",
];

#[test]
fn killed_in_passes_it_goes_on_from_the_last_commit() {
    run(|dir| {
        let mut rig = Rig::running(dir, &RigSpec::new("passes", 64))?;
        let data = rig.data()?;
        rig.crash(SEEDING[0], Rig::apply)?;
        for point in SEEDING.into_iter().skip(1) {
            rig.crash(point, |_| Ok(()))?;
        }
        rig.daemon.start()?;
        rig.wait_for("synced")?;
        let full: Vec<Pass> = rig.passes()?.into_iter().filter(|pass| pass.kind == "full").collect();
        assert_nothing_twice(&full)?;
        let cut_short = full.iter().filter(|pass| pass.drained > 0 && pass.drained < pass.pending).count();
        ensure!(cut_short >= 1, "no pass was cut short in the middle: {full:#?}");
        let (read, changed): (u64, u64) =
            (full.iter().map(|p| p.read).sum(), full.iter().skip(1).map(|p| p.changed).sum());
        ensure!(read <= data + data / 8 + changed, "read {read} of {data}, {changed} changed: {full:#?}");

        rig.daemon.stop()?;
        rig.crash(DELTA[0], |rig| rig.try_verb("sync", &["--no-wait"]).map(drop))?;
        for point in DELTA.into_iter().skip(1) {
            rig.crash(point, |_| Ok(()))?;
        }
        rig.daemon.start()?;
        rig.wait_for("synced")?;
        rig.cut_over_and_prove()
    });
}

#[test]
fn killed_in_every_phase_of_a_cutover_it_comes_to_its_end() {
    run(|dir| {
        let mut rig = Rig::running(dir, &RigSpec::new("cutover", 16))?;
        rig.daemon.start()?;
        rig.apply()?;
        rig.wait_for("synced")?;
        rig.daemon.stop()?;
        rig.crash(CUTOVER[0], |rig| rig.try_verb("cutover", &["--no-wait"]).map(drop))?;
        for point in CUTOVER.into_iter().skip(1) {
            rig.crash(point, |_| Ok(()))?;
        }
        rig.daemon.start()?;
        rig.wait_for("done")?;
        let left = rig.old.virsh(["checkpoint-list", &rig.guest.name, "--name"])?;
        ensure!(left.trim().is_empty(), "left on the source: {left}");
        rig.assert_moved()
    });
}
