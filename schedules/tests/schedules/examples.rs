//! The example files are complete plans, and do what they promise.

use std::{fs, path::Path};

use crate::common::utc;
use serde::{Deserialize, Serialize};
use warmd_schedules::{Schedule, explain::explain, rules::PassHistory};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    name: String,
    source: String,
    target: String,
    vms: Vec<String>,
    schedule: Schedule,
}

fn example(name: &str) -> Plan {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn story(name: &str, from: &str, count: usize) -> Vec<String> {
    let rules = example(name).schedule.rules().unwrap();
    let told = explain(&rules, &PassHistory::unknown(rules.zone), utc(from), count);
    told.iter().map(ToString::to_string).collect()
}

#[test]
fn every_example_is_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|ending| ending == "toml"))
        .collect();
    names.sort();
    assert_eq!(names, ["always-on.toml", "business-hours.toml", "nightly.toml", "weekend-wave.toml"]);
    for name in names {
        let plan = example(&name);
        assert_eq!(plan.schedule.problems(), [""; 0], "{name}");
        let rules = plan.schedule.rules().unwrap();
        assert_eq!(rules.dead_ends("schedule.", utc("2026-11-22T12:00:00Z")), [""; 0], "{name}");
        let written = toml::to_string(&plan).unwrap();
        assert_eq!(toml::from_str::<Plan>(&written).unwrap(), plan, "{name}: {written}");
    }
}

#[test]
fn nightly_passes_stay_in_the_night() {
    let told = story("nightly.toml", "2026-11-22T12:00:00Z", 9);
    let wanted = [
        "2026-11-22 13:00 CET  pass blocked     blocked until 2026-11-22 22:00 CET, because no window is open",
        "2026-11-22 13:00 CET  cutover blocked  blocked until 2026-11-23 22:00 CET, because no window is open",
        "2026-11-22 22:00 CET  pass allowed     window daily 22:00–05:00 Europe/Berlin is open, until 2026-11-23 05:00 CET",
        "2026-11-22 22:00 CET  pass starts      no pass has run yet",
        "2026-11-22 22:30 CET  pass starts      cron 30 22 * * * Europe/Berlin",
        "2026-11-23 04:59:50 CET  pass starts      pulled forward: cutover window Mon-Fri 22:00–04:00 Europe/Berlin opens at 2026-11-23 22:00 CET, the pass takes about 0s",
        "2026-11-23 05:00 CET  pass blocked     blocked until 2026-11-23 22:00 CET, because no window is open",
        "2026-11-23 22:00 CET  pass allowed     window daily 22:00–05:00 Europe/Berlin is open, until 2026-11-24 05:00 CET",
        "2026-11-23 22:00 CET  cutover allowed  window Mon-Fri 22:00–04:00 Europe/Berlin is open, until 2026-11-24 04:00 CET",
    ];
    assert_eq!(told, wanted, "{}", told.join("\n"));
}

#[test]
fn business_hours_are_throttled_but_not_holidays() {
    let rules = example("business-hours.toml").schedule.rules().unwrap();
    let words = |at: &str| rules.quotas.at(utc(at)).in_words();
    assert_eq!(words("2026-11-24T15:00:00Z"), "50MiB/s, 2 disks");
    assert_eq!(words("2026-11-24T03:00:00Z"), "400MiB/s");
    assert_eq!(words("2026-11-26T15:00:00Z"), "400MiB/s", "Thanksgiving");
    assert_eq!(rules.quotas.next_change(utc("2026-11-25T23:30:00Z")), Some(utc("2026-11-27T13:00:00Z")));
    assert!(!rules.cutover.is_open(utc("2026-12-26T03:00:00Z")), "Christmas night in New York");
}

#[test]
fn the_weekend_wave_knows_its_nights() {
    let rules = example("weekend-wave.toml").schedule.rules().unwrap();
    let mut at = utc("2026-11-22T12:00:00Z");
    let mut nights = Vec::new();
    for _ in 0..5 {
        let open = rules.cutover.next_open(at).unwrap();
        nights.push(open.at.date_naive().to_string());
        at = rules.cutover.next_close(open.at).unwrap().at;
    }
    assert_eq!(nights, ["2026-11-28", "2026-12-05", "2026-12-12", "2027-01-16", "2027-01-23"]);
}

#[test]
fn mistakes_are_told_where_they_stand() {
    let plan = |schedule: &str| {
        let text =
            format!("name = \"a\"\nsource = \"b\"\ntarget = \"c\"\nvms = []\n[schedule]\n{schedule}\n");
        toml::from_str::<Plan>(&text).map_err(|error| error.to_string())
    };
    for (text, line, part) in [
        ("every = \"soon\"", 6, "\"soon\" is not a length of time"),
        ("evry = \"1m\"", 6, "unknown field `evry`"),
        ("cron = \"0 */2 * *\"", 6, "it has 4 fields, not 5"),
        ("adaptive = { final_delta = \"1GB\" }", 6, "neither a size nor a length of time"),
        ("[schedule.cutover]\nwindows = [\"Sat 22:00\"]", 7, "it has one time where it needs two"),
        ("[[schedule.quotas]]\nbytes_per_second = \"1KiB\"", 7, "write at least \"64KiB\""),
        ("[[schedule.quotas]]\ndisks = 0", 7, "expected a nonzero u32"),
        ("zone = \"Berlin\"", 6, "did you mean \"Europe/Berlin\"?"),
    ] {
        let told = plan(text).unwrap_err();
        assert!(told.contains(part) && told.contains(&format!("line {line}")), "{text}: {told}");
    }
    for (text, wanted) in [
        ("every = \"0s\"", "`schedule.every` is under 1s"),
        (
            "every = \"1m\"\nadaptive = { rpo = \"10m\" }",
            "`schedule.adaptive` stands beside `every`: keep one of them",
        ),
        ("adaptive = {}", "`schedule.adaptive` has no target"),
        ("adaptive = { rpo = \"10s\" }", "`schedule.adaptive.rpo` is under `shortest`"),
        ("adaptive = { final_delta = \"0B\" }", "`schedule.adaptive.final_delta` is nothing"),
        ("cron = \"0 1 * * *\"", "`schedule.cron` is \"0 1 * * *\", in no time zone"),
        (
            "copy = { windows = [\"always\", \"22:00–04:00\"] }",
            "`schedule.copy.windows[1]` is \"22:00–04:00\", in no time zone",
        ),
        (
            "cutover = { blackouts = [\"holidays UTC\"] }",
            "`schedule.cutover.blackouts[0]` speaks of holidays, but none is listed",
        ),
        ("quotas = [{ window = \"always\" }]", "`schedule.quotas[0]` limits nothing"),
    ] {
        let schedule = plan(text).unwrap().schedule;
        let problems = schedule.problems();
        assert!(problems.len() == 1 && problems[0].starts_with(wanted), "{text}: {problems:?}");
        assert!(schedule.rules().unwrap_err().to_string().contains(wanted));
    }
    let rules = plan("cutover = { windows = [\"2026-01-01 UTC\"] }").unwrap().schedule.rules().unwrap();
    let dead = rules.dead_ends("schedule.", utc("2026-11-22T12:00:00Z"));
    assert!(dead.len() == 1 && dead[0].starts_with("`schedule.cutover` never opens"), "{dead:?}");
}
