//! What `warmctl` prints, whole: every command's tables on screens of 80 and 120 columns and with `--wide`,
//! and its JSON. `snapshots/` has the expected output. After a change on purpose,
//! `INSTA_UPDATE=always cargo test -p warmd-cli --test cli_snapshots` writes it again: read the difference.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod api_common;

use std::fmt::Write as _;

use api_common::{
    cases::{self, GIB, MIB},
    fake_control::FakeControl,
    served::{Served, run, warmctl},
};
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use insta::assert_snapshot;
use warmd_core::{
    control::EndpointInfo,
    format,
    model::{
        event_kind::EventKind,
        forecast::{ForecastRange, ForecastView},
        machine::Inventory,
        outcome::{PassFailure, PhaseOutcome},
        phase::Phase,
        request::Request,
        scheduled_cutover::{ScheduledCutoverMode, ScheduledCutoverView},
        state::{ResumePoint, State},
        view::{AuditView, EventView, MigrationView, VerificationView, WaitingView},
    },
};

const DATABASE: &str = "データベース-本番-プライマリ";
const LONG: &str = "shop-frontend-production-europe-west-blue-0001";

/// Ages are counted from the true time. This one stays `1d 2h` for half an hour.
fn yesterday() -> DateTime<Utc> {
    (Utc::now() - TimeDelta::minutes(26 * 60 + 20)).trunc_subsecs(0)
}

/// A daemon, and what changes in its output from run to run.
struct Shown {
    served: Served,
    yesterday: DateTime<Utc>,
}

impl Shown {
    /// The output on screens of 80 and 120 columns, and `--wide`.
    async fn on_screens(&self, args: &[&str]) -> String {
        let mut all = String::new();
        for columns in [80, 120] {
            let out = self.output(args, Some(columns)).await;
            // Prose goes over several lines, between words: a path in it stays whole, to be copied.
            let lines = out.lines().filter(|line| line.split_whitespace().count() > 1);
            let widest = lines.map(unicode_width::UnicodeWidthStr::width).max().unwrap_or_default();
            assert!(widest <= columns, "{args:?} is {widest} wide on a screen of {columns}:\n{out}");
            write!(all, "==== {columns} columns\n{out}").unwrap();
        }
        let wide = self.output(&[args, &["--wide"]].concat(), Some(80)).await;
        assert!(!wide.contains('…') && !wide.contains("not shown"), "--wide cuts: {wide}");
        assert_eq!(wide, self.output(args, None).await, "in a pipe there is more, or less, than with --wide");
        write!(all, "==== --wide\n{wide}").unwrap();
        all
    }

    async fn json(&self, args: &[&str]) -> String {
        self.output(&[args, &["-o", "json"]].concat(), Some(80)).await
    }

    /// Output, errors and exit code, if they are not nothing.
    async fn output(&self, args: &[&str], columns: Option<usize>) -> String {
        let mut command = self.served.command(args);
        if let Some(columns) = columns {
            command.env("COLUMNS", columns.to_string());
        }
        let ran = run(command, "").await;
        let mut all = self.steady(&ran.stdout);
        if !ran.stderr.is_empty() {
            write!(all, "[standard error]\n{}", self.steady(&ran.stderr)).unwrap();
        }
        if ran.code != Some(0) {
            writeln!(all, "[exit code {:?}]", ran.code.unwrap()).unwrap();
        }
        all
    }

    /// Without what differs from run to run.
    fn steady(&self, text: &str) -> String {
        let json = format!("{}", self.yesterday.format("%Y-%m-%dT%H:%M:%SZ"));
        let text = text
            .replace(&format::moment(self.yesterday), "YYYY-MM-DD hh:mm:ss")
            .replace(&json, "YYYY-MM-DDThh:mm:ssZ")
            .replace(self.served.dir.path().to_str().unwrap(), "DIR");
        let mut lines: Vec<_> = text.lines().map(|line| without_ids(&without_clock(line))).collect();
        // A moment may be sent twice.
        lines.dedup();
        lines.into_iter().map(|line| line + "\n").collect()
    }
}

fn without_clock(line: &str) -> String {
    let is_clock = line.as_bytes().get(..8).is_some_and(|clock| {
        clock
            .iter()
            .enumerate()
            .all(|(nth, byte)| if nth % 3 == 2 { *byte == b':' } else { byte.is_ascii_digit() })
    });
    if is_clock { format!("hh:mm:ss{}", &line[8..]) } else { line.to_owned() }
}

