//! A state that cannot be written while a VM is down, over simulated endpoints.

use std::time::Duration;

use warmd_core::model::{phase::Phase, state::State};
use warmd_tests::simulated::{InjectedFault, on_a_clock};

use super::started::will_hang_in;

#[test]
fn source_is_powered_on_when_saving_fails_for_minutes() {
    on_a_clock("2026-11-28T10:00:00Z", async {
        let rig = will_hang_in("target.create", Duration::from_hours(1)).await;
        rig.until("the target VM is made", |view| {
            view.state == State::CuttingOver { phase: Phase::CreateVm }
        })
        .await;
        rig.world.with(|truth| assert!(!truth.source_runs));
        rig.world.faults.clear();
        rig.world.faults.set("store.commit", InjectedFault::Refused);
        let begun = tokio::time::Instant::now();
        while !rig.world.with(|truth| truth.source_runs) {
            assert!(begun.elapsed() < Duration::from_mins(8), "the source stays off");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(begun.elapsed() > Duration::from_mins(2), "a short trouble takes nothing back");
        rig.world.faults.clear();
        rig.until("its undo", |view| view.state == State::Synced).await;
        rig.world.with(|truth| {
            assert!(truth.violations.is_empty(), "{:?}", truth.violations);
            assert!(truth.source_runs && !truth.target_runs);
        });
        assert!(rig.journal().await.contains("could not be saved"), "{}", rig.journal().await);
        assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    });
}
