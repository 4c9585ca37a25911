//! Following an operation to its end: what is printed, and the exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod api_common;

use std::process::Stdio;

use api_common::{
    cases,
    fake_control::FakeControl,
    running::Running,
    served::{Served, run},
};
use serde_json::Value;
use warmd_core::model::{
    outcome::PassFailure,
    phase::Phase,
    plan::VerifyMode,
    request::Request,
    state::{ResumePoint, State},
    verify::{MissProbability, VerifyOrder},
    view::{MigrationView, VerificationView},
};

const WEB: &str = "019351aa-0000-7000-8000-5eed00000001";

fn synced() -> MigrationView {
    cases::synced(1, "web-1")
}

/// The steps of a cutover up to and with its `last` phase.
fn phases(last: Phase) -> Vec<MigrationView> {
    let count = Phase::ALL.iter().take_while(|phase| **phase <= last).count();
    let step = |running: usize| MigrationView {
        state: State::CuttingOver { phase: Phase::ALL[running - 1] },
        cutover: Some(cases::cutover(&Phase::ALL[..running], true)),
        ..synced()
    };
    (1..=count).map(step).collect()
}

fn done() -> MigrationView {
    cases::done(1, "web-1")
}

fn undone() -> Vec<MigrationView> {
    let why = "the guest did not shut down within 2m".to_owned();
    let mut steps = phases(Phase::StopSource);
    let mut cutover = cases::cutover(&[Phase::CatchUpDelta, Phase::StopSource], false);
    let state = State::Undoing { phase: Phase::StopSource, reason: why.clone() };
    steps.push(MigrationView { state, cutover: Some(cutover.clone()), ..synced() });
    cutover.ended = Some(cases::at(1010));
    cutover.failure = Some(why);
    steps.push(MigrationView { cutover: Some(cutover), ..synced() });
    steps
}

/// Text after the clock at the beginning of each line.
fn without_clock(text: &str) -> Vec<&str> {
    text.lines().map(|line| line.get(10..).filter(|_| line.as_bytes()[2] == b':').unwrap_or(line)).collect()
}

#[tokio::test]
async fn a_cutover_is_followed_to_its_end() {
    let mut steps = phases(Phase::Cleanup);
    steps.push(done());
    let served = Served::start(FakeControl::new([synced()]).script(&Request::cutover(), steps)).await;
    let ran = served.warmctl(&["migration", "cutover", "web-1"]).await;
    let lines = without_clock(ran.out(0));
    let told = [
        "cutover of web-1 (5eed00000001): accepted",
        "cutting-over (catch-up-delta)",
        "catch-up-delta ended after 4.0 s",
        "cutting-over (stop-source)",
        "cutting-over (verify)",
        "cleanup ended after 4.0 s",
        "done",
        "downtime      14 s",
        "verification  passed (readback, 42.0 GiB compared)",
        "web-1 runs on the target as web-1-new",
    ];
    let mut rest = lines.iter();
    for line in told {
        assert!(rest.any(|have| *have == line), "{line:?} is missing or out of order in {lines:#?}");
    }
    assert_eq!(lines.iter().filter(|line| line.contains("ended after")).count(), 9, "{lines:#?}");

    // It is done: to ask again is granted at once.
    let again = served.warmctl(&["migration", "cutover", WEB]).await;
    assert!(again.out(0).contains("web-1 runs on the target"), "{again:#?}");
}

#[tokio::test]
async fn a_cutover_that_is_undone_is_a_failure_with_its_reason() {
    let served = Served::start(FakeControl::new([synced()]).script(&Request::cutover(), undone())).await;
    let ran = served.warmctl(&["migration", "cutover", "web-1"]).await;
    assert_eq!(
        ran.err(1),
        "warmctl: cutover of web-1 (5eed00000001) failed: undone: the guest did not shut down within 2m; it is \
         synced now\n"
    );

    let served = Served::start(FakeControl::new([synced()]).script(&Request::cutover(), undone())).await;
    let outcome = served.warmctl(&["-o", "json", "migration", "cutover", "web-1"]).await.json(1);
    assert_eq!(outcome["answer"], "accepted");
    assert_eq!(outcome["outcome"], "failed");
    assert_eq!(outcome["reason"], "undone: the guest did not shut down within 2m");
    assert_eq!(outcome["migration"]["state"], "synced");
}

