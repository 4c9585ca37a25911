//! Plans over simulated endpoints: what the pre-flight rules find, and what applying does and refuses.

use warmd_core::{
    control::{Applied, Control, Finding, PlanChangeKind},
    model::{
        plan::{Plan, VerifyMode},
        rule::{Objection, Rule, Severity},
        state::State,
    },
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld, VM};

const BLOCK: u64 = 64 * 1024;

async fn rig() -> Rig {
    let world = SimulatedWorld::new(&[("vda", 8 * BLOCK), ("vdb", 2 * BLOCK)]);
    Rig::start(world).await
}

fn plan() -> Plan {
    Rig::plan(VerifyMode::None)
}

fn with(text: &str) -> Plan {
    let plan = toml::to_string(&plan()).unwrap();
    toml::from_str(&format!("{plan}\n{text}")).unwrap_or_else(|error| panic!("{error}: {plan}\n{text}"))
}

async fn findings(rig: &Rig, plan: &Plan) -> Vec<Finding> {
    rig.manager.validate_plan(plan).await.expect("it is judged")
}

/// Checks that this rule has a finding for `subject` with `word`, and that a plan with an error is not
/// applied.
async fn assert_finds(rig: &Rig, plan: &Plan, rule: Rule, subject: &str, word: &str) {
    let found = findings(rig, plan).await;
    let is_it = |finding: &Finding| finding.rule == rule && finding.subject == subject;
    let finding = found.iter().find(|finding| is_it(finding));
    let finding = finding.unwrap_or_else(|| panic!("no {} of {subject}: {found:#?}", rule.id()));
    assert!(finding.message.contains(word) && !finding.help.is_empty(), "{finding:#?}");
    if rule.severity() == Severity::Error {
        let refused = rig.manager.apply_plan(plan.clone(), "test").await.unwrap_err();
        assert!(refused.message.contains(rule.id()) && refused.message.contains(word), "{refused}");
        assert!(rig.manager.plans().await.unwrap().is_empty(), "something of it is kept");
    }
}

#[tokio::test]
async fn a_good_plan_has_no_findings() {
    let rig = rig().await;
    assert_eq!(findings(&rig, &plan()).await, []);
}

#[tokio::test]
async fn what_is_wrong_is_found_by_its_rule() {
    let rig = rig().await;
    let guest = format!("VM {VM}");
    let mut wrong = plan();
    wrong.vms = vec!["nobody".to_owned()];
    assert_finds(&rig, &wrong, Rule::VmUnknown, "VM nobody", "there is none").await;
    wrong.vms = vec![VM.to_owned(), "0001".to_owned()];
    assert_finds(&rig, &wrong, Rule::VmTwice, "VM 0001", VM).await;
    wrong = Plan { source: "x".to_owned(), ..plan() };
    assert_finds(&rig, &wrong, Rule::SourceUnknown, "source x", "\"x\"").await;
    wrong = Plan { target: "x".to_owned(), ..plan() };
    assert_finds(&rig, &wrong, Rule::TargetUnknown, "target x", "\"x\"").await;
    wrong = Plan { vms: Vec::new(), ..plan() };
    assert_finds(&rig, &wrong, Rule::PlanWrong, "plan plan", "`vms` is empty").await;
    wrong = with(&format!("[vm.{VM}.disks]\nvdz = \"/x\""));
    assert_finds(&rig, &wrong, Rule::DiskUnknown, &guest, "vdz").await;
    wrong = with("[[hooks]]\nphase = \"watch\"\nwhen = \"after\"\ncommand = [\"/none/such\"]");
    assert_finds(&rig, &wrong, Rule::HookMissing, "plan plan", "/none/such").await;

    for (call, rule, subject) in [
        ("source.check", Rule::SourceUnreachable, "source s"),
        ("target.check", Rule::TargetUnreachable, "target t"),
        ("target.objections", Rule::TargetUnreachable, "target t"),
        ("source.objections", Rule::VmUnreadable, guest.as_str()),
        ("source.power", Rule::VmUnreadable, guest.as_str()),
    ] {
        rig.world.faults.set(call, InjectedFault::Refused);
        assert_finds(&rig, &plan(), rule, subject, "a fault of the test").await;
        rig.world.faults.clear();
    }
}

