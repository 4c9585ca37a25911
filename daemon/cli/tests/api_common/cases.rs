//! Migrations, plans and the like, always the same.

use std::num::{NonZeroU32, NonZeroU64};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;
use warmd_cbt::{
    limit::{Limit, LimitLoad},
    store::PassFigures,
    telemetry::{LatencyFigures, Stage, StageView, Telemetry, Wait, WaitView},
    units::Length,
};
use warmd_core::model::{
    coordination::MemberStatus,
    event_kind::EventKind,
    group::{Group, GroupMember, GroupView},
    hook::{HookSide, HookView},
    id::{DiskKey, MigrationId, VmId},
    limit::{LimitScope, LimitView, SetBy},
    machine::{CpuTopology, Firmware, Machine, MachineDisk, Nic, PowerState, VmSummary},
    phase::Phase,
    plan::{Plan, VerifyMode},
    quota::QuotaView,
    report::{DiskReport, Report},
    state::State,
    verify::VerifyScope,
    view::{
        CutoverView, DiskPassView, DiskVerifyResult, DiskView, EventView, MigrationView, PassKind, PassView,
        PhaseView, VerificationView, VerifyResult,
    },
};
use warmd_report::signing::ReportKey;
use warmd_schedules::{
    admission_queue,
    quota::{Quota, Quotas},
    window::Holidays,
};

pub const GIB: u64 = 1 << 30;
pub const MIB: u64 = 1 << 20;

pub const PLAN: &str = r#"name = "web"
source = "old"
target = "new"
vms = ["web-1", "web-2"]

[vm.web-1]
name = "web-one"
"#;

/// `seconds` after 2026-11-22 10:00:00 UTC.
pub fn at(seconds: i64) -> DateTime<Utc> {
    let start = DateTime::parse_from_rfc3339("2026-11-22T10:00:00Z").unwrap().to_utc();
    start + TimeDelta::seconds(seconds)
}

pub fn id(number: u64) -> MigrationId {
    MigrationId(Uuid::from_u64_pair(0x0193_51aa_0000_7000, 0x8000_5eed_0000_0000 | number))
}

pub fn plan() -> Plan {
    toml::from_str(PLAN).unwrap()
}

/// A cutover of two VMs together that has just begun.
pub fn group(plan: &str, by: &str) -> GroupView {
    let member =
        |number, vm: &str, tier| GroupMember { migration: id(number), vm: vm.to_owned(), tier, attempt: 0 };
    let group = Group {
        id: 1,
        plan: plan.to_owned(),
        by: by.to_owned(),
        forced: false,
        all_or_nothing: false,
        begun: at(0),
        halted: None,
        ended: None,
        members: vec![member(1, "web-1", 0), member(2, "web-2", 1)],
    };
    GroupView { group, statuses: vec![MemberStatus::Moving, MemberStatus::Waiting] }
}

/// The same when it has failed.
pub fn ended_group(plan: &str) -> GroupView {
    let mut view = group(plan, "operator");
    view.group.halted = Some("VM web-2: the source VM was started again".to_owned());
    view.group.ended = Some(at(90));
    view.statuses =
        vec![MemberStatus::Passed, MemberStatus::Failed("the source VM was started again".to_owned())];
    view
}

pub fn vms() -> Vec<VmSummary> {
    vec![
        VmSummary {
            id: VmId("6c9f5b7e-0000-4000-8000-000000000001".to_owned()),
            name: "web-1".to_owned(),
            power: PowerState::Running,
            disks: 2,
            bytes: Length(42 * GIB),
            tracked: 2,
            snapshots: 0,
            warnings: Vec::new(),
        },
        VmSummary {
            id: VmId("6c9f5b7e-0000-4000-8000-000000000002".to_owned()),
            name: "old-db".to_owned(),
            power: PowerState::Paused,
            disks: 1,
            bytes: Length(100 * GIB),
            tracked: 0,
            snapshots: 3,
            warnings: vec!["vda is raw: its changes are not tracked over a restart".to_owned()],
        },
    ]
}

