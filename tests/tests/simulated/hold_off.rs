//! Holding off: from the stop on nothing but the daemon starts the source, and somebody's start is seen.

use std::time::Duration;

use warmd_daemon::model::{
    phase::Phase,
    plan::VerifyMode,
    request::Request,
    state::{Resting, State},
};
use warmd_tests::simulated::{Fault, Rig, World};

const SIZE: u64 = 10 * 64 * 1024;

fn world() -> World {
    let world = World::new(&[("vda", SIZE)]);
    world.with(|truth| truth.source_autostart = true);
    world
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
    rig.until("rest", |view| matches!(view.state, State::Paused { from: Resting::Synced })).await;
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
        rig.world.faults.set(&format!("source.{call}"), Fault::Refused);
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
    plan.cutover.watch = Duration::from_secs(30);
    rig.seed(plan).await;
    rig.ask(Request::Cutover).await;
    rig.until("the watch", |view| view.state == State::CuttingOver { phase: Phase::Watch }).await;
    rig.world.with(|truth| (truth.is_meddled, truth.source_runs) = (true, true));
    let failed = rig.until("the failure", |view| matches!(view.state, State::Failed { .. })).await.state;
    let State::Failed { from: Resting::Watch, reason, .. } = failed else { panic!("{failed}") };
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
    rig.world.faults.set("target.start", Fault::Refused);
    rig.cutover().await;
    rig.world.with(|truth| {
        let discards = truth.calls.iter().filter(|call| *call == "target discarded").count();
        assert_eq!(discards, 3, "{:?}", truth.calls);
    });
    rig.world.assert_undone();
}