#[tokio::test]
async fn what_endpoints_object_to_is_told_and_errors_are_refused() {
    let rig = rig().await;
    let guest = format!("VM {VM}");
    rig.world.with(|truth| truth.source_objects = vec![Objection::new(Rule::VmTransient, "it is transient")]);
    assert_finds(&rig, &plan(), Rule::VmTransient, &guest, "transient").await;
    rig.world.with(|truth| {
        truth.source_objects = vec![Objection::new(Rule::VmHasSnapshots, "3 of them")];
        truth.target_objects = vec![Objection::new(Rule::NameTaken, "domain 17 has it")];
    });
    assert_finds(&rig, &plan(), Rule::NameTaken, &guest, "domain 17").await;
    // Only warnings are left: the plan is applied, and they are shown.
    rig.world.with(|truth| truth.target_objects = vec![Objection::new(Rule::Capacity, "too small")]);
    let applied = rig.manager.apply_plan(plan(), "test").await.expect("warnings do not stand in the way");
    let rules: Vec<_> = applied.findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, [Rule::VmHasSnapshots, Rule::Capacity]);
}

#[tokio::test]
async fn a_window_that_is_too_short_and_one_that_never_opens_are_told() {
    let rig = rig().await;
    let window = |window: &str| {
        let mut plan = with(&format!("[schedule.cutover]\nwindows = [\"{window}\"]"));
        plan.cutover.max_downtime = Some(std::time::Duration::from_hours(2));
        plan
    };
    let short = window("daily 22:00–23:00 UTC");
    assert_finds(&rig, &short, Rule::WindowNeverFits, "plan plan", "`cutover.max_downtime` is 2h").await;
    let over = window("2020-01-01 UTC");
    assert_finds(&rig, &over, Rule::WindowNeverOpens, "plan plan", "`schedule.cutover` never opens").await;
    assert_eq!(findings(&rig, &window("daily 22:00–02:00 UTC")).await, []);
}

#[tokio::test]
async fn vm_of_another_plan_and_a_name_in_use_are_refused() {
    let rig = rig().await;
    rig.seed(plan()).await;
    let other = Plan { name: "other".to_owned(), ..plan() };
    let found = findings(&rig, &other).await;
    let rules: Vec<_> = found.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, [Rule::VmTaken, Rule::NameTwice], "{found:#?}");
    let mut moved = plan();
    moved.source = "elsewhere".to_owned();
    let found = findings(&rig, &moved).await;
    assert!(found.iter().any(|finding| finding.rule == Rule::EndpointFixed), "{found:#?}");
    assert_eq!(findings(&rig, &plan()).await, [], "its own migration is in nobody's way");
}

/// Each change as a line.
fn told(applied: &Applied) -> Vec<String> {
    applied.changes.iter().map(|change| format!("{:?} {}", change.kind, change.text)).collect()
}