/// A synced migration after its second pass.
pub fn synced(number: u64, vm: &str) -> MigrationView {
    MigrationView {
        id: id(number),
        plan: "web".to_owned(),
        vm: VmId(format!("6c9f5b7e-0000-4000-8000-{number:012}")),
        vm_name: vm.to_owned(),
        target_name: format!("{vm}-new"),
        state: State::Synced,
        since: at(60),
        disks: vec![disk("vda", 32 * GIB), disk("vdb", 10 * GIB)],
        pass: Some(pass(2, true)),
        next_pass: Some(at(960)),
        next_pass_why: Some("due at 2026-11-22 10:16 UTC: every 15m".to_owned()),
        scheduled_cutover: None,
        downtime_forecast: Some(12.5),
        forecast: None,
        warnings: Vec::new(),
        cutover: None,
        verification: None,
        waiting: None,
        left_behind: Vec::new(),
    }
}

/// The same while its third pass runs, half of vda copied.
pub fn syncing(number: u64, vm: &str) -> MigrationView {
    let mut view = MigrationView { state: State::Syncing, since: at(960), ..synced(number, vm) };
    view.next_pass = None;
    view.next_pass_why = None;
    view.pass = Some(pass(3, false));
    view.disks[0].pending = 600 * MIB;
    view.disks[0].pass_total = 1200 * MIB;
    view.disks[0].pass_drained = 600 * MIB;
    view.disks[0].rate = 118.0 * MIB as f64;
    view.disks[0].eta = Some(5.1);
    view
}

/// The same after a cutover that was verified.
pub fn done(number: u64, vm: &str) -> MigrationView {
    let mut cutover = cutover(&Phase::ALL, false);
    cutover.ended = Some(at(1032));
    cutover.downtime = Some(14.25);
    MigrationView {
        state: State::Done,
        cutover: Some(cutover),
        verification: Some(verification(Some(0))),
        ..synced(number, vm)
    }
}

pub fn disk(key: &str, size: u64) -> DiskView {
    DiskView {
        key: DiskKey(key.to_owned()),
        size,
        location: format!("/srv/vms/{key}.img"),
        pending: 0,
        pass_total: 0,
        pass_drained: 0,
        rate: 0.0,
        eta: None,
        tracking_fault: None,
    }
}

pub fn pass(number: u32, ended: bool) -> PassView {
    let start = i64::from(number) * 20;
    // Ended passes are those of a warmd that did not measure yet.
    let telemetry = (!ended).then(telemetry);
    PassView {
        number,
        kind: if number == 1 { PassKind::Full } else { PassKind::Delta },
        started: at(start),
        ended: ended.then(|| at(start + 10)),
        error: None,
        cpu: (!ended).then_some(1.5),
        snapshot: None,
        disks: vec![
            DiskPassView { telemetry, ..disk_pass("vda", 1200 * MIB, None) },
            disk_pass("vdb", 10 * GIB, Some("the bitmap was lost in a restart of the VM")),
        ],
    }
}

/// Of a pass whose source is slow.
pub fn telemetry() -> Telemetry {
    let stage = |stage, bytes: u64, requests, in_flight, times: [f64; 4], [busy, cpu, stalled]: [f64; 3]| {
        let [p50, p90, p99, max] = times;
        let (in_flight, in_flight_max) = in_flight;
        let latency = LatencyFigures { p50, p90, p99, max };
        StageView { stage, bytes, requests, in_flight, in_flight_max, busy, latency, cpu, stalled }
    };
    Telemetry {
        elapsed: 5.0,
        stages: vec![
            stage(Stage::Limit, 0, 0, (0, 0), [0.0; 4], [0.0, 0.0, 0.1]),
            stage(Stage::Read, 1000 * MIB, 2000, (14, 16), [0.03, 0.04, 0.083, 0.12], [66.0, 0.0, 4.0]),
            stage(
                Stage::Digest,
                992 * MIB,
                1984,
                (1, 2),
                [0.000_12, 0.0002, 0.0004, 0.002],
                [0.26, 0.25, 0.0],
            ),
            stage(Stage::Flush, 600 * MIB, 2, (0, 1), [0.05, 0.05, 0.05, 0.0625], [0.11, 0.0, 0.05]),
        ],
        waits: vec![WaitView { wait: Wait::ReadSlot, count: 1900, time: 4.0 }],
    }
}