#[tokio::test]
async fn a_second_cutover_is_not_taken_for_the_first() {
    // The last one was undone; views from before the request must not end the new one.
    let before = undone().pop().unwrap();
    let mut steps = vec![before.clone(), before.clone()];
    steps.extend(phases(Phase::StartVm).into_iter().map(|mut step| {
        step.cutover.as_mut().unwrap().started = cases::at(5000);
        step
    }));
    let mut end = done();
    end.cutover.as_mut().unwrap().started = cases::at(5000);
    steps.push(end);
    let served = Served::start(FakeControl::new([before]).script(&Request::cutover(), steps)).await;
    let ran = served.warmctl(&["migration", "cutover", "web-1"]).await;
    assert!(ran.out(0).ends_with("web-1 runs on the target as web-1-new\n"), "{ran:#?}");
}

#[tokio::test]
async fn an_abort_says_whether_it_came_in_time() {
    let runs = phases(Phase::FinalDelta).pop().unwrap();
    let fake = FakeControl::new([runs.clone()]).script(&Request::AbortCutover, undone().split_off(2));
    let served = Served::start(fake).await;
    let ran = served.warmctl(&["migration", "cutover", "web-1", "--abort"]).await;
    assert!(
        ran.out(0).ends_with("the cutover of web-1 was aborted; the VM runs on the source\n"),
        "{ran:#?}"
    );

    let fake = FakeControl::new([runs]).script(&Request::AbortCutover, [done()]);
    let ran = Served::start(fake).await.warmctl(&["migration", "cutover", "web-1", "--abort"]).await;
    assert!(ran.err(1).contains("it was too late: the VM runs on the target"), "{ran:#?}");
}

#[tokio::test]
async fn a_sync_ends_with_its_own_pass() {
    let mut end = synced();
    end.pass = Some(cases::pass(3, true));
    // The first view still shows the earlier pass: its end is not this one's.
    let steps = [synced(), cases::syncing(1, "web-1"), end];
    let served = Served::start(FakeControl::new([synced()]).script(&Request::Sync, steps)).await;
    let ran = served.warmctl(&["migration", "sync", "web-1"]).await;
    let lines = without_clock(ran.out(0));
    assert!(
        lines.contains(
            &"syncing  pass 3 (delta)  downtime if cut over now 13 s: vda  50 % of 1.17 GiB, 118 MiB/s, 5.1 s left, \
              1.17 GiB changed; vdb 100 % of 10.0 GiB, compared whole (the bitmap was lost in a restart of the VM)"
        ),
        "{lines:#?}"
    );
    assert_eq!(lines.last(), Some(&"web-1 (5eed00000001) is synced"));

    let mut broken = cases::syncing(1, "web-1");
    let pass = broken.pass.as_mut().unwrap();
    (pass.ended, pass.error) =
        (Some(cases::at(70)), Some(PassFailure::Error("the source went away".to_owned())));
    // The daemon tries a broken pass again automatically: the pass is finished only when the migration is.
    let ended_early = MigrationView {
        state: State::Failed {
            reason: "the source went away for good".to_owned(),
            resumable: true,
            from: ResumePoint::Synced,
        },
        ..broken.clone()
    };
    let served =
        Served::start(FakeControl::new([synced()]).script(&Request::Sync, [broken, ended_early])).await;
    let ran = served.warmctl(&["migration", "sync", "web-1"]).await;
    assert!(ran.err(1).contains("the source went away for good"), "{ran:#?}");
}

#[tokio::test]
async fn verification_is_followed_to_its_result() {
    let with = |verification| MigrationView { verification: Some(verification), ..synced() };
    let run = cases::verification(None);
    let fake = FakeControl::new([synced()])
        .script(&Request::verify(), [with(run.clone()), with(cases::verification(Some(0)))]);
    let served = Served::start(fake).await;
    let ran = served.warmctl(&["migration", "verify", "web-1"]).await;
    assert!(ran.out(0).contains(": verifying (readback) 50 % of 42.0 GiB\n"), "{ran:#?}");
    assert!(ran.out(0).ends_with("verification  passed (readback, 42.0 GiB compared)\n"), "{ran:#?}");

    let steps = [with(run.clone()), with(cases::verification(Some(65536)))];
    let served = Served::start(FakeControl::new([synced()]).script(&Request::verify(), steps)).await;
    let ran = served.warmctl(&["migration", "verify", "web-1"]).await;
    let expected = "\
verification  FAILED (readback, 64.0 KiB of 42.0 GiB differ)
  vda differs at byte 65536, 65536 bytes
";
    assert!(ran.out(1).ends_with(expected), "{ran:#?}");
    assert!(ran.err(1).contains("the target does not hold what it must"), "{ran:#?}");

    let mut lost = run;
    (lost.ended, lost.error) = (Some(cases::at(1014)), Some("the target went away".to_owned()));
    let served = Served::start(FakeControl::new([synced()]).script(&Request::verify(), [with(lost)])).await;
    let ran = served.warmctl(&["migration", "verify", "web-1"]).await;
    assert!(ran.err(1).contains("the target went away"), "{ran:#?}");
}

