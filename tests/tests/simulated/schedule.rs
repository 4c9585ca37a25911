//! Schedules over simulated endpoints: passes keep to the copy windows of their plan; an operator's request
//! overrides them.

use std::{num::NonZeroU64, time::Duration};

use chrono::{Days, TimeDelta, Utc};
use warmd_core::{
    clock,
    control::{Control, ExplainTarget},
    model::{
        limit::LimitChange,
        plan::{Plan, VerifyMode},
        request::{Request, RequestOutcome},
        state::State,
        view::MigrationView,
    },
};
use warmd_schedules::explain::ExplainedDecision;
use warmd_tests::simulated::{Rig, SimulatedWorld, VM, on_a_clock};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// The rate at which a pass takes a minute.
const SLOW: u64 = MIB / 2;

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&[("vda", SIZE)]);
    world.guest_writes("vda", 0, &vec![7; SIZE as usize]);
    world
}

/// A plan that copies always, or never for a month.
fn plan(blackout: bool) -> Plan {
    let mut plan = Rig::plan(VerifyMode::None);
    if blackout {
        let (from, to) = (Utc::now() - Days::new(2), Utc::now() + Days::new(30));
        let (from, to) = (from.format("%Y-%m-%d"), to.format("%Y-%m-%d"));
        let schedule = format!("every = \"1h\"\n[copy]\nblackouts = [\"{from}–{to} UTC\"]\n");
        plan.schedule = toml::from_str(&schedule).expect("the test's own schedule");
    }
    plan
}

fn is_held(view: &MigrationView) -> bool {
    view.next_pass_why.as_ref().is_some_and(|why| why.contains("because blackout"))
}

async fn set_rate(rig: &Rig, bytes: u64) {
    let change = LimitChange::To { rate: Some(NonZeroU64::new(bytes)), requests: None };
    rig.manager.set_limit("global", change, "test").await.expect("it is there");
}

fn drained(view: &MigrationView) -> u64 {
    view.disks.iter().map(|disk| disk.pass_drained).sum()
}

#[tokio::test]
async fn full_pass_waits_for_a_window_and_a_request_does_not() {
    let rig = Rig::start(world()).await;
    rig.manager_applies(plan(true)).await;
    let view = rig.until("held", is_held).await;
    assert_eq!((&view.state, rig.passes().await), (&State::Seeding, 0));
    rig.ask(Request::Sync).await;
    let view = rig.until("synced", |view| view.state == State::Synced && is_held(view)).await;
    assert_eq!(view.pass.as_ref().map(|pass| pass.number), Some(1));
    // The next pass is requested too, and runs.
    rig.world.guest_writes("vda", 5 * MIB, &[9; 4096]);
    rig.sync().await;
    rig.until("held again", is_held).await;
    // So does a cutover.
    assert_eq!(rig.cutover().await.state, State::Done);
    rig.world.assert_moved();
}

#[tokio::test]
async fn a_pass_is_stopped_when_copying_ends_and_goes_on_when_it_may() {
    let rig = Rig::start(world()).await;
    set_rate(&rig, SLOW).await;
    rig.manager_applies(plan(false)).await;
    rig.until("something drained", |view| drained(view) >= MIB).await;
    rig.manager_applies(plan(true)).await;
    let view = rig.until("held", is_held).await;
    assert_eq!(view.state, State::Seeding);
    let journal = rig.journal().await;
    assert!(journal.contains("pass suspended: blocked"), "{journal}");

    set_rate(&rig, 0).await;
    rig.manager_applies(plan(false)).await;
    let view = rig.until("synced", |view| view.state == State::Synced).await;
    let pass = view.pass.expect("it ran");
    let begun_with: u64 = pass.disks.iter().map(|disk| disk.pending).sum();
    assert!(pass.number == 2 && begun_with < SIZE, "what was drained stays drained: {pass:?}");
    assert_eq!(rig.cutover().await.state, State::Done);
    rig.world.assert_moved();
}

#[tokio::test]
async fn requested_pass_outlives_its_window_until_a_restart() {
    let mut rig = Rig::start(world()).await;
    rig.manager_applies(plan(true)).await;
    rig.until("held", is_held).await;
    set_rate(&rig, SLOW).await;
    rig.ask(Request::Sync).await;
    rig.until("something drained", |view| drained(view) >= MIB).await;
    assert_eq!(rig.request(Request::Sync).await, RequestOutcome::NoChange);
    rig.restart().await;
    let view = rig.until("held", is_held).await;
    assert_eq!((view.state, view.vm_name.as_str()), (State::Seeding, VM));
}