pub fn disk_pass(key: &str, changed: u64, unknown: Option<&str>) -> DiskPassView {
    DiskPassView {
        key: DiskKey(key.to_owned()),
        pending: changed,
        changed,
        extents: 321,
        unknown: unknown.map(str::to_owned),
        mark: format!("warmd-{key}"),
        figures: PassFigures {
            read: changed,
            written: changed / 2,
            zeroed: changed / 4,
            skipped: changed / 4,
            drained: changed,
            requests: 1200,
            batches: 3,
        },
        telemetry: None,
        audit: None,
    }
}

pub fn phase(phase: Phase, start: i64, took: Option<i64>) -> PhaseView {
    PhaseView { phase, started: at(start), ended: took.map(|took| at(start + took)), outcome: None }
}

/// A cutover that began at second 1000, with these phases of four seconds each; the last one runs if `open`.
pub fn cutover(phases: &[Phase], open: bool) -> CutoverView {
    let mut phases: Vec<_> =
        phases.iter().zip(0..).map(|(name, nth)| phase(*name, 1000 + nth * 4, Some(4))).collect();
    if open && let Some(last) = phases.last_mut() {
        last.ended = None;
    }
    CutoverView { started: at(1000), ended: None, phases, failure: None, downtime: None, progress: None }
}

pub fn result(wrong: u64) -> VerifyResult {
    let disk = |key: &str, checked, wrong: u64| DiskVerifyResult {
        key: DiskKey(key.to_owned()),
        checked,
        mismatched_bytes: wrong,
        mismatches: if wrong > 0 { vec![(65536, wrong)] } else { Vec::new() },
        root: "5f".repeat(32),
        image: None,
    };
    VerifyResult {
        mode: VerifyMode::Readback,
        scope: VerifyScope::Full,
        seed: None,
        miss_probabilities: Vec::new(),
        at: at(1016),
        disks: vec![disk("vda", 32 * GIB, wrong), disk("vdb", 10 * GIB, 0)],
    }
}

pub fn verification(wrong: Option<u64>) -> VerificationView {
    let ended = wrong.is_some();
    VerificationView {
        id: String::new(),
        mode: VerifyMode::Readback,
        scope: VerifyScope::Full,
        seed: None,
        started: at(1012),
        ended: ended.then(|| at(1016)),
        total: 42 * GIB,
        checked: if ended { 42 * GIB } else { 21 * GIB },
        error: None,
        result: wrong.map(result),
    }
}

pub fn limits() -> Vec<LimitView> {
    let limit = |scope, vm_name: &str, rate: u64, requests: u32, busy: bool| LimitView {
        scope,
        vm_name: vm_name.to_owned(),
        limit: Limit { rate: NonZeroU64::new(rate), requests: NonZeroU32::new(requests) },
        set: None,
        load: if busy {
            LimitLoad { rate: 50.2 * MIB as f64, in_flight: 4, waiting: 1 }
        } else {
            LimitLoad::default()
        },
    };
    let mut limits = vec![
        limit(LimitScope::Global, "", 200 * MIB, 256, true),
        limit(LimitScope::Source("old".to_owned()), "", 0, 0, true),
        limit(LimitScope::Target("new".to_owned()), "", 0, 8, false),
        limit(LimitScope::Migration(id(2), None), "web-2", 50 * MIB, 0, true),
        limit(LimitScope::Migration(id(2), Some(DiskKey("vda".to_owned()))), "web-2", 0, 4, true),
    ];
    limits[3].set = Some(SetBy { by: "operator uid=0 pid=42".to_owned(), at: at(5) });
    limits
}

