//! `warmctl`'s tables, as users read them, and its exit codes.

mod api_common;

use api_common::{
    cases,
    fake_control::FakeControl,
    served::{Served, run, warmctl},
};
use warmd_core::model::{
    forecast::{ForecastRange, ForecastView},
    scheduled_cutover::CutoverTime,
    state::{ResumePoint, State},
    view::MigrationView,
};

async fn served() -> Served {
    let mut failed = cases::synced(3, "db");
    failed.state = State::Failed {
        reason: "no room on new: 12 GiB are missing".to_owned(),
        resumable: true,
        from: ResumePoint::Synced,
    };
    failed.downtime_forecast = None;
    failed.next_pass = None;
    Served::start(FakeControl::new([cases::synced(1, "web-1"), cases::syncing(2, "web-2"), failed])).await
}

#[tokio::test]
async fn endpoints() {
    let served = served().await;
    assert_eq!(
        served.warmctl(&["source", "list"]).await.out(0),
        "\
NAME  KIND     ADDRESS
old   libvirt  qemu:///system
far   libvirt  qemu+ssh://far/system
"
    );
    assert_eq!(
        served.warmctl(&["target", "list"]).await.out(0),
        "NAME  KIND  ADDRESS\nnew   disk  /srv/vms\n"
    );
    let vms = served.warmctl(&["source", "vms", "old"]).await;
    let vms = vms.out(0);
    assert!(
        vms.starts_with(
            "\
NAME    POWER    DISKS      SIZE  TRACKED  SNAPSHOTS  ID                                    WARNINGS
web-1   running      2  42.0 GiB        2          0  6c9f5b7e-0000-4000-8000-000000000001  -
old-db  paused       1   100 GiB        0          3  6c9f5b7e-0000-4000-8000-000000000002  vda is raw: its changes are not tracked over a restart
as of 2026-11-22 10:00:00 UTC, "
        ),
        "{vms}"
    );
    assert!(vms.ends_with(" ago (--refresh asks again); it was not refreshed: it did not answer\n"), "{vms}");
    let again = served.warmctl(&["source", "vms", "old", "--refresh"]).await;
    assert!(again.out(0).ends_with(" ago (--refresh asks again)\n"), "{again:?}");
    for (filter, seen) in [
        (&["--name", "web-*"][..], &["web-1"][..]),
        (&["--name", "old-db"], &["old-db"]),
        (&["--name", "web"], &[]),
        (&["--state", "running"], &["web-1"]),
        (&["--state", "off"], &[]),
        (&["--tracking", "all"], &["web-1"]),
        (&["--tracking", "none"], &["old-db"]),
        (&["--tracking", "some"], &[]),
        (&["--tracking", "none", "--state", "running"], &[]),
    ] {
        let told = served.warmctl(&[&["-o", "json", "source", "vms", "old"], filter].concat()).await.json(0);
        let names: Vec<_> =
            told["vms"].as_array().unwrap().iter().filter_map(|vm| vm["name"].as_str()).collect();
        assert_eq!(names, seen, "{filter:?}");
    }
}

#[tokio::test]
async fn a_check_fails_if_one_endpoint_does() {
    let served = served().await;
    assert_eq!(
        served.warmctl(&["source", "check"]).await.out(1),
        "\
NAME  RESULT  WHAT IT SAYS
old   ok      libvirt 9.0.0, QEMU 7.2.0
far   FAILED  source far does not answer: start libvirtd there
"
    );
    assert!(served.warmctl(&["source", "check", "old"]).await.out(0).contains("old   ok"));
    assert!(served.warmctl(&["target", "check"]).await.out(0).contains("new   ok      directory"));
    let nowhere = served.warmctl(&["source", "check", "nowhere"]).await;
    assert_eq!(nowhere.err(4), "warmctl: no source \"nowhere\"; there are: old, far\n");
    // The daemon is there, the endpoint is not: that is no unreachable daemon.
    let far = served.warmctl(&["source", "vms", "far"]).await;
    assert_eq!(far.err(1), "warmctl: source far does not answer: start libvirtd there\n");
}

