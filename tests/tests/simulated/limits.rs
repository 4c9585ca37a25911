//! Limits over simulated endpoints: they apply, they change running passes, and the last change wins.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use warmd_cbt::limit::Limit;
use warmd_core::{
    control::{Control, ControlErrorKind},
    model::{
        limit::{LimitChange, LimitScope, LimitView},
        phase::Phase,
        plan::{Plan, PlanLimits, VerifyMode, VerifyPolicy},
        request::Request,
        state::State,
        verify::Amount,
        view::{MigrationView, VerifyResult},
    },
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld, VM};

const MIB: u64 = 1 << 20;
/// An amount that takes minutes at [`SLOW`], far beyond the rig's deadlines, and no time without a limit.
const SIZE: u64 = 64 * MIB;
const SLOW: u64 = MIB / 2;

/// Two disks full of data.
fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&[("vda", SIZE), ("vdb", SIZE)]);
    for disk in ["vda", "vdb"] {
        world.guest_writes(disk, 0, &vec![7; SIZE as usize]);
    }
    world
}

fn plan(limits: PlanLimits) -> Plan {
    Plan { limits, ..Rig::plan(VerifyMode::None) }
}

fn rate(bytes: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(bytes)
}

fn slow() -> PlanLimits {
    PlanLimits { rate: rate(SLOW), ..PlanLimits::default() }
}

fn to_rate(bytes: u64) -> LimitChange {
    LimitChange::To { rate: Some(rate(bytes)), requests: None }
}

async fn limit(rig: &Rig, scope: &str) -> LimitView {
    rig.manager.limits(Some(scope)).await.expect("it is there").swap_remove(0)
}

/// Waits until a pass waits for a limit, and checks that it obeys the limit.
async fn until_it_is_held(rig: &Rig, scope: &str, rate: u64) {
    let begun = Instant::now();
    while limit(rig, scope).await.load.waiting == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "nobody waits: {:?}", limit(rig, scope).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let seen = limit(rig, scope).await;
    let (now, most) = (seen.load.rate, rate as f64);
    // One request and a burst more, in the three seconds or more of the measurement.
    assert!(now > 0.0 && now <= most * 1.1 + MIB as f64 / 6.0, "{now} B/s instead of {most}: {seen:?}");
    let disks = if matches!(seen.scope, LimitScope::Migration(_, Some(_))) { 1 } else { 2 };
    assert_eq!(seen.load.waiting, disks, "each disk has one request that waits: {seen:?}");
    assert_eq!(rig.view().await.state, State::Seeding);
}

#[tokio::test]
async fn a_limit_holds_and_is_lifted_while_a_pass_runs() {
    let scope = format!("migration/{VM}");
    for at in [scope.as_str(), "global", "source/s", "target/t"] {
        let rig = Rig::start(world()).await;
        if at == scope {
            rig.manager_applies(plan(slow())).await;
        } else {
            rig.manager.set_limit(at, to_rate(SLOW), "operator").await.expect("it is there");
            rig.manager_applies(plan(PlanLimits::default())).await;
        }
        until_it_is_held(&rig, at, SLOW).await;
        rig.manager.set_limit(at, to_rate(2 * SLOW), "operator").await.expect("it is there");
        until_it_is_held(&rig, at, 2 * SLOW).await;
        let lifted = rig.manager.set_limit(at, to_rate(0), "operator").await.expect("it is there");
        assert_eq!(
            (lifted.limit, lifted.set.map(|set| set.by).as_deref()),
            (Limit::default(), Some("operator"))
        );
        rig.until("synced", |view| view.state == State::Synced).await;
        let load = limit(&rig, at).await.load;
        assert_eq!((load.in_flight, load.waiting), (0, 0), "{at}");
        let journal = rig.journal().await;
        assert!(journal.contains("set to no limit (was 1MiB/s)"), "{at}: {journal}");
        let view = rig.cutover().await;
        assert_eq!(view.state, State::Done, "{journal}");
        rig.world.assert_moved();
    }
}

#[tokio::test]
async fn a_plan_applied_again_with_other_limits_counts_at_once() {
    let rig = Rig::start(world()).await;
    rig.manager_applies(plan(slow())).await;
    until_it_is_held(&rig, &format!("migration/{VM}"), SLOW).await;
    rig.manager_applies(plan(PlanLimits { disk_rate: rate(SLOW), ..PlanLimits::default() })).await;
    until_it_is_held(&rig, &format!("migration/{VM}/vdb"), SLOW).await;
    rig.manager_applies(plan(PlanLimits::default())).await;
    rig.until("synced", |view| view.state == State::Synced).await;
}

