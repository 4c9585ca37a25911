//! The screen of 80×24, and the effects of keys.

use ratatui::{Terminal, backend::TestBackend};
use warmd_proto::v1::{Disk, DiskPass, Forecast, Pass, PassKind};

use super::*;
use crate::top::keys::{Key, KeyAction};

fn migration(number: usize, name: &str, state: MigrationState) -> Migration {
    Migration {
        id: format!("0193-5eed{number:04}"),
        vm_name: name.to_owned(),
        plan: "nightly".to_owned(),
        state: state.into(),
        downtime_forecast: Some(prost_types::Duration { seconds: 12, nanos: 0 }),
        ..Migration::default()
    }
}

fn at(second: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: 1_795_000_000 + second, nanos: 0 }
}

fn synced(number: usize, name: &str) -> Migration {
    let disk = Disk {
        key: "vda".to_owned(),
        size_bytes: 20 << 30,
        location: "/srv/new/vda.raw".to_owned(),
        ..Disk::default()
    };
    let pass = Pass { number: 7, started: Some(at(0)), ended: Some(at(9)), ..Pass::default() };
    Migration { disks: vec![disk], pass: Some(pass), ..migration(number, name, MigrationState::Synced) }
}

fn syncing(number: usize, name: &str) -> Migration {
    let disk = Disk {
        key: "vda".to_owned(),
        pass_total_bytes: 4 << 30,
        pass_drained_bytes: 1 << 30,
        rate_bytes_per_second: 104_857_600.0,
        ..Disk::default()
    };
    let changed = DiskPass { key: "vda".to_owned(), changed_bytes: 3 << 30, ..DiskPass::default() };
    let pass = Pass { number: 3, kind: PassKind::Delta.into(), disks: vec![changed], ..Pass::default() };
    Migration { disks: vec![disk], pass: Some(pass), ..migration(number, name, MigrationState::Syncing) }
}

fn failed(number: usize, name: &str) -> Migration {
    Migration {
        reason: Some("no room on new: 12 GiB are missing".to_owned()),
        resumable: true,
        ..migration(number, name, MigrationState::Failed)
    }
}

fn board() -> TopModel {
    let mut board = TopModel::default();
    for each in [synced(1, "web-1"), syncing(2, "web-2"), failed(3, "db\u{1b}[2J")] {
        board.take(each);
    }
    board
}

/// The lines of a screen of 80×24.
fn drawn(board: &mut TopModel) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let now = DateTime::from_timestamp(1_795_000_061, 0).unwrap();
    terminal.draw(|frame| screen(frame, board, now)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..80).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..24).map(line).collect()
}

#[test]
fn all_is_seen_in_80_by_24() {
    let lines = drawn(&mut board());
    assert_eq!(
        lines[..5],
        [
            "warmd  11:07:41 UTC  3 migrations  1 TO LOOK AT  1 copying  1 synced  100 MiB/s",
            "VM         PLAN   STATE             PASS     RATE       LAG     DOWNTIME WINDOW",
            "db [2J     nig…ly failed, resumable -        -          -       12 s     -",
            "web-2      nig…ly syncing           3 (25 %) 100 MiB/s  -       12 s     -",
            "web-1      nig…ly synced            7        -          1m 1s   12 s     -",
        ],
        "{lines:#?}"
    );
    assert!(lines[15].starts_with("db [2J (5eed0003)"), "the first row is chosen: {lines:#?}");
    assert!(lines[15].contains("no room on new: 12 GiB are missing"), "{lines:#?}");
    assert_eq!(lines[23], KEYS);
}

#[test]
fn what_a_pass_waits_for_is_seen() {
    let mut board = TopModel::default();
    let why = "waits for admission: plan nightly: 2 of 2 passes are in use".to_owned();
    board.take(Migration { next_pass_why: Some(why), ..migration(1, "web", MigrationState::Syncing) });
    let lines = drawn(&mut board);
    assert!(lines.iter().any(|line| line.contains("waits for admission: plan nightly")), "{lines:#?}");
}

