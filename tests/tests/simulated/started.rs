//! What is undone, and what is not, while the target VM's start or the state is in doubt.

use std::time::Duration;

use warmd_cbt::units::BLOCK;
use warmd_core::model::{phase::Phase, plan::VerifyMode, request::Request, state::State};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld, on_a_clock};

const DAY: &str = "2026-11-28T10:00:00Z";

/// A rig with a running cutover in which the call `name` will hang.
pub(super) async fn will_hang_in(name: &str, create_deadline: Duration) -> Rig {
    let world = SimulatedWorld::new(&[("vda", 40 * BLOCK)]);
    world.guest_writes("vda", 3 * BLOCK, &vec![7; 5 * BLOCK as usize]);
    let rig = Rig::start_on_a_clock(world).await;
    let mut plan = Rig::plan(VerifyMode::Readback);
    plan.cutover.create_deadline = create_deadline;
    rig.seed(plan).await;
    rig.world.faults.set(name, InjectedFault::Hang);
    rig.ask(Request::cutover()).await;
    rig
}

/// A rig with a cutover in which the call `name` hangs.
async fn hangs_in(name: &str) -> Rig {
    let rig = will_hang_in(name, Duration::from_mins(1)).await;
    rig.until("the call", |_| rig.world.faults.struck(name) > 0).await;
    rig
}

/// Nothing is undone for ten minutes, with a deadline of one; the cutover is done once all is well again.
async fn goes_only_forward(rig: &Rig) {
    tokio::time::sleep(Duration::from_mins(10)).await;
    let view = rig.view().await;
    assert_eq!(view.state, State::CuttingOver { phase: Phase::StartVm }, "{}", rig.journal().await);
    rig.world.with(|truth| {
        assert!(truth.target_runs && !truth.source_runs, "{truth:?}");
        assert!(!truth.calls.iter().any(|call| call == "target discarded"), "{:?}", truth.calls);
    });
    rig.world.faults.clear();
    rig.until("the end", |view| view.state == State::Done).await;
    rig.world.assert_moved();
}

#[test]
fn a_start_is_not_taken_back_before_the_target_answers() {
    on_a_clock(DAY, async {
        let rig = hangs_in("target.start").await;
        rig.world.faults.set("target.look", InjectedFault::Blocked);
        rig.world.faults.set("target.start", InjectedFault::LostAnswer);
        goes_only_forward(&rig).await;
    });
}

#[test]
fn running_target_vm_is_not_undone_when_saving_fails() {
    on_a_clock(DAY, async {
        let rig = hangs_in("target.start").await;
        rig.world.faults.clear();
        rig.world.faults.set("store.commit", InjectedFault::Refused);
        goes_only_forward(&rig).await;
    });
}

#[test]
fn an_undo_powers_the_source_on_though_nothing_can_be_saved() {
    on_a_clock(DAY, async {
        let rig = hangs_in("target.create").await;
        rig.world.faults.set("target.discard", InjectedFault::Hang);
        rig.world.faults.set("target.create", InjectedFault::Refused);
        rig.until("the call", |_| rig.world.faults.struck("target.discard") > 0).await;
        rig.world.faults.clear();
        rig.world.faults.set("store.commit", InjectedFault::Refused);
        tokio::time::sleep(Duration::from_secs(30)).await;
        rig.world.with(|truth| assert!(truth.source_runs && !truth.target_exists, "{truth:?}"));
        rig.world.faults.clear();
        rig.until("its undo", |view| view.state == State::Synced).await;
        rig.world.assert_undone();
    });
}
