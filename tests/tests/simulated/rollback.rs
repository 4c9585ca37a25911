//! Rollbacks over simulated endpoints: back to the source after the target VM was started, with failures and
//! interruptions on the way; both VMs never run at once, and the target VM's writes are never taken for a
//! copy.

use std::time::Duration;

use warmd_core::{
    control::{Control, ControlErrorKind},
    model::{
        boot::BootCheck,
        phase::Phase,
        plan::{Plan, VerifyMode},
        request::{Request, RequestOutcome},
        state::{ResumePoint, State},
    },
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld};

const BLOCK: u64 = 64 * 1024;
const SIZE: u64 = 40 * BLOCK;

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&[("vda", SIZE), ("vdb", 5 * BLOCK + 512)]);
    world.guest_writes("vda", 3 * BLOCK, &vec![7; 5 * BLOCK as usize]);
    world.guest_writes("vdb", 77, &vec![8; 70_000]);
    world
}

/// The target VM writes, as it may while it runs.
fn target_writes(world: &SimulatedWorld) {
    world.with(|truth| {
        assert!(truth.target_runs);
        truth.target_disks["vda"].corrupt(4 * BLOCK as usize + 5, &[0xee; 3000]);
        truth.target_disks["vdb"].corrupt(0, &[0xee; 10]);
    });
}

const RESTS: State = State::Paused { from: ResumePoint::Synced };

/// The source is as before, the target VM is gone, its disks are unchanged; then the VM is moved again, and
/// no write of the target VM is left.
async fn assert_back_and_move_again(rig: &Rig, ran: bool) {
    let view = rig.until("rest", |view| view.state == RESTS).await;
    rig.world.with(|truth| {
        assert!(truth.violations.is_empty(), "{:?}", truth.violations);
        assert_eq!((truth.source_runs, truth.target_exists, truth.target_runs), (ran, false, false));
        assert!(!truth.snapshot_open, "a snapshot is open");
        if ran {
            let kept = truth.target_disks["vda"].durable();
            assert_eq!(kept[4 * BLOCK as usize + 5], 0xee, "the target's disks were touched");
        }
    });
    assert!(view.disks.iter().all(|disk| disk.pending == disk.size), "{:?}", view.disks);
    let cutover = view.cutover.unwrap();
    assert!(cutover.failure.unwrap().contains("rolled back") && cutover.ended.is_some());
    let report = rig.manager.report(view.id).await.unwrap();
    assert!(report.rolled_back.is_some());
    assert!(report.disks.iter().all(|disk| disk.manifest_root.is_none() && disk.root_recorded.is_none()));
    let journal = rig.journal().await;
    assert!(journal.contains("rolled back: the target VM is removed"), "{journal}");

    rig.world.guest_writes("vda", 9 * BLOCK, &[9; 100]);
    rig.ask(Request::Resume).await;
    rig.until("synced", |view| view.state == State::Synced).await;
    rig.world.with(|truth| {
        for (key, contents) in &truth.source_disks {
            assert!(truth.target_disks[key].durable() == *contents, "disk {key} differs");
        }
    });
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Done, "{}", rig.journal().await);
    assert!(view.cutover.unwrap().failure.is_none());
    assert!(rig.manager.report(view.id).await.unwrap().rolled_back.is_none());
    if ran {
        rig.world.assert_moved();
    }
}

#[tokio::test]
async fn what_is_done_goes_back_also_after_a_restart() {
    for restarted in [false, true] {
        let mut rig = Rig::start(world()).await;
        rig.seed(Rig::plan(VerifyMode::Readback)).await;
        assert_eq!(rig.cutover().await.state, State::Done);
        target_writes(&rig.world);
        if restarted {
            rig.restart().await;
        }
        rig.ask(Request::Rollback).await;
        let journal = rig.journal().await;
        assert!(journal.contains("rollback accepted: what guest wrote on the target since"), "{journal}");
        assert_back_and_move_again(&rig, true).await;
    }
}

#[tokio::test]
async fn what_failed_its_boot_check_goes_back() {
    let rig = Rig::start(world()).await;
    let mut plan = Rig::plan(VerifyMode::Readback);
    let deadline = Duration::from_millis(300);
    plan.cutover.boot_check = BootCheck { guest_agent: true, deadline, ..BootCheck::default() };
    rig.seed(plan.clone()).await;
    let failed = rig.cutover().await.state;
    assert!(matches!(failed, State::Failed { from: ResumePoint::BootCheck, .. }), "{failed}");
    target_writes(&rig.world);
    rig.ask(Request::Rollback).await;
    plan.cutover.boot_check = BootCheck::default();
    rig.manager_applies(plan).await;
    assert_back_and_move_again(&rig, true).await;
}

