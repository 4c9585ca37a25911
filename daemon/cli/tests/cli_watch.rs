//! Watching migrations and following the journal: no change is missed, also when the daemon goes and comes
//! back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod api_common;

use std::time::Duration;

use api_common::{
    cases,
    fake_control::FakeControl,
    running::Running,
    served::{Served, run, until},
};
use serde_json::Value;
use tokio::time::timeout;
use warmd_core::model::{
    event_kind::EventKind,
    state::{ResumePoint, State},
    view::{EventView, MigrationView},
};

fn synced() -> MigrationView {
    cases::synced(1, "web-1")
}

fn done() -> MigrationView {
    cases::done(1, "web-1")
}

#[tokio::test]
async fn a_watch_tells_each_change_and_ends_with_the_migration() {
    let served = Served::start(FakeControl::new([synced()])).await;
    let mut watch = Running::start(&served, &["-o", "json", "migration", "watch", "web-1"]);
    let state = |line: String| serde_json::from_str::<Value>(&line).unwrap()["state"].clone();
    assert_eq!(state(watch.line_with("state").await), "synced");
    served.control.change(cases::syncing(1, "web-1"));
    assert_eq!(state(watch.line_with("state").await), "syncing");
    served.control.change(done());
    assert_eq!(state(watch.line_with("state").await), "done");
    assert_eq!(watch.end().await, (Some(0), String::new()));
}

#[tokio::test]
async fn progress_in_a_pipe_is_told_once_a_second_and_stages_at_once() {
    let served = Served::start(FakeControl::new([synced()])).await;
    let mut watch = Running::start(&served, &["migration", "watch"]);
    watch.line_with("web-1 (5eed00000001)  synced").await;
    // Far more changes than a user reads, in much less than a second; the last is another stage.
    let mut step = cases::syncing(1, "web-1");
    for drained in 0..500 {
        step.disks[0].pass_drained = drained;
        served.control.change(step.clone());
        tokio::task::yield_now().await;
    }
    served.control.change(MigrationView { state: State::Paused { from: ResumePoint::Synced }, ..synced() });
    let mut told = 0;
    loop {
        let line = watch.line_with("web-1").await;
        if line.contains("paused (synced)") {
            break;
        }
        told += 1;
    }
    assert!(told < 50, "{told} lines for one second of progress");
}

#[tokio::test]
async fn a_daemon_that_comes_back_is_watched_on() {
    let served = Served::start(FakeControl::new([synced()])).await;
    let mut watch = Running::start(&served, &["migration", "watch", "web-1"]);
    watch.line_with("synced").await;
    let (dir, control) = served.stop().await;
    let served = Served::start_in(dir, control).await;
    until("it watches again", || served.control.watchers() > 0).await;
    served.control.change(done());
    watch.line_with("done").await;
    let (code, stderr) = watch.end().await;
    assert_eq!(code, Some(0));
    assert!(stderr.starts_with("warmctl: lost the daemon: "), "{stderr}");
    assert!(stderr.ends_with("warmctl: the daemon is back\n"), "{stderr}");
}

#[tokio::test]
async fn journal_follow_over_restarts_has_each_line_once() {
    let line = |n: u32| {
        let text = format!("line {n}\u{1b}[2J");
        EventView { text, kind: EventKind::Warning, ..cases::events().remove(3) }
    };
    let served = Served::start(FakeControl::new([synced()])).await;
    let mut all = Running::start(&served, &["events", "--follow", "--limit", "1"]);
    let web = cases::id(1).to_string();
    let mut theirs = Running::start(&served, &["-o", "json", "events", "-f", &web]);
    assert_eq!(all.line().await.split_whitespace().next(), Some("AT"));
    assert!(all.line().await.ends_with("5eed00000002  schedule                    state     synced"));
    assert!(theirs.line().await.contains("plan web applied"));
    assert!(theirs.line().await.contains("pass 1 (full) ended"));

    served.control.edit_journal(|lines| lines.push(line(1)));
    assert!(all.line().await.ends_with("warning   line 1 [2J"), "escapes do nothing");
    let (dir, control) = served.stop().await;
    control.edit_journal(|lines| lines.push(line(2)));
    // Longer than between two questions: one of them finds no daemon.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let served = Served::start_in(dir, control).await;
    assert!(all.line().await.ends_with("line 2 [2J"));
    // Put back from a copy that is older by three lines.
    served.control.edit_journal(|lines| lines.truncate(3));
    let mut number = 3;
    let told = loop {
        served.control.edit_journal(|lines| lines.push(line(number)));
        number += 1;
        if let Ok(told) = timeout(Duration::from_secs(1), all.line()).await {
            break told;
        }
    };
    assert!(told.contains("line "), "{told}");
    served
        .control
        .edit_journal(|lines| lines.push(EventView { text: "mine".to_owned(), ..cases::events().remove(1) }));
    assert!(theirs.line().await.contains("mine"), "it is asked for one migration");
    all.interrupt();
    let (code, stderr) = all.end().await;
    assert_eq!(code, Some(0));
    let told =
        ["lost the daemon; trying again for 60 s", "the daemon is back", "put back from an older copy"];
    let mut rest = stderr.as_str();
    for part in told {
        rest = rest.split_once(part).unwrap_or_else(|| panic!("no {part:?} in {stderr}")).1;
    }
}

#[tokio::test]
async fn a_watch_whose_reader_leaves_ends_in_peace() {
    let served = Served::start(FakeControl::new([synced()])).await;
    let mut command = served.command(&["migration", "watch"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    let ran = run(command, "").await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}
