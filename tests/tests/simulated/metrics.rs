//! The metrics over HTTP, of a daemon whose endpoints are simulated.
#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test ends by the one, and counts are whole numbers"
)]

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use chrono::TimeDelta;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use warmd_core::model::{
    plan::{Plan, VerifyMode},
    request::Request,
    state::State,
};
use warmd_metrics::{MetricsError, MetricsServer};
use warmd_tests::{
    openmetrics::{Family, MetricSample, SampleKind, parse},
    scrape::{HttpResponse, get, say, scrape},
    simulated::{InjectedFault, Rig, SimulatedWorld},
};

const BLOCK: u64 = 64 * 1024;

struct Served {
    rig: Rig,
    address: SocketAddr,
    _shutdown: DropGuard,
}

impl Served {
    /// A VM with two disks, copied once.
    async fn start() -> Self {
        let world = SimulatedWorld::new(&[("vda", 40 * BLOCK), ("vdb", 10 * BLOCK)]);
        world.guest_writes("vda", 0, &vec![7; 20 * BLOCK as usize]);
        let rig = Rig::start(world).await;
        rig.seed(Rig::plan(VerifyMode::None)).await;
        let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, shutdown) = (server.address(), CancellationToken::new());
        tokio::spawn(server.serve(rig.metrics.clone(), rig.manager.present(), shutdown.clone()));
        Self { rig, address, _shutdown: shutdown.drop_guard() }
    }

    async fn scrape(&self) -> BTreeMap<String, Family> {
        let address = self.address;
        let families = tokio::task::spawn_blocking(move || scrape(address)).await.unwrap().unwrap();
        families.into_iter().map(|family| (family.name.clone(), family)).collect()
    }

    async fn say(&self, words: impl Into<Vec<u8>>) -> Option<HttpResponse> {
        let (address, words) = (self.address, words.into());
        tokio::task::spawn_blocking(move || say(address, &words)).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn what_passes_did_is_told_and_never_goes_back() {
    let served = Served::start().await;
    let first = served.scrape().await;
    let vda = [("plan", "plan"), ("disk", "vda")];
    assert!(first["warmd_written_bytes"].sum("_total", &vda) >= (20 * BLOCK) as f64);
    assert!(first["warmd_drained_bytes"].sum("_total", &vda) >= (40 * BLOCK) as f64);
    assert!(first["warmd_drained_bytes"].sum("_total", &[]) >= (50 * BLOCK) as f64, "of both disks");
    let passes = |now: &BTreeMap<String, Family>, kind: &str, outcome: &str| {
        now["warmd_passes"].sum("_total", &[("kind", kind), ("outcome", outcome)])
    };
    assert!((passes(&first, "full", "drained"), passes(&first, "delta", "drained")) == (1.0, 0.0));
    assert!(first["warmd_migrations"].sum("", &[("state", "synced")]) == 1.0);
    assert!(first["warmd_request_duration_seconds"].sum("_count", &[("stage", "read")]) >= 1.0);
    assert!(first["warmd_store_commit_duration_seconds"].sum("_count", &[]) >= 1.0);
    assert!(first["warmd_snapshot_age_seconds"].sum("", &[]) >= 0.0);
    assert!(first["warmd_pending_bytes"].sum("", &[]) == 0.0);

    served.rig.world.guest_writes("vda", 5 * BLOCK, &[9; 100]);
    served.rig.sync().await;
    served.rig.world.guest_writes("vda", 5 * BLOCK, &[8; 100]);
    served.rig.world.faults.set("target-disk.flush", InjectedFault::Refused);
    served.rig.ask(Request::Sync).await;
    served.rig.until("a failure", |view| matches!(view.state, State::Failed { .. })).await;
    let second = served.scrape().await;
    assert!((passes(&second, "full", "drained"), passes(&second, "delta", "drained")) == (1.0, 1.0));
    assert!(passes(&second, "delta", "failed") >= 1.0);
    assert!(second["warmd_migrations"].sum("", &[("state", "failed")]) == 1.0);
    assert!(second["warmd_pending_bytes"].sum("", &vda) == BLOCK as f64);
    for (name, before) in &first {
        if before.kind == SampleKind::Gauge {
            continue;
        }
        for sample in &before.samples {
            let same = |now: &&MetricSample| (&now.name, &now.labels) == (&sample.name, &sample.labels);
            let now = second[name].samples.iter().find(same).map(|now| now.value);
            assert!(now.is_some_and(|now| now >= sample.value), "{sample:?} became {now:?}");
        }
    }
}

#[tokio::test]
async fn what_runs_is_told_while_it_runs() {
    let served = Served::start().await;
    let before = served.scrape().await;
    assert!(!before.contains_key("warmd_requests_in_flight"), "nothing runs");
    served.rig.world.guest_writes("vda", 0, &vec![9; 3 * BLOCK as usize]);
    served.rig.world.faults.set("target-disk.flush", InjectedFault::Hang);
    served.rig.ask(Request::Sync).await;
    let flushing = |now: &BTreeMap<String, Family>| {
        let flying = now.get("warmd_requests_in_flight");
        flying.map_or(0.0, |family| family.sum("", &[("stage", "flush"), ("disk", "vda")]))
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut now = served.scrape().await;
    while flushing(&now) < 1.0 {
        assert!(tokio::time::Instant::now() < deadline, "no flush is in flight: {now:#?}");
        tokio::task::yield_now().await;
        now = served.scrape().await;
    }
    let read = |now: &BTreeMap<String, Family>| now["warmd_read_bytes"].sum("_total", &[("disk", "vda")]);
    assert!(read(&now) - read(&before) == (3 * BLOCK) as f64);
    served.rig.world.faults.clear();
    served.rig.until("the pass's end", |view| view.state == State::Synced).await;
    assert!(read(&served.scrape().await) == read(&now), "counted twice or forgotten");
}

#[tokio::test]
async fn a_pass_that_fails_before_its_first_byte_counts() {
    let served = Served::start().await;
    for (fault, failed) in [("source.snapshot", 1.0), ("source.changed", 2.0), ("source.open", 3.0)] {
        served.rig.world.faults.set(fault, InjectedFault::Refused);
        served.rig.ask(Request::Sync).await;
        served.rig.until("a failure", |view| matches!(view.state, State::Failed { .. })).await;
        let now = served.scrape().await;
        let passes =
            now["warmd_passes"].sum("_total", &[("kind", "delta"), ("outcome", "failed"), ("plan", "plan")]);
        assert!(passes == failed, "{fault}: {passes} failed passes");
        served.rig.world.faults.clear();
        served.rig.ask(Request::Resume).await;
        served.rig.until("synced again", |view| view.state == State::Synced).await;
    }
}

/// A counter may only disappear after its last value was certainly scraped.
#[tokio::test]
async fn what_is_long_over_is_told_no_more() {
    let served = Served::start().await;
    assert_eq!(served.rig.cutover().await.state, State::Done);
    let present = (served.rig.manager.present())().await;
    let told = |later: TimeDelta| {
        let mut now = present.clone();
        now.at += later;
        let families = parse(&served.rig.metrics.render(&now).unwrap()).unwrap();
        families.into_iter().map(|family| family.name).collect::<Vec<_>>()
    };
    let of_disks = ["warmd_drained_bytes", "warmd_read_bytes", "warmd_written_bytes"].map(str::to_owned);
    for later in [TimeDelta::zero(), TimeDelta::minutes(50)] {
        let names = told(later);
        assert!(of_disks.iter().all(|name| names.contains(name)), "{later}: {names:?}");
    }
    let names = told(TimeDelta::hours(2));
    assert!(!of_disks.iter().any(|name| names.contains(name)), "{names:?}");
    for kept in ["warmd_passes", "warmd_migrations", "warmd_request_duration_seconds"] {
        assert!(names.iter().any(|name| name == kept), "{kept} is bounded by other things: {names:?}");
    }
}

/// Silent or slow connections delay the next scrape for a while, never permanently.
#[tokio::test]
async fn slow_clients_have_their_time_and_no_more() {
    let served = Served::start().await;
    let mut slow = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        slow.push(stream);
    }
    let address = served.address;
    let scraped = tokio::task::spawn_blocking(move || scrape(address));
    // All sixteen connections are in use: another one is not served.
    let held = tokio::time::timeout(Duration::from_secs(1), async {
        while !scraped.is_finished() {
            // A header from time to time does not extend the deadline.
            slow[0].write_all(b"X: y\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(held.await.is_err(), "a seventeenth connection was served at once");
    let families = scraped.await.unwrap().expect("the slow ones keep everybody out");
    assert!(families.iter().any(|family| family.name == "warmd_build"));
    for mut stream in slow {
        let mut rest = Vec::new();
        let hung_up = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest));
        // A reset is as good as a close.
        let _ = hung_up.await.expect("a slow client was let be");
    }
}

/// Every metric, as daemon/docs/metrics.md lists them.
const NAMES: [&str; 33] = [
    "process_cpu_seconds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "warmd_audited_bytes",
    "warmd_buffers_written_off",
    "warmd_build",
    "warmd_cutover_refused",
    "warmd_downtime_allowed_seconds",
    "warmd_downtime_forecast_high_seconds",
    "warmd_downtime_forecast_seconds",
    "warmd_drained_bytes",
    "warmd_migrations",
    "warmd_open_snapshot_age_seconds",
    "warmd_pass_duration_seconds",
    "warmd_passes",
    "warmd_pending_bytes",
    "warmd_read_bytes",
    "warmd_request_duration_seconds",
    "warmd_requests_in_flight",
    "warmd_rpo_exceeded",
    "warmd_rpo_target_seconds",
    "warmd_skipped_bytes",
    "warmd_snapshot_age_seconds",
    "warmd_source_running_after_cutover",
    "warmd_stall_seconds",
    "warmd_store_commit_duration_seconds",
    "warmd_tracking_fault",
    "warmd_unreported_bytes",
    "warmd_window_closes_in_seconds",
    "warmd_window_open",
    "warmd_window_opens_in_seconds",
    "warmd_written_bytes",
    "warmd_zeroed_bytes",
];

#[tokio::test]
async fn names_are_those_of_the_conventions_and_of_the_readme() {
    let served = Served::start().await;
    for round in 0..2 {
        served.rig.world.guest_writes("vda", round * BLOCK, &[9; 100]);
        served.rig.sync().await;
    }
    served.rig.manager_applies(bound_plan()).await;
    served.rig.world.guest_writes("vda", 0, &[7; 100]);
    served.rig.world.faults.set("target-disk.flush", InjectedFault::Hang);
    served.rig.ask(Request::Sync).await;
    served.rig.until("a pass", |view| view.state == State::Syncing && view.downtime_forecast.is_some()).await;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut now = served.scrape().await;
    while !now.contains_key("warmd_requests_in_flight") {
        assert!(tokio::time::Instant::now() < deadline, "no pass runs");
        tokio::task::yield_now().await;
        now = served.scrape().await;
    }
    served.rig.world.faults.clear();
    assert_eq!(now.keys().map(String::as_str).collect::<Vec<_>>(), NAMES);
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../daemon/docs/metrics.md")).unwrap();
    for (name, family) in &now {
        let base = name.strip_prefix("warmd_").or_else(|| name.strip_prefix("process_")).unwrap();
        assert!(base.chars().all(|each| each.is_ascii_lowercase() || each == '_'), "{name}");
        let words: Vec<_> = base.split('_').collect();
        for wrong in
            ["ms", "us", "milliseconds", "minutes", "kib", "mib", "total", "count", "sum", "bucket", "info"]
        {
            assert!(!words.contains(&wrong), "{name}: {wrong} is no base unit, or belongs to the encoder");
        }
        for unit in ["seconds", "bytes"] {
            let at = words.iter().position(|word| *word == unit);
            assert!(at.is_none_or(|at| at + 1 == words.len()), "{name}: the unit comes last");
        }
        let timed = ["duration", "age", "forecast", "stall", "cpu"].iter().any(|word| words.contains(word));
        assert!(!timed || name.ends_with("_seconds"), "{name} is a time without its unit");
        assert!(
            family.kind != SampleKind::Histogram || name.ends_with("_seconds"),
            "{name} is a histogram of what?"
        );
        assert!(family.help.ends_with('.') && family.help.len() > 10, "{name}: {:?}", family.help);
        for label in family.samples.iter().flat_map(|sample| sample.labels.keys()) {
            let known = ["plan", "vm", "disk", "stage", "kind", "outcome", "state", "version", "le"];
            assert!(known.contains(&label.as_str()), "{name}: unknown label {label}");
        }
        let shown = match family.kind {
            SampleKind::Counter => format!("{name}_total"),
            SampleKind::Info => format!("{name}_info"),
            SampleKind::Gauge | SampleKind::Histogram => name.clone(),
        };
        assert!(document.contains(&format!("`{shown}`")), "{shown} is not in metrics.md");
    }
}

#[tokio::test]
async fn whatever_is_said_to_it_it_goes_on() {
    let served = Served::start().await;
    let address = served.address;
    let healthy = tokio::task::spawn_blocking(move || get(address, "/healthz")).await.unwrap().unwrap();
    assert_eq!((healthy.status, healthy.body.as_str()), (200, "ok\n"));
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(64 << 10));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    let noise = vec![0xff; 100_000];
    let cases: [(&[u8], Option<u16>); 10] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Some(404)),
        (b"GET /metrics/../etc HTTP/1.1\r\nHost: x\r\n\r\n", Some(404)),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", Some(405)),
        (b"DELETE /healthz HTTP/1.1\r\nHost: x\r\n\r\n", Some(405)),
        (b"GET /metrics HTTP/1.0\r\n\r\n", Some(200)),
        (b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", Some(200)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", None),
        (b"GET /metrics HT", None),
        (b"", None),
        (&noise, None),
    ];
    for (words, status) in
        cases.into_iter().chain([(long.as_bytes(), Some(431)), (many.as_bytes(), Some(431))])
    {
        let answer = served.say(words).await;
        let told = answer.as_ref().map(|answer| answer.status);
        let shown = String::from_utf8_lossy(&words[..words.len().min(40)]).into_owned();
        match status {
            Some(_) => assert!(told == status, "{shown:?}: {answer:?}"),
            None => assert!(told.is_none_or(|told| told >= 400), "{shown:?}: {answer:?}"),
        }
    }
    assert!(served.scrape().await.contains_key("warmd_build"));
}

