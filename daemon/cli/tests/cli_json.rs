//! `warmctl -o json`: its form is a promise, so whole answers are pinned.

mod api_common;

use api_common::{cases, fake_control::FakeControl, served::Served};
use serde_json::{Value, json};
use warmd_core::model::{
    phase::Phase,
    state::{ResumePoint, State},
};

async fn served() -> Served {
    Served::start(FakeControl::new([cases::synced(1, "web-1"), cases::syncing(2, "web-2")])).await
}

async fn json_of(served: &Served, args: &[&str], code: i32) -> Value {
    let mut all = vec!["-o", "json"];
    all.extend(args);
    served.warmctl(&all).await.json(code)
}

#[tokio::test]
async fn endpoints() {
    let served = served().await;
    assert_eq!(
        json_of(&served, &["source", "list"], 0).await,
        json!({"sources": [
            {"name": "old", "kind": "libvirt", "address": "qemu:///system"},
            {"name": "far", "kind": "libvirt", "address": "qemu+ssh://far/system"},
        ]})
    );
    assert_eq!(
        json_of(&served, &["target", "list"], 0).await,
        json!({"targets": [{"name": "new", "kind": "disk", "address": "/srv/vms"}]})
    );
    assert_eq!(
        json_of(&served, &["source", "check"], 1).await,
        json!({"checks": [
            {"name": "old", "ok": true, "message": "libvirt 9.0.0, QEMU 7.2.0"},
            {"name": "far", "ok": false, "message": "source far does not answer: start libvirtd there"},
        ]})
    );
    assert_eq!(
        json_of(&served, &["source", "vms", "old"], 0).await["vms"][1],
        json!({
            "id": "6c9f5b7e-0000-4000-8000-000000000002",
            "name": "old-db",
            "power": "paused",
            "disks": 1,
            "size_bytes": 107_374_182_400_u64,
            "warnings": ["vda is raw: its changes are not tracked over a restart"],
            "tracked": 0,
            "snapshots": 3,
        })
    );
}

/// A plan of two VMs that move together.
fn grouped() -> String {
    format!("{}\n[[cutover.tiers]]\nvms = [\"web-1\"]\n[[cutover.tiers]]\nvms = [\"*\"]\n", cases::PLAN)
}

#[tokio::test]
async fn a_cutover_of_vms_together() {
    let served = served().await;
    let file = served.dir.path().join("plan.toml");
    std::fs::write(&file, grouped()).unwrap();
    json_of(&served, &["plan", "apply", "-f", file.to_str().unwrap()], 0).await;
    let begun = json_of(&served, &["plan", "cutover", "web", "--no-wait"], 0).await;
    assert_eq!(begun["members"][1]["status"], "waiting", "{begun}");
    let ended = json_of(&served, &["plan", "cutover", "web"], 1).await;
    let member = |number, vm: &str, tier, status: &str, why: &str| json!({"migration_id": cases::id(number).to_string(), "vm_name": vm, "tier": tier, "status": status, "why": why});
    assert_eq!(
        ended,
        json!({
            "plan": "web",
            "by": "operator",
            "forced": false,
            "all_or_nothing": false,
            "begun": "2026-11-22T10:00:00Z",
            "ended": "2026-11-22T10:01:30Z",
            "halted": "VM web-2: the source VM was started again",
            "outcome": "not all of it moved; on the target: web-1; on the source: web-2",
            "members": [
                member(1, "web-1", 1, "passed", ""),
                member(2, "web-2", 2, "failed", "the source VM was started again"),
            ],
            "done": false,
        })
    );
    let told = served.warmctl(&["plan", "cutover", "web"]).await;
    let (out, err) = (told.out(1), told.err(1));
    assert!(out.contains("web-2  tier 2, failed: the source VM was started again"), "{out}");
    assert!(err.contains("cutover of plan web failed: VM web-2: the source VM was started again"), "{err}");
    let shown = served.warmctl(&["plan", "show", "web"]).await;
    let shown = shown.out(0);
    assert!(shown.contains("# tier 1  web-1  passed"), "{shown}");
    assert!(toml::from_str::<warmd_core::model::plan::Plan>(shown).is_ok(), "{shown}");
}

