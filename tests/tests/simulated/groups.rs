//! VMs that cut over together, over a simulated fleet on a virtual clock: no VM is started before the barrier
//! lets all of a tier pass, tiers follow each other, and a failure undoes the VMs that were not started.

use std::time::Duration;

use chrono::{DateTime, Utc};
use warmd_core::{
    control::{Control, PlanCutover},
    model::{
        coordination::MemberStatus,
        group::GroupView,
        phase::Phase,
        plan::Plan,
        quota::ConfiguredQuotas,
        request::{Request, RequestOutcome},
        rule::Rule,
        scheduled_cutover::{CutoverOrder, CutoverTime, ScheduledCutoverMode},
        state::State,
        view::MigrationView,
    },
};
use warmd_tests::simulated::{Fleet, FleetRig, FleetVm, InjectedFault, on_a_clock};

const NOON: &str = "2026-11-22T12:00:00Z";
const VMS: [&str; 4] = ["db-1", "db-2", "web-1", "web-2"];
const TIERS: &str = "[[cutover.tiers]]\nvms = [\"db-*\"]\n[[cutover.tiers]]\nvms = [\"*\"]\n";

fn fleet() -> Fleet {
    Fleet::new(VMS.map(|name| FleetVm {
        name: name.to_owned(),
        plan: "shop".to_owned(),
        source: "s".to_owned(),
        host: "h".to_owned(),
        disks: vec![("vda".to_owned(), 256 << 10, "fast".to_owned())],
    }))
}

/// The four VMs, with `cutover` before the tiers.
fn plan(cutover: &str, tiers: &str) -> Plan {
    let text = format!(
        "name = \"shop\"\nsource = \"s\"\ntarget = \"t\"\nvms = {VMS:?}\n[schedule]\nevery = \"6h\"\n[cutover]\n\
         graceful_shutdown = \"1h\"\ncreate_deadline = \"1m\"\nmin_uptime = \"10s\"\n{cutover}\n{tiers}"
    );
    toml::from_str(&text).unwrap()
}

/// A rig with all VMs synced.
async fn synced(plan: Plan) -> FleetRig {
    let rig = FleetRig::start(fleet(), ConfiguredQuotas::default()).await;
    rig.apply(plan).await;
    all_are(&rig, &State::Synced).await;
    rig
}

async fn all_are(rig: &FleetRig, state: &State) {
    rig.until("all are so", |views| {
        views.len() == VMS.len() && views.iter().all(|view| view.state == *state)
    })
    .await;
}

async fn sleep(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

async fn ask(rig: &FleetRig, when: Option<CutoverTime>) -> PlanCutover {
    let order = when.map(|when| CutoverOrder { when, ..CutoverOrder::default() });
    rig.manager.cut_over_plan("shop", order, "test").await.unwrap()
}

async fn begin(rig: &FleetRig) {
    let asked = ask(rig, Some(CutoverTime::Now)).await;
    assert!(!asked.already && asked.group.is_some(), "{asked:?}");
}

async fn group(rig: &FleetRig) -> GroupView {
    rig.manager.group("shop").await.unwrap().expect("one was begun")
}

/// Waits until the group has ended.
async fn ended(rig: &FleetRig) -> GroupView {
    for _ in 0..36_000 {
        let view = group(rig).await;
        if view.group.ended.is_some() {
            return view;
        }
        sleep(1).await;
    }
    panic!("it does not end: {:?}\n{}", group(rig).await, journal(rig).await);
}

async fn journal(rig: &FleetRig) -> String {
    let events = rig.manager.events(None, None, 1000).await.unwrap().lines;
    let lines: Vec<_> =
        events.iter().map(|event| format!("{} {}: {}", event.by, event.kind, event.text)).collect();
    lines.join("\n")
}

fn phase(view: &MigrationView, phase: Phase) -> (DateTime<Utc>, DateTime<Utc>) {
    let phases = &view.cutover.as_ref().expect("it was cut over").phases;
    let run =
        phases.iter().find(|run| run.phase == phase).unwrap_or_else(|| panic!("no {phase}: {phases:?}"));
    (run.started, run.ended.expect("it ended"))
}

/// Which VMs run on the target; none of them runs on the source too.
fn on_target(rig: &FleetRig) -> Vec<&'static str> {
    assert!(rig.fleet.violations().is_empty(), "{:?}", rig.fleet.violations());
    VMS.into_iter()
        .filter(|vm| {
            let target = rig.fleet.target(vm).with(|truth| truth.target_runs);
            let source = rig.fleet.world(vm).with(|truth| truth.source_runs);
            assert!(!(source && target), "{vm} runs on both sides");
            target
        })
        .collect()
}

