//! When passes start: by interval, cron, and what is learned; and before cutovers.

use std::time::Duration;

use crate::common::utc;
use chrono::{DateTime, TimeDelta, Timelike, Utc};
use chrono_tz::Tz;
use warmd_schedules::{
    Schedule,
    change_rate::{ExpectedChange, HourlyChangeRate},
    explain::explain,
    rules::{LastPass, PassDecision, PassHistory, Rules},
};

const MIB: f64 = 1024.0 * 1024.0;

fn rules(text: &str) -> Rules {
    toml::from_str::<Schedule>(text).unwrap_or_else(|error| panic!("{text}: {error}")).rules().unwrap()
}

fn facts(snapshot: &str, ended: &str) -> PassHistory {
    PassHistory {
        last: Some(LastPass { snapshot: utc(snapshot), ended: utc(ended) }),
        ..PassHistory::unknown(Tz::UTC)
    }
}

#[test]
fn an_interval_counts_from_the_end_of_the_last_pass() {
    let rules = rules("every = \"10m\"");
    let now = utc("2026-11-22T12:00:00Z");
    let due = |snapshot, ended| rules.due(&facts(snapshot, ended), now).at;
    assert_eq!(rules.due(&PassHistory::unknown(Tz::UTC), now).at, now, "none yet");
    assert_eq!(due("2026-11-22T11:50:00Z", "2026-11-22T11:58:00Z"), utc("2026-11-22T12:08:00Z"));
    assert_eq!(
        due("2026-11-22T15:00:00Z", "2026-11-22T15:01:00Z"),
        utc("2026-11-22T12:10:00Z"),
        "the clock was set back"
    );
    let decision = rules.pass(&facts("2026-11-22T11:40:00Z", "2026-11-22T11:50:00Z"), now);
    assert_eq!(decision, PassDecision::Start { why: "every 10m".to_owned() });
    let none = Schedule::default().rules().unwrap();
    assert_eq!(
        none.due(&facts("2026-11-22T12:00:00Z", "2026-11-22T12:00:00Z"), now).at,
        utc("2026-11-22T12:15:00Z")
    );
}

#[test]
fn a_missed_time_of_a_cron_is_made_up_for() {
    let rules = rules("cron = \"0 */2 * * *\"\nzone = \"Asia/Kolkata\"");
    let facts = facts("2026-11-22T12:00:00Z", "2026-11-22T12:01:00Z");
    assert_eq!(
        rules.due(&facts, utc("2026-11-22T12:10:00Z")).at,
        utc("2026-11-22T12:30:00Z"),
        "18:00 in Kolkata"
    );
    let late = rules.pass(&facts, utc("2026-11-22T23:00:00Z"));
    assert_eq!(late, PassDecision::Start { why: "cron 0 */2 * * * Asia/Kolkata".to_owned() });
}

#[test]
fn what_is_due_waits_for_a_window_and_says_so() {
    let rules = rules(
        "every = \"10m\"\nzone = \"Europe/Berlin\"\n[copy]\nwindows = [\"22:00–04:00\"]\nblackouts = [\"2026-11-22\"]",
    );
    let facts = facts("2026-11-22T01:00:00Z", "2026-11-22T01:01:00Z");
    let PassDecision::Wait { until, why } = rules.pass(&facts, utc("2026-11-22T12:00:00Z")) else { panic!() };
    assert_eq!(until, utc("2026-11-22T23:00:00Z"), "the blackout ends at midnight");
    assert_eq!(why, "blocked until 2026-11-23 00:00 CET, because blackout 2026-11-22 Europe/Berlin holds");
    let close = rules.copy_until(utc("2026-11-22T23:00:00Z")).unwrap();
    assert_eq!(close.at, utc("2026-11-23T03:00:00Z"));
    let closed = self::rules("[copy]\nblackouts = [\"always\"]");
    assert!(matches!(closed.pass(&facts, utc("2026-11-22T12:00:00Z")), PassDecision::Never { .. }));
}

/// A guest and its passes, simulated with a schedule.
struct World<'a> {
    rules: &'a Rules,
    rhythm: HourlyChangeRate,
    workload: fn(DateTime<Utc>) -> f64,
    throughput: f64,
    overhead: i64,
    learns: bool,
}

struct Pass {
    snapshot: DateTime<Utc>,
    ended: DateTime<Utc>,
    bytes: f64,
    why: String,
}