#[tokio::test]
async fn a_cutover_of_each_vm_of_a_plan() {
    let served = served().await;
    let file = served.dir.path().join("plan.toml");
    std::fs::write(&file, cases::PLAN.replace("\"web-2\"", "\"web-2\", \"web-3\"")).unwrap();
    json_of(&served, &["plan", "apply", "-f", file.to_str().unwrap()], 0).await;
    let held = json_of(&served, &["plan", "cutover", "web", "--hold"], 0).await;
    assert!(held["migrations"].as_array().unwrap().iter().all(|each| each["answer"] == "accepted"), "{held}");
    let unknown = served.warmctl(&["plan", "cutover", "none", "--abort"]).await;
    assert!(unknown.err(4).contains("no plan \"none\""), "{unknown:?}");
}

#[tokio::test]
async fn plans() {
    let served = served().await;
    let file = served.dir.path().join("plan.toml");
    std::fs::write(&file, cases::PLAN).unwrap();
    let path = file.to_str().unwrap();

    let shown = json_of(&served, &["plan", "show", "web"], 0).await;
    let text = shown["toml"].as_str().unwrap().to_owned();
    assert_eq!(toml::from_str::<warmd_core::model::plan::Plan>(&text).unwrap(), cases::plan());
    let plan = json!({
        "name": "web",
        "source": "old",
        "target": "new",
        "vms": ["web-1", "web-2"],
        "interval": "900s",
        "verify": "readback",
        "verify_scope": "full",
        "toml": text,
    });
    assert_eq!(shown, plan);
    assert_eq!(json_of(&served, &["plan", "list"], 0).await, json!({"plans": [plan]}));
    assert_eq!(
        json_of(&served, &["plan", "validate", "-f", path], 0).await,
        json!({"plan": plan, "findings": []})
    );
    assert_eq!(
        json_of(&served, &["plan", "apply", "-f", path], 0).await,
        json!({
            "plan": "web",
            "started": [],
            "kept": ["019351aa-0000-7000-8000-5eed00000001", "019351aa-0000-7000-8000-5eed00000002"],
            "findings": [],
            "changes": [
                {
                    "kind": "keep",
                    "vm": "web-1",
                    "migration": "019351aa-0000-7000-8000-5eed00000001",
                    "text": "VM web-1, synced",
                },
                {
                    "kind": "keep",
                    "vm": "web-2",
                    "migration": "019351aa-0000-7000-8000-5eed00000002",
                    "text": "VM web-2, synced",
                },
            ],
            "dry_run": false,
        })
    );
    std::fs::write(&file, cases::PLAN.replace("vms = [", "vms = [\"web-1\", ")).unwrap();
    assert_eq!(
        json_of(&served, &["plan", "validate", "-f", path], 5).await["findings"],
        json!([{
            "severity": "error",
            "subject": "plan",
            "message": "`vms` names \"web-1\" twice: remove one",
            "rule": "plan-wrong",
            "help": "correct the plan's file",
        }])
    );
    let empty = Served::start(FakeControl::new([])).await;
    assert_eq!(json_of(&empty, &["plan", "delete", "web"], 0).await, json!({}));
}