#[tokio::test]
async fn a_verification_is_limited_too() {
    let rig = Rig::start(world()).await;
    rig.seed(plan(PlanLimits::default())).await;
    for scope in [format!("migration/{VM}"), "target/t".to_owned()] {
        rig.manager.set_limit(&scope, to_rate(SLOW), "operator").await.expect("it is there");
        rig.ask(Request::verify()).await;
        let begun = Instant::now();
        while limit(&rig, &scope).await.load.waiting == 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "{scope}: nobody waits");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        rig.manager.set_limit(&scope, LimitChange::Reset, "operator").await.expect("it is there");
        rig.until("the result", |view| {
            view.verification
                .as_ref()
                .is_some_and(|run| run.result.as_ref().is_some_and(VerifyResult::passed))
        })
        .await;
    }
}

/// A comparison's reads from the source count there, also in a cutover; the target's limits are its own.
#[tokio::test]
async fn a_comparison_keeps_to_the_limits_of_both_sides() {
    for scope in ["source/s", "target/t"] {
        let rig = Rig::start(world()).await;
        let mut plan = Plan {
            verify: VerifyPolicy { mode: VerifyMode::Compare, ..VerifyPolicy::default() },
            ..plan(PlanLimits::default())
        };
        plan.cutover.verify_deadline = Duration::from_mins(2);
        // This much less is read before the comparison.
        plan.verify.audit = Some(Amount::Share(0));
        rig.seed(plan).await;
        rig.manager.set_limit(scope, to_rate(SLOW), "operator").await.expect("it is there");
        rig.ask(Request::cutover()).await;
        let verifies = State::CuttingOver { phase: Phase::Verify };
        rig.until("the comparison", |view| view.state == verifies).await;
        let begun = Instant::now();
        while limit(&rig, scope).await.load.waiting == 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "{scope}: nobody waits");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(rig.view().await.state, verifies, "{scope}: it did not wait for its limit");
        rig.manager.set_limit(scope, LimitChange::Reset, "operator").await.expect("it is there");
        rig.until("the move", |view| view.state == State::Done).await;
        rig.world.assert_moved();
    }
}

#[tokio::test]
async fn what_a_running_pass_moved_is_shown() {
    let rig = Rig::start(world()).await;
    rig.manager_applies(plan(slow())).await;
    let moved = |view: &MigrationView| {
        let disks = view.pass.iter().flat_map(|pass| &pass.disks);
        disks.map(|disk| (disk.figures.read, disk.figures.written)).collect::<Vec<_>>()
    };
    let view = rig
        .until("figures of both disks", |view| {
            let moved = moved(view);
            moved.len() == 2 && moved.iter().all(|(read, written)| *read > 0 && *written > 0)
        })
        .await;
    assert_eq!((view.state, view.pass.and_then(|pass| pass.ended)), (State::Seeding, None));
}

#[tokio::test]
async fn unreadable_limit_leaves_the_configured_one_and_is_reported() {
    let mut rig = Rig::start(world()).await;
    let scope = format!("migration/{VM}");
    rig.manager_applies(plan(slow())).await;
    rig.manager.set_limit(&scope, to_rate(9 * MIB), "operator").await.expect("it is there");
    rig.manager.set_limit("global", to_rate(70 * MIB), "operator").await.expect("it is there");
    let file = rig.state_file();
    rig.restart_after(|_| {
        let raw = Connection::open(file).expect("the state's file");
        raw.execute("UPDATE limits SET rate = 0 WHERE scope <> 'global'", []).expect("there is a row");
    })
    .await;
    let kept = limit(&rig, &scope).await;
    assert_eq!((kept.limit.rate, kept.set), (rate(SLOW), None), "as the plan says");
    assert_eq!(limit(&rig, "global").await.limit.rate, rate(70 * MIB), "the others hold");
    let journal = rig.journal().await;
    assert!(journal.contains("cannot be read, and does not hold: what the configuration"), "{journal}");
    rig.manager.set_limit(&scope, to_rate(8 * MIB), "operator").await.expect("it can be set again");
    rig.restart().await;
    assert_eq!(limit(&rig, &scope).await.limit.rate, rate(8 * MIB));
}