#[tokio::test]
async fn limits() {
    let served = served().await;
    assert_eq!(
        served.warmctl(&["limit", "show"]).await.out(0),
        "\
SCOPE                       VM         RATE  REQUESTS         NOW  IN FLIGHT  WAITING  SET BY (UTC)
global                      -      200MiB/s       256  50.2 MiB/s          4        1  -
source/old                  -          none      none  50.2 MiB/s          4        1  -
target/new                  -          none         8       0 B/s          0        0  -
migration/5eed00000002      web-2   50MiB/s      none  50.2 MiB/s          4        1  operator uid=0 pid=42, 2026-11-22 10:00:05
migration/5eed00000002/vda  web-2      none         4  50.2 MiB/s          4        1  -
"
    );
    let set = |change: &[&str]| {
        let args: Vec<_> = ["limit", "set", "target/new"].into_iter().chain(change.iter().copied()).collect();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let served = &served;
        async move { served.warmctl(&args.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let row =
        |out: &str| out.lines().nth(1).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let told = row(set(&["--rate", "10MiB/s"]).await.out(0));
    assert!(
        told.starts_with("target/new - 10MiB/s 8 0 B/s 0 0 operator uid="),
        "what is not given stays: {told}"
    );
    let told = row(set(&["--requests", "none", "--rate", "64KiB/s"]).await.out(0));
    assert!(told.starts_with("target/new - 64KiB/s none "), "{told}");
    assert_eq!(row(set(&["--reset"]).await.out(0)), "target/new - none 8 0 B/s 0 0 -");
    for (change, wanted) in [
        (&[][..], "required arguments were not provided"),
        (&["--rate", "10MB/s"], "\"10MB/s\" is no rate such as \"200MiB/s\""),
        (&["--rate", "0B/s"], "would stop everything"),
        (&["--rate", "1KiB/s"], "at least 64KiB/s"),
        (&["--requests", "0"], "would stop everything"),
        (&["--requests", "many"], "\"many\" is no number of requests"),
        (&["--reset", "--requests", "1"], "cannot be used with"),
    ] {
        let said = set(change).await;
        let told = said.err(2);
        assert!(told.contains(wanted), "{change:?}: {told}");
    }
    assert_eq!(served.warmctl(&["limit", "show", "source/x"]).await.out(0).lines().count(), 1);
    let help = served.warmctl(&["limit", "set", "--help"]).await;
    assert!(help.out(0).contains("the last word counts"), "{help:?}");
}

#[tokio::test]
async fn quotas() {
    let served = served().await;
    assert_eq!(
        served.warmctl(&["limit", "quotas"]).await.out(0),
        "\
SCOPE               RATE         NOW  PASSES  SNAPSHOTS   DISKS  WAITING  NEXT CHANGE (UTC)    HOLDS
global          200MiB/s  50.2 MiB/s  2 of 2          2       5        3  -                    always
datastore//srv      none  50.2 MiB/s       2          2  5 of 6        0  2026-11-22 18:00:00  window daily 08:00–18:00 UTC
"
    );
    assert_eq!(served.warmctl(&["limit", "quotas", "datastore//srv"]).await.out(0).lines().count(), 2);
    let help = served.warmctl(&["limit", "quotas", "--help"]).await;
    assert!(help.out(0).contains("cutovers go first"), "{help:?}");
}

#[tokio::test]
async fn plans() {
    let served = served().await;
    let file = served.dir.path().join("plan.toml");
    std::fs::write(&file, cases::PLAN.replace("web-2", "web-9")).unwrap();
    let path = file.to_str().unwrap();

    assert_eq!(
        served.warmctl(&["plan", "list"]).await.out(0),
        "\
NAME  SOURCE  TARGET  VMS  INTERVAL  VERIFY
web   old     new       2       15m  readback
"
    );
    let valid = served.warmctl(&["plan", "validate", "-f", path]).await;
    assert_eq!(valid.out(0), "plan web: nothing is wrong with it\n");
    assert_eq!(
        served.warmctl(&["plan", "apply", "-f", path]).await.out(0),
        "\
plan web: 1 migration started, 1 unchanged
  kept     019351aa-0000-7000-8000-5eed00000001  VM web-1, synced
  started  019351aa-0000-7000-8000-5eed00000004  VM web-9, to new as web-9
"
    );
    let dry = served.warmctl(&["plan", "apply", "--dry-run", "-f", path]).await;
    assert_eq!(
        dry.out(0),
        "\
plan web, not applied: 2 migrations would be started, 0 unchanged
  setting  schedule.every was \"15m\" and is \"5m\"
  start    VM web-1, to new as web-1
  start    VM web-9, to new as web-9
"
    );
    // The printed plan can be applied as it is.
    let shown = served.warmctl(&["plan", "show", "web"]).await.out(0).to_owned();
    let again = run(served.command(&["plan", "apply", "-f", "-"]), &shown).await;
    assert!(again.out(0).starts_with("plan web: 0 migrations started, 2 unchanged\n"));

    let deleted = served.warmctl(&["plan", "delete", "web"]).await;
    assert_eq!(deleted.err(5), "warmctl: plan web has migrations under way: cancel them first\n");
    assert!(served.warmctl(&["plan", "show", "none"]).await.err(4).contains("no plan \"none\""));
}

#[tokio::test]
async fn a_plan_without_migrations_is_forgotten() {
    let served = Served::start(FakeControl::new([])).await;
    assert_eq!(served.warmctl(&["plan", "delete", "web"]).await.out(0), "plan web is deleted\n");
    assert_eq!(served.warmctl(&["plan", "delete", "web"]).await.code, Some(4));
}

#[tokio::test]
async fn a_dry_run_of_a_plan_that_would_be_refused_says_so() {
    let served = served().await;
    let file = served.dir.path().join("plan.toml");
    std::fs::write(&file, cases::PLAN.replace("vms = [", "vms = [\"web-1\", ")).unwrap();
    let path = file.to_str().unwrap();
    let ran = served.warmctl(&["plan", "apply", "--dry-run", "-o", "json", "-f", path]).await;
    let told = ran.json(5);
    assert_eq!((&told["dry_run"], &told["findings"][0]["rule"]), (&true.into(), &"plan-wrong".into()));
    assert_eq!(told["changes"][0]["kind"], "setting");
}

#[tokio::test]
async fn a_wrong_plan_is_refused_with_file_line_and_column() {
    let served = served().await;
    let file = served.dir.path().join("plan.toml");
    let path = file.to_str().unwrap();
    for command in ["apply", "validate"] {
        std::fs::write(&file, "name = \"x\"\nsource = \"old\"\n  bogus = 1\n").unwrap();
        let ran = served.warmctl(&["plan", command, "-f", path]).await;
        let expected = format!("warmctl: {path}:3:3: unknown key `bogus`");
        assert!(ran.err(5).starts_with(&expected), "{ran:#?}");

        std::fs::write(&file, cases::PLAN.replace("[vm.web-1]", "schedule.interval = \"soon\"\n[vm.web-1]"))
            .unwrap();
        let ran = served.warmctl(&["plan", command, "-f", path]).await;
        assert!(ran.err(5).contains(":6:21: "), "{ran:#?}");
    }

    std::fs::write(&file, cases::PLAN.replace("\"web-1\", ", "")).unwrap();
    let ran = served.warmctl(&["plan", "apply", "-f", path]).await;
    assert!(ran.err(5).starts_with(&format!("warmctl: {path}:6:5: `[vm.\"web-1\"]` is no VM")), "{ran:#?}");
}

#[tokio::test]
async fn a_new_plan_is_printed_that_is_valid() {
    let served = served().await;
    let new = |more: &'static [&'static str]| {
        let served = &served;
        async move { served.warmctl(&[&["plan", "new", "--source", "old"], more].concat()).await }
    };
    let ran = new(&["--vms", "web-*", "old-db", "--name", "wave"]).await;
    let printed = ran.out(0).to_owned();
    for line in [
        "# 2 VMs, 142 GiB. Check it",
        "name = \"wave\"\nsource = \"old\"\ntarget = \"new\"\n",
        "    \"old-db\",  # paused, 1 disk, 100 GiB, 0 tracked\n    #   vda is raw",
        "    \"web-1\",  # running, 2 disks, 42.0 GiB, tracked\n",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    let valid = run(served.command(&["plan", "validate", "-f", "-"]), &printed).await;
    assert!(valid.out(0).contains("plan wave: it can be applied, with 1 warning"), "{valid:?}");
    assert!(new(&["--vms", "*", "!old-*"]).await.out(0).contains("# 1 VM, 42.0 GiB"));
    for (vms, wanted) in [
        (&["--vms", "app-*"][..], "source old has nothing for \"app-*\""),
        (&["--vms", "web-1", "app"], "nothing for \"app\""),
        (&["--vms", "*", "!*"], "a VM that is not left out"),
        (&["--vms", "*", "--target", "x"], "no target \"x\"; there are: new"),
    ] {
        let ran = new(vms).await;
        assert!(ran.err(4).contains(wanted), "{vms:?}: {ran:?}");
    }
}

#[tokio::test]
async fn what_the_daemon_finds_is_a_table() {
    let served = served().await;
    let file = served.dir.path().join("plan.toml");
    std::fs::write(&file, cases::PLAN.replace("\"web-2\"", "\"old-db\"")).unwrap();
    let ran = served.warmctl(&["plan", "validate", "-f", file.to_str().unwrap()]).await;
    assert_eq!(
        ran.out(0),
        "\
SEVERITY  RULE                  SUBJECT  FOUND                                                   WHAT TO DO
warning   tracking-unavailable  old-db   a raw disk is compared whole after a restart of the VM  convert it to qcow2
plan web: it can be applied, with 1 warning
"
    );
    std::fs::write(&file, cases::PLAN.replace("\"old\"", "\"nowhere\"")).unwrap();
    let ran = served.warmctl(&["plan", "apply", "-f", file.to_str().unwrap()]).await;
    assert!(ran.err(4).contains("no source \"nowhere\"; there are: old, far"), "{ran:#?}");
}

#[tokio::test]
async fn a_cutover_for_later_is_not_followed_and_is_shown() {
    let served = served().await;
    let cutover = |args: &'static [&'static str]| {
        let served = &served;
        async move { served.warmctl(&[&["migration", "cutover", "web-1"], args].concat()).await }
    };
    let said = cutover(&["--at", "2099-11-28 22:00 Europe/Berlin"]).await;
    let wanted =
        "cutover of web-1 (5eed00000001): accepted; at 2099-11-28 21:00:00 (UTC): asked for by operator uid=";
    assert!(said.out(0).starts_with(wanted), "{said:?}");
    let list = served.warmctl(&["migration", "list"]).await;
    assert!(list.out(0).contains("2026-11-22 10:16:00  2099-11-28 21:00:00\n"), "{list:?}");
    let show = served.warmctl(&["migration", "show", "web-1"]).await;
    assert!(show.out(0).contains("\nCutover:           at 2099-11-28 21:00:00 (UTC): asked"), "{show:?}");
    let said = cutover(&["--hold"]).await;
    assert!(said.out(0).ends_with(": accepted; on hold: put on hold by a person\n"), "{said:?}");
    let json = served.warmctl(&["-o", "json", "migration", "show", "web-1"]).await;
    let json: serde_json::Value = serde_json::from_str(json.out(0)).unwrap();
    assert_eq!(json["scheduled_cutover"]["mode"], "on-hold");
    let list = served.warmctl(&["migration", "list"]).await;
    assert!(list.out(0).contains("2026-11-22 10:16:00  on hold\n"), "{list:?}");
    let said = cutover(&["--unhold"]).await;
    assert!(said.out(0).ends_with(": accepted; no cutover is scheduled\n"), "{said:?}");
    assert!(cutover(&["--force", "--no-wait"]).await.out(0).contains("cutover of web-1"));
    let orders: Vec<_> = served.control.cutovers().iter().map(|order| (order.when, order.force)).collect();
    let at = "2099-11-28T21:00:00Z".parse().unwrap();
    let wanted = [
        (CutoverTime::At(at), false),
        (CutoverTime::Hold, false),
        (CutoverTime::Unhold, false),
        (CutoverTime::Now, true),
    ];
    assert_eq!(orders, wanted);
    for wrong in [&["--hold", "--at", "22:00"][..], &["--force", "--hold"], &["--abort", "--unhold"]] {
        let said = served.warmctl(&[&["migration", "cutover", "web-1"], wrong].concat()).await;
        assert!(said.err(2).contains("cannot be used with"), "{said:?}");
    }
    assert!(cutover(&["--at", "soon"]).await.err(5).contains("write it like"));
}

#[tokio::test]
async fn a_schedule_is_explained_in_words() {
    let served = served().await;
    let file = served.dir.path().join("plan.toml");
    let schedule = "[schedule]\nzone = \"Europe/Berlin\"\nevery = \"1h\"\n[schedule.copy]\nwindows = [\"daily 22:00–05:00\"]\n";
    std::fs::write(&file, format!("{}{schedule}", cases::PLAN)).unwrap();
    let told = served.warmctl(&["schedule", "explain", "-f", file.to_str().unwrap(), "--count", "4"]).await;
    assert_eq!(
        told.out(0),
        "\
for a migration that has just begun, in Europe/Berlin:
2026-11-22 11:00 CET  pass blocked     blocked until 2026-11-22 22:00 CET, because no window is open
2026-11-22 22:00 CET  pass allowed     window daily 22:00–05:00 Europe/Berlin is open, until 2026-11-23 05:00 CET
2026-11-22 22:00 CET  pass starts      no pass has run yet
2026-11-22 23:00 CET  pass starts      every 1h
"
    );
    let told = served.warmctl(&["schedule", "explain", "web", "--migration", "web-2"]).await;
    assert!(told.out(0).starts_with("for web-2 (5eed00000002), in UTC:\n"), "{told:?}");
    let own = "[vm.\"web-1\".schedule]\nevery = \"6h\"\n[vm.\"web-1\".schedule.copy]\nwindows = []\n";
    std::fs::write(&file, format!("{}{schedule}{own}", cases::PLAN)).unwrap();
    let explain = ["schedule", "explain", "-f", file.to_str().unwrap(), "--vm", "web-1", "--count", "3"];
    assert_eq!(
        served.warmctl(&explain).await.out(0),
        "\
for web-1, as if its migration had just begun, in Europe/Berlin:
2026-11-22 11:00 CET  pass allowed     no window or blackout forbids it
2026-11-22 11:00 CET  pass starts      no pass has run yet
2026-11-22 17:00 CET  pass starts      every 6h
"
    );
    let both = served.warmctl(&["schedule", "explain", "web", "--vm", "web-1", "--migration", "web-1"]).await;
    assert!(both.err(2).contains("cannot be used with"), "{both:?}");
    let json = served.warmctl(&["-o", "json", "schedule", "explain", "web"]).await;
    let json: serde_json::Value = serde_json::from_str(json.out(0)).unwrap();
    assert_eq!((&json["zone"], &json["decisions"][0]["kind"]), (&"UTC".into(), &"pass-allowed".into()));
    assert!(served.warmctl(&["schedule", "explain", "none"]).await.err(4).contains("no plan \"none\""));
    assert!(served.warmctl(&["schedule", "explain"]).await.err(2).contains("required arguments"));
}

#[tokio::test]
async fn what_is_no_plan_file_is_a_usage_error() {
    let served = served().await;
    let file = served.dir.path().join("plan.toml");
    let path = file.to_str().unwrap();
    assert!(served.warmctl(&["plan", "apply", "-f", path]).await.err(2).contains("cannot read the plan"));
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(served.warmctl(&["plan", "apply", "-f", path]).await.err(2).contains("cannot read the plan"));
    std::fs::write(&file, "#".repeat(2 << 20)).unwrap();
    assert!(served.warmctl(&["plan", "apply", "-f", path]).await.err(2).contains("larger than 1 MiB"));
}

#[tokio::test]
async fn migrations() {
    let served = served().await;
    assert_eq!(
        served.warmctl(&["migration", "list"]).await.out(0),
        "\
ID            VM     PLAN  STATE                  SIZE  PENDING      PASS  FORECAST  NEXT PASS (UTC)      CUTOVER (UTC)
5eed00000001  web-1  web   synced             42.0 GiB      0 B         2      13 s  2026-11-22 10:16:00  -
5eed00000002  web-2  web   syncing            42.0 GiB  600 MiB  3 (94 %)      13 s  -                    -
5eed00000003  db     web   failed, resumable  42.0 GiB      0 B         2         -  -                    -
"
    );
    assert_eq!(served.warmctl(&["migration", "list", "--plan", "none"]).await.out(0).lines().count(), 1);
    // cli_snapshots.rs has all of `migration show`.
    // Its last pass was of a warmd that did not measure yet.
    let older = served.warmctl(&["migration", "show", "web-1"]).await;
    assert!(older.out(0).contains("PASS 2") && !older.out(0).contains("STAGES"), "{older:#?}");
    let older = served.warmctl(&["migration", "show", "web-1", "--stages"]).await;
    assert!(older.out(0).contains("\nno stages: this pass was not measured\n"), "{older:#?}");
    let failed = served.warmctl(&["migration", "show", "0003"]).await;
    assert!(failed.out(0).contains("\nReason:            no room on new: 12 GiB are missing\n"));
    let nobody = served.warmctl(&["migration", "show", "nobody"]).await;
    assert_eq!(nobody.err(4), "warmctl: no migration \"nobody\"; see `migration list`\n");
}

#[tokio::test]
async fn pause_and_resume() {
    let served = served().await;
    let paused = served.warmctl(&["migration", "pause", "web-1"]).await;
    assert_eq!(paused.out(0), "pause of web-1 (5eed00000001): accepted\n");
    let resumed = served.warmctl(&["migration", "resume", "web-1"]).await;
    assert_eq!(resumed.out(0), "resume of web-1 (5eed00000001): no change\n");
    let refused = served.warmctl(&["migration", "pause", "db"]).await;
    assert!(refused.err(5).contains("it stands still already; resume or cancel it"));
}

#[tokio::test]
async fn the_journal_and_the_report() {
    let served = served().await;
    assert_eq!(
        served.warmctl(&["events", "--limit", "3"]).await.out(0),
        "\
AT (UTC)             MIGRATION     BY                       KIND     WHAT
2026-11-22 10:00:01  5eed00000001  operator uid=0 pid=4711  request  plan web applied
2026-11-22 10:00:40  5eed00000001  warmd                    pass     pass 1 (full) ended
2026-11-22 10:01:00  5eed00000002  schedule                 state    synced
"
    );
    assert_eq!(served.warmctl(&["events", "web-1"]).await.out(0).lines().count(), 3);
    assert_eq!(served.warmctl(&["events", "nobody"]).await.code, Some(4));

    let report = served.warmctl(&["migration", "report", "web-1"]).await.out(0).to_owned();
    for line in [
        "# Migration of web-1",
        "| Result | passed (readback, 42.0 GiB compared) |",
        "| 2 delta | `vda` | 2026-11-22 10:00:40 | 10 s | 1.17 GiB | 321 | 1.17 GiB | 600 MiB | 300 MiB | 300 MiB | 120 MiB/s |  |",
        "| 3 delta | `vda` | 200 MiB/s | 30.0 ms / 83.0 ms / 120 ms | - | - | 50.0 ms | 16, 0 | the source is the bottleneck: the pass waited 80 % of its time for reads |",
        "| stop-source | 2026-11-22 10:16:44.000 | 2.0 s |  |",
        "Downtime, from the source stopped to the target running: **14 s** (14.250 s).",
        "| Network | `52:54:00:12:34:56` virtio on prod\\|blue |",
        "| 2026-11-22 10:00:01 | operator uid=0 pid=4711 | request | plan web applied |",
    ] {
        assert!(report.lines().any(|have| have == line), "{line}\nis not in\n{report}");
    }
}

#[tokio::test]
async fn no_daemon_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("warmd.sock");
    let command = || {
        let mut command = warmctl(&socket);
        command.args(["migration", "list"]);
        command
    };
    let ran = run(command(), "").await;
    let expected = format!(
        "warmctl: no daemon: there is no socket {}. Start `warmd serve`, or name its socket with --socket or \
         WARMD_SOCKET\n",
        socket.display()
    );
    assert_eq!(ran.err(3), expected);

    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let ran = run(command(), "").await;
    assert!(ran.err(3).contains("no process listens on"), "{ran:#?}");
}

#[tokio::test]
async fn usage_errors_and_help() {
    let served = served().await;
    assert_eq!(served.warmctl(&["bogus"]).await.code, Some(2));
    assert_eq!(served.warmctl(&["events", "--limit", "0"]).await.code, Some(2));
    let help = served.warmctl(&["--help"]).await;
    for word in ["Exit codes:", "cutting-over", "WARMD_SOCKET"] {
        assert!(help.out(0).contains(word), "{word}");
    }
}

#[tokio::test]
async fn completions_need_no_daemon() {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = warmctl("/nonexistent".as_ref());
        command.args(["completions", shell]);
        assert!(run(command, "").await.out(0).contains("cutover"), "{shell}");
    }
}