#[tokio::test]
async fn a_cutover_that_watches_or_releases_goes_back() {
    for (call, phase) in [("target.look", Phase::BootCheck), ("source.release-marks", Phase::Cleanup)] {
        let rig = Rig::start(world()).await;
        let mut plan = Rig::plan(VerifyMode::None);
        plan.cutover.min_uptime = Duration::from_millis(200);
        rig.seed(plan).await;
        rig.ask(Request::cutover()).await;
        rig.until("the start", |view| view.state == State::CuttingOver { phase: Phase::BootCheck }).await;
        rig.world.faults.set(call, InjectedFault::Passing(u32::MAX));
        rig.until(call, |view| view.state == State::CuttingOver { phase }).await;
        target_writes(&rig.world);
        if call == "target.look" {
            assert!(
                matches!(rig.request(Request::Rollback).await, RequestOutcome::Refused(_)),
                "nobody knows how it is"
            );
            rig.world.faults.clear();
        }
        rig.ask(Request::Rollback).await;
        rig.world.faults.clear();
        assert_back_and_move_again(&rig, true).await;
    }
}

#[tokio::test]
async fn a_source_that_was_off_stays_off() {
    let rig = Rig::start(world()).await;
    rig.world.with(|truth| truth.source_runs = false);
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    assert_eq!(rig.cutover().await.state, State::Done);
    rig.ask(Request::Rollback).await;
    assert_back_and_move_again(&rig, false).await;
}

/// Interrupted at each of its calls, which hang, fail or lose their answers, it continues after a restart,
/// and both VMs never run at once.
#[tokio::test]
async fn interrupted_rollback_starts_the_source_after_the_target_left() {
    for fault in [InjectedFault::Hang, InjectedFault::Passing(1), InjectedFault::LostAnswer] {
        for call in ["target.discard", "source.end-snapshot", "source.power-on"] {
            let mut rig = Rig::start(world()).await;
            rig.seed(Rig::plan(VerifyMode::None)).await;
            assert_eq!(rig.cutover().await.state, State::Done);
            target_writes(&rig.world);
            rig.world.faults.set(call, fault);
            let before = rig.world.faults.struck(call);
            rig.ask(Request::Rollback).await;
            let faults = rig.world.faults.clone();
            rig.until(call, |_| faults.struck(call) > before).await;
            if fault == InjectedFault::Hang {
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert_eq!(rig.view().await.state, State::RollingBack, "{call}");
                let runs = rig.world.with(|truth| (truth.source_runs, truth.target_runs));
                assert_eq!(runs, (false, call == "target.discard"), "{call}");
                for request in [Request::cutover(), Request::Cancel, Request::Sync, Request::AbortCutover] {
                    assert!(
                        matches!(rig.request(request.clone()).await, RequestOutcome::Refused(_)),
                        "{request:?}"
                    );
                }
                rig.restart_after(|world| world.faults.clear()).await;
            }
            assert_back_and_move_again(&rig, true).await;
        }
    }
}

#[tokio::test]
async fn without_a_source_to_go_back_to_it_is_refused_and_says_which() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    for request in [Request::Rollback] {
        let RequestOutcome::Refused(why) = rig.request(request).await else {
            panic!("granted while it is synced")
        };
        assert!(why.contains("no target VM was started"), "{why}");
    }
    assert_eq!(rig.cutover().await.state, State::Done);
    let lost = rig.world.with(|truth| truth.source_disks.remove("vdb").unwrap());
    let RequestOutcome::Refused(why) = rig.request(Request::Rollback).await else {
        panic!("granted without vdb")
    };
    assert!(why.contains("vdb"), "{why}");
    assert!(rig.journal().await.contains("test request: rollback is refused"), "{}", rig.journal().await);
    rig.world.with(|truth| truth.source_disks.insert("vdb".to_owned(), lost));
    rig.world.faults.set("source.describe", InjectedFault::Refused);
    assert!(matches!(rig.request(Request::Rollback).await, RequestOutcome::Refused(_)));
    rig.world.faults.clear();
    rig.world.with(|truth| assert!(truth.target_runs && !truth.source_runs));

    // Its source VM is moved by another plan by now.
    let other = Plan { name: "other".to_owned(), ..Rig::plan(VerifyMode::None) };
    let id = rig.view().await.id;
    let begun = rig.manager.apply_plan(other, "test").await.unwrap().started;
    let error = rig.manager.request(id, Request::Rollback, "test").await.unwrap_err();
    assert_eq!(error.kind, ControlErrorKind::Refused);
    assert!(error.message.contains(&begun[0].to_string()), "{error}");
}
