//! Cutovers over simulated endpoints: every phase fails, hangs and is aborted; both VMs never run at once.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use warmd_core::control::Control;
use warmd_core::model::{
    phase::Phase,
    plan::VerifyMode,
    request::{Request, RequestOutcome},
    state::State,
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld};

const BLOCK: u64 = 64 * 1024;
/// Two disks, one with a short last block.
const DISKS: [(&str, u64); 2] = [("vda", 40 * BLOCK), ("vdb", 10 * BLOCK + 512)];

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&DISKS);
    scribble(&world, 1, 60);
    world
}

/// Random writes of the guest, some of them zeroes.
fn scribble(world: &SimulatedWorld, seed: u64, writes: u32) {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..writes {
        let (disk, size) = DISKS[random.random_range(0..DISKS.len())];
        let len = random.random_range(1..20_000).min(size);
        let at = random.random_range(0..=size - len);
        let fill = if random.random_bool(0.2) { 0 } else { random.random() };
        world.guest_writes(disk, at, &vec![fill; len as usize]);
    }
}

#[tokio::test]
async fn a_vm_is_moved_with_deltas_and_both_verifications() {
    for verify in [VerifyMode::None, VerifyMode::Readback, VerifyMode::Compare] {
        let rig = Rig::start(world()).await;
        rig.seed(Rig::plan(verify)).await;
        for seed in 2..5 {
            scribble(&rig.world, seed, 5);
            rig.sync().await;
        }
        scribble(&rig.world, 9, 3);
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Done, "{verify:?}:\n{}", rig.journal().await);
        rig.world.assert_moved();
        let cutover = view.cutover.unwrap();
        assert!(cutover.downtime.is_some() && cutover.ended.is_some());
        let phases: Vec<_> = cutover.phases.iter().map(|phase| phase.phase).collect();
        assert_eq!(phases, Phase::ALL);
        assert_eq!(view.verification.is_some(), verify != VerifyMode::None);
    }
}

#[tokio::test]
async fn a_delta_reads_only_what_changed() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    rig.world.guest_writes("vda", 5 * BLOCK + 10, &[7; 100]);
    rig.sync().await;
    let pass = rig.view().await.pass.unwrap();
    let read: u64 = pass.disks.iter().map(|disk| disk.figures.read).sum();
    assert_eq!(read, BLOCK, "{pass:?}");
}

/// Calls that fail before the point of no return, each with its phase.
const STRUCK: [(&str, Phase); 9] = [
    ("source.snapshot", Phase::CatchUpDelta),
    ("source.shut-down", Phase::StopSource),
    ("source.final-snapshot", Phase::FinalDelta),
    ("source-disk.read", Phase::FinalDelta),
    ("target-disk.write", Phase::FinalDelta),
    ("target-disk.flush", Phase::FinalDelta),
    ("target-disk.read", Phase::Verify),
    ("target.create", Phase::CreateVm),
    ("target.start", Phase::StartVm),
];

#[tokio::test]
async fn refused_phase_is_undone_and_the_next_cutover_copies_a_delta() {
    for (call, phase) in STRUCK {
        let rig = Rig::start(world()).await;
        rig.seed(Rig::plan(VerifyMode::Readback)).await;
        scribble(&rig.world, 3, 4);
        rig.world.faults.set(call, InjectedFault::Refused);
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Synced, "{call}:\n{}", rig.journal().await);
        rig.world.assert_undone();
        let cutover = view.cutover.unwrap();
        assert!(cutover.failure.is_some(), "{call}: no reason is given");
        let last = cutover.phases.last().unwrap().phase;
        assert!(last == phase || call.contains("disk."), "{call} struck in {last}");

        rig.world.faults.clear();
        scribble(&rig.world, 4, 2);
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Done, "{call}:\n{}", rig.journal().await);
        rig.world.assert_moved();
        let read: u64 = view.pass.unwrap().disks.iter().map(|disk| disk.figures.read).sum();
        assert!(read < 10 * BLOCK, "{call}: {read} bytes were read again");
    }
}

#[tokio::test]
async fn a_phase_that_hangs_is_undone_after_its_deadline() {
    for (call, _) in [STRUCK[2], STRUCK[3], STRUCK[6], STRUCK[7], STRUCK[8]] {
        let rig = Rig::start(world()).await;
        rig.seed(Rig::plan(VerifyMode::Readback)).await;
        scribble(&rig.world, 3, 4);
        rig.world.faults.set(call, InjectedFault::Hang);
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Synced, "{call}:\n{}", rig.journal().await);
        assert!(view.cutover.unwrap().failure.unwrap().contains("deadline"), "{call}");
        rig.world.assert_undone();
    }
}

