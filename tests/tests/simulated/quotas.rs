//! Quotas over a simulated fleet, on a virtual clock: never exceeded, fair shares, cutovers first, everything
//! given back.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use warmd_core::{
    clock,
    control::{Control, ExplainTarget},
    model::{
        phase::Phase,
        plan::{CutoverMode, Plan, PlanLimits},
        quota::ConfiguredQuotas,
        request::{Request, RequestOutcome},
        scheduled_cutover::{CutoverOrder, ScheduledCutoverMode},
        state::State,
        view::MigrationView,
    },
};
use warmd_schedules::{admission_queue::QuotaScope, quota::Quota};
use warmd_tests::simulated::{Fleet, FleetRig, FleetVm, on_a_clock};

mod chances;

const KIB: u64 = 1 << 10;
const NOON: &str = "2026-11-22T12:00:00Z";

fn quota(text: &str) -> Quota {
    toml::from_str(text).unwrap()
}

fn configured(quotas: &[(QuotaScope, &str)]) -> ConfiguredQuotas {
    let scopes = quotas.iter().map(|(scope, text)| (scope.clone(), vec![quota(text)])).collect();
    ConfiguredQuotas { scopes, ..ConfiguredQuotas::default() }
}

fn vm(name: &str, plan: &str, disks: u64, size: u64) -> FleetVm {
    let disks = (0..disks).map(|at| (format!("vd{}", (b'a' + at as u8) as char), size, "fast".to_owned()));
    FleetVm {
        name: name.to_owned(),
        plan: plan.to_owned(),
        source: "s".to_owned(),
        host: "h".to_owned(),
        disks: disks.collect(),
    }
}

fn plan(name: &str, source: &str, vms: &[String], schedule: &str) -> Plan {
    let vms = vms.iter().map(|vm| format!("{vm:?}")).collect::<Vec<_>>().join(", ");
    let text = format!(
        "name = {name:?}\nsource = {source:?}\ntarget = \"t\"\nvms = [{vms}]\n[schedule]\n{schedule}\n[cutover]\n\
         graceful_shutdown = \"1s\"\nmin_uptime = \"1s\"\n[verify]\nmode = \"readback\"\n[limits]\nrate = \"64KiB/s\"\n"
    );
    toml::from_str(&text).unwrap()
}

fn names(plan: &str, count: usize) -> Vec<String> {
    (0..count).map(|at| format!("{plan}-{at}")).collect()
}

fn all_synced(views: &[MigrationView]) -> bool {
    views.iter().all(|view| view.state == State::Synced)
}

