//! A VM's own schedule: its keys in place of its plan's, and its faults.

use std::time::Duration;

use crate::common::utc;
use chrono_tz::Tz;
use warmd_schedules::{
    Schedule,
    quota::Allowance,
    rules::{Cadence, LastPass, PassDecision, PassHistory, Rules},
    schedule_override::ScheduleOverride,
};

const NIGHTS: &str = "zone = \"Europe/Berlin\"\nevery = \"1m\"\nholidays = [\"2026-12-25\"]\n\
                      copy = { windows = [\"daily 22:00–05:00\"], blackouts = [\"2026-11-30\"] }\n\
                      cutover = { windows = [\"Sat 22:00–24:00\"] }\n\
                      quotas = [{ window = \"daily 08:00–18:00\", passes = 1 }]\n";

fn plan(text: &str) -> Schedule {
    toml::from_str(text).unwrap()
}

fn over(text: &str) -> ScheduleOverride {
    toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn rules(text: &str) -> Rules {
    plan(NIGHTS).rules_with(&over(text)).unwrap()
}

#[test]
fn what_is_not_given_is_the_plans() {
    let (of_plan, of_vm) = (plan(NIGHTS).rules().unwrap(), rules(""));
    assert_eq!(format!("{of_vm:?}"), format!("{of_plan:?}"));
    assert!(over("").is_empty() && !over("every = \"1h\"").is_empty());
    assert!(
        !over("copy = { windows = [] }").is_empty(),
        "no windows at all is something else than the plan's"
    );
}

#[test]
fn each_key_replaces_the_plans_and_the_cadence_is_one() {
    assert_eq!(rules("every = \"1h\"").cadence, Cadence::Every(Duration::from_hours(1)));
    // The old name too.
    assert_eq!(rules("interval = \"2h\"").cadence, Cadence::Every(Duration::from_hours(2)));
    // The plan's `every` does not stand beside it.
    assert!(matches!(rules("cron = \"0 3 * * *\"").cadence, Cadence::Cron(_)));
    assert!(matches!(rules("adaptive = { rpo = \"10m\" }").cadence, Cadence::Adaptive(_)));

    let (noon, night) = (utc("2026-11-22T12:00:00Z"), utc("2026-11-22T23:00:00Z"));
    let days = rules("copy = { windows = [\"daily 08:00–18:00\"] }");
    assert!(days.copy.is_open(noon) && !days.copy.is_open(night));
    assert!(!days.copy.is_open(utc("2026-11-30T12:00:00Z")), "the plan's blackout still counts");
    assert!(!days.cutover.is_open(noon), "and so does its other window");
    let always = rules("copy = { windows = [], blackouts = [] }");
    assert!(always.copy.is_unbound());
    let any_time = rules("cutover = { windows = [] }");
    assert!(any_time.cutover.is_unbound() && !any_time.copy.is_unbound());
}

#[test]
fn zone_and_holidays_apply_to_windows_but_not_to_quotas() {
    // 22:00 in New York is 04:00 in Berlin.
    let there = rules("zone = \"America/New_York\"");
    assert_eq!(there.zone, Tz::America__New_York);
    let (early, late) = (utc("2026-11-22T21:30:00Z"), utc("2026-11-23T08:30:00Z"));
    assert!(!there.copy.is_open(early) && there.copy.is_open(late));
    // 08:30 in Berlin, where the quota is.
    let morning = utc("2026-11-23T07:30:00Z");
    for rules in [plan(NIGHTS).rules().unwrap(), there] {
        assert_ne!(rules.quotas.at(morning), Allowance::default());
        assert_eq!(rules.quotas.at(utc("2026-11-23T18:30:00Z")), Allowance::default());
    }
    let holidays = "holidays = [\"2026-11-22\"]\ncopy = { blackouts = [\"holidays\"] }";
    assert!(!rules(holidays).copy.is_open(utc("2026-11-22T22:30:00Z")));
}

#[test]
fn its_pass_is_due_by_its_own_cadence() {
    let at = utc("2026-11-22T22:00:00Z");
    let facts =
        PassHistory { last: Some(LastPass { snapshot: at, ended: at }), ..PassHistory::unknown(Tz::UTC) };
    let later = utc("2026-11-22T22:02:00Z");
    assert!(matches!(plan(NIGHTS).rules().unwrap().pass(&facts, later), PassDecision::Start { .. }));
    let PassDecision::Wait { until, .. } = rules("every = \"1h\"").pass(&facts, later) else {
        panic!("it waits")
    };
    assert_eq!(until, utc("2026-11-22T23:00:00Z"));
}

#[test]
fn override_problem_names_its_section_and_a_plan_one_does_not() {
    let at = "[vm.\"web\".schedule] ";
    for (text, wanted) in [
        ("every = \"0s\"", "`[vm.\"web\".schedule] every` is under 1s"),
        ("every = \"1h\"\ncron = \"0 3 * * *\"", "`[vm.\"web\".schedule] cron` stands beside `every`"),
        ("adaptive = {}", "`[vm.\"web\".schedule] adaptive` has no target"),
        (
            "cutover = { windows = [\"holidays\"] }\nholidays = []",
            "`[vm.\"web\".schedule] cutover.windows[0]` speaks of holidays",
        ),
        (
            "quotas = [{ passes = 1 }]",
            "`[vm.\"web\".schedule] quotas` is shared by the VMs of a plan: remove it",
        ),
        ("quotas = []", "`[vm.\"web\".schedule] quotas` is shared"),
        ("priority = 3", "`[vm.\"web\".schedule] priority` is shared by the VMs of a plan: remove it"),
    ] {
        let problems = over(text).problems(&plan(NIGHTS), at);
        assert!(problems.len() == 1 && problems[0].starts_with(wanted), "{text}: {problems:?}");
    }
    let zoneless = plan("copy = { windows = [\"daily 22:00–05:00\"] }");
    assert_eq!(over("every = \"1h\"").problems(&zoneless, at), [""; 0], "the plan's problem is reported");
    let cron = over("cron = \"0 3 * * *\"").problems(&zoneless, at);
    assert!(cron.len() == 1 && cron[0].ends_with("or set `[vm.\"web\".schedule] zone`"), "{cron:?}");
    // A schedule that never allows a pass is refused, in the plan or in the VM.
    assert!(zoneless.rules_with(&over("every = \"1h\"")).is_err());
    assert!(zoneless.rules_with(&over("zone = \"UTC\"")).is_ok());
    let wrong = plan("quotas = [{ window = \"always\" }]");
    assert!(wrong.rules_with(&over("every = \"1h\"")).is_err());
    assert!(toml::from_str::<ScheduleOverride>("evry = \"1h\"").unwrap_err().to_string().contains("evry"));
}

#[test]
fn it_is_written_as_it_was_read() {
    let text = "zone = \"UTC\"\nevery = \"1h\"\nholidays = [\"2026-12-25\"]\n\n[copy]\nwindows = []\n\n\
                [cutover]\nblackouts = [\"daily 08:00–18:00\"]\n";
    assert_eq!(toml::to_string(&over(text)).unwrap(), text);
}
