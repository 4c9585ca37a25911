//! Scheduled cutovers over simulated endpoints, on a virtual clock: at a time, in windows, automatic, on
//! hold.

use std::{num::NonZeroU64, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use warmd_core::{
    clock,
    control::Control,
    model::{
        limit::LimitChange,
        plan::{CutoverMode, Plan, VerifyMode},
        request::{Request, RequestOutcome},
        scheduled_cutover::{CutoverOrder, CutoverTime, ScheduledCutoverMode, ScheduledCutoverView},
        state::State,
        view::MigrationView,
    },
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld, on_a_clock};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;
const NOON: &str = "2026-11-22T12:00:00Z";

fn at(text: &str) -> DateTime<Utc> {
    format!("2026-11-{text}:00Z").parse().unwrap()
}

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&[("vda", SIZE)]);
    world.guest_writes("vda", 0, &vec![7; SIZE as usize]);
    world
}

/// A plan that copies each six hours and cuts over at night.
fn nights(mode: CutoverMode) -> Plan {
    let mut plan = Rig::plan(VerifyMode::Readback);
    let schedule = "every = \"6h\"\n[cutover]\nwindows = [\"daily 22:00–04:00 UTC\"]\n";
    plan.schedule = toml::from_str(schedule).unwrap();
    plan.cutover.mode = mode;
    plan
}

/// A plan that copies each day, and may cut over at any time.
fn any_time() -> Plan {
    let mut plan = Rig::plan(VerifyMode::Readback);
    plan.schedule = toml::from_str("every = \"24h\"").unwrap();
    plan
}

async fn order(rig: &Rig, when: CutoverTime, force: bool) -> RequestOutcome {
    let id = rig.view().await.id;
    rig.manager.cut_over(id, CutoverOrder { when, force, ..CutoverOrder::default() }, "test").await.unwrap()
}

async fn ask(rig: &Rig, when: CutoverTime) {
    assert_eq!(order(rig, when, false).await, RequestOutcome::Accepted);
}

/// Advances the clock to this time.
async fn until(moment: DateTime<Utc>) {
    tokio::time::sleep((moment - clock::now()).to_std().unwrap_or_default()).await;
}

async fn awaited(rig: &Rig) -> ScheduledCutoverView {
    rig.view().await.scheduled_cutover.expect("a cutover is waited for")
}

async fn is_held(rig: &Rig, why: &str) {
    let held = awaited(rig).await;
    assert!(held.mode == ScheduledCutoverMode::OnHold && held.why.contains(why), "{held:?}");
}

async fn done(rig: &Rig) -> MigrationView {
    let view = rig.until("done", |view| view.state == State::Done).await;
    assert_eq!(view.scheduled_cutover, None);
    rig.world.assert_moved();
    view
}

fn began(view: &MigrationView) -> DateTime<Utc> {
    view.cutover.as_ref().expect("it began").started
}

async fn nothing_begins_until(rig: &Rig, moment: DateTime<Utc>) {
    until(moment).await;
    let view = rig.view().await;
    assert!(view.cutover.is_none() && !view.state.is_final(), "{:?}", view.state);
    assert!(rig.world.with(|truth| truth.source_runs));
}

#[test]
fn a_cutover_begins_at_its_time_and_a_pass_comes_just_before() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(world()).await;
        rig.seed(any_time()).await;
        ask(&rig, CutoverTime::At(at("22T17:00"))).await;
        assert_eq!(order(&rig, CutoverTime::At(at("22T17:00")), false).await, RequestOutcome::NoChange);
        let waits = awaited(&rig).await;
        assert_eq!((waits.mode, waits.begins), (ScheduledCutoverMode::At, Some(at("22T17:00"))));
        assert_eq!(waits.why, "asked for at 2026-11-22 17:00 UTC by test");
        nothing_begins_until(&rig, at("22T16:40")).await;
        assert_eq!(rig.passes().await, 1);
        until(at("22T17:00") - TimeDelta::seconds(1)).await;
        let view = rig.view().await;
        let pass = view.pass.clone().unwrap();
        assert!(pass.number == 2 && pass.started > at("22T16:55"), "{pass:?}");
        assert_eq!((&view.state, view.cutover), (&State::Synced, None));
        let view = done(&rig).await;
        assert!(began(&view) - at("22T17:00") < TimeDelta::seconds(1), "{}", began(&view));
        let journal = rig.journal().await;
        assert!(journal.contains("test state: synced → cutting-over(catch-up-delta)"), "{journal}");
        assert!(journal.contains("a cutover was asked for at 2026-11-22 17:00 UTC"), "{journal}");
    });
}

#[test]
fn what_was_asked_outlives_the_daemon() {
    on_a_clock(NOON, async {
        let mut rig = Rig::start_on_a_clock(world()).await;
        rig.seed(any_time()).await;
        ask(&rig, CutoverTime::At(at("22T17:00"))).await;
        let before = awaited(&rig).await;
        rig.restart().await;
        rig.until("waits", |view| view.scheduled_cutover.as_ref() == Some(&before)).await;
        // The source is away at the time, and back before it is too late.
        until(at("22T16:30")).await;
        rig.stop().await;
        until(at("22T17:30")).await;
        rig.go_on().await;
        let view = done(&rig).await;
        assert!(began(&view) >= at("22T17:30"));
    });
}