fn assert_back(rig: &FleetRig, vms: &[&str]) {
    for vm in vms {
        assert!(rig.fleet.world(vm).with(|truth| truth.source_runs), "the source of {vm} is off");
        let exists = rig.fleet.target(vm).with(|truth| truth.target_exists);
        assert!(!exists, "the target VM of {vm} is left");
    }
}

fn assert_moved(rig: &FleetRig, vms: &[&'static str]) {
    assert_eq!(on_target(rig), vms);
    for vm in vms {
        rig.fleet.assert_same(vm);
    }
}

#[test]
fn a_tier_starts_together_and_after_the_one_before_it() {
    on_a_clock(NOON, async {
        let rig = synced(plan("", TIERS)).await;
        rig.fleet.world("db-2").faults.set("source.shut-down", InjectedFault::Hang);
        begin(&rig).await;
        sleep(600).await;
        // The first one is copied, and waits at the barrier.
        assert_eq!(on_target(&rig), Vec::<&str>::new());
        let statuses = group(&rig).await.statuses;
        assert_eq!(
            statuses,
            [MemberStatus::Arrived, MemberStatus::Moving, MemberStatus::Waiting, MemberStatus::Waiting],
            "{}",
            journal(&rig).await
        );
        assert!(!rig.fleet.world("db-1").with(|truth| truth.source_runs));
        // A source that does not answer for a while is no reason to undo a group.
        rig.fleet.world("db-1").faults.set("source.power", InjectedFault::Passing(20));
        sleep(60).await;
        assert_eq!(group(&rig).await.statuses[0], MemberStatus::Arrived);
        assert_back(&rig, &VMS[2..]);
        let waits = rig.view("db-1").await.cutover.unwrap().progress;
        assert!(waits.is_some_and(|told| told.contains("waits at the barrier")));
        let waits = rig.view("web-1").await.scheduled_cutover.expect("it waits");
        assert!(waits.why.contains("it is of tier 2"), "{waits:?}");

        rig.fleet.world("db-2").faults.clear();
        let view = ended(&rig).await;
        assert!(view.is_done(), "{view:?}");
        all_are(&rig, &State::Done).await;
        assert_moved(&rig, &VMS);
        let mut views = Vec::new();
        for vm in VMS {
            views.push(rig.view(vm).await);
        }
        for tier in [&views[..2], &views[2..]] {
            let verified = tier.iter().map(|view| phase(view, Phase::Verify).1).max();
            assert!(tier.iter().map(|view| phase(view, Phase::StartVm).0).min() >= verified);
        }
        let passed = views[..2].iter().map(|view| phase(view, Phase::BootCheck).1).max();
        assert!(views[2..].iter().map(|view| phase(view, Phase::CatchUpDelta).0).min() >= passed);
        let told = journal(&rig).await;
        for line in [
            "the cutover of plan shop begins, asked for by test: db-1, db-2, web-1, web-2",
            "the barrier opens for db-1, db-2",
            "the barrier opens for web-1, web-2",
            "all of it runs on the target",
        ] {
            assert_eq!(told.matches(line).count(), 1, "{line}:\n{told}");
        }
        // Nothing is left to do.
        let none =
            rig.manager.cut_over_plan("shop", Some(CutoverOrder::default()), "test").await.unwrap_err();
        assert!(none.message.contains("no unfinished migration"), "{none}");
    });
}

#[test]
fn failed_member_undoes_its_tier_and_the_rest_moves_later() {
    on_a_clock(NOON, async {
        let rig = synced(plan("", TIERS)).await;
        rig.fleet.target("db-2").faults.set("target.create", InjectedFault::Refused);
        begin(&rig).await;
        let view = ended(&rig).await;
        assert!(view.group.halted.as_ref().is_some_and(|why| why.contains("VM db-2: ")), "{view:?}");
        all_are(&rig, &State::Synced).await;
        assert_back(&rig, &VMS);
        let failure = rig.view("db-1").await.cutover.unwrap().failure.unwrap();
        assert!(failure.contains("VM db-2: "), "{failure}");
        assert_eq!(rig.fleet.world("web-1").faults.struck("source.shut-down"), 0, "its tier did not begin");
        assert!(view.outcome().unwrap().contains("on the source: db-1, db-2, web-1, web-2"), "{view:?}");

        // Then the second tier fails, and the first stays.
        rig.fleet.target("db-2").faults.clear();
        rig.fleet.world("web-2").faults.set("source.shut-down", InjectedFault::Refused);
        begin(&rig).await;
        let view = ended(&rig).await;
        assert!(view.outcome().unwrap().contains("on the target: db-1, db-2; on the source: web-1, web-2"));
        assert_moved(&rig, &VMS[..2]);
        rig.until("back", |views| views[2..].iter().all(|view| view.state == State::Synced)).await;
        assert_back(&rig, &VMS[2..]);
        rig.fleet.world("web-2").faults.clear();
        begin(&rig).await;
        let view = ended(&rig).await;
        assert!(view.is_done() && view.group.members.len() == 2, "{view:?}");
        assert_moved(&rig, &VMS);
    });
}

#[test]
fn all_or_nothing_group_starts_no_vm_before_all_arrived() {
    on_a_clock(NOON, async {
        let rig = synced(plan("all_or_nothing = true", TIERS)).await;
        rig.fleet.world("web-2").faults.set("source.shut-down", InjectedFault::Hang);
        begin(&rig).await;
        sleep(600).await;
        assert_eq!(on_target(&rig), Vec::<&str>::new());
        assert_eq!(
            group(&rig).await.statuses,
            [MemberStatus::Arrived, MemberStatus::Arrived, MemberStatus::Arrived, MemberStatus::Moving]
        );
        rig.fleet.world("web-2").faults.clear();
        assert!(ended(&rig).await.is_done());
        all_are(&rig, &State::Done).await;
        assert_moved(&rig, &VMS);
        // The tiers still follow each other.
        let watched = phase(&rig.view("db-1").await, Phase::BootCheck).1;
        assert!(phase(&rig.view("web-1").await, Phase::StartVm).0 >= watched);

        let rig = synced(plan("all_or_nothing = true", "")).await;
        rig.fleet.target("web-1").faults.set("target.create", InjectedFault::Refused);
        begin(&rig).await;
        assert!(!ended(&rig).await.is_done());
        all_are(&rig, &State::Synced).await;
        assert_back(&rig, &VMS);
        assert!(VMS.iter().all(|vm| rig.fleet.target(vm).faults.struck("target.start") == 0));
    });
}

#[test]
fn failed_boot_check_keeps_the_next_tier_on_the_source() {
    on_a_clock(NOON, async {
        for all in ["", "all_or_nothing = true"] {
            let rig = synced(plan(all, TIERS)).await;
            rig.fleet.target("db-1").with(|truth| truth.target_dies = true);
            begin(&rig).await;
            let view = ended(&rig).await;
            assert!(matches!(view.statuses[0], MemberStatus::Stuck(_)), "{view:?}");
            rig.until("at rest", |views| views[2..].iter().all(|view| view.state == State::Synced)).await;
            assert_back(&rig, &VMS[2..]);
            let told = view.outcome().unwrap();
            let expected =
                "on the target: db-2; on the target, and not right: db-1; on the source: web-1, web-2";
            assert!(told.contains(expected), "{told}");
        }
    });
}

#[test]
fn nobody_moves_alone_unless_forced() {
    on_a_clock(NOON, async {
        let rig = synced(plan("", TIERS)).await;
        let RequestOutcome::Refused(why) = rig.request("db-1", Request::cutover()).await else {
            panic!("it was granted")
        };
        assert!(why.contains("use `plan cutover shop`"), "{why}");
        let id = rig.view("web-2").await.id;
        let order = CutoverOrder { force: true, ..CutoverOrder::default() };
        assert_eq!(rig.manager.cut_over(id, order, "test").await.unwrap(), RequestOutcome::Accepted);
        rig.until("moved", |views| views[3].state == State::Done).await;
        rig.fleet.world("db-2").faults.set("source.shut-down", InjectedFault::Hang);
        begin(&rig).await;
        assert!(ask(&rig, Some(CutoverTime::Now)).await.already);
        sleep(60).await;
        let id = rig.view("web-1").await.id;
        let RequestOutcome::Refused(why) = rig.manager.cut_over(id, order, "test").await.unwrap() else {
            panic!("it was granted")
        };
        assert!(why.contains("are being cut over together"), "{why}");
        rig.fleet.world("db-2").faults.clear();
        assert!(ended(&rig).await.is_done());
        assert_moved(&rig, &VMS);
    });
}

#[test]
fn it_can_be_aborted_until_the_barrier_opens() {
    on_a_clock(NOON, async {
        for by_one in [false, true] {
            let rig = synced(plan("all_or_nothing = true", TIERS)).await;
            rig.fleet.world("web-2").faults.set("source.shut-down", InjectedFault::Hang);
            begin(&rig).await;
            sleep(600).await;
            rig.fleet.world("web-2").faults.clear();
            if by_one {
                assert_eq!(rig.request("db-1", Request::AbortCutover).await, RequestOutcome::Accepted);
            } else {
                assert!(!ask(&rig, None).await.already);
            }
            let view = ended(&rig).await;
            assert!(view.group.halted.clone().unwrap().contains("aborted by test"), "{view:?}");
            all_are(&rig, &State::Synced).await;
            assert_back(&rig, &VMS);
            assert!(VMS.iter().all(|vm| rig.fleet.target(vm).faults.struck("target.start") == 0));
        }
        // Past the barrier a single VM cannot be aborted; VMs of later tiers can.
        let mut slow = plan("all_or_nothing = true", TIERS);
        slow.cutover.min_uptime = Duration::from_mins(10);
        let rig = synced(slow).await;
        begin(&rig).await;
        rig.until("the first tier is watched", |views| {
            views[..2].iter().all(|view| view.state == State::CuttingOver { phase: Phase::BootCheck })
        })
        .await;
        ask(&rig, None).await;
        let view = ended(&rig).await;
        assert!(view.group.halted.clone().unwrap().contains("aborted by test"), "{view:?}");
        rig.until("at rest", |views| views[2..].iter().all(|view| view.state == State::Synced)).await;
        assert_moved(&rig, &VMS[..2]);
        assert_back(&rig, &VMS[2..]);
    });
}

#[test]
fn a_source_that_is_started_at_the_barrier_is_noticed() {
    on_a_clock(NOON, async {
        let rig = synced(plan("", TIERS)).await;
        rig.fleet.world("db-2").faults.set("source.shut-down", InjectedFault::Hang);
        begin(&rig).await;
        sleep(600).await;
        rig.fleet.world("db-1").with(|truth| truth.source_runs = true);
        sleep(10).await;
        rig.fleet.world("db-2").faults.clear();
        let view = ended(&rig).await;
        let why = view.group.halted.unwrap();
        assert!(why.contains("VM db-1: the source VM was started again"), "{why}");
        all_are(&rig, &State::Synced).await;
        assert_back(&rig, &VMS);
    });
}

#[test]
fn who_waits_too_long_at_the_barrier_is_taken_back() {
    on_a_clock(NOON, async {
        let rig = synced(plan("barrier = \"5m\"", TIERS)).await;
        rig.fleet.world("db-2").faults.set("source.shut-down", InjectedFault::Hang);
        begin(&rig).await;
        sleep(240).await;
        assert_eq!(group(&rig).await.statuses[0], MemberStatus::Arrived);
        sleep(120).await;
        rig.fleet.world("db-2").faults.clear();
        let view = ended(&rig).await;
        let why = view.group.halted.unwrap();
        assert!(
            why.contains("it waited for 5m at the barrier") && why.contains("not there are db-2"),
            "{why}"
        );
        all_are(&rig, &State::Synced).await;
        assert_back(&rig, &VMS);
    });
}

#[test]
fn a_restart_at_the_barrier_lets_nobody_through() {
    on_a_clock(NOON, async {
        let mut rig = synced(plan("", TIERS)).await;
        rig.fleet.world("db-2").faults.set("source.shut-down", InjectedFault::Hang);
        begin(&rig).await;
        sleep(600).await;
        assert_eq!(group(&rig).await.statuses[0], MemberStatus::Arrived);
        rig.stop().await;
        rig.go_on().await;
        sleep(60).await;
        assert_eq!(on_target(&rig), Vec::<&str>::new());
        // It takes its final delta again: its source was not watched meanwhile.
        rig.until("there again", |views| {
            matches!(views[0].state, State::CuttingOver { phase: Phase::CreateVm })
        })
        .await;
        sleep(60).await;
        assert_eq!(group(&rig).await.statuses[..2], [MemberStatus::Arrived, MemberStatus::Moving]);
        rig.fleet.world("db-2").faults.clear();
        assert!(ended(&rig).await.is_done());
        assert_moved(&rig, &VMS);

        // The same while all that began are undone.
        let mut rig = synced(plan("", TIERS)).await;
        rig.fleet.world("db-2").faults.set("source.shut-down", InjectedFault::Refused);
        rig.fleet.world("db-1").faults.set("source.power-on", InjectedFault::Hang);
        begin(&rig).await;
        sleep(60).await;
        assert!(group(&rig).await.group.halted.is_some());
        rig.stop().await;
        rig.fleet.world("db-1").faults.clear();
        rig.go_on().await;
        assert!(!ended(&rig).await.is_done());
        all_are(&rig, &State::Synced).await;
        assert_back(&rig, &VMS);
    });
}

#[test]
fn auto_group_begins_when_all_of_its_vms_would() {
    on_a_clock(NOON, async {
        let mut nights = plan("mode = \"auto\"", TIERS);
        nights.schedule =
            toml::from_str("every = \"6h\"\n[cutover]\nwindows = [\"daily 22:00–04:00 UTC\"]\n").unwrap();
        let rig = synced(nights).await;
        let hold = CutoverOrder { when: CutoverTime::Hold, ..CutoverOrder::default() };
        let held = rig.view("web-1").await.id;
        assert_eq!(rig.manager.cut_over(held, hold, "test").await.unwrap(), RequestOutcome::Accepted);
        // In the window: all except one would begin.
        sleep(11 * 3600).await;
        assert!(rig.manager.group("shop").await.unwrap().is_none());
        assert_back(&rig, &VMS[..0]);
        let waits = rig.view("db-1").await.scheduled_cutover.expect("it waits");
        assert!(
            waits.mode == ScheduledCutoverMode::Auto && waits.why.contains("together with the other VMs"),
            "{waits:?}"
        );
        let release = CutoverOrder { when: CutoverTime::Unhold, ..CutoverOrder::default() };
        assert_eq!(rig.manager.cut_over(held, release, "test").await.unwrap(), RequestOutcome::Accepted);
        all_are(&rig, &State::Done).await;
        assert_moved(&rig, &VMS);
        assert_eq!(group(&rig).await.group.by, "plan shop");
    });
}

#[test]
fn at_a_time_it_begins_together() {
    on_a_clock(NOON, async {
        let rig = synced(plan("", TIERS)).await;
        let at: DateTime<Utc> = "2026-11-22T17:00:00Z".parse().unwrap();
        let asked = ask(&rig, Some(CutoverTime::At(at))).await;
        assert!(
            asked.outcomes.len() == 4
                && asked.outcomes.iter().all(|each| each.outcome == RequestOutcome::Accepted)
        );
        sleep(4 * 3600 + 3500).await;
        assert!(rig.manager.group("shop").await.unwrap().is_none());
        all_are(&rig, &State::Done).await;
        let view = group(&rig).await;
        assert!(view.group.begun >= at && view.group.begun < at + chrono::TimeDelta::minutes(2), "{view:?}");
        assert_moved(&rig, &VMS);
    });
}

#[test]
fn what_stands_in_the_way_of_one_is_in_the_way_of_all() {
    on_a_clock(NOON, async {
        let rig = synced(plan("", TIERS)).await;
        assert_eq!(rig.request("web-2", Request::Pause).await, RequestOutcome::Accepted);
        rig.until("paused", |views| matches!(views[3].state, State::Paused { .. })).await;
        let refused =
            rig.manager.cut_over_plan("shop", Some(CutoverOrder::default()), "test").await.unwrap_err();
        assert!(
            refused
                .message
                .contains("VM web-2: cutover is refused while the migration is paused: resume it first"),
            "{refused}"
        );
        sleep(60).await;
        assert!(VMS.iter().all(|vm| rig.fleet.world(vm).faults.struck("source.shut-down") == 0));
        // A plan without tiers sends the request to each VM.
        rig.apply(plan("", "")).await;
        let asked = ask(&rig, Some(CutoverTime::Now)).await;
        let refused = asked.outcomes.iter().filter(|each| matches!(each.outcome, RequestOutcome::Refused(_)));
        assert_eq!(refused.map(|each| each.vm.as_str()).collect::<Vec<_>>(), ["web-2"]);
        rig.until("moved", |views| views[..3].iter().all(|view| view.state == State::Done)).await;
    });
}

#[test]
fn windows_that_never_meet_are_told() {
    on_a_clock(NOON, async {
        let rig = FleetRig::start(fleet(), ConfiguredQuotas::default()).await;
        let windows = |of_one: &str| {
            let own = |vm, window| format!("[vm.{vm}.schedule.cutover]\nwindows = [\"{window} UTC\"]\n");
            own("db-1", "daily 22:00–23:00") + &own("web-2", of_one)
        };
        let found = async |cutover: &str, rest: &str| -> Vec<String> {
            let found = rig.manager.validate_plan(&plan(cutover, rest)).await.unwrap();
            let those = found.into_iter().filter(|finding| finding.rule == Rule::NoCommonWindow);
            those.map(|finding| format!("{}: {}", finding.subject, finding.message)).collect()
        };
        let told = ["plan shop: windows of their own have db-1, web-2"];
        let apart = windows("daily 23:00–23:30");
        assert_eq!(found("all_or_nothing = true", &apart).await, told);
        assert_eq!(found("", &(TIERS.to_owned() + &apart)).await, told);
        assert!(found("", &apart).await.is_empty(), "each moves alone");
        let meet = windows("Sun 22:30–23:30");
        assert!(found("all_or_nothing = true", &meet).await.is_empty());
    });
}

#[test]
fn a_vm_in_no_tier_is_an_error_and_an_empty_tier_a_warning() {
    on_a_clock(NOON, async {
        let rig = FleetRig::start(fleet(), ConfiguredQuotas::default()).await;
        let tiers = "[[cutover.tiers]]\nvms = [\"db-*\", \"!db-2\"]\n[[cutover.tiers]]\nvms = [\"cache\"]\n";
        let found = rig.manager.validate_plan(&plan("", tiers)).await.unwrap();
        let of = |rule| -> Vec<_> {
            let those = found.iter().filter(|finding| finding.rule == rule);
            those.map(|finding| finding.subject.as_str()).collect()
        };
        assert_eq!(of(Rule::TierMissing), ["VM db-2", "VM web-1", "VM web-2"]);
        assert_eq!(of(Rule::TierUnmatched), ["plan shop"]);
    });
}

#[test]
fn nobody_goes_without_a_member_that_cannot_be_read() {
    on_a_clock(NOON, async {
        let mut rig = synced(plan("", TIERS)).await;
        rig.stop().await;
        rig.garble("UPDATE migrations SET state = 'garbage' WHERE vm_name = 'db-2'");
        rig.go_on().await;
        for force in [false, true] {
            let order = CutoverOrder { when: CutoverTime::Now, force, ..CutoverOrder::default() };
            let refused = rig.manager.cut_over_plan("shop", Some(order), "test").await.unwrap_err();
            assert!(refused.message.contains("VM db-2: unreadable"), "{}", refused.message);
        }
        sleep(600).await;
        let views = rig.manager.migrations(None).await.unwrap();
        let others = views.iter().filter(|view| view.vm_name != "db-2");
        assert!(others.clone().count() == 3 && others.into_iter().all(|view| view.state == State::Synced));
        // One bad row does not disturb checks of the source either.
        rig.manager.check_source("s").await.unwrap();
    });
}