/// Without the user and the process of a client that the test started.
fn without_ids(line: &str) -> String {
    let begins = "operator uid=";
    let mut parts = line.split(begins);
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).count();
        let pid = part.get(digits(part)..).and_then(|rest| rest.strip_prefix(" pid="));
        match pid.map(|rest| rest.split_at(digits(rest))) {
            Some((pid, rest)) if !["4711", "42", "4194304"].contains(&pid) => {
                write!(all, "{begins}UID pid=PID{rest}").unwrap();
            }
            _ => write!(all, "{begins}{part}").unwrap(),
        }
    }
    all
}

fn running(yesterday: DateTime<Utc>) -> MigrationView {
    let mut view = cases::syncing(2, DATABASE);
    "nightly-production-wave-17".clone_into(&mut view.plan);
    for disk in &mut view.disks {
        disk.location =
            format!("/srv/storage/pool-of-fast-disks/warmd/019351aa/{DATABASE}/{}.raw", disk.key.0);
    }
    view.pass.as_mut().unwrap().started = yesterday;
    view
}

/// A pass that has just begun: nothing is measured, one disk has nothing to copy.
fn begun(yesterday: DateTime<Utc>) -> MigrationView {
    let mut view = MigrationView { target_name: "begun".to_owned(), ..cases::syncing(3, "begun") };
    for disk in &mut view.disks {
        (disk.pending, disk.pass_total, disk.pass_drained, disk.rate, disk.eta) = (0, 0, 0, 0.0, None);
    }
    let pass = view.pass.as_mut().unwrap();
    (pass.started, pass.cpu) = (yesterday, None);
    for disk in &mut pass.disks {
        (disk.figures, disk.telemetry) = (warmd_cbt::store::PassFigures::default(), None);
    }
    let first = &mut pass.disks[0];
    (first.pending, first.changed, first.extents) = (0, 0, 0);
    view
}

/// A pass of nothing that took no time, as the busy source of an idle guest has it.
fn empty(yesterday: DateTime<Utc>) -> MigrationView {
    let mut view = cases::synced(4, "idle");
    let mut pass = cases::pass(9, true);
    (pass.started, pass.ended) = (yesterday, Some(yesterday));
    for disk in &mut pass.disks {
        let mut telemetry = cases::telemetry();
        telemetry.elapsed = 0.02;
        telemetry.stages.retain(|stage| stage.in_flight_max > 0);
        for stage in &mut telemetry.stages {
            (stage.bytes, stage.stalled) = (0, 0.003);
        }
        disk.telemetry = Some(telemetry);
        disk.figures = warmd_cbt::store::PassFigures::default();
        (disk.changed, disk.pending, disk.extents, disk.unknown) = (0, 0, 0, None);
        disk.audit = Some(AuditView::default());
    }
    view.pass = Some(pass);
    view
}

fn waiting(yesterday: DateTime<Utc>) -> MigrationView {
    let mut view = cases::synced(5, "mail");
    view.state = State::Syncing;
    view.pass.as_mut().unwrap().started = yesterday;
    (view.next_pass, view.next_pass_why) = (None, None);
    view.waiting = Some(WaitingView {
        reason: "VM mail: taking a snapshot: a backup job that is not warmd's runs on it: \
                 /var/lib/libvirt/images/mail/backup-of-2026-11-22-full.qcow2"
            .to_owned(),
        since: cases::at(60),
        next_try: Some(cases::at(120)),
        tries: 1234,
        advice: "nothing, if it passes: it is tried again until it does".to_owned(),
    });
    view
}

fn failed(yesterday: DateTime<Utc>) -> MigrationView {
    let mut view = cases::synced(6, LONG);
    view.pass.as_mut().unwrap().started = yesterday;
    view.state = State::Failed {
        reason: "no room on new: 12 GiB are missing in /srv/storage/pool-of-fast-disks".to_owned(),
        resumable: true,
        from: ResumePoint::Synced,
    };
    view.pass.as_mut().unwrap().error =
        Some(PassFailure::from("no room on new: 12 GiB are missing".to_owned()));
    (view.downtime_forecast, view.next_pass, view.next_pass_why) = (None, None, None);
    view.left_behind =
        vec!["checkpoint warmd-019351aa-000000000006: `virsh checkpoint-delete …`".replace('…', "x y")];
    view.warnings = vec!["vda is raw: its changes are not tracked over a restart of the VM".to_owned()];
    view.disks[0].tracking_fault = Some("3 blocks changed and were not reported".to_owned());
    view
}