/// With a downtime of 8 to 20 s, in a window that opens in so many seconds.
fn foretold(number: usize, name: &str, opens_in: i64, against: &[&str]) -> Migration {
    let span = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let forecast = Forecast {
        at: Some(at(61 + opens_in)),
        downtime_low: span(8),
        downtime_expected: span(12),
        downtime_high: span(20),
        against: against.iter().map(|why| (*why).to_owned()).collect(),
        ..Forecast::default()
    };
    Migration { forecast: Some(forecast), ..synced(number, name) }
}

#[test]
fn the_next_window_and_whether_the_cutover_fits_are_seen() {
    let mut board = TopModel::default();
    board.take(foretold(1, "web-1", 0, &[]));
    board.take(foretold(
        2,
        "web-2",
        5 * 86_400 + 3 * 3600,
        &["downtime of about 12 s exceeds the 10 s allowed"],
    ));
    let lines = drawn(&mut board);
    assert!(lines[2].ends_with("12 s     open"), "{lines:#?}");
    assert!(lines[3].ends_with("12 s!    5d 3h"), "{lines:#?}");
    let all = lines.join(" ");
    assert!(all.contains("forecast: down for 8.0 s to 20 s from now on, fits"), "{lines:#?}");
    board.press(Key::Last);
    let all = drawn(&mut board).join(" ");
    assert!(all.contains("from 2026-11-23 14:07:41 (UTC) on, DOES NOT FIT: downtime of about 12 s"), "{all}");
    // A finished one has nothing ahead.
    let done = Migration { state: MigrationState::Done.into(), ..foretold(1, "web-1", 0, &["no"]) };
    board.take(done);
    let lines = drawn(&mut board);
    assert!(lines[3].starts_with("web-1") && lines[3].ends_with("12 s     -"), "{lines:#?}");
}

#[test]
fn a_key_means_the_vm_that_was_drawn_as_chosen() {
    let mut board = TopModel::default();
    assert_eq!(board.press(Key::Sync), KeyAction::None, "nothing was drawn");
    board.take(synced(1, "web-1"));
    assert_eq!(board.press(Key::Sync), KeyAction::None, "it was not drawn yet");
    drawn(&mut board);
    // It goes before all others, and the user has not chosen it.
    board.take(failed(3, "db"));
    assert_eq!(board.press(Key::Sync), KeyAction::Ask(Key::Sync, synced(1, "web-1").id));
    let lines = drawn(&mut board);
    assert!(lines[2].starts_with("db") && lines[15].starts_with("web-1"), "{lines:#?}");
}

#[test]
fn the_chosen_one_stays_chosen_when_rows_move() {
    let mut board = board();
    board.press(Key::Last);
    assert_eq!(board.chosen().unwrap().vm_name, "web-1");
    board.take(failed(1, "web-1"));
    assert_eq!((board.chosen().unwrap().vm_name.as_str(), board.at()), ("web-1", 1));
    board.press(Key::Details);
    let lines = drawn(&mut board);
    assert!(lines[2].starts_with("web-1 (5eed0001)"), "{lines:#?}");
}

#[test]
fn a_cutover_is_asked_twice_and_the_rest_is_not() {
    let mut board = board();
    board.press(Key::Last);
    let id = board.chosen().unwrap().id.clone();
    assert_eq!(board.press(Key::Cutover), KeyAction::None);
    assert!(drawn(&mut board)[22].starts_with("cutover of web-1 (5eed0001): press y"));
    assert_eq!(board.press(Key::Down), KeyAction::None, "any other key leaves it");
    assert_eq!(board.press(Key::Yes), KeyAction::None, "a yes to no question");
    board.press(Key::Last);
    board.press(Key::Cutover);
    // The request is for the VM in the question, whatever moved since.
    board.take(failed(9, "a"));
    assert_eq!(board.press(Key::Yes), KeyAction::Ask(Key::Cutover, id.clone()));
    assert_eq!(board.press(Key::Sync), KeyAction::Ask(Key::Sync, id));
}

#[test]
fn no_migrations_say_what_to_do() {
    let lines = drawn(&mut TopModel::default());
    assert!(lines.iter().any(|line| line.contains("warmctl plan apply")), "{lines:#?}");
    assert_eq!(TopModel::default().press(Key::Cutover), KeyAction::None);
}