#[test]
fn past_cutover_time_is_missed_and_its_hold_outlives_restarts() {
    on_a_clock(NOON, async {
        let mut rig = Rig::start_on_a_clock(world()).await;
        rig.seed(nights(CutoverMode::Auto)).await;
        ask(&rig, CutoverTime::At(at("22T23:00"))).await;
        rig.stop().await;
        until(at("23T04:00")).await;
        rig.go_on().await;
        rig.until("held", |view| {
            view.scheduled_cutover.as_ref().is_some_and(|it| it.mode == ScheduledCutoverMode::OnHold)
        })
        .await;
        is_held(&rig, "could not begin until 2026-11-23 04:00 UTC").await;
        assert!(rig.journal().await.contains("warmd warning: the cutover asked for at 2026-11-22 23:00 UTC"));
        rig.restart().await;
        rig.until("shown", |view| view.scheduled_cutover.is_some()).await;
        is_held(&rig, "could not begin").await;
        nothing_begins_until(&rig, at("24T12:00")).await;
        // The next window is the plan's again.
        ask(&rig, CutoverTime::Unhold).await;
        until(at("24T22:00")).await;
        let view = done(&rig).await;
        assert!(began(&view) - at("24T22:00") < TimeDelta::seconds(1), "{}", began(&view));
    });
}

#[test]
fn outside_its_windows_a_cutover_is_refused_and_can_be_forced() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(world()).await;
        rig.seed(nights(CutoverMode::Manual)).await;
        for when in [CutoverTime::Now, CutoverTime::At(at("22T21:59"))] {
            let RequestOutcome::Refused(why) = order(&rig, when, false).await else {
                panic!("{when:?} was granted")
            };
            assert!(why.contains("a cutover may begin from 2026-11-22 22:00 UTC on"), "{why}");
        }
        assert!(matches!(rig.request(Request::cutover()).await, RequestOutcome::Refused(_)));
        assert_eq!(rig.view().await.state, State::Synced);
        assert_eq!(order(&rig, CutoverTime::At(at("22T15:00")), true).await, RequestOutcome::Accepted);
        assert!(awaited(&rig).await.force);
        assert_eq!(order(&rig, CutoverTime::Now, true).await, RequestOutcome::Accepted);
        let view = done(&rig).await;
        assert!(began(&view) < at("22T13:00"), "now goes before later");
    });
}

#[test]
fn auto_cutover_begins_when_the_window_opens_after_a_pass() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(world()).await;
        rig.seed(nights(CutoverMode::Auto)).await;
        let waits = awaited(&rig).await;
        assert_eq!((waits.mode, waits.begins), (ScheduledCutoverMode::Auto, Some(at("22T22:00"))));
        assert!(waits.why.starts_with("blocked until 2026-11-22 22:00 UTC"), "{}", waits.why);
        nothing_begins_until(&rig, at("22T22:00") - TimeDelta::seconds(1)).await;
        let pass = rig.view().await.pass.unwrap();
        assert!(pass.started > at("22T21:55") && pass.ended.is_some(), "{pass:?}");
        let view = done(&rig).await;
        assert!(began(&view) - at("22T22:00") < TimeDelta::seconds(1), "{}", began(&view));
        assert!(rig.journal().await.contains("plan plan state: synced → cutting-over(catch-up-delta)"));
    });
}

#[test]
fn a_hold_keeps_it_synced_until_another_word() {
    on_a_clock(NOON, async {
        let mut rig = Rig::start_on_a_clock(world()).await;
        rig.seed(nights(CutoverMode::Auto)).await;
        ask(&rig, CutoverTime::Hold).await;
        assert_eq!(order(&rig, CutoverTime::Hold, false).await, RequestOutcome::NoChange);
        is_held(&rig, "put on hold by test").await;
        rig.restart().await;
        nothing_begins_until(&rig, at("23T23:00")).await;
        is_held(&rig, "put on hold by test").await;
        assert!(rig.passes().await > 4, "it stays synced");
        // The operator requests the cutover inside the window.
        ask(&rig, CutoverTime::Now).await;
        done(&rig).await;
    });
}

#[test]
fn a_window_that_closes_while_it_waits_leaves_it_alone() {
    on_a_clock("2026-11-22T22:30:00Z", async {
        let rig = Rig::start_on_a_clock(world()).await;
        // The full pass takes until the next morning.
        let rate = |rate| LimitChange::To { rate: Some(NonZeroU64::new(rate)), requests: None };
        rig.manager.set_limit("global", rate(256), "test").await.unwrap();
        rig.manager_applies(nights(CutoverMode::Manual)).await;
        rig.until("it copies", |view| view.state == State::Seeding).await;
        ask(&rig, CutoverTime::At(at("22T23:00"))).await;
        until(at("23T01:00")).await;
        let waits = awaited(&rig).await;
        assert!(waits.why.contains("must be synced before 2026-11-23 04:00 UTC"), "{waits:?}");
        nothing_begins_until(&rig, at("23T04:00") + TimeDelta::seconds(1)).await;
        is_held(&rig, "could not begin until 2026-11-23 04:00 UTC").await;
        let view = rig.view().await;
        assert_eq!((view.state, view.pass.unwrap().number), (State::Seeding, 1), "its pass goes on");
        rig.manager.set_limit("global", rate(0), "test").await.unwrap();
        rig.until("synced", |view| view.state == State::Synced).await;
        nothing_begins_until(&rig, at("23T23:30")).await;
    });
}