/// As the store shows a row that it cannot read.
fn unreadable() -> MigrationView {
    MigrationView {
        state: State::Failed {
            reason: "unreadable: table disks, row 7: column anchor: not a JSON text; nothing of it is run or deleted, and \
                     its VMs stay as they are: look at both sides, stop warmd, and restore the state from a backup"
                .to_owned(),
            resumable: false,
            from: ResumePoint::Synced,
        },
        disks: Vec::new(),
        pass: None,
        next_pass: None,
        next_pass_why: None,
        downtime_forecast: None,
        ..cases::synced(7, "legacy")
    }
}

/// Foretold, and with a cutover that waits for its window.
fn huge(yesterday: DateTime<Utc>) -> MigrationView {
    let mut view = cases::synced(8, "archive");
    view.disks = (0..3).map(|nth| cases::disk(&format!("vd{nth}"), u64::MAX / 8)).collect();
    view.disks[2].pending = 900 << 40;
    view.pass.as_mut().unwrap().started = yesterday;
    let range = |low, expected, high| ForecastRange { low, expected, high };
    view.forecast = Some(ForecastView {
        at: "2026-11-28T21:00:00Z".parse().unwrap(),
        final_delta: range(MIB as f64, 4.0 * GIB as f64, 900.0 * 1024.0 * GIB as f64),
        downtime: range(8.0, 1234.5, 987_654.0),
        against: vec!["downtime of about 20m 35s (8s to 11d 10h) exceeds the 30s allowed".to_owned()],
        remarks: vec!["never measured, so taken from the plan: boot".to_owned()],
        converges: false,
        convergence: "the guest changes 100 MiB/s, passes copy 80 MiB/s: deltas grow; the limit source/old is the cause"
            .to_owned(),
    });
    view.scheduled_cutover = Some(ScheduledCutoverView {
        mode: ScheduledCutoverMode::Auto,
        begins: Some("2026-11-28T21:00:00Z".parse().unwrap()),
        why: "window Sat 22:00–Sun 04:00 Europe/Berlin opens then".to_owned(),
        force: false,
    });
    view
}

/// In a cutover whose verification does not know yet how much it has to compare.
fn cutting_over() -> MigrationView {
    let phases = &Phase::ALL[..4];
    MigrationView {
        state: State::CuttingOver { phase: Phase::Verify },
        cutover: Some(cases::cutover(phases, true)),
        verification: Some(VerificationView { total: 0, checked: 0, ..cases::verification(None) }),
        next_pass: None,
        next_pass_why: None,
        ..cases::synced(9, "ledger")
    }
}

fn done() -> MigrationView {
    let mut view = cases::done(1, "web-1");
    for phase in &mut view.cutover.as_mut().unwrap().phases {
        phase.outcome = Some(PhaseOutcome::from("done".to_owned()));
    }
    view
}

fn all(yesterday: DateTime<Utc>) -> Vec<MigrationView> {
    let mut paused = cases::synced(10, "paused");
    paused.state = State::Paused { from: ResumePoint::Seeding };
    paused.pass.as_mut().unwrap().started = yesterday;
    vec![
        done(),
        running(yesterday),
        begun(yesterday),
        empty(yesterday),
        waiting(yesterday),
        failed(yesterday),
        unreadable(),
        huge(yesterday),
        cutting_over(),
        paused,
    ]
}