pub fn quotas() -> Vec<QuotaView> {
    let quota = |scope, written: &str, waiting| {
        let quota: Quota = toml::from_str(written).unwrap();
        let quotas = Quotas::new(&[quota], Holidays::default(), None);
        QuotaView {
            scope,
            allowance: quotas.at(at(0)),
            why: quotas.why(at(0)),
            next_change: quotas.next_change(at(0)),
            passes: 2,
            snapshots: 2,
            disks: 5,
            rate: 50.2 * MIB as f64,
            waiting,
        }
    };
    vec![
        quota(admission_queue::QuotaScope::Global, "passes = 2\nbytes_per_second = \"200MiB\"", 3),
        quota(
            admission_queue::QuotaScope::Datastore("/srv".to_owned()),
            "window = \"daily 08:00–18:00 UTC\"\ndisks = 6",
            0,
        ),
    ]
}

pub fn events() -> Vec<EventView> {
    let event = |seconds, migration, by: &str, kind: &str, text: &str| EventView {
        at: at(seconds),
        migration,
        by: by.to_owned(),
        kind: EventKind::from(kind.to_owned()),
        text: text.to_owned(),
    };
    vec![
        event(0, None, "warmd", "state", "started"),
        event(1, Some(id(1)), "operator uid=0 pid=4711", "request", "plan web applied"),
        event(40, Some(id(1)), "warmd", "pass", "pass 1 (full) ended"),
        event(60, Some(id(2)), "schedule", "state", "synced"),
    ]
}

pub fn report_key() -> ReportKey {
    ReportKey::from_secret(&[7; 32])
}

pub fn report(view: &MigrationView) -> Report {
    Report {
        format: 3,
        warmd: "0.1.0".to_owned(),
        migration: view.id,
        plan: view.plan.clone(),
        source: "old".to_owned(),
        source_kind: Some("libvirt".to_owned()),
        target: "new".to_owned(),
        target_kind: None,
        vm: view.vm.clone(),
        vm_name: view.vm_name.clone(),
        target_name: view.target_name.clone(),
        state: view.state.clone(),
        made: at(2000),
        machine: machine(view),
        disks: vec![DiskReport {
            key: "vda".to_owned(),
            size: 32 * GIB,
            location: "/srv/vms/vda.img".to_owned(),
            mark: Some("warmd-vda".to_owned()),
            pending: 0,
            manifest_root: Some("5f".repeat(32)),
            root_recorded: Some(at(1010)),
            verified_by: Some("readback full".to_owned()),
            audit: None,
        }],
        passes: vec![pass(1, true), pass(2, true), pass(3, false)],
        rolled_back: None,
        conversion: None,
        hooks: vec![HookView {
            phase: Phase::StopSource,
            when: HookSide::Before,
            command: vec!["/usr/local/bin/drain".to_owned(), "web|1".to_owned()],
            started: at(950),
            ended: Some(at(952)),
            outcome: Some("done".to_owned()),
        }],
        cutover: vec![phase(Phase::CatchUpDelta, 1000, Some(4)), phase(Phase::StopSource, 1004, Some(2))],
        downtime: Some(14.25),
        verify_result: Some(result(0)),
        requests: events().into_iter().filter(|event| event.kind == EventKind::Request).collect(),
        verify_results: vec![result(0)],
        journal: events(),
        passes_before: Vec::new(),
        journal_left_out: 0,
    }
}

fn machine(view: &MigrationView) -> Machine {
    Machine {
        id: view.vm.clone(),
        name: view.vm_name.clone(),
        uuid: view.vm.0.clone(),
        firmware: Firmware::Uefi,
        machine_type: "q35".to_owned(),
        architecture: "x86_64".to_owned(),
        cpu: CpuTopology { sockets: 1, cores: 2, threads: 2 },
        memory: Length(4 * GIB),
        disks: vec![MachineDisk {
            key: DiskKey("vda".to_owned()),
            size: Length(32 * GIB),
            bus: "virtio".to_owned(),
            boot_order: 0,
            location: "/var/lib/libvirt/images/web-1.qcow2".to_owned(),
            untracked: None,
        }],
        nics: vec![Nic {
            mac: "52:54:00:12:34:56".to_owned(),
            network: "prod|blue".to_owned(),
            model: "virtio".to_owned(),
        }],
        hardware: None,
        host: None,
    }
}