#[tokio::test]
async fn what_is_to_be_verified_is_asked_for_in_words() {
    let with = |verification| MigrationView { verification: Some(verification), ..done() };
    let mut run = cases::verification(Some(0));
    run.started = cases::at(1040);
    (run.scope, run.seed) = ("sample=0.5%".parse().unwrap(), Some(7));
    if let Some(result) = &mut run.result {
        (result.scope, result.seed) = (run.scope, run.seed);
        result.miss_probabilities = vec![
            MissProbability { blocks: 1, probability: 0.995 },
            MissProbability { blocks: 1000, probability: 6.65e-3 },
        ];
    }
    let asked =
        ["--scope", "sample=0.5%", "--seed", "7", "--image", "vda=/snap/vda", "--image", "vdb=nbd://h/b"];
    let served = Served::start(FakeControl::new([done()]).script(&Request::verify(), [with(run)])).await;
    let ran = served.warmctl(&[&["migration", "verify", WEB][..], &asked].concat()).await;
    let expected = "\
verification  passed (readback, sample=0.5%, seed 7, 42.0 GiB compared)
chance, at most, that the sample misses all bad blocks: 99.50 % if 1 block is bad, 0.66 % if 1000 blocks are bad
";
    assert!(ran.out(0).ends_with(expected), "{ran:#?}");
    let images = [("vda", "/snap/vda"), ("vdb", "nbd://h/b")];
    let ordered = served.control.ordered();
    assert!(!ordered[0].id.is_empty());
    let order = VerifyOrder {
        id: ordered[0].id.clone(),
        mode: VerifyMode::Readback,
        scope: "sample=0.5%".parse().unwrap(),
        seed: Some(7),
        images: images.map(|(disk, place)| (disk.to_owned(), place.to_owned())).into(),
    };
    assert_eq!(ordered, [order]);

    let ran = served.warmctl(&["migration", "verify", WEB, "--mode", "compare"]).await;
    assert!(ran.err(5).contains("snapshot"), "{ran:#?}");
    for wrong in [["--scope", "half"], ["--mode", "none"], ["--image", "vda"], ["--seed", "-1"]] {
        let ran = served.warmctl(&[&["migration", "verify", WEB][..], &wrong].concat()).await;
        assert!(!ran.err(2).is_empty(), "{ran:#?}");
    }
}

#[tokio::test]
async fn old_result_is_not_taken_for_a_new_one() {
    let with = |verification| MigrationView { verification: Some(verification), ..synced() };
    let mut old = cases::verification(Some(65536));
    (old.started, old.id) = (cases::at(500), "old".to_owned());
    let steps = [with(old.clone()), with(cases::verification(None)), with(cases::verification(Some(0)))];
    let served = Served::start(FakeControl::new([with(old.clone())]).script(&Request::verify(), steps)).await;
    let ran = served.warmctl(&["migration", "verify", "web-1"]).await;
    assert!(ran.out(0).ends_with("verification  passed (readback, 42.0 GiB compared)\n"), "{ran:#?}");

    // A plan without verification: what was found before the cutover is no result on it.
    if let Some(result) = &mut old.result {
        result.at = cases::at(510);
    }
    let end = MigrationView { verification: Some(old.clone()), ..done() };
    let served = Served::start(FakeControl::new([with(old)]).script(&Request::cutover(), [end])).await;
    let ran = served.warmctl(&["migration", "cutover", "web-1"]).await;
    assert!(ran.out(0).contains("verification  none made\n"), "{ran:#?}");
}

#[tokio::test]
async fn earlier_verification_is_not_taken_for_the_waiting_one() {
    let with = |verification| MigrationView { verification: Some(verification), ..synced() };
    let others = |wrong| VerificationView { id: "another's".to_owned(), ..cases::verification(wrong) };
    // It was asked for while another one ran, which then fails.
    let steps = [
        with(others(None)),
        with(others(Some(65536))),
        with(cases::verification(None)),
        with(cases::verification(Some(0))),
    ];
    let fake = FakeControl::new([with(others(None))]).script(&Request::verify(), steps);
    let served = Served::start(fake).await;
    let ran = served.warmctl(&["migration", "verify", "web-1"]).await;
    assert!(ran.out(0).ends_with("verification  passed (readback, 42.0 GiB compared)\n"), "{ran:#?}");

    // A cutover begins: the running verification is stopped, and the waiting one never runs.
    let cutting = MigrationView {
        since: cases::at(4000),
        verification: Some(others(None)),
        ..phases(Phase::CatchUpDelta).swap_remove(0)
    };
    let fake =
        FakeControl::new([with(others(None))]).script(&Request::verify(), [with(others(None)), cutting]);
    let served = Served::start(fake).await;
    let ran = served.warmctl(&["migration", "verify", "web-1"]).await;
    assert!(ran.err(1).contains("dropped before its turn"), "{ran:#?}");
}