async fn sleep(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn seconds_since(at: DateTime<Utc>) -> f64 {
    (clock::now() - at).as_seconds_f64()
}

#[test]
fn who_waits_says_for_what_and_all_come_to_their_turn() {
    on_a_clock(NOON, async {
        let vms = names("a", 5);
        let fleet = Fleet::new(vms.iter().map(|name| vm(name, "a", 1, 256 * KIB)));
        fleet.allow("source/s", 2, 0);
        let rig =
            FleetRig::start(fleet, configured(&[(QuotaScope::Source("s".to_owned()), "snapshots = 2")]))
                .await;
        rig.apply(plan("a", "s", &vms, "every = \"1h\"")).await;
        let waits = |view: &MigrationView| {
            let why = "waits for admission: source s: 2 of 2 snapshots are in use";
            view.state == State::Seeding && view.next_pass_why.as_deref() == Some(why)
        };
        rig.until("three wait", |views| views.iter().filter(|view| waits(view)).count() == 3).await;
        let [quota] = rig.manager.gate.views().try_into().unwrap();
        assert_eq!((quota.snapshots, quota.passes, quota.disks, quota.waiting), (2, 2, 2, 3));
        assert_eq!((quota.scope.path().as_str(), quota.why.as_str()), ("source/s", "always"));
        let told = rig.metrics.render(&rig.manager.present()().await).unwrap();
        for line in [
            "warmd_quota_allowed{scope=\"source/s\",kind=\"snapshots\"} 2.0",
            "warmd_quota_used{scope=\"source/s\",kind=\"snapshots\"} 2.0",
            "warmd_quota_used{scope=\"source/s\",kind=\"passes\"} 2.0",
            "warmd_quota_waiting_passes{scope=\"source/s\"} 3.0",
        ] {
            assert!(told.lines().any(|told| told == line), "{line}: {told}");
        }
        assert!(!told.contains("warmd_quota_allowed_bytes_per_second"));
        rig.until("all synced", all_synced).await;
        assert_eq!((rig.fleet.most("source/s"), rig.fleet.taken().len()), (2, 5));
        assert_eq!(rig.fleet.violations(), [""; 0]);
        rig.assert_all_given_back();
        for name in &vms {
            rig.fleet.assert_same(name);
            assert!(!rig.view(name).await.next_pass_why.unwrap().contains("turn"));
        }
    });
}

#[test]
fn what_waits_for_quotas_is_explained() {
    on_a_clock(NOON, async {
        let vms = names("a", 2);
        let fleet = Fleet::new(vms.iter().map(|name| vm(name, "a", 1, 1 << 20)));
        let quotas = configured(&[
            (QuotaScope::Global, "passes = 1"),
            (
                QuotaScope::Datastore("fast".to_owned()),
                "window = \"daily 13:00–14:00 UTC\"\nbytes_per_second = \"1MiB\"",
            ),
        ]);
        let rig = FleetRig::start(fleet, quotas).await;
        let plan = plan("a", "s", &vms, "every = \"1h\"\n");
        let told = |count| rig.manager.explain(&plan, ExplainTarget::Oldest, count);
        let first = told(20).await.unwrap().decisions[0].to_string();
        assert_eq!(first, "2026-11-22 12:00 UTC  limits           all of warmd: 1 pass: always");
        rig.apply(plan.clone()).await;
        sleep(1).await;
        let waits = vms.iter().find(|name| !rig.fleet.open().contains(*name)).unwrap();
        let told = rig.manager.explain(&plan, ExplainTarget::Migration(waits), 5).await.unwrap().decisions;
        let lines: Vec<_> = told.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 5);
        for line in [
            "2026-11-22 12:00:01 UTC  pass blocked     waits for admission: all of warmd: 1 of 1 passes are in use",
            "2026-11-22 13:00 UTC  limits           datastore fast: 1MiB/s: window daily 13:00–14:00 UTC",
        ] {
            assert!(lines.iter().any(|told| told == line), "{line}: {lines:#?}");
        }
    });
}