async fn shown() -> Shown {
    let yesterday = yesterday();
    let endpoint = |name: &str, address: &str| EndpointInfo {
        name: name.to_owned(),
        kind: "libvirt".to_owned(),
        address: address.to_owned(),
    };
    let sources = vec![
        endpoint("old", "qemu:///system"),
        endpoint(
            "far",
            "qemu+ssh://warmd@hypervisor-0042.rack-17.datacentre-2.example.org:2222/system?keyfile=/etc/warmd/id",
        ),
    ];
    let mut vms = cases::vms();
    DATABASE.clone_into(&mut vms[0].name);
    LONG.clone_into(&mut vms[1].name);
    vms[1]
        .warnings
        .push("vdb is on /var/lib/libvirt/images, where 1 GiB is free: a snapshot needs 4 GiB".to_owned());
    let stale = Some("source old did not answer within 30 s".to_owned());
    let inventory = Inventory { vms, seen: yesterday, stale };
    let control = FakeControl::new(all(yesterday)).with_sources(sources, inventory);
    control.edit_journal(|lines| {
        let by = "operator uid=4294967294 pid=4194304".to_owned();
        let text =
            format!("cutover of {LONG} refused: the window Sat 22:00–Sun 04:00 Europe/Berlin opens in 3d 4h");
        lines.push(EventView { text, by, kind: EventKind::Warning, ..lines[1].clone() });
    });
    Shown { served: Served::start(control).await, yesterday }
}

#[tokio::test]
async fn endpoints_fit_the_screen() {
    let shown = shown().await;
    assert_snapshot!("source-list", shown.on_screens(&["source", "list"]).await);
    assert_snapshot!("source-list-json", shown.json(&["source", "list"]).await);
    assert_snapshot!("source-check", shown.on_screens(&["source", "check"]).await);
    assert_snapshot!("source-check-json", shown.json(&["source", "check"]).await);
    assert_snapshot!("source-vms", shown.on_screens(&["source", "vms", "old"]).await);
    assert_snapshot!("source-vms-json", shown.json(&["source", "vms", "old"]).await);
    assert_snapshot!("target-list", shown.on_screens(&["target", "list"]).await);
    assert_snapshot!("target-list-json", shown.json(&["target", "list"]).await);
    assert_snapshot!("target-check", shown.on_screens(&["target", "check"]).await);
    assert_snapshot!("target-check-json", shown.json(&["target", "check"]).await);
}

#[tokio::test]
async fn migrations_fit_the_screen() {
    let shown = shown().await;
    assert_snapshot!("migration-list", shown.on_screens(&["migration", "list"]).await);
    assert_snapshot!("migration-list-json", shown.json(&["migration", "list"]).await);
}

/// A migration by the end of its id.
async fn show(shown: &Shown, number: &str, more: &[&str]) -> String {
    shown.on_screens(&[&["migration", "show", number], more].concat()).await
}

#[tokio::test]
async fn a_migration_opens_with_what_an_operator_needs() {
    let shown = shown().await;
    assert_snapshot!("migration-show-running", show(&shown, "00000002", &[]).await);
    assert_snapshot!("migration-show-stages", show(&shown, "00000002", &["--stages"]).await);
    assert_snapshot!("migration-show-begun", show(&shown, "00000003", &[]).await);
    assert_snapshot!("migration-show-empty", show(&shown, "00000004", &["--stages"]).await);
    assert_snapshot!("migration-show-waiting", show(&shown, "00000005", &[]).await);
    assert_snapshot!("migration-show-failed", show(&shown, "00000006", &[]).await);
    assert_snapshot!("migration-show-unreadable", show(&shown, "00000007", &[]).await);
    assert_snapshot!("migration-show-huge", show(&shown, "00000008", &[]).await);
    assert_snapshot!("migration-show-cutting-over", show(&shown, "00000009", &[]).await);
    assert_snapshot!("migration-show-done", show(&shown, "00000001", &[]).await);
    assert_snapshot!("migration-show-json", shown.json(&["migration", "show", "00000002"]).await);
    let stages = shown.json(&["migration", "show", "00000002", "--stages"]).await;
    assert_eq!(stages, shown.json(&["migration", "show", "00000002"]).await, "JSON always has the stages");
}

#[tokio::test]
async fn the_journal_fits_the_screen() {
    let shown = shown().await;
    assert_snapshot!("events", shown.on_screens(&["events"]).await);
    assert_snapshot!("events-json", shown.json(&["events"]).await);
}

#[tokio::test]
async fn limits_fit_the_screen() {
    let shown = shown().await;
    assert_snapshot!("limit-show", shown.on_screens(&["limit", "show"]).await);
    assert_snapshot!("limit-show-json", shown.json(&["limit", "show"]).await);
    assert_snapshot!("limit-quotas", shown.on_screens(&["limit", "quotas"]).await);
    assert_snapshot!("limit-quotas-json", shown.json(&["limit", "quotas"]).await);
    let set = ["limit", "set", "target/new", "--rate", "10MiB/s"];
    assert_snapshot!("limit-set", shown.output(&set, None).await);
    assert_snapshot!("limit-set-json", shown.json(&set).await);
}

