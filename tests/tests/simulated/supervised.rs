//! Tasks that end in a panic over simulated endpoints: never unnoticed with a source off.

use std::time::Duration;

use warmd_cbt::units::BLOCK;
use warmd_core::{
    control::Control,
    model::{event_kind::EventKind, plan::VerifyMode, request::Request, state::State},
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld};

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&[("vda", 40 * BLOCK)]);
    world.guest_writes("vda", 3 * BLOCK, &vec![7; 5 * BLOCK as usize]);
    world
}

#[tokio::test]
async fn driver_panic_with_the_source_off_restarts_from_the_state() {
    let rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig.world.faults.set("target.create", InjectedFault::Panic(1));
    let view = rig.cutover().await;
    assert_eq!(view.state, State::Done, "{}", rig.journal().await);
    let journal = rig.journal().await;
    let told = journal.lines().filter(|line| line.contains("ended in a panic")).count();
    assert!(told == 1 && journal.contains("a panic of the test in target.create"), "{journal}");
    rig.world.with(|truth| {
        assert!(truth.violations.is_empty(), "{:?}", truth.violations);
        assert!(truth.target_runs && !truth.source_runs);
    });
    // It has a driver as before.
    rig.request(Request::verify()).await;
}

#[tokio::test]
async fn second_panic_ends_the_daemon_and_the_next_one_continues() {
    let mut rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig.world.faults.set("target.create", InjectedFault::Panic(2));
    rig.ask(Request::cutover()).await;
    let why =
        tokio::time::timeout(Duration::from_secs(30), rig.manager.fatal()).await.expect("it is noticed");
    assert!(why.contains("second time") && why.contains("target.create"), "{why}");
    rig.restart().await;
    let view = rig.until("its end", |view| matches!(view.state, State::Done | State::Synced)).await;
    assert_eq!(view.state, State::Done, "{}", rig.journal().await);
    let events = rig.manager.events(None, None, 1000).await.expect("the journal").lines;
    let told =
        events.iter().filter(|line| line.kind == EventKind::Failure && line.text.contains("panic")).count();
    assert_eq!(told, 2, "both are told of");
}

#[tokio::test]
async fn a_rollback_does_not_wait_for_a_plan_that_is_being_judged() {
    let rig = Rig::start(world()).await;
    let plan = Rig::plan(VerifyMode::Readback);
    rig.seed(plan.clone()).await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.world.faults.set("target.objections", InjectedFault::Hang);
    let manager = std::sync::Arc::clone(&rig.manager);
    let applying = tokio::spawn(async move { manager.apply_plan(plan, "test").await });
    while rig.world.faults.struck("target.objections") == 0 || applying.is_finished() {
        assert!(!applying.is_finished(), "it is still judged");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let asked = tokio::time::timeout(Duration::from_secs(5), rig.request(Request::Rollback));
    asked.await.expect("it is answered while the plan is judged");
    assert!(!applying.is_finished());
    rig.world.faults.clear();
    applying.await.expect("no panic").expect("it is judged again, and applied");
}