#[tokio::test]
async fn it_listens_on_loopback_alone() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9464"] {
        let error = MetricsServer::bind(address.parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, MetricsError::NotLoopback(_)), "{error}");
    }
    let first = MetricsServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let error = MetricsServer::bind(first.address()).await.unwrap_err();
    assert!(matches!(error, MetricsError::Bind { .. }), "{error}");
    assert!(error.to_string().contains(&first.address().to_string()), "{error}");
}

/// With a window for cutovers in two hours, on the hour, in which nothing is copied, and an RPO target and a
/// downtime limit.
fn bound_plan() -> Plan {
    let opens = chrono::Utc::now() + TimeDelta::hours(2);
    let [day, hour] = ["%Y-%m-%d", "%H"].map(|form| opens.format(form).to_string());
    let window = format!("{day} {hour}:00–{hour}:59 Etc/UTC");
    let mut plan = Rig::plan(VerifyMode::None);
    let schedule = format!(
        "adaptive = {{ rpo = \"3h\", shortest = \"1h\" }}\n[cutover]\nwindows = [\"{window}\"]\n[copy]\n\
         blackouts = [\"{window}\"]\n"
    );
    plan.schedule = toml::from_str(&schedule).unwrap();
    plan.cutover.max_downtime = Some(Duration::from_secs(40));
    plan
}