#[tokio::test]
async fn a_closed_pipe_is_no_error() {
    let served = served().await;
    for args in [&["migration", "list"][..], &["migration", "report", "web-1"], &["--help"]] {
        let mut command = served.command(args);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer);
        let ran = run(command, "").await;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[tokio::test]
async fn outside_text_cannot_steer_the_terminal() {
    let mut view = cases::synced(1, "web-1");
    view.warnings = vec!["evil \u{1b}[2J\nline".to_owned()];
    let served = Served::start(FakeControl::new([view])).await;
    let shown = served.warmctl(&["migration", "show", "web-1"]).await;
    assert!(shown.out(0).ends_with("WARNINGS\n- evil  [2J line\n"), "{shown:#?}");
}

/// With a forecast of a cutover in a window, and the reasons against it.
#[expect(clippy::expect_used, reason = "the test's own time")]
fn foretold(against: &[&str]) -> MigrationView {
    let range = |low, expected, high| ForecastRange { low, expected, high };
    let forecast = ForecastView {
        at: "2026-11-28T21:00:00Z".parse().expect("a time"),
        final_delta: range(1024.0 * 1024.0, 4.0 * 1024.0 * 1024.0, 16.0 * 1024.0 * 1024.0),
        downtime: range(8.0, 12.5, 75.0),
        against: against.iter().map(|why| (*why).to_owned()).collect(),
        remarks: vec!["never measured, so taken from the plan: boot".to_owned()],
        converges: true,
        convergence: "the guest changes 1.0 MiB/s, passes copy 80 MiB/s: deltas shrink, to passes of 2s"
            .to_owned(),
    };
    MigrationView { forecast: Some(forecast), ..cases::synced(1, "web-1") }
}

#[tokio::test]
async fn a_forecast_and_what_speaks_against_a_cutover() {
    let against = "downtime of about 12s (8s to 1m 15s) exceeds the 30s allowed";
    let served = Served::start(FakeControl::new([foretold(&[against])])).await;
    let shown = served.warmctl(&["migration", "show", "web-1"]).await;
    let shown = shown.out(0);
    let line = |name: &str| {
        let found = shown.lines().find(|line| line.starts_with(name));
        found
            .unwrap_or_else(|| panic!("no {name:?} in {shown}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        line("Downtime"),
        "Downtime: about 13 s (8.0 s to 1m 15s in nine of ten), from 2026-11-28 21:00:00 (UTC)"
    );
    assert_eq!(line("Final delta"), "Final delta: about 4.00 MiB (1.00 MiB to 16.0 MiB in nine of ten)");
    assert!(line("Passes").contains("deltas shrink, to passes of 2s"));
    assert_eq!(line("AGAINST A CUTOVER"), format!("AGAINST A CUTOVER: {against}"));
    assert_eq!(line("Remark"), "Remark: never measured, so taken from the plan: boot");
    assert!(!shown.contains("if cut over now"));
    assert!(served.warmctl(&["migration", "list"]).await.out(0).contains("13 s"));

    let served = Served::start(FakeControl::new([foretold(&[])])).await;
    assert!(!served.warmctl(&["migration", "show", "web-1"]).await.out(0).contains("AGAINST"));
    // Before a delta was measured there is only the point, or nothing.
    let served = Served::start(FakeControl::new([cases::synced(1, "web-1")])).await;
    let shown = served.warmctl(&["migration", "show", "web-1"]).await;
    let shown = shown.out(0);
    assert!(shown.contains("13 s if cut over now") && !shown.contains("Final delta"), "{shown}");
}