#[tokio::test]
async fn requests_in_flight_keep_to_the_tightest_limit() {
    let rig = Rig::start(world()).await;
    let one = LimitChange::To { rate: None, requests: Some(NonZeroU32::new(1)) };
    rig.manager.set_limit("source/s", one, "operator").await.expect("it is there");
    rig.manager.set_limit("target/t", one, "operator").await.expect("it is there");
    // Hanging reads stay in flight until the test has seen them; memory answers at once.
    rig.world.faults.set("source-disk.read", InjectedFault::Hang);
    rig.manager_applies(plan(PlanLimits { requests: NonZeroU32::new(3), ..PlanLimits::default() })).await;
    let (mut seen, begun) = (0, Instant::now());
    loop {
        for view in rig.manager.limits(None).await.expect("all of them") {
            let most = view.limit.requests.map_or(1, |requests| u64::from(requests.get()).min(1));
            assert!(view.load.in_flight <= most, "{view:?}");
            seen += view.load.in_flight;
        }
        if seen > 100 {
            rig.world.faults.clear();
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{seen} were seen in flight");
        if rig.view().await.state == State::Synced {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(seen > 0, "nothing was ever seen in flight");
}

#[tokio::test]
async fn set_limit_outlives_a_restart_until_the_plan_changes_it() {
    let mut rig = Rig::start(world()).await;
    let scope = format!("migration/{VM}");
    rig.manager_applies(plan(slow())).await;
    rig.manager.set_limit(&scope, to_rate(9 * MIB), "operator").await.expect("it is there");
    rig.manager.set_limit("global", to_rate(70 * MIB), "another operator").await.expect("it is there");
    let disk = format!("{scope}/vda");
    rig.manager.set_limit(&disk, to_rate(50 * MIB), "operator").await.expect("it is there");
    rig.manager.set_limit(&disk, LimitChange::Reset, "operator").await.expect("it is there");
    rig.restart().await;
    let kept = limit(&rig, &scope).await;
    assert_eq!((kept.limit.rate, kept.set.map(|set| set.by).as_deref()), (rate(9 * MIB), Some("operator")));
    assert_eq!(limit(&rig, "global").await.limit.rate, rate(70 * MIB));
    let reset = limit(&rig, &disk).await;
    assert_eq!((reset.limit, reset.set), (Limit::default(), None));

    // The same plan again does not replace the limit, a changed one does.
    rig.manager_applies(plan(slow())).await;
    assert_eq!(limit(&rig, &scope).await.limit.rate, rate(9 * MIB));
    rig.manager_applies(plan(PlanLimits { rate: rate(8 * MIB), ..PlanLimits::default() })).await;
    let newer = limit(&rig, &scope).await;
    assert_eq!((newer.limit.rate, newer.set), (rate(8 * MIB), None));
    let journal = rig.journal().await;
    assert!(journal.contains("is 8MiB/s now: plan plan says so"), "{journal}");
    rig.restart().await;
    assert_eq!(limit(&rig, &scope).await.limit.rate, rate(8 * MIB));
}

#[tokio::test]
async fn what_is_not_there_cannot_be_limited() {
    let rig = Rig::start(SimulatedWorld::new(&[("vda", MIB)])).await;
    rig.seed(plan(PlanLimits::default())).await;
    let disk = format!("migration/{VM}/vdz");
    for (scope, kind, wanted) in [
        ("everything", ControlErrorKind::Invalid, "use global, source/NAME"),
        ("source/x", ControlErrorKind::NotFound, "which has s"),
        ("target/s", ControlErrorKind::NotFound, "which has t"),
        ("migration/nobody", ControlErrorKind::NotFound, "no migration \"nobody\""),
        (disk.as_str(), ControlErrorKind::NotFound, "has no disk vdz; it has vda"),
    ] {
        let error = rig.manager.set_limit(scope, to_rate(MIB), "operator").await.unwrap_err();
        assert!(error.kind == kind && error.message.contains(wanted), "{scope}: {error:?}");
        assert_eq!(rig.manager.limits(Some(scope)).await.unwrap_err().kind, kind, "{scope}");
    }
    rig.cutover().await;
    let over = rig.manager.set_limit(&format!("migration/{VM}"), to_rate(MIB), "operator").await.unwrap_err();
    assert!(
        over.kind == ControlErrorKind::Refused && over.message.contains("nothing left to limit"),
        "{over:?}"
    );
    assert_eq!(rig.manager.limits(None).await.expect("all").len(), 3, "what is done is not listed");
}