#[tokio::test]
async fn abort_in_any_phase_before_the_start_restores_the_source() {
    for call in ["source.snapshot", "source.final-snapshot", "target-disk.read", "target.create"] {
        let rig = Rig::start(world()).await;
        rig.seed(Rig::plan(VerifyMode::Readback)).await;
        scribble(&rig.world, 3, 4);
        rig.world.faults.set(call, InjectedFault::Hang);
        rig.ask(Request::cutover()).await;
        let phase = match call {
            "source.snapshot" => Phase::CatchUpDelta,
            "source.final-snapshot" => Phase::FinalDelta,
            "target-disk.read" => Phase::Verify,
            _ => Phase::CreateVm,
        };
        rig.until(call, |view| view.state == State::CuttingOver { phase }).await;
        rig.ask(Request::AbortCutover).await;
        rig.world.faults.clear();
        let view = rig.until("undone", |view| view.state == State::Synced).await;
        assert!(view.cutover.unwrap().failure.unwrap().contains("aborted"), "{call}");
        rig.world.assert_undone();
    }
}

#[tokio::test]
async fn passing_failures_are_outlasted() {
    let rig = Rig::start(world()).await;
    for call in
        ["source.snapshot", "source-disk.read", "target-disk.write", "target-disk.flush", "target.prepare"]
    {
        rig.world.faults.set(call, InjectedFault::Passing(1));
    }
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    scribble(&rig.world, 3, 4);
    for call in
        ["source.shut-down", "source.final-snapshot", "target.create", "source.release-marks", "target.look"]
    {
        rig.world.faults.set(call, InjectedFault::Passing(1));
    }
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.world.assert_moved();
}

#[tokio::test]
async fn lost_answers_change_nothing() {
    for call in [
        "source.snapshot",
        "source.final-snapshot",
        "source.shut-down",
        "source.release",
        "source.release-marks",
        "target.create",
        "target.start",
    ] {
        let rig = Rig::start(world()).await;
        rig.seed(Rig::plan(VerifyMode::Compare)).await;
        scribble(&rig.world, 3, 4);
        rig.world.faults.set(call, InjectedFault::LostAnswer);
        assert_eq!(rig.cutover().await.state, State::Done, "{call}:\n{}", rig.journal().await);
        rig.world.assert_moved();
    }
}

#[tokio::test]
async fn a_target_that_cannot_be_discarded_keeps_the_source_off() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    rig.world.faults.set("target.start", InjectedFault::Refused);
    rig.world.faults.set("target.discard", InjectedFault::Refused);
    rig.ask(Request::cutover()).await;
    rig.until("the undo", |view| matches!(view.state, State::Undoing { .. })).await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert!(
        !rig.world.with(|truth| truth.source_runs),
        "the source runs while the target is not surely gone"
    );
    rig.world.faults.clear();
    rig.until("undone", |view| view.state == State::Synced).await;
    rig.world.assert_undone();
}

#[tokio::test]
async fn after_the_start_there_is_only_forward() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    rig.world.with(|truth| truth.target_dies = true);
    let view = rig.cutover().await;
    assert!(matches!(view.state, State::Failed { resumable: true, .. }), "{}", view.state);
    assert!(!rig.world.with(|truth| truth.source_runs), "the source was started after the target had been");
    for request in [Request::AbortCutover, Request::Cancel, Request::cutover()] {
        assert!(matches!(rig.request(request.clone()).await, RequestOutcome::Refused(_)), "{request:?}");
    }
    rig.world.with(|truth| (truth.target_dies, truth.target_runs) = (false, true));
    rig.ask(Request::Resume).await;
    rig.until("done", |view| view.state == State::Done).await;
    rig.world.assert_moved();
}

#[tokio::test]
async fn a_source_that_is_started_in_the_cutover_stops_it() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig.world.faults.set("target-disk.read", InjectedFault::Hang);
    rig.ask(Request::cutover()).await;
    rig.until("verify", |view| view.state == State::CuttingOver { phase: Phase::Verify }).await;
    rig.world.with(|truth| truth.source_runs = true);
    rig.world.faults.clear();
    let view = rig.until("undone", |view| view.state == State::Synced).await;
    assert!(view.cutover.unwrap().failure.unwrap().contains("started again"));
    rig.world.assert_undone();
}