impl World<'_> {
    fn changed(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
        let mut sum = 0.0;
        let mut at = from;
        while at < to {
            let next = (at + TimeDelta::seconds(20)).min(to);
            sum += (self.workload)(at) * (next - at).as_seconds_f64();
            at = next;
        }
        sum
    }

    fn facts(&self, last: LastPass) -> PassHistory {
        PassHistory {
            last: Some(last),
            change: ExpectedChange::of([&self.rhythm], self.rules.zone),
            drained_per_second: Some(self.throughput),
            overhead: Duration::from_secs(self.overhead.unsigned_abs()),
            cutover_at: None,
        }
    }

    fn play(&mut self, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<Pass> {
        let mut passes = Vec::new();
        let mut last = LastPass { snapshot: from, ended: from };
        let mut now = from;
        while now < to {
            match self.rules.pass(&self.facts(last), now) {
                PassDecision::Start { why } => {
                    let bytes = self.changed(last.snapshot, now);
                    if self.learns {
                        self.rhythm.observe(bytes as u64, last.snapshot, now, self.rules.zone);
                    }
                    let takes = self.overhead as f64 + bytes / self.throughput;
                    let ended = now + TimeDelta::milliseconds((takes * 1e3) as i64);
                    passes.push(Pass { snapshot: now, ended, bytes, why });
                    last = LastPass { snapshot: now, ended };
                    now = ended;
                }
                PassDecision::Wait { until, .. } => {
                    assert!(until > now, "it waits for the past");
                    now = until;
                }
                PassDecision::Never { why } => panic!("{why}"),
            }
        }
        passes
    }
}

/// Ten times as busy by day.
fn office(at: DateTime<Utc>) -> f64 {
    if (8..18).contains(&at.hour()) { 5.0 * MIB } else { 0.5 * MIB }
}

#[test]
fn an_rpo_holds_at_less_copying() {
    let rules = rules("adaptive = { rpo = \"10m\" }");
    let mut world = World {
        rules: &rules,
        rhythm: HourlyChangeRate::default(),
        workload: office,
        throughput: 50.0 * MIB,
        overhead: 20,
        learns: true,
    };
    let start = utc("2026-11-02T00:00:00Z");
    let passes = world.play(start, start + TimeDelta::days(5));
    let learned = passes.iter().skip_while(|pass| pass.snapshot < start + TimeDelta::days(2));
    let learned: Vec<_> = learned.collect();
    let mut worst = TimeDelta::zero();
    for pair in learned.windows(2) {
        worst = worst.max(pair[1].ended - pair[0].snapshot);
    }
    assert!(worst <= TimeDelta::minutes(10), "{worst}");
    // A spacing that is always right without learning: half the RPO apart would be 864 passes in three days.
    assert!((430..560).contains(&learned.len()), "{}", learned.len());
}

#[test]
fn a_final_delta_holds_at_less_copying() {
    let rules = rules("adaptive = { final_delta = \"1GiB\" }");
    let mut world = World {
        rules: &rules,
        rhythm: HourlyChangeRate::default(),
        workload: office,
        throughput: 200.0 * MIB,
        overhead: 5,
        learns: true,
    };
    let start = utc("2026-11-02T00:00:00Z");
    let passes = world.play(start, start + TimeDelta::days(6));
    let learned: Vec<_> = passes.iter().filter(|pass| pass.snapshot > start + TimeDelta::days(3)).collect();
    let over = learned.iter().filter(|pass| pass.bytes > 1024.0 * MIB).count();
    assert!(over * 50 <= learned.len(), "{over} of {}", learned.len());
    let largest = learned.iter().map(|pass| pass.bytes / MIB).fold(0.0, f64::max);
    assert!(largest < 1300.0, "{largest}");
    // 198 GiB a day change in 0.9 GiB passes: not many more.
    let least = 3.0 * world.changed(start, start + TimeDelta::days(1)) / (0.9 * 1024.0 * MIB);
    assert!((learned.len() as f64) < 1.25 * least, "{} for {least}", learned.len());
    // A fixed spacing that holds by day copies three times as often.
    assert!((learned.len() as f64) < 3.0 * 86400.0 / 204.8 / 1.5);
}

#[test]
fn passes_are_pulled_forward_before_a_cutover_window() {
    let rules = rules(
        "zone = \"Europe/Berlin\"\nadaptive = { final_delta = \"256MiB\", longest = \"12h\" }\n[cutover]\nwindows = [\"Sat 22:00–Sun 04:00\"]",
    );
    let mut world = World {
        rules: &rules,
        rhythm: HourlyChangeRate::default(),
        workload: |_| MIB,
        throughput: 20.0 * MIB,
        overhead: 10,
        learns: true,
    };
    world.rhythm.observe(
        (MIB * 86400.0) as u64,
        utc("2026-11-20T00:00:00Z"),
        utc("2026-11-21T00:00:00Z"),
        rules.zone,
    );
    let (opens, closes) = (utc("2026-11-28T21:00:00Z"), utc("2026-11-29T03:00:00Z"));
    let passes = world.play(utc("2026-11-23T00:00:00Z"), utc("2026-11-30T00:00:00Z"));
    let before = passes.iter().filter(|pass| pass.snapshot < opens - TimeDelta::hours(3)).count();
    assert!((10..=13).contains(&before), "twice a day: {before}");
    let last = passes.iter().rfind(|pass| pass.snapshot < opens).unwrap();
    assert!(last.ended <= opens && opens - last.snapshot < TimeDelta::minutes(5), "{}", last.snapshot);
    let pulled: Vec<_> = passes.iter().filter(|pass| pass.why.starts_with("pulled forward")).collect();
    assert!(!pulled.is_empty() && pulled.len() <= 4, "{}", pulled.len());
    assert!(
        pulled[0]
            .why
            .contains("cutover window Sat 22:00–Sun 04:00 Europe/Berlin opens at 2026-11-28 22:00 CET"),
        "{}",
        pulled[0].why
    );
    // In the window the goal is met.
    let inside: Vec<_> =
        passes.iter().filter(|pass| pass.snapshot >= opens && pass.snapshot < closes).collect();
    assert!(inside.len() > 70 && inside.iter().all(|pass| pass.bytes < 256.0 * MIB), "{}", inside.len());
    // After it, no pass hurries.
    let after = passes.iter().filter(|pass| pass.snapshot > closes + TimeDelta::minutes(10)).count();
    assert!(after <= 3, "{after}");
}

