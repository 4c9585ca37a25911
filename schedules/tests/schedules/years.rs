//! Over years and in many zones: a calendar's answers agree with its wall clocks.

use crate::common::{Random, ZONES, utc};
use chrono::{DateTime, Datelike, NaiveDateTime, TimeDelta, Timelike, Utc};
use chrono_tz::Tz;
use proptest::prelude::*;
use warmd_schedules::{Schedule, calendar::Calendar, rules::PassHistory, zone};

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

fn calendar(windows: &[String], blackouts: &[String]) -> Calendar {
    let text = format!("[cutover]\nwindows = {windows:?}\nblackouts = {blackouts:?}\n");
    let schedule: Schedule = toml::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    schedule.rules().unwrap_or_else(|error| panic!("{text}: {error}")).cutover
}

fn clock(minutes: u64) -> String {
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

/// A window of any form around `near`.
fn window(random: &mut Random, near: DateTime<Utc>) -> String {
    let zone = random.pick(&ZONES).name();
    // Mostly at night, where clocks change.
    let from = if random.below(2) == 0 { random.below(240) } else { random.below(1440) };
    let to = (from + 1 + random.below(1438)) % 1440;
    let (one, other) = (*random.pick(&DAYS), *random.pick(&DAYS));
    let date = near.date_naive() + TimeDelta::days(random.below(20).cast_signed() - 10);
    let later = date + TimeDelta::days(random.below(12).cast_signed());
    let (from, to) = (clock(from), clock(to));
    match random.below(7) {
        0 => format!("{one} {from}–{other} {to} {zone}"),
        1 => format!("{one}-{other} {from}-{to} {zone}"),
        2 => format!("daily {from}–{to} {zone}"),
        3 => format!("{one},{other} {zone}"),
        4 => format!("{date}–{later} {from}–{to} {zone}"),
        5 => format!("{date} {from}–{} {to} {zone}", later + TimeDelta::days(1)),
        _ => format!("{:02}-{:02} {zone}", date.month(), date.day().min(28)),
    }
}

#[test]
fn next_open_is_open_and_nothing_before_it_is() {
    let mut random = Random::seeded();
    for round in 0..1500 {
        let from = random.moment();
        let some = |random: &mut Random, most| {
            (0..random.below(most)).map(|_| window(random, from)).collect::<Vec<_>>()
        };
        let (windows, blackouts) = (some(&mut random, 4), some(&mut random, 3));
        let calendar = calendar(&windows, &blackouts);
        let what = format!("round {round}: {windows:?} without {blackouts:?} from {from}");
        // Step by step through its own description.
        let (mut at, mut state) = (from, calendar.is_open(from));
        for _ in 0..6 {
            let open = calendar.next_open(at);
            let close = calendar.next_close(at);
            let next =
                if state { close.map(|close| close.at) } else { open.as_ref().ok().map(|open| open.at) };
            let Some(next) = next else {
                assert!(state == open.is_ok(), "{what}");
                break;
            };
            assert!(next > at, "{what}: {next} after {at}");
            assert_eq!(state, open.is_ok_and(|open| open.at == at), "{what}");
            assert_eq!(calendar.is_open(next), !state, "{what}: {next}");
            assert_eq!(calendar.is_open(next - TimeDelta::seconds(1)), state, "{what}: before {next}");
            let span = (next - at).num_seconds();
            for _ in 0..12 {
                let between = at + TimeDelta::seconds(random.below(span.unsigned_abs()).cast_signed());
                assert_eq!(calendar.is_open(between), state, "{what}: {between} before {next}");
            }
            (at, state) = (next, !state);
        }
    }
}

/// Whether a daily window is open, judged by the wall clock alone.
fn by_the_clock(at: DateTime<Utc>, zone: Tz, from: u32, to: u32) -> bool {
    let minute = |time: NaiveDateTime| time.hour() * 60 + time.minute();
    let shown = minute(zone::local(zone, at));
    if from < to { (from..to).contains(&shown) } else { shown >= from || shown < to }
}

/// Whether the clock is or was put forward or back within a day.
fn changes_near(at: DateTime<Utc>, zone: Tz) -> bool {
    let offset = |hours| {
        let at = at + TimeDelta::hours(hours);
        zone::local(zone, at) - at.naive_utc()
    };
    (-26..=26).any(|hours| offset(hours) != offset(0))
}

/// When the clocks of `zone` were and will be put forward or back, to the hour.
fn changes(zone: Tz) -> Vec<DateTime<Utc>> {
    let offset = |at: DateTime<Utc>| zone::local(zone, at) - at.naive_utc();
    let hours = (0..50 * 8766).map(|hour| utc("1990-01-01T00:00:00Z") + TimeDelta::hours(hour));
    let pairs = hours.clone().step_by(24).zip(hours.step_by(24).skip(1));
    let near = pairs.filter(|(one, next)| offset(*one) != offset(*next));
    near.filter_map(|(one, _)| {
        (0..24).map(|hour| one + TimeDelta::hours(hour)).rfind(|at| offset(*at) == offset(one))
    })
    .collect()
}

#[test]
fn daily_windows_agree_with_the_wall_clock_minute_by_minute() {
    let mut random = Random::seeded();
    for zone in ZONES {
        let changes = changes(zone);
        for round in 0..40 {
            let hours = if round % 2 == 0 { 24 } else { 4 };
            let (from, length) = (random.below(60 * hours) as u32, 1 + random.below(60 * hours - 2) as u32);
            let to = (from + length) % 1440;
            let text = format!("{}–{} {}", clock(from.into()), clock(to.into()), zone.name());
            let calendar = calendar(std::slice::from_ref(&text), &[]);
            let inverse = self::calendar(&[], std::slice::from_ref(&text));
            for step in 0..250 {
                let mut at = random.moment();
                if step % 2 == 0 && !changes.is_empty() {
                    at = *random.pick(&changes) + TimeDelta::minutes(random.below(300).cast_signed() - 120);
                }
                let shown = by_the_clock(at, zone, from, to);
                if changes_near(at, zone) {
                    // A blackout never lets through what the wall clock shows to be in it.
                    assert!(!(shown && inverse.is_open(at)), "{text} {at}");
                } else {
                    assert_eq!(calendar.is_open(at), shown, "{text} {at}");
                    assert_eq!(inverse.is_open(at), !shown, "{text} {at}");
                }
            }
        }
    }
}

#[test]
fn every_night_of_a_decade_has_its_window() {
    for zone in ZONES {
        let calendar = calendar(&[format!("22:00–06:00 {}", zone.name())], &[]);
        let mut at = utc("2017-01-01T12:00:00Z");
        at = calendar.next_close(at).unwrap().at;
        let (mut nights, mut odd) = (0, Vec::new());
        while at < utc("2029-01-01T12:00:00Z") {
            let open = calendar.next_open(at).unwrap().at;
            let close = calendar.next_close(open).unwrap().at;
            let (opens, closes) = (zone::local(zone, open), zone::local(zone, close));
            assert_eq!(
                (opens.hour(), opens.minute(), closes.hour(), closes.minute()),
                (22, 0, 6, 0),
                "{zone} {open}"
            );
            nights += 1;
            let minutes = (close - open).num_minutes();
            if minutes != 480 {
                odd.push(minutes);
            }
            at = close;
        }
        assert!((4382..=4384).contains(&nights), "{zone}: {nights}");
        let wanted: &[i64] = match zone {
            Tz::Europe__Berlin | Tz::America__New_York | Tz::America__St_Johns => &[420, 540],
            Tz::Australia__Lord_Howe => &[450, 510],
            // Until 2019.
            Tz::America__Sao_Paulo => &[420, 540],
            _ => &[],
        };
        assert!(odd.iter().all(|minutes| wanted.contains(minutes)), "{zone}: {odd:?}");
        let years = if zone == Tz::America__Sao_Paulo { 2 } else { 12 };
        assert!(odd.len() >= if wanted.is_empty() { 0 } else { years }, "{zone}: {odd:?}");
    }
}

#[test]
fn what_is_explained_holds_at_every_time_it_names() {
    use warmd_schedules::explain::{ExplainedDecision, explain};
    let mut random = Random::seeded();
    for round in 0..300 {
        let from = random.moment();
        let list = |random: &mut Random, most| {
            (0..random.below(most)).map(|_| window(random, from)).collect::<Vec<_>>()
        };
        let cadence = *random.pick(&[
            "every = \"15m\"",
            "every = \"7h\"",
            "cron = \"30 2 * * * Europe/Berlin\"",
            "cron = \"*/20 * * * * Australia/Lord_Howe\"",
            "adaptive = { rpo = \"10m\" }",
            "adaptive = { final_delta = \"1GiB\" }",
        ]);
        let text = format!(
            "{cadence}\ncopy = {{ windows = {:?}, blackouts = {:?} }}\ncutover = {{ windows = {:?}, blackouts = {:?} }}\n\
             quotas = [{{ window = \"{}\", disks = 2 }}]\n",
            list(&mut random, 3),
            list(&mut random, 3),
            list(&mut random, 3),
            list(&mut random, 2),
            window(&mut random, from),
        );
        let rules = toml::from_str::<Schedule>(&text).unwrap().rules().unwrap();
        let mut facts = PassHistory::unknown(rules.zone);
        facts.overhead = std::time::Duration::from_secs(random.below(900));
        let told = explain(&rules, &facts, from, 20);
        let what = format!("round {round}: {text}from {from}: {told:#?}");
        assert!(!told.is_empty() && told.len() <= 20 && told[0].at == from, "{what}");
        assert!(told.is_sorted_by_key(|decision| decision.at), "{what}");
        for decision in &told {
            let at = decision.at;
            let (copy, cutover) = (rules.copy.is_open(at), rules.cutover.is_open(at));
            let holds = match decision.what {
                ExplainedDecision::Pass | ExplainedDecision::Passes | ExplainedDecision::PassAllowed => copy,
                ExplainedDecision::PassBlocked => !copy,
                ExplainedDecision::CutoverAllowed => cutover,
                ExplainedDecision::CutoverBlocked => !cutover,
                ExplainedDecision::Limits => true,
            };
            assert!(holds, "{decision}\n{what}");
        }
        // Between two lines every opening and closing is reported.
        for pair in told.windows(2) {
            let span = (pair[1].at - pair[0].at).num_seconds();
            if span > 0 {
                let at = pair[0].at + TimeDelta::seconds(random.below(span.unsigned_abs()).cast_signed());
                assert_eq!(rules.copy.is_open(at), rules.copy.is_open(pair[0].at), "{at}\n{what}");
                assert_eq!(rules.cutover.is_open(at), rules.cutover.is_open(pair[0].at), "{at}\n{what}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[a-zA-Z0-9:,\\- –/]{0,40}") {
        if let Ok(window) = text.parse::<warmd_schedules::window::Window>() {
            prop_assert_eq!(window.to_string().parse(), Ok(window));
        }
        let _ = text.parse::<warmd_schedules::cron::Cron>();
        let _ = text.parse::<warmd_schedules::window::Holiday>();
    }

    #[test]
    fn edges_never_go_backwards(
        seconds in 631_152_000_i64..2_208_988_800, step in 0_i64..100_000, which in 0..ZONES.len(),
    ) {
        let time = DateTime::from_timestamp(seconds, 0).unwrap().naive_utc();
        let (zone, after) = (ZONES[which], time + TimeDelta::seconds(step));
        prop_assert!(zone::reaches(zone, time) <= zone::reaches(zone, after));
        prop_assert!(zone::leaves(zone, time) <= zone::leaves(zone, after));
        prop_assert!(zone::reaches(zone, time) <= zone::leaves(zone, time));
    }
}