/// `web-2` as `cases::syncing` makes it.
fn syncing() -> Value {
    json!({
        "id": "019351aa-0000-7000-8000-5eed00000002",
        "plan": "web",
        "vm_id": "6c9f5b7e-0000-4000-8000-000000000002",
        "vm_name": "web-2",
        "target_name": "web-2-new",
        "state": "syncing",
        "phase": null,
        "reason": null,
        "resumable": false,
        "resumes_at": null,
        "since": "2026-11-22T10:16:00Z",
        "disks": [
            {
                "key": "vda",
                "size_bytes": 34_359_738_368_u64,
                "location": "/srv/vms/vda.img",
                "pending_bytes": 629_145_600,
                "pass_total_bytes": 1_258_291_200,
                "pass_drained_bytes": 629_145_600,
                "rate_bytes_per_second": 123_731_968.0,
                "tracking_fault": null,
                "eta": "5.100s",
            },
            {
                "key": "vdb",
                "size_bytes": 10_737_418_240_u64,
                "location": "/srv/vms/vdb.img",
                "pending_bytes": 0,
                "pass_total_bytes": 0,
                "pass_drained_bytes": 0,
                "rate_bytes_per_second": 0.0,
                "tracking_fault": null,
                "eta": null,
            },
        ],
        "pass": {
            "number": 3,
            "kind": "delta",
            "started": "2026-11-22T10:01:00Z",
            "ended": null,
            "error": null,
            "disks": [
                {
                    "key": "vda",
                    "pending_bytes": 1_258_291_200,
                    "changed_bytes": 1_258_291_200,
                    "extents": 321,
                    "unknown": null,
                    "mark": "warmd-vda",
                    "read_bytes": 1_258_291_200,
                    "written_bytes": 629_145_600,
                    "zeroed_bytes": 314_572_800,
                    "skipped_bytes": 314_572_800,
                    "drained_bytes": 1_258_291_200,
                    "requests": 1200,
                    "batches": 3,
                    "telemetry": telemetry(),
                    "audit": null,
                },
                {
                    "key": "vdb",
                    "pending_bytes": 10_737_418_240_u64,
                    "changed_bytes": 10_737_418_240_u64,
                    "extents": 321,
                    "unknown": "the bitmap was lost in a restart of the VM",
                    "mark": "warmd-vdb",
                    "read_bytes": 10_737_418_240_u64,
                    "written_bytes": 5_368_709_120_u64,
                    "zeroed_bytes": 2_684_354_560_u64,
                    "skipped_bytes": 2_684_354_560_u64,
                    "drained_bytes": 10_737_418_240_u64,
                    "requests": 1200,
                    "batches": 3,
                    "telemetry": null,
                    "audit": null,
                },
            ],
            "daemon_cpu": "1.500s",
            "snapshot_made": null,
            "snapshot_removed": null,
        },
        "left_behind": [],
        "next_pass": null,
        "next_pass_why": null,
        "scheduled_cutover": null,
        "forecast": null,
        "downtime_forecast": "12.500s",
        "waiting": null,
        "warnings": [],
        "cutover": null,
        "verification": null,
    })
}

/// As `cases::telemetry` makes it.
fn telemetry() -> Value {
    let figures = |stage: &str, counts: [u64; 4], rate: f64, spans: [&str; 7], share: f64| {
        let [bytes, requests, in_flight, in_flight_max] = counts;
        let [busy, p50, p90, p99, max, cpu, stalled] = spans;
        json!({
            "stage": stage, "bytes": bytes, "requests": requests, "rate_bytes_per_second": rate,
            "in_flight": in_flight, "in_flight_max": in_flight_max, "busy": busy, "latency_p50": p50,
            "latency_p90": p90, "latency_p99": p99, "latency_max": max, "cpu": cpu, "stalled": stalled,
            "stalled_share": share,
        })
    };
    json!({
        "elapsed": "5s",
        "stages": [
            figures("limit", [0; 4], 0.0, ["0s", "0s", "0s", "0s", "0s", "0s", "0.100s"], 0.02),
            figures(
                "read",
                [1_048_576_000, 2000, 14, 16],
                209_715_200.0,
                ["66s", "0.030s", "0.040s", "0.083s", "0.120s", "0s", "4s"],
                0.8,
            ),
            figures(
                "digest",
                [1_040_187_392, 1984, 1, 2],
                208_037_478.4,
                ["0.260s", "0.000120s", "0.000200s", "0.000400s", "0.002s", "0.250s", "0s"],
                0.0,
            ),
            figures(
                "flush",
                [629_145_600, 2, 0, 1],
                125_829_120.0,
                ["0.110s", "0.050s", "0.050s", "0.050s", "0.062500s", "0s", "0.050s"],
                0.01,
            ),
        ],
        "waits": [{"wait": "read-slot", "count": 1900, "time": "4s"}],
        "bottleneck": "read",
        "bottleneck_text": "the source is the bottleneck: the pass waited 80 % of its time for reads",
    })
}

