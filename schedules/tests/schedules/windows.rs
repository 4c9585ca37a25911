//! The meaning of windows, above all on the days when clocks are put forward or back.

use crate::common::utc;
use warmd_schedules::{
    Schedule,
    calendar::Calendar,
    window::{Holiday, Window},
    zone::moment,
};

fn schedule(text: &str) -> Schedule {
    toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn calendar(windows: &[&str], blackouts: &[&str]) -> Calendar {
    let holidays = "holidays = [\"2026-12-25\", \"01-01\", \"2026-12-28–2026-12-31\"]\n";
    let text = format!("{holidays}[copy]\nwindows = {windows:?}\nblackouts = {blackouts:?}\n");
    schedule(&text).rules().unwrap().copy
}

/// The next `count` openings and closings: `opens … `, `closes …`.
fn changes(calendar: &Calendar, from: &str, count: usize) -> Vec<String> {
    let (mut at, zone) = (utc(from), calendar.zone().unwrap());
    let next = |_| {
        let (answer, opens) = calendar.next_change(at)?;
        at = answer.at;
        Some(format!("{} {}", if opens { "opens" } else { "closes" }, moment(zone, at)))
    };
    (0..count).map_while(next).collect()
}

#[test]
fn windows_open_and_close_as_they_read() {
    let cases: [(&str, &str, &[&str]); 13] = [
        (
            "Sat 22:00–Sun 04:00 Europe/Berlin",
            "2026-11-22T12:00:00Z",
            &["opens 2026-11-28 22:00 CET", "closes 2026-11-29 04:00 CET", "opens 2026-12-05 22:00 CET"],
        ),
        (
            "Mon-Fri 08:00-18:00 Europe/Berlin",
            "2026-11-20T12:00:00Z",
            &["closes 2026-11-20 18:00 CET", "opens 2026-11-23 08:00 CET", "closes 2026-11-23 18:00 CET"],
        ),
        (
            "Mon,Thu 22:00–04:00 America/New_York",
            "2026-11-23T00:00:00Z",
            &["opens 2026-11-23 22:00 EST", "closes 2026-11-24 04:00 EST", "opens 2026-11-26 22:00 EST"],
        ),
        (
            "Fri-Mon UTC",
            "2026-11-25T00:00:00Z",
            &["opens 2026-11-27 00:00 UTC", "closes 2026-12-01 00:00 UTC"],
        ),
        (
            "2026-12-24–2027-01-02 Europe/Berlin",
            "2026-11-25T00:00:00Z",
            &["opens 2026-12-24 00:00 CET", "closes 2027-01-03 00:00 CET"],
        ),
        (
            "2026-12-24 18:00 – 2026-12-27 06:00 Asia/Kolkata",
            "2026-11-25T00:00:00Z",
            &["opens 2026-12-24 18:00 IST", "closes 2026-12-27 06:00 IST"],
        ),
        (
            "2026-12-24–2026-12-26 22:00–04:00 UTC",
            "2026-12-25T12:00:00Z",
            &[
                "opens 2026-12-25 22:00 UTC",
                "closes 2026-12-26 04:00 UTC",
                "opens 2026-12-26 22:00 UTC",
                "closes 2026-12-27 04:00 UTC",
            ],
        ),
        (
            "12-30–01-02 UTC",
            "2026-11-25T00:00:00Z",
            &["opens 2026-12-30 00:00 UTC", "closes 2027-01-03 00:00 UTC", "opens 2027-12-30 00:00 UTC"],
        ),
        (
            "02-29 UTC",
            "2026-11-25T00:00:00Z",
            &["opens 2028-02-29 00:00 UTC", "closes 2028-03-01 00:00 UTC", "opens 2032-02-29 00:00 UTC"],
        ),
        (
            "22:00–24:00 UTC",
            "2026-11-25T00:00:00Z",
            &["opens 2026-11-25 22:00 UTC", "closes 2026-11-26 00:00 UTC"],
        ),
        (
            "Sat 22:00–Sat 04:00 UTC",
            "2026-11-25T00:00:00Z",
            &["closes 2026-11-28 04:00 UTC", "opens 2026-11-28 22:00 UTC", "closes 2026-12-05 04:00 UTC"],
        ),
        ("Mon-Fri except holidays 08:00–18:00 UTC", "2026-12-24T20:00:00Z", &["opens 2027-01-04 08:00 UTC"]),
        (
            "Sun,holidays UTC",
            "2026-12-24T20:00:00Z",
            &[
                "opens 2026-12-25 00:00 UTC",
                "closes 2026-12-26 00:00 UTC",
                "opens 2026-12-27 00:00 UTC",
                "closes 2027-01-02 00:00 UTC",
            ],
        ),
    ];
    for (window, from, wanted) in cases {
        assert_eq!(changes(&calendar(&[window], &[]), from, wanted.len()), wanted, "{window}");
        let written = window.parse::<Window>().unwrap();
        assert_eq!(written.to_string().parse::<Window>().unwrap(), written);
    }
    assert!(changes(&calendar(&["always"], &[]), "2026-11-25T00:00:00Z", 9).is_empty());
    assert!(calendar(&["always"], &[]).is_open(utc("2026-11-25T00:00:00Z")));
}

#[test]
fn edges_on_the_days_when_clocks_change() {
    let berlin = |window: &str, day: &str, count| {
        changes(&calendar(&[&format!("{window} Europe/Berlin")], &[]), &format!("{day}T12:00:00Z"), count)
    };
    // Put forward at 02:00 to 03:00.
    let lost = berlin("01:00–04:00", "2026-03-28", 2);
    assert_eq!(lost, ["opens 2026-03-29 01:00 CET", "closes 2026-03-29 04:00 CEST"], "two hours long");
    assert_eq!(berlin("02:30–04:00", "2026-03-28", 1), ["opens 2026-03-29 03:00 CEST"], "at the jump");
    assert_eq!(berlin("01:00–02:30", "2026-03-28", 2)[1], "closes 2026-03-29 03:00 CEST", "at the jump");
    assert_eq!(berlin("02:15–02:45", "2026-03-28", 1), ["opens 2026-03-30 02:15 CEST"], "not that night");
    // Put back at 03:00 to 02:00.
    let found = berlin("01:00–04:00", "2026-10-24", 2);
    assert_eq!(found, ["opens 2026-10-25 01:00 CEST", "closes 2026-10-25 04:00 CET"], "four hours long");
    let half = berlin("02:15–02:45", "2026-10-24", 3);
    assert_eq!(
        half,
        ["opens 2026-10-25 02:15 CEST", "closes 2026-10-25 02:45 CEST", "opens 2026-10-26 02:15 CET"],
        "once"
    );
    assert_eq!(
        berlin("02:30–04:00", "2026-10-24", 1),
        ["opens 2026-10-25 02:30 CEST"],
        "the first of the two"
    );
    // A blackout ends at the second of the two moments.
    let blackout = calendar(&[], &["01:00–02:30 Europe/Berlin"]);
    let wanted = ["closes 2026-10-25 01:00 CEST", "opens 2026-10-25 02:30 CET"];
    assert_eq!(changes(&blackout, "2026-10-24T12:00:00Z", 2), wanted);
    // Half an hour.
    let island = calendar(&["01:00–02:30 Australia/Lord_Howe"], &[]);
    assert_eq!(
        changes(&island, "2026-10-03T00:00:00Z", 2),
        ["opens 2026-10-04 01:00 +1030", "closes 2026-10-04 02:30 +11"]
    );
    let length = |from: &str| {
        let open = island.next_open(utc(from)).unwrap().at;
        (island.next_close(open).unwrap().at - open).num_minutes()
    };
    assert_eq!((length("2026-10-03T00:00:00Z"), length("2026-06-01T16:00:00Z")), (60, 90));
    // A whole day whose midnight is skipped, one that is left out, and one that is longer.
    let midnight = calendar(&["Sun America/Sao_Paulo"], &[]);
    assert_eq!(
        changes(&midnight, "2018-11-03T12:00:00Z", 2),
        ["opens 2018-11-04 01:00 -02", "closes 2018-11-05 00:00 -02"]
    );
    let left_out = calendar(&["2011-12-30 Pacific/Apia"], &[]);
    assert!(left_out.next_open(utc("2011-12-01T00:00:00Z")).is_err());
    let long = calendar(&["2026-10-25 Europe/Berlin"], &[]);
    assert_eq!(
        (long.next_close(utc("2026-10-24T22:00:00Z")).unwrap().at - utc("2026-10-24T22:00:00Z")).num_hours(),
        25
    );
}

#[test]
fn blackouts_go_before_windows_and_answers_say_why() {
    let calendar = calendar(&["Sat 22:00–Sun 04:00 Europe/Berlin"], &["2026-12-05–2027-01-10 Europe/Berlin"]);
    let words = |at: &str| calendar.state(utc(at)).1.to_string();
    assert_eq!(words("2026-11-28T22:00:00Z"), "window Sat 22:00–Sun 04:00 Europe/Berlin is open");
    assert_eq!(words("2026-11-28T12:00:00Z"), "no window is open");
    assert_eq!(words("2026-12-12T22:00:00Z"), "blackout 2026-12-05–2027-01-10 Europe/Berlin holds");
    let next = calendar.next_open(utc("2026-12-01T00:00:00Z")).unwrap();
    assert_eq!(next.at, utc("2027-01-16T21:00:00Z"));
}

#[test]
fn what_never_opens_is_told() {
    let told = |windows: &[&str], blackouts: &[&str]| {
        calendar(windows, blackouts).next_open(utc("2026-12-01T00:00:00Z")).unwrap_err().to_string()
    };
    let gone = told(&["2026-11-01 UTC"], &[]);
    assert_eq!(
        gone,
        "from 2026-12-01 00:00 UTC on, window 2026-11-01 UTC does not open any more: correct the windows or the blackouts"
    );
    assert!(
        told(&["22:00–04:00 UTC"], &["21:00–05:00 UTC"]).contains("lies in blackouts whenever it would open")
    );
    assert!(told(&[], &["always"]).contains("everything lies in blackouts"));
}

#[test]
fn wrong_windows_are_explained() {
    for (text, part) in [
        ("", "it names no day and no time"),
        (
            "Sat 22:00-Sun 04:00 Europa/Berlin",
            "IANA has no time zone \"Europa/Berlin\"; did you mean \"Europe/Berlin\"?",
        ),
        ("Sat 22:00-Sun 04:00 Berlin", "did you mean \"Europe/Berlin\"?"),
        ("Sat 22:00", "it has one time where it needs two"),
        ("Sat 22:00-22:00 UTC", "it ends when it starts, at 22:00"),
        ("Sat 22:00-Sun UTC", "a time is missing"),
        ("Sat 25:00-26:00 UTC", "25:00 is on no clock"),
        ("Sat 24:00-04:00 UTC", "is 00:00 of the next day"),
        ("2026-02-30 UTC", "2026-02-30 is in no calendar"),
        ("02-30 UTC", "02-30 is no month and day"),
        ("2026-12-24–2026-12-20 UTC", "2026-12-24 is after 2026-12-20"),
        ("2026-12-24 10:00–2026-12-20 10:00 UTC", "2026-12-24 is after 2026-12-20"),
        ("2026-12-24 10:00–2030-12-20 10:00 UTC", "longer than 366 days"),
        ("Mon-Fri 08:00–Sat 10:00 UTC", "both are one day of the week"),
        ("Mon-2026-12-24 UTC", "days of one kind at both ends"),
        ("Mon- UTC", "a day is missing after the dash"),
        ("Mon, UTC", "a day is missing at its end"),
        ("Mon except Tue UTC", "only holidays can be excepted"),
        ("Funday 08:00-10:00 UTC", "\"Funday\" is no day such as Mon"),
        ("Mon 8-10 UTC", "no time such as 08:00"),
        ("Mon 08:00-18:00 12:00 UTC", "after its two times nothing but a zone"),
        ("Mon 08:00 18:00 UTC", "after its days, two times with a dash between them"),
        ("Mon @ 08:00 UTC", "'@' has no meaning here"),
    ] {
        let told = text.parse::<Window>().unwrap_err().to_string();
        assert!(told.contains(part) && told.contains("write it like"), "{text}: {told}");
    }
    let holiday = |text: &str| text.parse::<Holiday>().unwrap_err().to_string();
    assert!(
        holiday("Mon").contains("it names no date") && holiday("12-25 08:00").contains("follows the date")
    );
    for text in [
        "\u{0}",
        "9999-12-31 UTC",
        "99999-12-31 UTC",
        "–",
        "12:345–13:00 UTC",
        "1-1 UTC",
        "Ⅻ-25",
        "٠٨:٠٠-٠٩:٠٠ UTC",
    ] {
        let _ = text.parse::<Window>();
    }
    assert!("x".repeat(1 << 20).parse::<Window>().unwrap_err().to_string().len() < 2000);
}