#[tokio::test]
async fn roles_fit_the_screen() {
    let shown = shown().await;
    assert_snapshot!("access-list-none", shown.output(&["access", "list"], None).await);
    let long = format!("cert:{}", "team-".repeat(12));
    for args in [
        &["access", "grant", "anna", "--role", "operator"][..],
        &["access", "grant", &long, "--role", "planner", "--plans", "web-*", "--plans", "shop-*"],
    ] {
        shown.output(args, None).await;
    }
    assert_snapshot!("access-list", shown.on_screens(&["access", "list"]).await);
    assert_snapshot!("access-list-json", shown.json(&["access", "list"]).await);
    let mut changes = String::new();
    for args in [
        &["access", "grant", "group:ops", "--role", "viewer"][..],
        &["access", "revoke", "group:ops"],
        &["access", "revoke", "group:ops"],
        &["access", "grant", "anna", "--role", "boss"],
        &["access", "grant", "two words", "--role", "viewer"],
    ] {
        write!(changes, "==== {args:?}\n{}", shown.output(args, None).await).unwrap();
    }
    assert_snapshot!("access-changes", changes);
}

#[tokio::test]
async fn plans_fit_the_screen() {
    let shown = shown().await;
    let write = |name: &str, text: String| {
        let path = shown.served.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plan = write("plan.toml", cases::PLAN.replace("\"web-2\"", "\"old-db\""));
    let wrong = write("wrong.toml", cases::PLAN.replace("vms = [", "vms = [\"web-1\", "));
    assert_snapshot!("plan-list", shown.on_screens(&["plan", "list"]).await);
    assert_snapshot!("plan-list-json", shown.json(&["plan", "list"]).await);
    assert_snapshot!("plan-validate", shown.on_screens(&["plan", "validate", "-f", &plan]).await);
    assert_snapshot!("plan-validate-json", shown.json(&["plan", "validate", "-f", &plan]).await);
    assert_snapshot!("plan-validate-wrong", shown.output(&["plan", "validate", "-f", &wrong], None).await);
    assert_snapshot!("plan-validate-wrong-json", shown.json(&["plan", "validate", "-f", &wrong]).await);
    assert_snapshot!("plan-dry-run", shown.output(&["plan", "apply", "--dry-run", "-f", &plan], None).await);
    assert_snapshot!("plan-dry-run-json", shown.json(&["plan", "apply", "--dry-run", "-f", &plan]).await);
    assert_snapshot!("plan-apply", shown.output(&["plan", "apply", "-f", &plan], None).await);
    assert_snapshot!("plan-apply-json", shown.json(&["plan", "apply", "-f", &plan]).await);
    let new = ["plan", "new", "--source", "old", "--vms", "*"];
    assert_snapshot!("plan-new", shown.output(&new, None).await);
    assert_snapshot!("plan-delete-refused", shown.output(&["plan", "delete", "web"], None).await);
    let explain = ["schedule", "explain", "web", "--count", "3"];
    assert_snapshot!("schedule-explain", shown.output(&explain, None).await);
    assert_snapshot!("schedule-explain-json", shown.json(&explain).await);

    let grouped =
        format!("{}\n[[cutover.tiers]]\nvms = [\"web-1\"]\n[[cutover.tiers]]\nvms = [\"*\"]\n", cases::PLAN);
    let grouped = write("grouped.toml", grouped);
    shown.output(&["plan", "apply", "-f", &grouped], None).await;
    assert_snapshot!("group-begun", shown.output(&["plan", "cutover", "web", "--no-wait"], None).await);
    assert_snapshot!("group-failed", shown.output(&["plan", "cutover", "web"], None).await);
    assert_snapshot!("group-show", shown.output(&["plan", "show", "web"], None).await);
    assert_snapshot!("group-failed-json", shown.json(&["plan", "cutover", "web"]).await);
}

#[tokio::test]
async fn a_cutover_that_is_followed_says_each_phase() {
    let cutting = |phases: &[Phase]| MigrationView {
        state: State::CuttingOver { phase: *phases.last().unwrap() },
        cutover: Some(cases::cutover(phases, true)),
        ..cases::synced(1, "web-1")
    };
    let verify = |total, checked| MigrationView {
        verification: Some(VerificationView { total, checked, ..cases::verification(None) }),
        ..cutting(&Phase::ALL[..4])
    };
    // Progress within a stage is printed at most once a second; without any, a busy machine prints the same.
    let steps = vec![cutting(&Phase::ALL[..1]), cutting(&Phase::ALL[..2]), verify(0, 0), done()];
    let control = FakeControl::new([cases::synced(1, "web-1")]).script(&Request::cutover(), steps);
    let shown = Shown { served: Served::start(control).await, yesterday: yesterday() };
    assert_snapshot!("cutover-followed", shown.output(&["migration", "cutover", "web-1"], None).await);
    assert_snapshot!("cutover-followed-json", shown.json(&["migration", "cutover", "00000001"]).await);
}

#[tokio::test]
async fn requests_are_answered_in_a_line() {
    let control = FakeControl::new([cases::synced(1, "web-1"), cases::synced(2, "web-2")]);
    let shown = Shown { served: Served::start(control).await, yesterday: yesterday() };
    let mut all = String::new();
    for args in [
        &["migration", "pause", "web-1"][..],
        &["migration", "resume", "web-1"],
        &["migration", "sync", "web-1", "--no-wait"],
        &["migration", "verify", "web-1", "--no-wait"],
        &["migration", "cutover", "web-1", "--hold"],
        &["migration", "cutover", "web-1", "--unhold"],
        &["migration", "cutover", "web-1", "--abort", "--no-wait"],
        &["migration", "rollback", "web-1"],
        &["migration", "rollback", "web-1", "--yes"],
        &["migration", "cancel", "web-1", "--no-wait"],
        &["migration", "show", "nobody"],
        &["plan", "cutover", "web", "--hold"],
        &["top"],
        &["report", "key"],
    ] {
        write!(all, "$ warmctl {}\n{}", args.join(" "), shown.output(args, None).await).unwrap();
    }
    assert_snapshot!("requests", all);
}

#[tokio::test]
async fn a_report_is_checked_without_a_daemon() {
    let control = FakeControl::new([cases::synced(1, "web-1")]);
    let shown = Shown { served: Served::start(control).await, yesterday: yesterday() };
    let base = shown.served.dir.path().join("web");
    let base = base.to_str().unwrap();
    assert_snapshot!(
        "report-save",
        shown.output(&["migration", "report", "web-1", "--save", base], None).await
    );
    let file = format!("{base}.json");
    let key = cases::report_key().public().to_string();
    assert_snapshot!("report-verify", shown.output(&["report", "verify", &file], Some(80)).await);
    assert_snapshot!(
        "report-verify-key",
        shown.output(&["report", "verify", &file, "--key", &key], None).await
    );
    assert_snapshot!("report-verify-json", shown.json(&["report", "verify", &file]).await);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("web-1", "web-2")).unwrap();
    assert_snapshot!("report-verify-changed", shown.output(&["report", "verify", &file], None).await);
}