#[tokio::test]
async fn a_migration() {
    let served = served().await;
    assert_eq!(json_of(&served, &["migration", "show", "web-2"], 0).await, syncing());
    let list = json_of(&served, &["migration", "list"], 0).await;
    assert_eq!(list["migrations"][1], syncing());
    assert_eq!(list["migrations"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        json_of(&served, &["migration", "pause", "web-2"], 0).await,
        json!({"answer": "accepted", "migration": syncing()})
    );
    assert_eq!(
        json_of(&served, &["migration", "resume", "web-2"], 0).await,
        json!({"answer": "no-change", "migration": syncing()})
    );
}

#[tokio::test]
async fn states_with_something_to_say() {
    let mut view = cases::synced(1, "web-1");
    view.cutover = Some(cases::cutover(&[Phase::CatchUpDelta, Phase::StopSource], true));
    view.cutover.as_mut().unwrap().failure = Some("the guest did not shut down".to_owned());
    view.cutover.as_mut().unwrap().progress = Some("41 %".to_owned());
    view.verification = Some(cases::verification(Some(65536)));
    let served = Served::start(FakeControl::new([])).await;
    let states = [
        (
            State::CuttingOver { phase: Phase::FinalDelta },
            json!(["cutting-over", "final-delta", null, false, null]),
        ),
        (
            State::Undoing { phase: Phase::StopSource, reason: "asked".to_owned() },
            json!(["undoing", "stop-source", "asked", false, null]),
        ),
        (State::Paused { from: ResumePoint::Seeding }, json!(["paused", null, null, false, "seeding"])),
        (
            State::Failed { reason: "no room".to_owned(), resumable: true, from: ResumePoint::Synced },
            json!(["failed", null, "no room", true, "synced"]),
        ),
        (State::Cancelled, json!(["cancelled", null, null, false, null])),
    ];
    for (state, expected) in states {
        view.state = state;
        served.control.change(view.clone());
        let shown = json_of(&served, &["migration", "show", "web-1"], 0).await;
        let fields =
            ["state", "phase", "reason", "resumable", "resumes_at"].map(|field| shown[field].clone());
        assert_eq!(Value::from(fields.to_vec()), expected);
    }

    let shown = json_of(&served, &["migration", "show", "0001"], 0).await;
    assert_eq!(
        shown["cutover"],
        json!({
            "started": "2026-11-22T10:16:40Z",
            "ended": null,
            "progress": "41 %",
            "phases": [
                {
                    "phase": "catch-up-delta",
                    "started": "2026-11-22T10:16:40Z",
                    "ended": "2026-11-22T10:16:44Z",
                    "outcome": null,
                },
                {
                    "phase": "stop-source",
                    "started": "2026-11-22T10:16:44Z",
                    "ended": null,
                    "outcome": null,
                },
            ],
            "failure": "the guest did not shut down",
            "downtime": null,
        })
    );
    let root = "5f".repeat(32);
    assert_eq!(
        shown["verification"],
        json!({
            "id": "",
            "mode": "readback",
            "scope": "full",
            "seed": null,
            "started": "2026-11-22T10:16:52Z",
            "ended": "2026-11-22T10:16:56Z",
            "total_bytes": 45_097_156_608_u64,
            "checked_bytes": 45_097_156_608_u64,
            "error": null,
            "result": {
                "mode": "readback",
                "scope": "full",
                "seed": null,
                "miss_probabilities": [],
                "at": "2026-11-22T10:16:56Z",
                "passed": false,
                "disks": [
                    {
                        "key": "vda",
                        "checked_bytes": 34_359_738_368_u64,
                        "mismatched_bytes": 65536,
                        "mismatches": [{"offset_bytes": 65536, "length_bytes": 65536}],
                        "root": root,
                        "image": null,
                    },
                    {
                        "key": "vdb",
                        "checked_bytes": 10_737_418_240_u64,
                        "mismatched_bytes": 0,
                        "mismatches": [],
                        "root": root,
                        "image": null,
                    },
                ],
            },
        })
    );
}

#[tokio::test]
async fn quotas() {
    let served = served().await;
    assert_eq!(
        json_of(&served, &["limit", "quotas", "datastore//srv"], 0).await,
        json!({"quotas": [{
            "scope": "datastore//srv",
            "rate_bytes_per_second": null,
            "passes": null,
            "snapshots": null,
            "disks": 6,
            "why": "window daily 08:00–18:00 UTC",
            "next_change": "2026-11-22T18:00:00Z",
            "now_bytes_per_second": 50.2 * cases::MIB as f64,
            "passes_used": 2,
            "snapshots_used": 2,
            "disks_used": 5,
            "waiting": 0,
        }]})
    );
}

#[tokio::test]
async fn the_journal_and_the_report() {
    let served = served().await;
    assert_eq!(
        json_of(&served, &["events", "--limit", "1"], 0).await,
        json!({"events": [{
            "at": "2026-11-22T10:01:00Z",
            "migration_id": "019351aa-0000-7000-8000-5eed00000002",
            "by": "schedule",
            "kind": "state",
            "text": "synced",
        }], "cursor": 4})
    );
    assert_eq!(json_of(&served, &["events"], 0).await["events"][0]["migration_id"], Value::Null);

    let report = json_of(&served, &["migration", "report", "web-1"], 0).await;
    assert_eq!(report["format"], 3);
    assert_eq!(report["downtime"], 14.25);
    let asked = served.warmctl(&["migration", "report", "web-1", "--format", "json"]).await;
    assert_eq!(asked.json(0), report);
    let markdown =
        served.warmctl(&["-o", "json", "migration", "report", "web-1", "--format", "markdown"]).await;
    assert!(markdown.out(0).starts_with("# Migration of web-1\n"));
    let digest = report["signature"]["digest"].as_str().unwrap();
    assert!(markdown.out(0).contains(&format!("| Signed JSON form (BLAKE3) | `{digest}` |")));
    assert_eq!(json_of(&served, &["report", "key"], 0).await["key"], report["signature"]["key"]);
}

#[tokio::test]
async fn a_report_is_saved_in_both_forms_or_not_at_all() {
    let served = Served::start(FakeControl::new([cases::synced(1, "web-1")])).await;
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("web");
    let save =
        async || served.warmctl(&["migration", "report", "web-1", "--save", base.to_str().unwrap()]).await;
    let there = || {
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    std::fs::write(dir.path().join("web.md"), "mine").unwrap();
    let ran = save().await;
    assert!(ran.err(1).contains("web.md"), "{ran:#?}");
    assert_eq!(there(), ["web.md"], "half a pair was left, or a draft");
    assert_eq!(std::fs::read_to_string(dir.path().join("web.md")).unwrap(), "mine");
    std::fs::remove_file(dir.path().join("web.md")).unwrap();
    assert!(save().await.out(0).contains("web.json"));
    assert_eq!(there(), ["web.json", "web.md"]);
    assert!(save().await.err(1).contains("web.json"), "what is there stays");
}

#[tokio::test]
async fn a_key_that_was_lost_is_told_beside_the_key() {
    let served = Served::start(FakeControl::new([])).await;
    let ran = served.warmctl(&["report", "key"]).await;
    let lost = "1f".repeat(32);
    assert_eq!(ran.out(0).trim(), cases::report_key().public().to_string(), "scripts take it from there");
    assert!(ran.stderr.contains(&lost), "{ran:#?}");
    assert_eq!(json_of(&served, &["report", "key"], 0).await["earlier"][0]["key"], lost);
}
