//! Holding off: from the stop on only the daemon starts the source; a start by a user is reported.

use std::time::Duration;

use warmd_core::model::{
    phase::Phase,
    plan::VerifyMode,
    request::Request,
    state::{ResumePoint, State},
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld, on_a_clock};

const SIZE: u64 = 10 * 64 * 1024;
const NOON: &str = "2026-11-22T12:00:00Z";
const MINUTE: Duration = Duration::from_mins(1);

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&[("vda", SIZE)]);
    world.with(|truth| truth.source_autostart = true);
    world
}

/// How many sources of done migrations run, as the metrics report.
async fn sources_run(rig: &Rig) -> u64 {
    let families = rig.metrics.render(&rig.manager.present()().await).unwrap();
    let told = families.lines().filter(|line| line.starts_with("warmd_source_running_after_cutover{"));
    let count = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64;
    told.map(count).sum()
}

/// Lines of the journal that contain `text`.
async fn lines(rig: &Rig, text: &str) -> usize {
    rig.journal().await.lines().filter(|line| line.contains(text)).count()
}

/// A user starts the source, or stops it again.
fn meddle(rig: &Rig, runs: bool) {
    rig.world.with(|truth| (truth.is_meddled, truth.source_runs) = (runs, runs));
}

/// The VM is on the target, with its autostart, and its source is held off.
fn assert_held_off(rig: &Rig) {
    rig.world.assert_moved();
    rig.world.with(|truth| {
        assert!(!truth.source_autostart && truth.target_autostart, "{truth:?}");
        assert!(truth.held_off.is_some() && truth.held_autostart, "{truth:?}");
    });
}

/// The VM is on the source as before, and so is its autostart.
fn assert_let_go(rig: &Rig) {
    rig.world.assert_undone();
    rig.world.with(|truth| assert!(truth.source_autostart && truth.held_off.is_none(), "{truth:?}"));
}

#[tokio::test]
async fn the_autostart_goes_with_the_vm_and_comes_back_with_it() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.world.with(|truth| {
        assert!(!truth.source_autostart && truth.target_autostart && truth.held_off.is_some(), "{truth:?}");
    });
    rig.ask(Request::Rollback).await;
    rig.until("rest", |view| matches!(view.state, State::Paused { from: ResumePoint::Synced })).await;
    rig.world.with(|truth| {
        assert!(truth.source_autostart && truth.source_runs && truth.held_off.is_none(), "{truth:?}");
        assert!(truth.violations.is_empty(), "{:?}", truth.violations);
    });
}

#[tokio::test]
async fn an_undo_gives_it_back_whatever_answers_are_lost() {
    for call in ["starters", "hold-off"] {
        let rig = Rig::start(world()).await;
        rig.seed(Rig::plan(VerifyMode::None)).await;
        rig.world.faults.set(&format!("source.{call}"), InjectedFault::Refused);
        rig.cutover().await;
        let journal = rig.journal().await;
        rig.world
            .with(|truth| assert!(truth.source_autostart && truth.held_off.is_none(), "{call}: {journal}"));
        rig.world.assert_undone();
    }
}

#[tokio::test]
async fn a_source_that_is_started_in_the_watch_fails_the_migration() {
    let rig = Rig::start(world()).await;
    let mut plan = Rig::plan(VerifyMode::None);
    plan.cutover.min_uptime = Duration::from_secs(30);
    rig.seed(plan).await;
    rig.ask(Request::cutover()).await;
    rig.until("the watch", |view| view.state == State::CuttingOver { phase: Phase::BootCheck }).await;
    rig.world.with(|truth| (truth.is_meddled, truth.source_runs) = (true, true));
    let failed = rig.until("the failure", |view| matches!(view.state, State::Failed { .. })).await.state;
    let State::Failed { from: ResumePoint::BootCheck, reason, .. } = failed else { panic!("{failed}") };
    assert!(reason.contains("source VM runs") && reason.contains("stop it on the source"), "{reason}");
    rig.world.with(|truth| assert!(truth.target_runs, "the target VM was stopped"));
    let counted = rig.store().sources_that_run().await.unwrap();
    assert_eq!(counted.iter().map(|(_, count)| count).sum::<u64>(), 1);
    rig.world.with(|truth| (truth.is_meddled, truth.source_runs) = (false, false));
}

#[tokio::test]
async fn an_undo_waits_until_the_target_vm_is_seen_gone() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    rig.world.with(|truth| truth.false_discards = 2);
    rig.world.faults.set("target.start", InjectedFault::Refused);
    rig.cutover().await;
    rig.world.with(|truth| {
        let discards = truth.calls.iter().filter(|call| *call == "target discarded").count();
        assert_eq!(discards, 3, "{:?}", truth.calls);
    });
    rig.world.assert_undone();
}

