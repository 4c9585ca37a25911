//! VMs with schedules of their own over a simulated fleet, on a virtual clock: each is copied, suspended and
//! cut over by its own schedule, beside others of the same plan.

use std::time::Duration;

use chrono::{DateTime, Utc};
use warmd_core::{
    clock,
    control::{Control, ExplainTarget},
    model::{
        plan::Plan,
        quota::ConfiguredQuotas,
        request::{Request, RequestOutcome},
        rule::Rule,
        scheduled_cutover::{CutoverOrder, CutoverTime},
        state::State,
        view::MigrationView,
    },
};
use warmd_tests::simulated::{Fleet, FleetRig, FleetVm, on_a_clock};

const NOON: &str = "2026-11-22T12:00:00Z";

fn fleet(names: &[&str]) -> Fleet {
    Fleet::new(names.iter().map(|name| FleetVm {
        name: (*name).to_owned(),
        plan: "p".to_owned(),
        source: "s".to_owned(),
        host: "h".to_owned(),
        disks: vec![("vda".to_owned(), 256 << 10, "fast".to_owned())],
    }))
}

/// A plan for `quick` and `slow` that copies each minute.
fn plan(rest: &str) -> Plan {
    let text = format!(
        "name = \"p\"\nsource = \"s\"\ntarget = \"t\"\nvms = [\"quick\", \"slow\"]\n[schedule]\nevery = \"1m\"\n\
         [cutover]\ngraceful_shutdown = \"1s\"\nmin_uptime = \"1s\"\n{rest}"
    );
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

async fn rig() -> FleetRig {
    FleetRig::start(fleet(&["quick", "slow"]), ConfiguredQuotas::default()).await
}

fn all_synced(views: &[MigrationView]) -> bool {
    views.iter().all(|view| view.state == State::Synced)
}

fn passes(rig: &FleetRig, vm: &str) -> usize {
    rig.fleet.taken().iter().filter(|taken| taken.vm == vm).count()
}

fn at(text: &str) -> DateTime<Utc> {
    format!("2026-11-{text}:00Z").parse().unwrap()
}

async fn until(moment: DateTime<Utc>) {
    tokio::time::sleep((moment - clock::now()).to_std().unwrap_or_default()).await;
}

async fn cut_over(rig: &FleetRig, vm: &str, order: CutoverOrder) -> RequestOutcome {
    let id = rig.view(vm).await.id;
    rig.manager.cut_over(id, order, "test").await.unwrap()
}

fn refused(outcome: RequestOutcome) -> String {
    match outcome {
        RequestOutcome::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn vm_follows_its_own_cadence_after_restarts_and_changes() {
    on_a_clock(NOON, async {
        let mut rig = rig().await;
        rig.apply(plan("[vm.slow.schedule]\nevery = \"1h\"")).await;
        rig.until("synced", all_synced).await;
        assert_eq!((passes(&rig, "quick"), passes(&rig, "slow")), (1, 1));
        until(at("22T12:50")).await;
        assert!((40..60).contains(&passes(&rig, "quick")), "{}", passes(&rig, "quick"));
        assert_eq!(passes(&rig, "slow"), 1);
        let why = rig.view("slow").await.next_pass_why.unwrap();
        assert!(why.contains("every 1h"), "{why}");

        rig.stop().await;
        rig.go_on().await;
        until(at("22T12:58")).await;
        assert_eq!(passes(&rig, "slow"), 1);
        until(at("22T13:05")).await;
        assert_eq!(passes(&rig, "slow"), 2);

        // Without its section the plan's schedule applies at once.
        let before = passes(&rig, "quick");
        let applied = rig.manager.apply_plan(plan(""), "test").await.unwrap();
        let told: Vec<_> = applied.changes.iter().map(|change| change.text.as_str()).collect();
        assert_eq!(told[0], "schedule of VM slow: every was \"1h\" and is the plan's");
        until(at("22T13:15")).await;
        assert!(passes(&rig, "slow") > 8 && passes(&rig, "quick") > before + 8);
        rig.stop().await;
    });
}

#[test]
fn a_vm_is_held_by_its_own_copy_windows() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        rig.apply(plan("[vm.slow.schedule.copy]\nwindows = [\"daily 22:00–23:00 UTC\"]")).await;
        rig.until("one is synced", |views| views.iter().any(|view| view.state == State::Synced)).await;
        let view = rig.view("slow").await;
        assert!(view.state == State::Seeding && passes(&rig, "slow") == 0, "{}", view.state);
        assert!(view.next_pass_why.unwrap().starts_with("blocked until 2026-11-22 22:00 UTC"));
        until(at("22T22:30")).await;
        assert!(passes(&rig, "slow") > 1);
        until(at("22T23:01")).await;
        let (before, quick) = (passes(&rig, "slow"), passes(&rig, "quick"));
        until(at("22T23:30")).await;
        assert!(passes(&rig, "slow") == before && passes(&rig, "quick") > quick);
        rig.stop().await;
    });
}