#[tokio::test]
async fn a_cancel_is_followed_even_from_a_failure() {
    let failed = State::Failed { reason: "no room".to_owned(), resumable: true, from: ResumePoint::Seeding };
    let failed = MigrationView { state: failed, ..synced() };
    let step = |state| MigrationView { state, ..synced() };
    let steps = [failed.clone(), step(State::Cancelling), step(State::Cancelled)];
    let served = Served::start(FakeControl::new([failed]).script(&Request::Cancel, steps)).await;
    let ran = served.warmctl(&["migration", "cancel", "web-1"]).await;
    assert!(ran.out(0).ends_with("was cancelled; the VM stays on the source\n"), "{ran:#?}");
}

#[tokio::test]
async fn a_rollback_wants_a_yes_and_is_followed_until_it_rests() {
    let step = |state| MigrationView { state, ..synced() };
    let rests = State::Paused { from: ResumePoint::Synced };
    let steps = [step(State::Done), step(State::RollingBack), step(rests)];
    let served = Served::start(FakeControl::new([step(State::Done)]).script(&Request::Rollback, steps)).await;
    let ran = served.warmctl(&["migration", "rollback", "web-1"]).await;
    assert!(ran.err(2).contains("is lost; say --yes if that is wanted"), "{ran:#?}");
    let ran = served.warmctl(&["migration", "rollback", "web-1", "--yes"]).await;
    assert!(ran.out(0).contains("web-1 is back on the source; its target VM is removed"), "{ran:#?}");
    let ran = served.warmctl(&["migration", "rollback", "web-1", "--yes"]).await;
    assert!(ran.err(5).contains("nothing to go back from"), "{ran:#?}");
}

#[tokio::test]
async fn without_waiting_it_has_only_begun() {
    let served = Served::start(FakeControl::new([synced()])).await;
    let ran = served.warmctl(&["migration", "cutover", "web-1", "--no-wait"]).await;
    assert_eq!(
        ran.out(0),
        "cutover of web-1 (5eed00000001): accepted; follow it with `warmctl migration watch 5eed00000001`\n"
    );
    let outcome = served.warmctl(&["-o", "json", "migration", "sync", "web-1", "--no-wait"]).await.json(0);
    assert_eq!((&outcome["outcome"], &outcome["reason"]), (&Value::from("begun"), &Value::Null));
}

#[tokio::test]
async fn a_refusal_is_shown_as_it_is() {
    let served = Served::start(FakeControl::new([cases::syncing(1, "web-1")])).await;
    let ran = served.warmctl(&["migration", "verify", "web-1"]).await;
    assert_eq!(
        ran.err(5),
        "warmctl: verify is refused while the migration is syncing: the target is only at rest while it is synced, and after it is \
         done until its VM is started\n"
    );
    assert_eq!(served.warmctl(&["migration", "cutover", "nobody"]).await.code, Some(4));
}

#[tokio::test]
async fn on_a_terminal_progress_is_redrawn_and_phases_stay() {
    let mut steps = vec![cases::syncing(1, "web-1")];
    steps.extend(phases(Phase::Cleanup));
    steps.push(done());
    let served = Served::start(FakeControl::new([synced()]).script(&Request::cutover(), steps)).await;
    // `script` gives it a terminal.
    let mut command = tokio::process::Command::new("script");
    let warmctl = env!("CARGO_BIN_EXE_warmctl");
    command.args(["-qec", &format!("'{warmctl}' migration cutover web-1"), "/dev/null"]);
    command.env("WARMD_SOCKET", &served.socket).env("TERM", "xterm").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = run(command, "").await;
    let out = ran.out(0);
    assert!(out.contains("\u{1b}["), "nothing was redrawn: {out:?}");
    assert_eq!(out.matches(" ended after 4.0 s").count(), 9, "{out}");
    assert!(out.ends_with("web-1 runs on the target as web-1-new\r\n"), "{out}");
}

#[tokio::test]
async fn ctrl_c_leaves_the_operation_to_the_daemon() {
    let fake = FakeControl::new([synced()]).script(&Request::cutover(), phases(Phase::CatchUpDelta));
    let served = Served::start(fake).await;
    let mut cutover = Running::start(&served, &["migration", "cutover", "web-1"]);
    cutover.line_with("cutting-over").await;
    cutover.interrupt();
    let (code, stderr) = cutover.end().await;
    assert_eq!(code, Some(130));
    assert!(stderr.contains("the cutover of web-1 (5eed00000001) goes on in the daemon"), "{stderr}");
    assert!(stderr.contains("cutover --abort"), "{stderr}");
}