#[tokio::test]
async fn a_dead_end_is_told() {
    let rig = Rig::start(world()).await;
    let mut over = plan(false);
    let schedule = "every = \"1h\"\n[copy]\nwindows = [\"2020-01-01 UTC\"]\n";
    over.schedule = toml::from_str(schedule).expect("the test's own schedule");
    let findings = rig.manager.validate_plan(&over).await.expect("it is judged");
    assert!(
        findings.iter().any(|finding| finding.message.contains("`schedule.copy` never opens")),
        "{findings:?}"
    );
}

#[tokio::test]
async fn what_comes_next_is_explained_for_a_migration_and_for_a_plan() {
    let rig = Rig::start(world()).await;
    let told = rig.manager.explain(&plan(false), ExplainTarget::Oldest, 20).await.expect("it is explained");
    assert_eq!(told.migration, None, "none has begun");
    assert!(told.decisions.iter().any(|decision| decision.why == "no pass has run yet"), "{told:?}");
    rig.seed(plan(false)).await;
    let view = rig.until("the next pass", |view| view.next_pass.is_some()).await;
    let told = rig.manager.explain(&plan(false), ExplainTarget::Oldest, 20).await.expect("it is explained");
    assert_eq!((told.migration, told.vm.as_deref()), (Some(view.id), Some(VM)));
    let first = told
        .decisions
        .iter()
        .find(|decision| decision.what == ExplainedDecision::Pass)
        .expect("a pass comes");
    // The plan's schedule, and another that is not applied.
    assert_eq!((Some(first.at), first.why.starts_with("every 1h")), (view.next_pass, true));
    let told =
        rig.manager.explain(&plan(true), ExplainTarget::Migration(VM), 2).await.expect("it is explained");
    assert_eq!(told.decisions[0].what, ExplainedDecision::PassBlocked, "{told:?}");
    assert!(rig.manager.explain(&plan(true), ExplainTarget::Migration("nobody"), 2).await.is_err());
}

const NOON: &str = "2026-11-23T12:00:00Z";

/// Passes until now, on a clock that may be set.
async fn passes_of(schedule: &str) -> (Rig, u32) {
    let rig = Rig::start_on_a_clock(SimulatedWorld::new(&[("vda", 4 * MIB)])).await;
    let mut plan = Rig::plan(VerifyMode::None);
    plan.schedule = toml::from_str(schedule).expect("the test's own schedule");
    rig.seed(plan).await;
    tokio::time::sleep(Duration::from_mins(150)).await;
    let passes = rig.passes().await;
    (rig, passes)
}

/// Waits, and returns the number of passes meanwhile.
async fn meanwhile(rig: &Rig, minutes: u64) -> u32 {
    let before = rig.passes().await;
    tokio::time::sleep(Duration::from_mins(minutes)).await;
    rig.passes().await - before
}

#[test]
fn a_clock_that_is_set_back_holds_no_pass_up() {
    for schedule in
        ["every = \"1h\"", "cron = \"0 * * * * UTC\"", "[adaptive]\nrpo = \"1h\"\nshortest = \"50m\""]
    {
        on_a_clock(NOON, async {
            let (mut rig, _) = passes_of(schedule).await;
            for back in [TimeDelta::days(2), TimeDelta::minutes(30), TimeDelta::hours(3)] {
                clock::turn(-back);
                let passes = meanwhile(&rig, 300).await;
                assert!((4..=7).contains(&passes), "{schedule}, {back} back: {passes} passes in five hours");
            }
            let view = rig.until("waits", |view| view.next_pass.is_some()).await;
            let told = view.next_pass;
            tokio::time::sleep(Duration::from_secs(90)).await;
            let later = rig.view().await.next_pass;
            assert!(
                view.pass != rig.view().await.pass || later == told,
                "{schedule}: {told:?} recedes to {later:?}"
            );
            // A daemon that starts then knows only the wall clock.
            clock::turn(-TimeDelta::days(2));
            rig.restart().await;
            let passes = meanwhile(&rig, 300).await;
            assert!((4..=7).contains(&passes), "{schedule}, after a restart: {passes} passes in five hours");
        });
    }
}

#[test]
fn a_clock_that_is_set_forward_brings_one_pass_and_no_more() {
    on_a_clock(NOON, async {
        let (rig, _) = passes_of("every = \"1h\"").await;
        clock::turn(TimeDelta::days(2));
        assert_eq!(meanwhile(&rig, 2).await, 1, "it is as old as the clock says");
        assert_eq!(meanwhile(&rig, 290).await, 4);
        clock::turn(-TimeDelta::days(2));
        let passes = meanwhile(&rig, 300).await;
        assert!((4..=5).contains(&passes), "{passes} passes in five hours");
    });
}