#[test]
fn plans_share_by_their_priorities() {
    on_a_clock(NOON, async {
        let (ours, theirs) = (names("a", 10), names("b", 10));
        let vms = ours.iter().map(|name| vm(name, "a", 1, 128 * KIB));
        let fleet = Fleet::new(vms.chain(theirs.iter().map(|name| vm(name, "b", 1, 128 * KIB))));
        let rig = FleetRig::start(fleet, configured(&[(QuotaScope::Global, "passes = 2")])).await;
        rig.apply(plan("a", "s", &ours, "every = \"1s\"\npriority = 3")).await;
        rig.apply(plan("b", "s", &theirs, "every = \"1s\"")).await;
        rig.until("all synced once", |views| views.iter().all(|view| view.pass.is_some())).await;
        let before = rig.fleet.taken().len();
        // Data to copy for each: a pass takes a second.
        while rig.fleet.taken().len() < before + 400 {
            for name in ours.iter().chain(&theirs) {
                rig.fleet.world(name).guest_writes("vda", 0, &vec![rig.fleet.taken().len() as u8; 128 << 10]);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let taken = rig.fleet.taken();
        let of = |plan: &str| taken[before..].iter().filter(|taken| taken.plan == plan).count() as f64;
        let ratio = of("a") / of("b");
        assert!((2.5..3.5).contains(&ratio), "{ratio}: {} and {}", of("a"), of("b"));
        assert_eq!(rig.fleet.most("global"), 2);
        // Within a plan no VM is forgotten.
        for name in ours.iter().chain(&theirs) {
            let count = taken[before..].iter().filter(|taken| taken.vm == *name).count();
            assert!(count >= 5, "{name}: {count}");
        }
    });
}

#[test]
fn a_vm_with_more_disks_than_the_limit_gets_its_turn() {
    on_a_clock(NOON, async {
        let small = names("small", 12);
        let vms = small.iter().map(|name| vm(name, "small", 1, 640 * KIB));
        let fleet = Fleet::new(vms.chain([vm("large", "large", 9, 64 * KIB)]));
        fleet.allow("datastore/fast", 0, 4);
        let quotas = configured(&[(QuotaScope::Datastore("fast".to_owned()), "disks = 4")]);
        let rig = FleetRig::start(fleet, quotas).await;
        rig.apply(plan("small", "s", &small, "every = \"1s\"")).await;
        sleep(5).await;
        rig.apply(plan("large", "s", &["large".to_owned()], "every = \"1h\"")).await;
        let why =
            "waits for admission: datastore fast: 4 of 4 disks are in use, and it needs all as it has 9";
        let begun = clock::now();
        let large = || rig.view("large");
        let mut told = Vec::new();
        while large().await.state != State::Synced {
            told.extend(large().await.next_pass_why);
            sleep(1).await;
            assert!(seconds_since(begun) < 600.0, "it never comes to its turn");
        }
        assert!(told.iter().any(|told| told == why), "{told:?}");
        assert_eq!(rig.fleet.violations(), [""; 0]);
        rig.fleet.assert_same("large");
    });
}

#[test]
fn a_cutover_goes_before_pre_copies_also_before_those_that_run() {
    on_a_clock(NOON, async {
        let vms = ["web".to_owned(), "huge".to_owned(), "next".to_owned()];
        let fleet = Fleet::new([
            vm("web", "a", 1, 64 * KIB),
            vm("huge", "a", 1, 4 << 20),
            vm("next", "a", 1, 4 << 20),
        ]);
        fleet.allow("global", 1, 0);
        let rig =
            FleetRig::start(fleet, configured(&[(QuotaScope::Global, "passes = 1\nsnapshots = 1")])).await;
        rig.apply(plan("a", "s", &vms[..1], "every = \"1h\"")).await;
        rig.until("synced", all_synced).await;
        rig.apply(plan("a", "s", &vms, "every = \"1h\"")).await;
        let syncing = |views: &[MigrationView]| views.iter().any(|view| drained(view) > 256 * KIB);
        rig.until("one copies for long", syncing).await;
        let begun = clock::now();
        rig.fleet.world("web").guest_writes("vda", 0, &[9; 5000]);
        assert_eq!(rig.request("web", Request::cutover()).await, RequestOutcome::Accepted);
        rig.until("moved", |views| views.iter().any(|view| view.state == State::Done)).await;
        assert!(seconds_since(begun) < 60.0, "it took {} s", seconds_since(begun));
        rig.fleet.assert_same("web");
        let journal = rig.manager.events(None, None, 1000).await.unwrap().lines;
        assert!(journal.iter().any(|line| line.text.contains("pass preempted: a cutover needs its place")));
        // Drained blocks stay drained; no operator has to act.
        let others = |views: &[MigrationView]| {
            views.iter().all(|view| matches!(view.state, State::Synced | State::Done))
        };
        rig.until("the others come to their end", others).await;
        let cut = rig.fleet.taken().iter().filter(|taken| taken.vm != "web").count();
        assert_eq!((cut, rig.fleet.most("global")), (3, 1), "one was begun again");
        let finals = rig.fleet.taken().iter().filter(|taken| taken.is_final).count();
        assert_eq!((finals, rig.fleet.violations()), (1, Vec::new()));
        rig.fleet.assert_same("huge");
        rig.fleet.assert_same("next");
        rig.assert_all_given_back();
    });
}

#[test]
fn a_cutover_does_not_wait_past_its_window() {
    on_a_clock(NOON, async {
        let small = |name| vm(name, "a", 1, 64 * KIB);
        let fleet = Fleet::new([vm("busy", "a", 1, 32 << 20), small("late"), small("forced")]);
        let rig = FleetRig::start(fleet, ConfiguredQuotas::default()).await;
        let vms = ["busy".to_owned(), "late".to_owned(), "forced".to_owned()];
        let schedule =
            "every = \"5h\"\ncutover = { windows = [\"daily 13:00–13:05 UTC\"] }\nquotas = [{ passes = 1 }]";
        rig.apply(plan("a", "s", &vms, schedule)).await;
        rig.until("synced", all_synced).await;
        let opens: DateTime<Utc> = "2026-11-22T13:00:01Z".parse().unwrap();
        tokio::time::sleep((opens - clock::now()).to_std().unwrap()).await;
        rig.fleet.world("busy").guest_writes("vda", 0, &vec![7; 32 << 20]);
        assert_eq!(rig.request("busy", Request::cutover()).await, RequestOutcome::Accepted);
        sleep(2).await;
        let of_late = || rig.fleet.taken().iter().filter(|taken| taken.vm == "late").count();
        let before = of_late();
        assert_eq!(rig.request("late", Request::cutover()).await, RequestOutcome::Accepted);
        let order = CutoverOrder { force: true, ..CutoverOrder::default() };
        let forced = rig.manager.cut_over(rig.view("forced").await.id, order, "test").await.unwrap();
        assert_eq!(forced, RequestOutcome::Accepted);
        sleep(200).await;
        let waits = rig.view("late").await;
        assert!(waits.next_pass_why.is_some_and(|why| why.contains("plan a: 1 of 1 passes")));
        sleep(200).await;
        let undone = rig.view("late").await;
        assert_eq!(undone.state, State::Synced);
        assert!(undone.cutover.unwrap().failure.unwrap().contains("window closed while the cutover waited"));
        assert!(rig.fleet.world("late").with(|truth| truth.source_runs));
        let waits_on = rig.view("forced").await.state;
        assert_eq!(waits_on, State::CuttingOver { phase: Phase::CatchUpDelta }, "who forces it, forces it");
        let done =
            |views: &[MigrationView]| views.iter().filter(|view| view.state == State::Done).count() == 2;
        rig.until("moved", done).await;
        assert_eq!(of_late(), before, "no snapshot was taken for it");
        rig.assert_all_given_back();
    });
}

#[test]
fn window_that_closed_without_the_daemon_is_missed() {
    on_a_clock(NOON, async {
        let fleet = Fleet::new([vm("busy", "a", 1, 32 << 20), vm("late", "a", 1, 32 << 20)]);
        let mut rig = FleetRig::start(fleet, ConfiguredQuotas::default()).await;
        let vms = ["busy".to_owned(), "late".to_owned()];
        let schedule =
            "every = \"50h\"\ncutover = { windows = [\"daily 13:00–13:05 UTC\"] }\nquotas = [{ passes = 1 }]";
        let mut plan = plan("a", "s", &vms, schedule);
        plan.cutover.mode = CutoverMode::Auto;
        rig.apply(plan).await;
        rig.until("synced", all_synced).await;
        let sleep_until = async |moment: &str| {
            let at: DateTime<Utc> = moment.parse().unwrap();
            tokio::time::sleep((at - clock::now()).to_std().unwrap()).await;
        };
        sleep_until("2026-11-22T12:59:59Z").await;
        for name in &vms {
            rig.fleet.world(name).guest_writes("vda", 0, &vec![7; 32 << 20]);
        }
        sleep_until("2026-11-22T13:02:00Z").await;
        let cutting = State::CuttingOver { phase: Phase::CatchUpDelta };
        for name in &vms {
            assert_eq!(rig.view(name).await.state, cutting, "{name}");
        }
        rig.stop().await;
        sleep_until("2026-11-22T13:06:00Z").await;
        rig.go_on().await;
        let one_each = |views: &[MigrationView]| {
            let is = |state: State| views.iter().filter(|view| view.state == state).count();
            (is(State::Synced), is(State::Done)) == (1, 1)
        };
        rig.until("one moved, one not", one_each).await;
        let left = rig.manager.migrations(None).await.unwrap();
        let left = left.into_iter().find(|view| view.state == State::Synced).unwrap();
        assert!(left.cutover.unwrap().failure.unwrap().contains("window closed while the cutover waited"));
        assert_eq!(
            left.scheduled_cutover.unwrap().mode,
            ScheduledCutoverMode::Auto,
            "nobody was stopped: nothing to hold"
        );
        sleep_until("2026-11-23T12:59:00Z").await;
        assert_eq!(rig.view(&left.vm_name).await.state, State::Synced);
        rig.until("moved", |views| views.iter().all(|view| view.state == State::Done)).await;
        rig.assert_all_given_back();
    });
}

fn drained(view: &MigrationView) -> u64 {
    view.disks.iter().map(|disk| disk.pass_drained).sum()
}

#[test]
fn an_edge_changes_the_rate_in_mid_pass_and_who_may_start() {
    on_a_clock("2026-11-22T12:05:00Z", async {
        let vms = names("a", 2);
        let fleet = Fleet::new(vms.iter().map(|name| vm(name, "a", 1, 96 << 20)));
        let mut quotas = configured(&[
            (QuotaScope::Global, "window = \"daily 12:10–12:20 UTC\"\nbytes_per_second = \"64KiB\""),
            (QuotaScope::Host("h".to_owned()), "passes = 1\nwindow = \"daily 12:00–12:20 UTC\""),
        ]);
        quotas.scopes[0].1.push(quota("bytes_per_second = \"128KiB\""));
        let rig = FleetRig::start(fleet, quotas).await;
        let mut plan = plan("a", "s", &vms, "every = \"1h\"");
        plan.limits = PlanLimits::default();
        rig.apply(plan).await;
        let sum =
            || async { rig.manager.migrations(None).await.unwrap().iter().map(drained).sum::<u64>() as f64 };
        let rate = |from: f64, to: f64, seconds: f64| (to - from) / seconds / KIB as f64;
        sleep(60).await;
        let first = sum().await;
        sleep(200).await;
        let second = sum().await;
        assert!((115.0..141.0).contains(&rate(first, second, 200.0)), "{}", rate(first, second, 200.0));
        assert_eq!(rig.fleet.open().len(), 1);
        let edge = rig.manager.gate.views()[0].clone();
        assert_eq!(edge.next_change.map(|at| at.to_rfc3339()).as_deref(), Some("2026-11-22T12:10:00+00:00"));
        sleep(60).await;
        let third = sum().await;
        sleep(400).await;
        let fourth = sum().await;
        assert!((58.0..70.0).contains(&rate(third, fourth, 400.0)), "{}", rate(third, fourth, 400.0));
        // 12:17; from 12:20 on both run, at the old rate.
        sleep(240).await;
        let fifth = sum().await;
        sleep(100).await;
        let sixth = sum().await;
        assert!((110.0..146.0).contains(&rate(fifth, sixth, 100.0)), "{}", rate(fifth, sixth, 100.0));
        assert_eq!(rig.fleet.open().len(), 2);
    });
}

#[test]
fn a_plan_that_is_applied_again_has_its_new_quotas_at_once() {
    on_a_clock(NOON, async {
        let vms = names("a", 3);
        let fleet = Fleet::new(vms.iter().map(|name| vm(name, "a", 1, 1 << 20)));
        let rig = FleetRig::start(fleet, ConfiguredQuotas::default()).await;
        rig.apply(plan("a", "s", &vms, "every = \"1h\"\nquotas = [{ passes = 1 }]")).await;
        sleep(3).await;
        assert_eq!(rig.fleet.open().len(), 1);
        let view = rig.manager.gate.views();
        assert_eq!((view.len(), view[0].scope.path().as_str(), view[0].waiting), (1, "plan/a", 2));
        rig.apply(plan("a", "s", &vms, "every = \"1h\"")).await;
        sleep(1).await;
        assert_eq!((rig.fleet.open().len(), rig.manager.gate.views().len()), (3, 0));
    });
}

#[test]
fn a_wait_is_ended_by_a_pause_a_cutover_and_the_daemons_end() {
    on_a_clock(NOON, async {
        let vms = names("a", 3);
        let fleet = Fleet::new(vms.iter().map(|name| vm(name, "a", 1, 256 * KIB)));
        fleet.allow("global", 1, 0);
        let mut rig = FleetRig::start(fleet, configured(&[(QuotaScope::Global, "passes = 1")])).await;
        rig.apply(plan("a", "s", &vms, "every = \"1h\"")).await;
        sleep(1).await;
        let [runs] = rig.fleet.open().try_into().unwrap();
        let [first, second]: [&String; 2] =
            vms.iter().filter(|name| **name != runs).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(rig.request(first, Request::Pause).await, RequestOutcome::Accepted);
        assert!(matches!(rig.view(first).await.state, State::Paused { .. }));
        assert_eq!(rig.manager.gate.views()[0].waiting, 1);
        // A running migration is paused, and the next one is admitted.
        assert_eq!(rig.request(&runs, Request::Pause).await, RequestOutcome::Accepted);
        sleep(1).await;
        assert_eq!(rig.fleet.open().join(" "), *second);
        for name in [first, &runs] {
            assert_eq!(rig.request(name, Request::Resume).await, RequestOutcome::Accepted);
        }
        sleep(1).await;
        assert_eq!(rig.manager.gate.views()[0].waiting, 2);
        rig.stop().await;
        assert_eq!((rig.fleet.open(), rig.manager.gate.views()[0].passes), (Vec::new(), 0));
        let before = rig.fleet.taken().len();
        assert_eq!(before, 2, "nobody is begun because the others end");
        rig.go_on().await;
        rig.until("all synced", all_synced).await;
        assert_eq!((rig.fleet.most("global"), rig.fleet.violations()), (1, Vec::new()));
        rig.assert_all_given_back();
        // A waiting delta gives way to its own cutover.
        for name in &vms {
            rig.fleet.world(name).guest_writes("vda", 0, &vec![3; 128 << 10]);
            assert_eq!(rig.request(name, Request::Sync).await, RequestOutcome::Accepted);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let waits = vms.iter().find(|name| !rig.fleet.open().contains(*name)).unwrap();
        assert_eq!(rig.request(waits, Request::cutover()).await, RequestOutcome::Accepted);
        rig.until("moved", |views| views.iter().any(|view| view.state == State::Done)).await;
        rig.fleet.assert_same(waits);
    });
}

#[test]
fn five_hundred_that_are_due_after_a_restart_keep_to_the_quotas() {
    on_a_clock(NOON, async {
        let vms = names("a", 500);
        let fleet = Fleet::new(vms.iter().map(|name| vm(name, "a", 4, 64 * KIB)));
        fleet.allow("target/t", 8, 20);
        let quotas = configured(&[(QuotaScope::Target("t".to_owned()), "snapshots = 8\ndisks = 20")]);
        let mut rig = FleetRig::start(fleet, quotas).await;
        rig.apply(plan("a", "s", &vms, "every = \"1h\"")).await;
        sleep(10).await;
        rig.stop().await;
        rig.go_on().await;
        sleep(1).await;
        let view = rig.manager.gate.views()[0].clone();
        assert!((view.snapshots, view.disks) == (5, 20) && view.waiting > 450, "{view:?}");
        rig.until("all synced", all_synced).await;
        assert_eq!((rig.fleet.most("target/t"), rig.fleet.violations()), (5, Vec::new()));
        rig.assert_all_given_back();
    });
}
