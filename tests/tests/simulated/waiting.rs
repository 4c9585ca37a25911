//! Temporary obstacles: the daemon waits, shows the reason, and ends no migration.

use std::time::Duration;

use warmd_core::model::{plan::VerifyMode, request::Request, state::State, view::MigrationView};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld, on_a_clock};

const NOON: &str = "2026-11-23T12:00:00Z";
const SIZE: u64 = 4 << 20;

async fn rig() -> Rig {
    let world = SimulatedWorld::new(&[("vda", SIZE)]);
    world.guest_writes("vda", 0, &vec![7; SIZE as usize]);
    Rig::start_on_a_clock(world).await
}

fn waits(view: &MigrationView) -> bool {
    view.waiting.is_some()
}

#[test]
fn obstacle_to_passes_is_waited_for_as_long_as_it_stays() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        let mut plan = Rig::plan(VerifyMode::None);
        plan.schedule =
            toml::from_str("[adaptive]\nrpo = \"30m\"\nlongest = \"10m\"").expect("the test's own schedule");
        for (call, state) in [("snapshot", State::Seeding), ("snapshot", State::Syncing)] {
            rig.world.faults.set(&format!("source.{call}"), InjectedFault::Blocked);
            if state == State::Seeding {
                rig.manager_applies(plan.clone()).await;
            } else {
                rig.ask(Request::Sync).await;
            }
            let first = rig.until("waits", waits).await.waiting.expect("it waits");
            assert!(first.reason.contains("a fault of the test"), "{first:?}");
            assert!(
                first.next_try.expect("it is reported") > first.since && !first.advice.is_empty(),
                "{first:?}"
            );
            // Long after every other operation would have failed.
            tokio::time::sleep(Duration::from_hours(5)).await;
            let view = rig.view().await;
            let waiting = view.waiting.expect("it still waits");
            assert_eq!((&view.state, waiting.since), (&state, first.since));
            assert!((300..400).contains(&waiting.tries), "about every minute: {waiting:?}");
            rig.world.faults.clear();
            tokio::time::sleep(Duration::from_mins(2)).await;
            let view = rig.until("synced", |view| view.state == State::Synced).await;
            assert_eq!(view.waiting, None);
        }
        let journal = rig.journal().await;
        let told =
            |kind: &str| journal.lines().filter(|line| line.starts_with(&format!("warmd {kind}: "))).count();
        assert_eq!((told("failure"), told("alarm")), (2, 1), "each is told once:\n{journal}");
        assert!(journal.contains("the plan promises 30"), "{journal}");
    });
}

#[test]
fn before_the_stop_a_cutover_waits_within_its_deadline() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        let mut plan = Rig::plan(VerifyMode::None);
        plan.cutover.delta_deadline = Duration::from_mins(10);
        rig.seed(plan).await;
        rig.world.faults.set("source.snapshot", InjectedFault::Blocked);
        rig.ask(Request::cutover()).await;
        let view = rig.until("waits", waits).await;
        assert!(matches!(view.state, State::CuttingOver { .. }), "{}", view.state);
        tokio::time::sleep(Duration::from_mins(5)).await;
        rig.world.faults.clear();
        tokio::time::sleep(Duration::from_mins(2)).await;
        rig.until("done", |view| view.state == State::Done && view.waiting.is_none()).await;
        rig.world.assert_moved();
    });
    on_a_clock(NOON, async {
        let rig = rig().await;
        rig.seed(Rig::plan(VerifyMode::None)).await;
        rig.world.faults.set("source.snapshot", InjectedFault::Blocked);
        rig.ask(Request::cutover()).await;
        tokio::time::sleep(Duration::from_mins(5)).await;
        let view = rig.until("undone", |view| view.state == State::Synced).await;
        let failure = view.cutover.and_then(|cutover| cutover.failure).unwrap_or_default();
        assert!(failure.contains("a fault of the test"), "{failure}");
    });
}

#[test]
fn a_cancel_and_an_undo_that_are_tried_again_say_why() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        rig.seed(Rig::plan(VerifyMode::None)).await;
        rig.world.faults.set("source.end-snapshot", InjectedFault::Refused);
        rig.ask(Request::cutover()).await;
        let view = rig
            .until("the undoing waits", |view| matches!(view.state, State::Undoing { .. }) && waits(view))
            .await;
        assert!(view.waiting.expect("it waits").reason.contains("a fault of the test"));
        rig.world.faults.clear();
        tokio::time::sleep(Duration::from_mins(2)).await;
        rig.until("undone", |view| view.state == State::Synced && !waits(view)).await;
        rig.world.faults.set("target.discard-disks", InjectedFault::Refused);
        rig.ask(Request::Cancel).await;
        let view = rig.until("cancelling waits", |view| view.state == State::Cancelling && waits(view)).await;
        let waiting = view.waiting.expect("it waits");
        assert!(
            waiting.reason.contains("discard-disks") && waiting.advice.contains("the reason names"),
            "{waiting:?}"
        );
        rig.world.faults.clear();
        tokio::time::sleep(Duration::from_mins(2)).await;
        rig.until("cancelled", |view| view.state == State::Cancelled && !waits(view)).await;
    });
}

#[test]
fn overdue_copy_is_reported_also_after_many_failed_passes() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        let mut plan = Rig::plan(VerifyMode::None);
        plan.schedule =
            toml::from_str("[adaptive]\nrpo = \"30m\"\nlongest = \"10m\"").expect("the test's own schedule");
        rig.seed(plan).await;
        // Each of these tries is a pass that is recorded and fails.
        rig.world.faults.set("target.open", InjectedFault::Blocked);
        rig.ask(Request::Sync).await;
        tokio::time::sleep(Duration::from_hours(5)).await;
        rig.world.faults.clear();
        rig.until("synced", |view| view.state == State::Synced).await;
        assert!(rig.passes().await > 20, "{} passes", rig.passes().await);
        let journal = rig.journal().await;
        assert_eq!(journal.lines().filter(|line| line.starts_with("warmd alarm: ")).count(), 1, "{journal}");
    });
}