/// The stored state: rows of each table, plans, and the journal.
async fn state(rig: &Rig) -> String {
    let db = rusqlite::Connection::open(rig.state_file()).unwrap();
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let tables: Vec<String> =
        db.prepare(tables).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let count = |table: &String| -> i64 {
        db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    let rows: Vec<_> = tables.iter().map(|table| format!("{table} {}", count(table))).collect();
    format!("{:?} {rows:?} {}", rig.manager.plans().await.unwrap(), rig.journal().await)
}

#[tokio::test]
async fn dry_run_reports_what_apply_does_and_changes_nothing() {
    let rig = rig().await;
    let before = state(&rig).await;
    let dry = rig.manager.preview_plan(&plan()).await.unwrap();
    assert_eq!(told(&dry), ["New plan plan is new", "Start VM guest, to t as guest"]);
    assert!(dry.started.is_empty() && dry.kept.is_empty());
    assert_eq!(state(&rig).await, before);
    let done = rig.manager.apply_plan(plan(), "test").await.unwrap();
    assert_eq!(told(&done), told(&dry));
    let started = done.changes.iter().find(|change| change.kind == PlanChangeKind::Start).unwrap();
    assert_eq!(started.migration.as_ref(), done.started.first());

    rig.until("synced", |view| view.state == State::Synced).await;
    let mut again = plan();
    again.schedule.every = Some(std::time::Duration::from_mins(5));
    let before = state(&rig).await;
    let dry = rig.manager.preview_plan(&again).await.unwrap();
    assert_eq!(told(&dry), ["Setting schedule.every was \"1h\" and is \"5m\"", "Keep VM guest, synced"]);
    assert_eq!(state(&rig).await, before);
    assert_eq!(told(&rig.manager.apply_plan(again.clone(), "test").await.unwrap()), told(&dry));
    assert!(rig.journal().await.contains("applied again: schedule.every was \"1h\" and is \"5m\""));
    assert_eq!(told(&rig.manager.preview_plan(&again).await.unwrap()), ["Keep VM guest, synced"]);
}

#[tokio::test]
async fn what_cannot_change_is_refused_while_a_migration_is_under_way() {
    let rig = rig().await;
    let placed = with(&format!("[vm.{VM}.disks]\nvdb = \"/place\""));
    rig.seed(placed.clone()).await;
    let guest = format!("VM {VM}");
    let mut renamed = placed.clone();
    renamed.vm.get_mut(VM).unwrap().name = Some("other".to_owned());
    for (changed, word) in [
        (renamed, "\"other\""),
        (plan(), "disk vdb is to be at a place of the target's choice, and was made at /place"),
        (with(&format!("[vm.{VM}.disks]\nvdb = \"/elsewhere\"")), "/elsewhere"),
        (with(&format!("[vm.{VM}.disks]\nvda = \"/new\"\nvdb = \"/place\"")), "disk vda is to be at /new"),
    ] {
        let before = state(&rig).await;
        let dry = rig.manager.preview_plan(&changed).await.unwrap();
        let found = dry.findings.iter().find(|finding| finding.rule == Rule::VmFixed);
        let found = found.unwrap_or_else(|| panic!("{word}: {:#?}", dry.findings));
        assert!(found.subject == guest && found.message.contains(word), "{found:#?}");
        let refused = rig.manager.apply_plan(changed, "test").await.unwrap_err();
        assert!(refused.message.contains("vm-fixed") && refused.message.contains(word), "{refused}");
        assert_eq!(state(&rig).await, before);
    }
    // Its id names the same VM, with the same name.
    let by_id = Plan { vms: vec!["0001".to_owned()], vm: placed.vm.clone(), ..placed };
    let errors = findings(&rig, &by_id).await;
    assert!(errors.iter().all(|finding| finding.rule == Rule::PlanWrong), "{errors:#?}");
}

#[tokio::test]
async fn a_vm_that_is_not_named_any_more_goes_on_and_is_told() {
    let rig = rig().await;
    rig.seed(plan()).await;
    let other = Plan { vms: vec!["nobody".to_owned()], ..plan() };
    let dry = rig.manager.preview_plan(&other).await.unwrap();
    let left: Vec<_> = told(&dry).into_iter().filter(|line| line.starts_with("Leave")).collect();
    assert_eq!(left, ["Leave VM guest, synced: not named any more, and it goes on until it is cancelled"]);
}

#[tokio::test]
async fn vms_are_chosen_by_patterns_at_each_apply() {
    let rig = rig().await;
    let choosing = |vms: &[&str]| Plan { vms: vms.iter().map(|vm| (*vm).to_owned()).collect(), ..plan() };
    let none = choosing(&["web-*"]);
    assert_finds(&rig, &none, Rule::PatternUnmatched, "plan plan", "there are: guest").await;
    assert_finds(&rig, &none, Rule::VmNone, "plan plan", "there are: guest").await;
    assert_finds(&rig, &choosing(&["g*", "!guest"]), Rule::VmNone, "plan plan", "no VM is chosen").await;
    assert_finds(&rig, &choosing(&["!guest"]), Rule::PlanWrong, "plan plan", "only leaves VMs out").await;

    rig.world
        .with(|truth| truth.source_objects = vec![Objection::new(Rule::VmIsMigrated, "it was made here")]);
    let here = findings(&rig, &choosing(&["g*"])).await;
    let rules: Vec<_> = here.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, [Rule::VmIsMigrated], "{here:#?}");
    assert_eq!(told(&rig.manager.preview_plan(&choosing(&["g*"])).await.unwrap()), ["New plan plan is new"]);
    rig.world.with(|truth| truth.source_objects.clear());

    let by = choosing(&["g?est", "x-*"]);
    let applied = rig.manager.apply_plan(by.clone(), "test").await.unwrap();
    assert_eq!(told(&applied), ["New plan plan is new", "Start VM guest (by \"g?est\"), to t as guest"]);
    assert_eq!(
        applied.findings.iter().map(|finding| finding.rule).collect::<Vec<_>>(),
        [Rule::PatternUnmatched]
    );
    rig.until("synced", |view| view.state == State::Synced).await;
    assert_eq!(told(&rig.manager.preview_plan(&by).await.unwrap()), ["Keep VM guest (by \"g?est\"), synced"]);
    let without = rig.manager.preview_plan(&choosing(&["*", "!g*"])).await.unwrap();
    assert!(told(&without).iter().any(|line| line.starts_with("Leave VM guest")), "{without:#?}");
}