#[test]
fn source_started_after_done_is_reported_once_with_its_end() {
    on_a_clock(NOON, async {
        let mut rig = Rig::start_on_a_clock(world()).await;
        rig.seed(Rig::plan(VerifyMode::None)).await;
        assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
        tokio::time::sleep(3 * MINUTE).await;
        assert!(sources_run(&rig).await == 0, "{}", rig.journal().await);
        meddle(&rig, true);
        tokio::time::sleep(2 * MINUTE).await;
        assert!(sources_run(&rig).await == 1, "{}", rig.journal().await);
        assert_eq!(lines(&rig, "error: the source VM of guest runs").await, 1);
        // "Cannot be reached" is neither a new report nor an end; and a restart forgets nothing.
        rig.world.faults.set("source.power", InjectedFault::Refused);
        rig.restart().await;
        tokio::time::sleep(5 * MINUTE).await;
        rig.world.faults.clear();
        tokio::time::sleep(2 * MINUTE).await;
        assert!(sources_run(&rig).await == 1, "{}", rig.journal().await);
        assert_eq!(lines(&rig, "error: the source VM of guest runs").await, 1, "{}", rig.journal().await);
        assert_eq!(lines(&rig, "is off again").await, 0, "{}", rig.journal().await);
        meddle(&rig, false);
        tokio::time::sleep(2 * MINUTE).await;
        assert!(sources_run(&rig).await == 0, "{}", rig.journal().await);
        assert_eq!(lines(&rig, "is off again").await, 1, "{}", rig.journal().await);
        rig.world.with(|truth| assert!(truth.violations.is_empty() && truth.target_runs, "{truth:?}"));
    });
}

#[tokio::test]
async fn nothing_is_released_while_the_source_runs() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    rig.world.faults.set("target.set-autostart", InjectedFault::Blocked);
    rig.ask(Request::cutover()).await;
    rig.until("the call", |_| rig.world.faults.struck("target.set-autostart") > 0).await;
    meddle(&rig, true);
    rig.world.faults.clear();
    let failed = rig.until("the failure", |view| matches!(view.state, State::Failed { .. })).await.state;
    let State::Failed { from: ResumePoint::Cleanup, reason, .. } = failed else { panic!("{failed}") };
    assert!(reason.contains("source VM runs"), "{reason}");
    assert!(sources_run(&rig).await == 1, "{}", rig.journal().await);
    rig.world.with(|truth| assert!(truth.target_runs && !truth.marks.is_empty(), "{truth:?}"));
    meddle(&rig, false);
    rig.ask(Request::Resume).await;
    rig.until("the end", |view| view.state == State::Done).await;
    assert!(sources_run(&rig).await == 0, "{}", rig.journal().await);
    assert_held_off(&rig);
}

#[tokio::test]
async fn undo_after_a_restart_removes_the_target_vm_in_any_phase() {
    let mut rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    // The target VM exists, and its start was not requested.
    rig.world.faults.set("target.look", InjectedFault::Hang);
    rig.ask(Request::cutover()).await;
    rig.until("the start", |view| view.state == State::CuttingOver { phase: Phase::StartVm }).await;
    rig.world.with(|truth| assert!(truth.target_exists, "{truth:?}"));
    rig.restart_after(|world| {
        world.faults.clear();
        world.faults.set("source.final-snapshot", InjectedFault::Refused);
    })
    .await;
    rig.until("the undo", |view| view.state == State::Synced).await;
    assert_let_go(&rig);
}

#[tokio::test]
async fn target_that_denies_a_running_vm_is_not_believed() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::None)).await;
    rig.world.with(|truth| (truth.false_discards, truth.starts_late) = (3, true));
    rig.world.faults.set("target.start", InjectedFault::Refused);
    rig.cutover().await;
    assert_let_go(&rig);
    rig.world.faults.clear();

    // The same in a rollback.
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.world.with(|truth| truth.false_discards = 3);
    rig.ask(Request::Rollback).await;
    rig.until("rest", |view| matches!(view.state, State::Paused { from: ResumePoint::Synced })).await;
    rig.world.with(|truth| assert_eq!(truth.false_discards, 0));
    assert_let_go(&rig);
}

#[tokio::test]
async fn lost_answers_of_the_target_change_nothing() {
    for call in ["source.starters", "source.hold-off", "target.set-autostart"] {
        let rig = Rig::start(world()).await;
        rig.seed(Rig::plan(VerifyMode::None)).await;
        rig.world.faults.set(call, InjectedFault::LostAnswer);
        assert_eq!(rig.cutover().await.state, State::Done, "{call}: {}", rig.journal().await);
        assert!(rig.world.faults.struck(call) > 1, "{call}");
        assert_held_off(&rig);
    }
}

#[test]
fn answers_that_are_lost_on_the_way_back_change_nothing() {
    for restarted in [false, true] {
        on_a_clock(NOON, async {
            let mut rig = Rig::start_on_a_clock(world()).await;
            rig.seed(Rig::plan(VerifyMode::None)).await;
            rig.world.faults.set("target.start", InjectedFault::Refused);
            rig.world.faults.set(
                "source.let-go",
                if restarted { InjectedFault::Hang } else { InjectedFault::LostAnswer },
            );
            rig.ask(Request::cutover()).await;
            if restarted {
                rig.until("the call", |_| rig.world.faults.struck("source.let-go") > 0).await;
                rig.restart_after(|world| world.faults.clear()).await;
            }
            rig.until("the undo", |view| view.state == State::Synced).await;
            assert!(rig.world.faults.struck("source.let-go") > 1);
            assert_let_go(&rig);
        });
    }
}

#[test]
fn a_source_that_cannot_be_held_off_is_started_again() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(world()).await;
        rig.seed(Rig::plan(VerifyMode::None)).await;
        rig.world.faults.set("source.hold-off", InjectedFault::Hang);
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Synced, "{}", rig.journal().await);
        assert!(view.cutover.unwrap().failure.unwrap().contains("deadline"));
        assert_let_go(&rig);
    });
}