#[tokio::test]
async fn a_corrupted_target_is_found_named_and_copied_again() {
    for verify in [VerifyMode::Readback, VerifyMode::Compare] {
        let rig = Rig::start(world()).await;
        rig.seed(Rig::plan(verify)).await;
        rig.world.with(|truth| truth.target_disks["vda"].corrupt(3 * BLOCK as usize + 7, &[1, 2, 3]));
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Synced, "{verify:?}:\n{}", rig.journal().await);
        rig.world.assert_undone();
        let failure = view.cutover.unwrap().failure.unwrap();
        assert!(failure.contains(&format!("{}+{BLOCK}", 3 * BLOCK)), "{failure}");
        let result = view.verification.unwrap().result.unwrap();
        assert!(!result.passed());
        assert_eq!(rig.cutover().await.state, State::Done, "{verify:?}:\n{}", rig.journal().await);
        rig.world.assert_moved();
    }
}

#[tokio::test]
async fn unresponsive_guest_is_forced_off_only_if_the_plan_allows() {
    let rig = Rig::start(world()).await;
    rig.world.with(|truth| truth.ignores_shutdown = true);
    let mut plan = Rig::plan(VerifyMode::None);
    rig.seed(plan.clone()).await;
    assert_eq!(rig.cutover().await.state, State::Synced);
    rig.world.assert_undone();
    plan.cutover.force_power_off = true;
    rig.manager_applies(plan).await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.world.assert_moved();
}

#[tokio::test]
async fn lost_marks_lead_to_a_compare_that_writes_little() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig.world.guest_writes("vda", 8 * BLOCK, &[9; 10]);
    rig.world.with(|truth| truth.marks.clear());
    rig.sync().await;
    let pass = rig.view().await.pass.unwrap();
    let (read, written): (u64, u64) = pass
        .disks
        .iter()
        .map(|disk| (disk.figures.read, disk.figures.written))
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert_eq!(written, BLOCK, "{pass:?}");
    assert_eq!(read, DISKS.iter().map(|(_, size)| size).sum::<u64>());
    assert!(pass.disks.iter().all(|disk| disk.unknown.is_some()));
    assert_eq!(rig.cutover().await.state, State::Done);
    rig.world.assert_moved();
}

#[tokio::test]
async fn full_target_fails_resumably_and_continues_where_it_was() {
    let rig = Rig::start(world()).await;
    rig.world.faults.set("target-disk.write", InjectedFault::Refused);
    rig.manager_applies(Rig::plan(VerifyMode::Readback)).await;
    let view = rig.until("failed", |view| matches!(view.state, State::Failed { .. })).await;
    assert!(matches!(view.state, State::Failed { resumable: true, .. }), "{}", view.state);
    assert!(!rig.world.with(|truth| truth.snapshot_open), "the snapshot was kept while nothing is copied");
    rig.world.faults.clear();
    rig.ask(Request::Resume).await;
    rig.until("synced", |view| view.state == State::Synced).await;
    assert_eq!(rig.cutover().await.state, State::Done);
    rig.world.assert_moved();
}

#[tokio::test]
async fn cancelling_leaves_nothing_behind() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    rig.ask(Request::Cancel).await;
    rig.until("cancelled", |view| view.state == State::Cancelled).await;
    rig.world.with(|truth| {
        assert!(truth.source_runs && truth.marks.is_empty() && !truth.snapshot_open);
        assert!(truth.target_disks.is_empty() && !truth.target_exists);
    });
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was() {
    let mut rig = Rig::start(world()).await;
    rig.world.faults.set("source-disk.read", InjectedFault::Hang);
    rig.manager_applies(Rig::plan(VerifyMode::Readback)).await;
    rig.until("seeding", |view| view.state == State::Seeding).await;
    rig.world.faults.clear();
    rig.restart().await;
    rig.until("synced", |view| view.state == State::Synced).await;

    // In the cutover, at each of two phases.
    for call in ["target-disk.read", "target.create"] {
        rig.world.faults.set(call, InjectedFault::Hang);
        if rig.view().await.state == State::Synced {
            rig.ask(Request::cutover()).await;
        }
        let phase = if call == "target.create" { Phase::CreateVm } else { Phase::Verify };
        rig.until(call, |view| view.state == State::CuttingOver { phase }).await;
        // The call hangs so that only the shutdown happens.
        let clearing = rig.world.faults.clone();
        let release = tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            clearing.clear();
            clearing.set("target.create", InjectedFault::Hang);
        });
        rig.restart().await;
        release.await.unwrap();
    }
    rig.world.faults.clear();
    rig.until("done", |view| view.state == State::Done).await;
    rig.world.assert_moved();
}

#[tokio::test]
async fn plan_applied_again_changes_nothing_and_a_bad_one_fails() {
    let rig = Rig::start(world()).await;
    let plan = Rig::plan(VerifyMode::None);
    rig.seed(plan.clone()).await;
    let again = rig.manager.apply_plan(plan.clone(), "test").await.unwrap();
    assert_eq!((again.started.len(), again.kept.len()), (0, 1));
    let mut bad = plan;
    bad.name = "other".to_owned();
    bad.vms.push("nobody".to_owned());
    let error = rig.manager.apply_plan(bad, "test").await.unwrap_err();
    assert!(error.message.contains("nobody"), "{error}");
}

