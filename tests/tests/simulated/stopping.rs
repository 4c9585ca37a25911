//! Nothing is stopped before the rest can be finished, and a stopped source VM does not wait for clean-up.

use std::time::Duration;

use tokio::time::Instant;
use warmd_core::model::{phase::Phase, plan::VerifyMode, request::Request, state::State};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld, on_a_clock};

const SIZE: u64 = 10 * 64 * 1024;
const NOON: &str = "2026-11-22T12:00:00Z";
const MINUTE: Duration = Duration::from_mins(1);

fn world() -> SimulatedWorld {
    SimulatedWorld::new(&[("vda", SIZE)])
}

/// Begins a cutover, and stays in its catch-up delta.
async fn catching_up() -> Rig {
    let rig = Rig::start_on_a_clock(world()).await;
    let mut plan = Rig::plan(VerifyMode::None);
    plan.cutover.graceful_shutdown = 10 * MINUTE;
    plan.cutover.delta_deadline = 60 * MINUTE;
    rig.seed(plan).await;
    let before = rig.world.faults.struck("source.snapshot");
    rig.world.faults.set("source.snapshot", InjectedFault::Hang);
    rig.ask(Request::cutover()).await;
    rig.until("the catch-up delta", |_| rig.world.faults.struck("source.snapshot") > before).await;
    rig
}

#[test]
fn what_came_up_in_the_catch_up_delta_keeps_the_source_running() {
    let refuses = |rig: &Rig| rig.world.faults.set("source.can-finish", InjectedFault::Refused);
    let grows = |rig: &Rig| {
        rig.world.with(|truth| truth.source_disks.insert("vdz".to_owned(), vec![0; SIZE as usize]));
    };
    for (change, word) in [(&refuses as &dyn Fn(&Rig), "can-finish"), (&grows, "vdz")] {
        on_a_clock(NOON, async {
            let rig = catching_up().await;
            change(&rig);
            let begun = Instant::now();
            rig.world.faults.lift("source.snapshot");
            let view = rig.until("undone", |view| view.state == State::Synced).await;
            let cutover = view.cutover.unwrap();
            assert!(cutover.failure.as_ref().is_some_and(|why| why.contains(word)), "{cutover:?}");
            assert_eq!(cutover.phases.last().unwrap().phase, Phase::StopSource);
            rig.world.with(|truth| {
                assert!(!truth.calls.iter().any(|call| call == "source off"), "{:?}", truth.calls);
            });
            rig.world.assert_undone();
            // A guest that was not asked does not go off late.
            assert!(begun.elapsed() < 5 * MINUTE, "{:?}", begun.elapsed());
        });
    }
}

#[test]
fn an_undo_powers_on_before_a_snapshot_that_does_not_end() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(world()).await;
        rig.seed(Rig::plan(VerifyMode::None)).await;
        rig.world.faults.set("source.final-snapshot", InjectedFault::Hang);
        rig.ask(Request::cutover()).await;
        rig.until("the final delta", |_| rig.world.faults.struck("source.final-snapshot") > 0).await;
        assert!(!rig.world.with(|truth| truth.source_runs));
        rig.world.faults.set("source.end-snapshot", InjectedFault::Hang);
        rig.world.faults.set("source.final-snapshot", InjectedFault::Refused);
        let begun = Instant::now();
        rig.until("power-on", |_| rig.world.with(|truth| truth.source_runs)).await;
        assert!(begun.elapsed() < 3 * MINUTE, "{:?}", begun.elapsed());
        // The undo ends when the snapshot has ended, too.
        tokio::time::sleep(MINUTE).await;
        assert_ne!(rig.view().await.state, State::Synced);
        rig.world.faults.clear();
        rig.until("undone", |view| view.state == State::Synced).await;
        rig.world.assert_undone();
    });
}

#[test]
fn a_rollback_powers_on_before_a_snapshot_that_does_not_end() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(world()).await;
        rig.seed(Rig::plan(VerifyMode::None)).await;
        assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
        rig.world.faults.set("source.end-snapshot", InjectedFault::Hang);
        rig.ask(Request::Rollback).await;
        let begun = Instant::now();
        rig.until("power-on", |_| rig.world.with(|truth| truth.source_runs)).await;
        assert!(begun.elapsed() < 3 * MINUTE, "{:?}", begun.elapsed());
        rig.world.faults.clear();
        rig.until("paused", |view| matches!(view.state, State::Paused { .. })).await;
    });
}