#[tokio::test]
async fn every_command_has_help() {
    let mut all = String::new();
    for command in [
        "",
        "source",
        "source list",
        "source check",
        "source vms",
        "target",
        "target list",
        "target check",
        "plan",
        "plan apply",
        "plan new",
        "plan list",
        "plan show",
        "plan cutover",
        "plan validate",
        "plan delete",
        "schedule",
        "schedule explain",
        "migration",
        "migration list",
        "migration show",
        "migration watch",
        "migration sync",
        "migration pause",
        "migration resume",
        "migration cutover",
        "migration rollback",
        "migration cancel",
        "migration verify",
        "migration report",
        "top",
        "limit",
        "limit show",
        "limit set",
        "limit quotas",
        "access",
        "access list",
        "access grant",
        "access revoke",
        "context",
        "context list",
        "context add",
        "context use",
        "context remove",
        "report",
        "report verify",
        "report key",
        "events",
        "completions",
    ] {
        let args: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        // Not the test's own socket, whose path is long or short.
        let mut ctl = warmctl("/run/warmd/warmd.sock".as_ref());
        ctl.args(&args).env("COLUMNS", "100");
        let told = run(ctl, "").await;
        let told = told.out(0);
        write!(all, "==== warmctl {}\n{told}\n", args.join(" ")).unwrap();
    }
    assert_snapshot!("help", all);
}