#[test]
fn a_cutover_keeps_to_the_vms_own_window() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        let own = "[vm.slow.schedule]\nzone = \"Europe/Berlin\"\nevery = \"6h\"\n\
                   [vm.slow.schedule.cutover]\nwindows = [\"daily 22:00–23:00\"]";
        rig.apply(plan(own)).await;
        rig.until("synced", all_synced).await;
        let why = refused(cut_over(&rig, "slow", CutoverOrder::default()).await);
        assert!(why.contains("a cutover may begin from 2026-11-22 22:00 CET on"), "{why}");
        let early = CutoverOrder { when: CutoverTime::At(at("22T20:00")), ..CutoverOrder::default() };
        assert!(refused(cut_over(&rig, "slow", early).await).contains("at 2026-11-22 21:00 CET is refused"));
        assert_eq!(rig.request("quick", Request::cutover()).await, RequestOutcome::Accepted);
        rig.until("one is moved", |views| views.iter().any(|view| view.state == State::Done)).await;

        let evening = CutoverOrder { when: CutoverTime::At(at("22T21:30")), ..CutoverOrder::default() };
        assert_eq!(cut_over(&rig, "slow", evening).await, RequestOutcome::Accepted);
        until(at("22T21:29")).await;
        assert_eq!(rig.view("slow").await.state, State::Synced);
        rig.until("both are moved", |views| views.iter().all(|view| view.state == State::Done)).await;
        let view = rig.view("slow").await;
        assert!(view.cutover.unwrap().started >= at("22T21:30"));
        rig.stop().await;
    });
}

#[test]
fn auto_cutover_takes_each_vm_in_its_own_window() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        let mut plan = plan(
            "[vm.slow.schedule.cutover]\nwindows = [\"daily 02:00–04:00 UTC\"]\nblackouts = [\"2026-11-23 UTC\"]",
        );
        plan.cutover.mode = warmd_core::model::plan::CutoverMode::Auto;
        plan.schedule.cutover.windows = vec!["daily 22:00–23:00 UTC".parse().unwrap()];
        rig.apply(plan).await;
        until(at("22T23:00")).await;
        assert_eq!(rig.view("quick").await.state, State::Done);
        assert!(rig.view("quick").await.cutover.unwrap().started >= at("22T22:00"));
        until(at("23T12:00")).await;
        assert!(rig.view("slow").await.cutover.is_none());
        until(at("24T02:30")).await;
        let cutover = rig.view("slow").await.cutover.unwrap();
        assert!(cutover.started >= at("24T02:00"), "{}", cutover.started);
        rig.stop().await;
    });
}

#[test]
fn vms_that_move_together_wait_for_the_window_of_each() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        let own = "all_or_nothing = true\n[vm.slow.schedule.cutover]\nwindows = [\"daily 22:00–23:00 UTC\"]";
        rig.apply(plan(own)).await;
        rig.until("synced", all_synced).await;
        let error = rig.manager.cut_over_plan("p", Some(CutoverOrder::default()), "test").await.unwrap_err();
        let told = error.to_string();
        assert!(told.contains("VM slow: ") && told.contains("from 2026-11-22 22:00 UTC on"), "{told}");
        assert!(!told.contains("VM quick"), "{told}");
        until(at("22T22:01")).await;
        rig.manager.cut_over_plan("p", Some(CutoverOrder::default()), "test").await.unwrap();
        rig.until("both are moved", |views| views.iter().all(|view| view.state == State::Done)).await;
        rig.stop().await;
    });
}