#[tokio::test]
async fn windows_and_what_the_plan_promises_are_told() {
    let served = Served::start().await;
    let told = |now: &BTreeMap<String, Family>, name: &str, kind: &str| {
        let of = |sample: &&MetricSample| sample.labels.get("kind").is_some_and(|have| have == kind);
        now.get(name)?.samples.iter().find(of).map(|sample| sample.value)
    };
    let unbound = served.scrape().await;
    for kind in ["copy", "cutover"] {
        assert_eq!(told(&unbound, "warmd_window_open", kind), Some(1.0));
        assert_eq!(told(&unbound, "warmd_window_opens_in_seconds", kind), None);
        assert_eq!(told(&unbound, "warmd_window_closes_in_seconds", kind), None, "it never closes");
    }
    assert!(!unbound.contains_key("warmd_rpo_target_seconds"));
    assert!(!unbound.contains_key("warmd_downtime_allowed_seconds"));
    assert!(!unbound.contains_key("warmd_open_snapshot_age_seconds"), "no pass runs");

    served.rig.manager_applies(bound_plan()).await;
    let bound = served.scrape().await;
    assert_eq!(told(&bound, "warmd_window_open", "copy"), Some(1.0));
    assert_eq!(told(&bound, "warmd_window_open", "cutover"), Some(0.0));
    let until_it_opens = told(&bound, "warmd_window_opens_in_seconds", "cutover").unwrap();
    let until_copying_ends = told(&bound, "warmd_window_closes_in_seconds", "copy").unwrap();
    assert!((3500.0..7200.0).contains(&until_it_opens), "{until_it_opens}");
    assert!((until_it_opens - until_copying_ends).abs() < 1.0, "{until_copying_ends}");
    assert_eq!(told(&bound, "warmd_window_closes_in_seconds", "cutover"), None);
    assert_eq!(bound["warmd_rpo_target_seconds"].sum("", &[("plan", "plan")]), 10_800.0);
    assert_eq!(bound["warmd_downtime_allowed_seconds"].sum("", &[("plan", "plan")]), 40.0);
}