#[test]
fn a_pass_that_runs_at_its_time_is_cut_short() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(world()).await;
        rig.seed(any_time()).await;
        rig.world.guest_writes("vda", 0, &vec![9; SIZE as usize]);
        let rate = |rate| LimitChange::To { rate: Some(NonZeroU64::new(rate)), requests: None };
        rig.manager.set_limit("global", rate(1024), "test").await.unwrap();
        rig.ask(Request::Sync).await;
        ask(&rig, CutoverTime::At(at("22T12:30"))).await;
        until(at("22T12:29")).await;
        assert_eq!(rig.view().await.state, State::Syncing);
        until(at("22T12:30") + TimeDelta::seconds(1)).await;
        let view = rig.view().await;
        assert!(matches!(view.state, State::CuttingOver { .. }), "{:?}", view.state);
        let left: u64 = view.pass.unwrap().disks.iter().map(|disk| disk.pending).sum();
        assert!(left > 0 && left < SIZE, "what was drained stays drained: {left}");
    });
}

#[test]
fn what_waits_can_be_taken_back() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(world()).await;
        rig.seed(any_time()).await;
        assert!(
            matches!(rig.request(Request::AbortCutover).await, RequestOutcome::Refused(_)),
            "there is none"
        );
        ask(&rig, CutoverTime::At(at("22T17:00"))).await;
        assert!(
            matches!(order(&rig, CutoverTime::Unhold, false).await, RequestOutcome::Refused(_)),
            "it is not held"
        );
        rig.ask(Request::AbortCutover).await;
        assert_eq!(rig.view().await.scheduled_cutover, None);
        nothing_begins_until(&rig, at("22T18:00")).await;

        // Where the plan would begin one automatically, it is on hold.
        rig.manager_applies(nights(CutoverMode::Auto)).await;
        rig.until("waits", |view| view.scheduled_cutover.is_some()).await;
        rig.ask(Request::AbortCutover).await;
        is_held(&rig, "aborted by test").await;
        assert_eq!(rig.request(Request::AbortCutover).await, RequestOutcome::NoChange);
        nothing_begins_until(&rig, at("22T23:00")).await;
    });
}

#[test]
fn undone_auto_cutover_is_put_on_hold() {
    on_a_clock(NOON, async {
        let mut rig = Rig::start_on_a_clock(world()).await;
        rig.seed(nights(CutoverMode::Auto)).await;
        rig.world.faults.set("target.create", InjectedFault::Refused);
        until(at("22T22:00")).await;
        let view = rig.until("undone", |view| view.state == State::Synced && view.cutover.is_some()).await;
        assert!(view.cutover.unwrap().failure.is_some());
        rig.world.assert_undone();
        rig.until("held", |view| view.scheduled_cutover.is_some()).await;
        is_held(&rig, "the last cutover was undone").await;
        rig.world.faults.clear();
        rig.restart().await;
        until(at("24T23:00")).await;
        assert_eq!(rig.world.faults.struck("source.shut-down"), 1, "the VM is not stopped again");
        is_held(&rig, "the last cutover was undone").await;
        ask(&rig, CutoverTime::Unhold).await;
        done(&rig).await;
    });
}

#[test]
fn rolled_back_auto_cutover_is_put_on_hold() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(world()).await;
        rig.seed(nights(CutoverMode::Auto)).await;
        until(at("22T22:00")).await;
        done(&rig).await;
        rig.ask(Request::Rollback).await;
        rig.until("at rest", |view| matches!(view.state, State::Paused { .. })).await;
        rig.ask(Request::Resume).await;
        rig.until("synced", |view| view.state == State::Synced).await;
        is_held(&rig, "it was rolled back").await;
        until(at("24T23:00")).await;
        is_held(&rig, "it was rolled back").await;
        ask(&rig, CutoverTime::Unhold).await;
        done(&rig).await;
    });
}

#[test]
fn a_paused_one_begins_when_it_is_resumed_in_time() {
    on_a_clock(NOON, async {
        let rig = Rig::start_on_a_clock(world()).await;
        rig.seed(any_time()).await;
        rig.ask(Request::Pause).await;
        ask(&rig, CutoverTime::At(at("22T17:00"))).await;
        nothing_begins_until(&rig, at("22T17:20")).await;
        let waits = awaited(&rig).await;
        assert!(waits.why.contains("must be synced before 2026-11-22 18:00 UTC"), "{waits:?}");
        rig.ask(Request::Resume).await;
        done(&rig).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    });
}