#[tokio::test]
async fn names_are_made_fit_for_the_target_where_that_is_asked_for() {
    let rig = rig().await;
    let named = with(&format!("[vm.{VM}]\nname = \"Web_1\"\n[names]\nsanitise = true"));
    let started = told(&rig.manager.preview_plan(&named).await.unwrap());
    assert!(started[1].ends_with("as Web_1"), "what a person says stays: {started:?}");
    rig.seed(plan()).await;
    // Another migration to this target has the name that this one would get.
    let other = Plan { name: "other".to_owned(), ..with("[names]\nsanitise = true") };
    assert!(findings(&rig, &other).await.iter().any(|finding| {
        finding.rule == Rule::NameTwice && finding.message.contains("\"guest\" on the target too")
    }));
}

#[tokio::test]
async fn what_a_source_has_is_kept_with_its_age_and_over_a_restart() {
    let mut rig = rig().await;
    let first = rig.manager.source_vms("s", false).await.unwrap();
    assert_eq!((first.vms.len(), first.vms[0].name.as_str(), &first.stale), (1, VM, &None));
    assert_eq!(rig.world.faults.struck("source.vms"), 1);
    rig.restart().await;
    let kept = rig.manager.source_vms("s", false).await.unwrap();
    assert_eq!((kept.vms, kept.stale), (first.vms, None));
    assert_eq!(kept.seen.timestamp_micros(), first.seen.timestamp_micros(), "it is asked again");
    assert_eq!(rig.world.faults.struck("source.vms"), 1);
    let anew = rig.manager.source_vms("s", true).await.unwrap();
    assert!(anew.seen > first.seen && rig.world.faults.struck("source.vms") == 2, "{anew:?}");
    // Too old, and the source does not answer: what is known, and why it is old.
    rig.world.faults.set("source.vms", InjectedFault::Refused);
    let db = rusqlite::Connection::open(rig.state_file()).unwrap();
    db.execute("UPDATE inventories SET seen = seen - 3600000000", []).unwrap();
    let old = rig.manager.source_vms("s", false).await.unwrap();
    assert!(old.vms == anew.vms && old.stale.unwrap().contains("a fault of the test"));
    assert!(rig.manager.source_vms("s", true).await.is_err(), "a list that must be new is not the kept one");
    assert!(rig.manager.source_vms("x", false).await.is_err());
}