#[tokio::test]
async fn an_open_snapshot_and_what_speaks_against_a_cutover_are_told() {
    let served = Served::start().await;
    served.rig.world.guest_writes("vda", 5 * BLOCK, &[9; 100]);
    // After a second delta the change rate is known.
    served.rig.sync().await;
    let mut plan = Rig::plan(VerifyMode::None);
    plan.cutover.max_downtime = Some(Duration::from_secs(1));
    served.rig.manager_applies(plan).await;
    served.rig.world.guest_writes("vda", 6 * BLOCK, &[9; 100]);
    served.rig.sync().await;
    let now = served.scrape().await;
    assert_eq!(now["warmd_cutover_refused"].sum("", &[("vm", "guest")]), 1.0);
    let expected = now["warmd_downtime_forecast_seconds"].sum("", &[]);
    assert!(now["warmd_downtime_forecast_high_seconds"].sum("", &[]) > expected);

    served.rig.world.guest_writes("vda", 7 * BLOCK, &[9; 100]);
    served.rig.world.faults.set("source-disk.read", InjectedFault::Hang);
    served.rig.ask(Request::Sync).await;
    served.rig.until("a pass that hangs", |view| view.state == State::Syncing).await;
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while !served.scrape().await.contains_key("warmd_open_snapshot_age_seconds") {
        assert!(std::time::Instant::now() < until, "no open snapshot is told of");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let held = served.scrape().await["warmd_snapshot_age_seconds"].sum("", &[]);
    let open = served.scrape().await["warmd_open_snapshot_age_seconds"].sum("", &[("vm", "guest")]);
    assert!((0.0..=30.0).contains(&open) && held > 0.0, "{open} {held}");
    served.rig.world.faults.clear();
    served.rig.until("the end of the pass", |view| view.state == State::Synced).await;
    assert!(!served.scrape().await.contains_key("warmd_open_snapshot_age_seconds"));
}