#[test]
fn a_cutover_that_was_asked_for_pulls_too() {
    let rules = rules("every = \"6h\"");
    let mut facts = facts("2026-11-22T10:00:00Z", "2026-11-22T10:01:00Z");
    facts.cutover_at = Some(utc("2026-11-22T14:00:00Z"));
    let due = rules.due(&facts, utc("2026-11-22T12:00:00Z"));
    assert_eq!(due.at, utc("2026-11-22T13:58:20Z"), "half as long again as the last took, and ten seconds");
    assert!(
        due.why.starts_with("pulled forward: a cutover may begin at 2026-11-22 14:00 UTC"),
        "{}",
        due.why
    );
    // If copying is not allowed just before, as late as may be.
    let closed = self::rules("every = \"6h\"\n[copy]\nblackouts = [\"13:00–15:00 UTC\"]");
    assert_eq!(closed.due(&facts, utc("2026-11-22T12:00:00Z")).at, utc("2026-11-22T12:58:20Z"));
    let asked = facts.cutover_at.take();
    assert_eq!(
        rules.due(&facts, utc("2026-11-22T12:00:00Z")).at,
        utc("2026-11-22T16:01:00Z"),
        "{asked:?} is off"
    );
}

#[test]
fn a_target_that_cannot_hold_is_told() {
    let rules = rules("adaptive = { rpo = \"2m\", shortest = \"1m\" }");
    let world = World {
        rules: &rules,
        rhythm: HourlyChangeRate::default(),
        workload: office,
        throughput: 5.0 * MIB,
        overhead: 100,
        learns: true,
    };
    let mut rhythm = HourlyChangeRate::default();
    rhythm.observe(
        (50.0 * MIB * 3600.0) as u64,
        utc("2026-11-22T10:00:00Z"),
        utc("2026-11-22T11:00:00Z"),
        Tz::UTC,
    );
    let world = World { rhythm, ..world };
    let last = LastPass { snapshot: utc("2026-11-22T11:00:00Z"), ended: utc("2026-11-22T11:00:10Z") };
    let due = rules.due(&world.facts(last), utc("2026-11-22T11:00:20Z"));
    assert_eq!(due.at, utc("2026-11-22T11:01:00Z"));
    assert!(
        due.why.contains("RPO 2m asks for less than 1m, the shortest spacing: it may not hold"),
        "{}",
        due.why
    );
}

#[test]
fn many_passes_are_told_in_one_line() {
    let rules = rules(
        "every = \"15m\"\nzone = \"Europe/Berlin\"\n[cutover]\nwindows = [\"Sat 22:00–Sun 04:00\"]\n[[quotas]]\nwindow = \"Mon-Fri 08:00–18:00\"\nbytes_per_second = \"50MiB\"",
    );
    let facts = facts("2026-11-27T10:00:00Z", "2026-11-27T10:00:00Z");
    let told: Vec<_> =
        explain(&rules, &facts, utc("2026-11-27T10:05:00Z"), 10).iter().map(ToString::to_string).collect();
    let wanted = [
        "2026-11-27 11:05 CET  pass allowed     no window or blackout forbids it",
        "2026-11-27 11:05 CET  cutover blocked  blocked until 2026-11-28 22:00 CET, because no window is open",
        "2026-11-27 11:05 CET  limits           50MiB/s: window Mon-Fri 08:00–18:00 Europe/Berlin",
        "2026-11-27 11:15 CET  pass starts      every 15m",
        "2026-11-27 11:30 CET  pass starts      every 15m",
        "2026-11-27 11:45 CET  passes go on     25 more, about 15m apart, until 2026-11-27 18:00 CET",
        "2026-11-27 18:00 CET  limits           no limit: no quota holds",
        "2026-11-27 18:00 CET  pass starts      every 15m",
        "2026-11-27 18:15 CET  pass starts      every 15m",
        "2026-11-27 18:30 CET  passes go on     110 more, about 15m apart, until 2026-11-28 21:59:50 CET",
    ];
    assert_eq!(told, wanted, "{}", told.join("\n"));
    let endless = self::rules("every = \"15m\"");
    let told = explain(&endless, &facts, utc("2026-11-27T10:05:00Z"), 20);
    assert!(told.len() == 4 && told[3].why.contains("nothing stops them"), "{told:?}");
}
