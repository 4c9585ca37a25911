//! A wall clock that is set while the daemon runs: intervals do not change.

use std::time::Duration;

use chrono::TimeDelta;
use warmd_core::{
    clock,
    model::{plan::VerifyMode, request::Request, state::State},
};
use warmd_tests::simulated::{Rig, SimulatedWorld, on_a_clock};

const NOON: &str = "2026-11-22T12:00:00Z";
const SIZE: u64 = 10 * 64 * 1024;
const MINUTE: Duration = Duration::from_mins(1);

/// Lines of the journal of this kind.
async fn lines(rig: &Rig, kind: &str) -> Vec<String> {
    let journal = rig.journal().await;
    journal.lines().filter(|line| line.starts_with(&format!("warmd {kind}: "))).map(str::to_owned).collect()
}

#[test]
fn what_was_written_down_is_as_old_as_it_is() {
    on_a_clock(NOON, async {
        for days in [2, -2] {
            let then = clock::now();
            tokio::time::sleep(MINUTE).await;
            clock::turn(TimeDelta::days(days));
            assert_eq!(clock::age(then), MINUTE, "set by {days} days");
            let now = clock::now();
            tokio::time::sleep(MINUTE).await;
            assert_eq!(clock::age(now), MINUTE, "written down after it was set by {days} days");
            clock::turn(TimeDelta::days(-days));
        }
    });
}

#[test]
fn a_source_is_watched_for_as_long_as_the_plan_says() {
    for (days, after, is_told) in [
        // Days too early, or days too late.
        (30, Duration::from_hours(1), true),
        (-30, Duration::from_hours(1), true),
        (-30, Duration::from_hours(3), false),
        (0, Duration::from_hours(3), false),
    ] {
        on_a_clock(NOON, async {
            let rig = Rig::start_on_a_clock(SimulatedWorld::new(&[("vda", SIZE)])).await;
            let mut plan = Rig::plan(VerifyMode::None);
            plan.cutover.monitor_source = Duration::from_hours(2);
            rig.seed(plan).await;
            assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
            clock::turn(TimeDelta::days(days));
            tokio::time::sleep(after).await;
            rig.world.with(|truth| (truth.is_meddled, truth.source_runs) = (true, true));
            tokio::time::sleep(3 * MINUTE).await;
            let told = lines(&rig, "error").await;
            assert_eq!(told.len(), usize::from(is_told), "{days} days, after {after:?}: {told:?}");
            rig.world.with(|truth| (truth.is_meddled, truth.source_runs) = (false, false));
        });
    }
}

#[test]
fn a_copy_older_than_promised_is_told_whatever_is_in_the_way() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(SimulatedWorld::new(&[("vda", SIZE)])).await;
        let mut plan = Rig::plan(VerifyMode::None);
        plan.schedule = toml::from_str(
            "[adaptive]\nrpo = \"30m\"\nlongest = \"10m\"\n[copy]\nwindows = [\"daily 11:00–16:00 UTC\"]",
        )
        .unwrap();
        rig.seed(plan).await;
        tokio::time::sleep(Duration::from_mins(90)).await;
        assert_eq!(lines(&rig, "alarm").await, [""; 0], "passes keep the promise");
        // An operator's pause.
        rig.ask(Request::Pause).await;
        tokio::time::sleep(Duration::from_mins(25)).await;
        tokio::time::sleep(Duration::from_mins(10)).await;
        let told = lines(&rig, "alarm").await;
        assert!(told.len() == 1 && told[0].contains("because it is paused"), "{told:?}");
        assert!(exceeded(&rig).await, "the metric says nothing of it");
        rig.ask(Request::Resume).await;
        tokio::time::sleep(Duration::from_mins(15)).await;
        assert_eq!((lines(&rig, "alarm").await.len(), lines(&rig, "alarm over").await.len()), (1, 1));
        assert!(!exceeded(&rig).await, "the metric still says it");
        // The window, which closes at four.
        tokio::time::sleep(Duration::from_hours(5)).await;
        let told = lines(&rig, "alarm").await;
        assert!(told.len() == 2 && told[1].contains("blocked until"), "{told:?}");
        tokio::time::sleep(Duration::from_hours(20)).await;
        assert_eq!((lines(&rig, "alarm").await.len(), lines(&rig, "alarm over").await.len()), (2, 2));
    });
}

#[test]
fn a_clock_that_is_set_raises_no_alarm() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(SimulatedWorld::new(&[("vda", SIZE)])).await;
        let mut plan = Rig::plan(VerifyMode::None);
        plan.schedule = toml::from_str("[adaptive]\nrpo = \"30m\"\nlongest = \"10m\"").unwrap();
        rig.seed(plan).await;
        for days in [3, -6, 3] {
            rig.ask(Request::Pause).await;
            clock::turn(TimeDelta::days(days));
            tokio::time::sleep(Duration::from_mins(5)).await;
            rig.ask(Request::Resume).await;
            tokio::time::sleep(Duration::from_mins(25)).await;
        }
        assert_eq!(lines(&rig, "alarm").await, [""; 0]);
    });
}

async fn exceeded(rig: &Rig) -> bool {
    let families = rig.metrics.render(&rig.manager.present()().await).unwrap();
    let told = families.lines().find(|line| line.starts_with("warmd_rpo_exceeded{"));
    told.expect("each RPO target is reported").ends_with(" 1.0")
}