#[test]
fn each_vms_schedule_is_explained_also_before_it_moves() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        let plan = plan("[vm.slow.schedule]\nzone = \"Europe/Berlin\"\nevery = \"6h\"");
        let of = |whose| rig.manager.explain(&plan, whose, 20);
        let told = of(ExplainTarget::Vm("slow")).await.unwrap();
        assert_eq!(
            (told.migration, told.vm.as_deref(), told.zone.name()),
            (None, Some("slow"), "Europe/Berlin")
        );
        assert!(told.decisions.iter().any(|decision| decision.why.starts_with("every 6h")), "{told:?}");
        let told = of(ExplainTarget::Oldest).await.unwrap();
        assert_eq!((told.vm, told.zone.name()), (None, "UTC"));
        let error = of(ExplainTarget::Vm("other")).await.unwrap_err().to_string();
        assert!(error.contains("plan p names no VM other: its `vms` are quick, slow"), "{error}");

        rig.apply(plan.clone()).await;
        rig.until("synced", all_synced).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for whose in [ExplainTarget::Vm("slow"), ExplainTarget::Migration("slow")] {
            let (told, view) = (of(whose).await.unwrap(), rig.view("slow").await);
            assert_eq!((told.migration, told.vm.as_deref()), (Some(view.id), Some("slow")));
            let first = told.decisions.iter().find(|decision| decision.why.starts_with("every 6h")).unwrap();
            assert_eq!((Some(first.at), told.zone.name()), (view.next_pass, "Europe/Berlin"));
        }
        until(at("22T13:00")).await;
        let told = of(ExplainTarget::Oldest).await.unwrap();
        assert_eq!(told.vm.as_deref(), Some("slow"), "its last pass is the longest ago");
        rig.stop().await;
    });
}

#[test]
fn what_is_wrong_with_a_vms_windows_is_told_of_the_vm() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        let found = async |text: &str| {
            let mut plan = plan(text);
            plan.cutover.max_downtime = Some(Duration::from_hours(2));
            let found = rig.manager.validate_plan(&plan).await.unwrap();
            found.into_iter().map(|each| (each.rule, each.subject, each.message)).collect::<Vec<_>>()
        };
        let one = |found: Vec<(Rule, String, String)>| {
            let [one] = <[_; 1]>::try_from(found).unwrap_or_else(|found| panic!("{found:#?}"));
            one
        };
        let (rule, subject, message) =
            one(found("[vm.slow.schedule.copy]\nwindows = [\"2020-01-01 UTC\"]").await);
        assert_eq!((rule, subject.as_str()), (Rule::WindowNeverOpens, "VM slow"));
        assert!(message.starts_with("`[vm.\"slow\".schedule] copy` never opens"), "{message}");
        let (rule, subject, message) =
            one(found("[vm.slow.schedule.cutover]\nwindows = [\"daily 22:00–23:00 UTC\"]").await);
        assert_eq!((rule, subject.as_str()), (Rule::WindowNeverFits, "VM slow"));
        assert!(message.contains("has 1h, and `cutover.max_downtime` is 2h"), "{message}");
        let (rule, subject, message) = one(found("[vm.slow.schedule]\npriority = 2").await);
        assert_eq!((rule, subject.as_str()), (Rule::PlanWrong, "plan p"));
        assert!(message.starts_with("`[vm.\"slow\".schedule] priority` is shared"), "{message}");
        // A dead end of the plan is reported once, and not for a VM whose own section corrects it.
        let over = "[schedule.cutover]\nwindows = [\"2020-01-01 UTC\"]\n[vm.slow.schedule]\nevery = \"1h\"";
        assert_eq!(one(found(over).await).1, "plan p");
        let mended = format!("{over}\n[vm.slow.schedule.cutover]\nwindows = []");
        assert_eq!(one(found(&mended).await).1, "plan p");
        rig.stop().await;
    });
}

#[test]
fn the_metrics_tell_of_a_vms_own_windows_and_promise() {
    on_a_clock(NOON, async {
        let rig = rig().await;
        let own = "[vm.slow.schedule]\nadaptive = { rpo = \"2h\" }\n\
                   [vm.slow.schedule.cutover]\nwindows = [\"daily 22:00–23:00 UTC\"]";
        rig.apply(plan(own)).await;
        rig.until("synced", all_synced).await;
        let told = rig.metrics.render(&rig.manager.present()().await).unwrap();
        for line in [
            "warmd_window_open{plan=\"p\",kind=\"cutover\"} 1.0",
            "warmd_window_open{plan=\"p\",vm=\"slow\",kind=\"cutover\"} 0.0",
            "warmd_window_open{plan=\"p\",vm=\"slow\",kind=\"copy\"} 1.0",
            "warmd_rpo_target_seconds{plan=\"p\",vm=\"slow\"} 7200.0",
        ] {
            assert!(told.lines().any(|told| told == line), "{line}: {told}");
        }
        assert!(!told.contains("vm=\"quick\",kind"));
        rig.stop().await;
    });
}