#[tokio::test]
async fn disks_of_a_target_that_may_have_run_are_copied_again_whole() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig.world.faults.set("target.start", InjectedFault::Hang);
    assert_eq!(rig.cutover().await.state, State::Synced, "{}", rig.journal().await);
    rig.world.assert_undone();
    // It may have written while it ran.
    rig.world.with(|truth| truth.target_disks["vda"].corrupt(5 * BLOCK as usize, &[1, 2, 3]));
    rig.world.faults.clear();
    rig.sync().await;
    let read: u64 = rig.view().await.pass.unwrap().disks.iter().map(|disk| disk.figures.read).sum();
    assert_eq!(read, DISKS.iter().map(|(_, size)| size).sum::<u64>());
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.world.assert_moved();
}

#[tokio::test]
async fn source_that_ran_without_the_daemon_is_copied_to_its_end() {
    let mut rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig.world.faults.set("target-disk.read", InjectedFault::Hang);
    rig.ask(Request::cutover()).await;
    rig.until("verify", |view| view.state == State::CuttingOver { phase: Phase::Verify }).await;
    rig.restart_after(|world| {
        world.with(|truth| truth.source_runs = true);
        world.guest_writes("vda", 7 * BLOCK, &[0xee; 9000]);
        world.with(|truth| truth.source_runs = false);
        world.faults.clear();
        world.faults.set("source.power", InjectedFault::Passing(1));
    })
    .await;
    let view = rig.until("the end", |view| matches!(view.state, State::Done | State::Synced)).await;
    if view.state == State::Synced {
        // Seen as a start in the cutover, and undone: the next one moves it.
        assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    }
    rig.world.assert_moved();
}

/// Whether or not the target VM's start was requested: a source that ran unseen is never ignored.
#[tokio::test]
async fn source_that_ran_before_the_target_start_is_copied_to_its_end() {
    for (call, asked) in [("target.look", false), ("target.start", true)] {
        let mut rig = Rig::start(world()).await;
        rig.seed(Rig::plan(VerifyMode::Readback)).await;
        rig.world.faults.set(call, InjectedFault::Hang);
        rig.ask(Request::cutover()).await;
        rig.until("start", |view| view.state == State::CuttingOver { phase: Phase::StartVm }).await;
        let faults = rig.world.faults.clone();
        rig.until(call, |_| faults.struck(call) > 0).await;
        rig.restart_after(|world| {
            world.with(|truth| truth.source_runs = true);
            world.guest_writes("vda", 7 * BLOCK, &[0xee; 9000]);
            world.with(|truth| truth.source_runs = false);
            world.faults.clear();
        })
        .await;
        let view = rig.until("the end", |view| matches!(view.state, State::Done | State::Synced)).await;
        assert_eq!(view.state == State::Synced, asked, "{call}:\n{}", rig.journal().await);
        if asked {
            rig.world.assert_undone();
            assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
        }
        rig.world.assert_moved();
    }
}

/// The daemon ends when the target VM is known to run and the next phase is not saved yet; then the target
/// goes off.
#[tokio::test]
async fn a_target_that_was_seen_to_run_is_never_taken_back() {
    let mut rig = Rig::start(world()).await;
    let mut plan = Rig::plan(VerifyMode::Readback);
    plan.cutover.min_uptime = Duration::from_mins(10);
    rig.seed(plan).await;
    rig.ask(Request::cutover()).await;
    rig.until("boot-check", |view| view.state == State::CuttingOver { phase: Phase::BootCheck }).await;
    let file = rig.state_file();
    rig.restart_after(|world| {
        let earlier = "UPDATE migrations SET state = replace(state, 'boot-check', 'start-vm')";
        let changed = rusqlite::Connection::open(file).unwrap().execute(earlier, []).unwrap();
        assert_eq!(changed, 1);
        world.with(|truth| truth.target_runs = false);
    })
    .await;
    let view = rig.until("a failure", |view| matches!(view.state, State::Failed { .. })).await;
    assert!(matches!(view.state, State::Failed { resumable: true, .. }), "{}", view.state);
    rig.world.with(|truth| assert!(truth.target_exists && !truth.source_runs, "{:?}", truth.calls));
}

#[tokio::test]
async fn a_deleted_plan_keeps_no_daemon_from_starting() {
    let mut rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    assert_eq!(rig.cutover().await.state, State::Done);
    rig.manager.delete_plan("plan", "test").await.unwrap();
    rig.restart().await;
    assert_eq!(rig.view().await.state, State::Done);
}
