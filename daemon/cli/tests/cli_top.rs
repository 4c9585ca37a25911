//! `warmctl top` on a real terminal: a pseudo-terminal of util-linux's `script`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod api_common;

use std::{process::Stdio, time::Duration};

use api_common::{cases, fake_control::FakeControl, served::Served};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use warmd_core::model::request::Request;

const PATIENCE: Duration = Duration::from_secs(30);

/// What a user sees: only what changed is drawn, so that no text need ever pass as a whole.
struct Screen {
    output: ChildStdout,
    terminal: vt100::Parser,
}

impl Screen {
    /// Reads until the terminal is as it should be.
    async fn until(&mut self, what: &str, holds: impl Fn(&vt100::Screen) -> bool) {
        let read = async {
            let mut bytes = [0; 4096];
            while !holds(self.terminal.screen()) {
                let read = self.output.read(&mut bytes).await.unwrap_or_default();
                assert!(read > 0, "it ended without {what:?}");
                self.terminal.process(&bytes[..read]);
            }
        };
        let done = timeout(PATIENCE, read).await;
        assert!(done.is_ok(), "no {what:?} on\n{}", self.terminal.screen().contents());
    }

    async fn shows(&mut self, what: &str) {
        self.until(what, |screen| screen.contents().contains(what)).await;
    }
}

/// `warmctl top` against this daemon, in a terminal of 80×24; and its keyboard.
fn top(served: &Served) -> (Child, ChildStdin, Screen) {
    let warmctl = env!("CARGO_BIN_EXE_warmctl");
    let command = format!("stty rows 24 cols 80; '{warmctl}' --socket '{}' top", served.socket.display());
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("`script` of bsdutils");
    let keys = script.stdin.take().unwrap();
    let screen = Screen { output: script.stdout.take().unwrap(), terminal: vt100::Parser::new(24, 80, 0) };
    (script, keys, screen)
}

#[tokio::test]
async fn it_shows_asks_and_leaves_the_terminal_as_it_was() {
    let served =
        Served::start(FakeControl::new([cases::synced(1, "web-1"), cases::syncing(2, "web-2")])).await;
    let (mut script, mut keys, mut screen) = top(&served);
    screen.shows("web-1").await;
    screen.until("another screen", vt100::Screen::alternate_screen).await;
    keys.write_all(b"Gc").await.unwrap();
    screen.shows("press y to go on").await;
    keys.write_all(b"k").await.unwrap();
    screen.shows("no cutover").await;
    keys.write_all(b"s").await.unwrap();
    screen.shows("sync of").await;
    keys.write_all(b"q").await.unwrap();
    screen.until("the first screen", |screen| !screen.alternate_screen() && !screen.hide_cursor()).await;
    let ended = timeout(PATIENCE, script.wait()).await.expect("it ends").unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test]
async fn a_daemon_that_comes_back_is_watched_and_asked_again() {
    let served = Served::start(FakeControl::new([cases::synced(1, "web-1")])).await;
    let (_script, mut keys, mut screen) = top(&served);
    screen.shows("web-1").await;
    let (dir, control) = served.stop().await;
    screen.shows("lost the daemon").await;
    // Away for longer than the screen is drawn and the daemon tried.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let _served = Served::start_in(dir, control).await;
    screen.shows("the daemon is back").await;
    keys.write_all(b"s").await.unwrap();
    screen.shows("sync of").await;
}

#[tokio::test]
async fn the_screen_goes_on_while_the_daemon_takes_its_time_to_answer() {
    let served = Served::start(FakeControl::new([cases::synced(1, "web-1")])).await;
    let (_script, mut keys, mut screen) = top(&served);
    screen.shows("web-1").await;
    served.control.answer(false);
    keys.write_all(b"s").await.unwrap();
    screen.shows("sync: asked, no answer yet").await;
    served.control.change(cases::syncing(2, "web-2"));
    screen.shows("web-2").await;
    keys.write_all(b"p").await.unwrap();
    screen.shows("pause: not asked, sync has no answer yet").await;
    served.control.answer(true);
    screen.shows("sync of web-1 (5eed00000001): accepted").await;
    keys.write_all(b"p").await.unwrap();
    screen.shows("pause of").await;
    let asked: Vec<_> = served.control.asked().into_iter().map(|(_, request, _)| request).collect();
    assert_eq!(asked, [Request::Sync, Request::Pause]);

    served.control.answer(false);
    keys.write_all(b"rq").await.unwrap();
    screen.until("the first screen", |screen| !screen.alternate_screen()).await;
}

#[tokio::test]
async fn without_a_terminal_it_says_what_to_use() {
    let served = Served::start(FakeControl::new([cases::synced(1, "web-1")])).await;
    let refused = served.warmctl(&["top"]).await;
    assert!(refused.err(2).contains("`migration watch`"));
}
