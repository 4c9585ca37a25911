//! The view of a migration at one moment: for the API, the CLI and the tests.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use warmd_cbt::{store::PassFigures, telemetry::Telemetry};

use super::{
    event_kind::EventKind,
    forecast::ForecastView,
    id::{DiskKey, MigrationId, VmId},
    outcome::{PassFailure, PhaseOutcome},
    phase::Phase,
    plan::VerifyMode,
    scheduled_cutover::ScheduledCutoverView,
    state::State,
    verify::{MissProbability, VerifyScope},
};

/// A migration now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationView {
    pub id: MigrationId,
    pub plan: String,
    pub vm: VmId,
    pub vm_name: String,
    pub target_name: String,
    pub state: State,
    pub since: DateTime<Utc>,
    pub disks: Vec<DiskView>,
    /// The pass that runs, or else the last one.
    pub pass: Option<PassView>,
    /// When the next pass is due or a suspended one continues.
    pub next_pass: Option<DateTime<Utc>>,
    /// Why not before.
    #[serde(default)]
    pub next_pass_why: Option<String>,
    /// Seconds of downtime if cut over now; `None` without data.
    pub downtime_forecast: Option<f64>,
    /// The forecast of a cutover; `None` before a delta has been measured.
    #[serde(default)]
    pub forecast: Option<ForecastView>,
    /// What the work of its state waits for before the next try; `None` while it proceeds.
    #[serde(default)]
    pub waiting: Option<WaitingView>,
    /// Leftovers on the source or the target that warmd has not removed yet.
    #[serde(default)]
    pub left_behind: Vec<String>,
    /// Warnings for the operator, such as a disk that cannot be tracked.
    pub warnings: Vec<String>,
    /// A cutover that is scheduled or on hold.
    #[serde(default)]
    pub scheduled_cutover: Option<ScheduledCutoverView>,
    /// The cutover that runs, or else the last one.
    #[serde(default)]
    pub cutover: Option<CutoverView>,
    /// The verification that runs, or else the last one, in a cutover or requested alone.
    #[serde(default)]
    pub verification: Option<VerificationView>,
}

/// Work that failed or is blocked, and is retried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// The error, in words.
    pub reason: String,
    /// When it failed first.
    pub since: DateTime<Utc>,
    /// When the next try starts; in the past during the try.
    pub next_try: Option<DateTime<Utc>>,
    /// The number of failures since then.
    pub tries: u32,
    /// What to do about it.
    pub advice: String,
}

/// A disk now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskView {
    pub key: DiskKey,
    /// Bytes.
    pub size: u64,
    /// Where it is on the target.
    pub location: String,
    /// Bytes in which the target may differ from the anchored snapshot.
    pub pending: u64,
    /// Bytes that the running pass had to copy on this disk at its start; 0 without a pass.
    pub pass_total: u64,
    /// Of these, drained.
    pub pass_drained: u64,
    /// Recent bytes per second of the running pass.
    pub rate: f64,
    /// Seconds until this disk's pass ends, at that rate.
    pub eta: Option<f64>,
    /// How the source's change tracking of this disk was found wrong, if it was: since then every pass
    /// compares the whole disk, and a cutover needs a full `compare`.
    #[serde(default)]
    pub tracking_fault: Option<String>,
}

/// A pass over all disks of a migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassView {
    /// Counted from 1 within the migration.
    pub number: u32,
    pub kind: PassKind,
    pub started: DateTime<Utc>,
    pub ended: Option<DateTime<Utc>>,
    /// How it ended, if not well.
    pub error: Option<PassFailure>,
    /// CPU seconds of the whole process during the pass, including warmd's other work.
    #[serde(default)]
    pub cpu: Option<f64>,
    /// What its snapshot cost the VM, if the source reports that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotCost>,
    pub disks: Vec<DiskPassView>,
}

/// What a snapshot cost the VM, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotCost {
    /// How long it took to be made, by the source's clock: the VM was stunned for a part of that.
    pub made: f64,
    /// How long its removal took, with the consolidation of its disks; `None` if it was not removed yet.
    pub removed: Option<f64>,
}

/// One disk in a pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskPassView {
    pub key: DiskKey,
    /// Pending when the pass began, in bytes.
    pub pending: u64,
    /// Bytes that the source reported as changed since the anchor; the whole disk if it could not report.
    pub changed: u64,
    /// Extents pending when the pass began.
    pub extents: u64,
    /// Why the source could not report the changes, if it could not.
    pub unknown: Option<String>,
    pub mark: String,
    pub figures: PassFigures,
    /// The work and waits of each stage; for a running pass some seconds old at most.
    #[serde(default)]
    pub telemetry: Option<Telemetry>,
    /// The result of the audit of change tracking; `None` without an audit.
    #[serde(default)]
    pub audit: Option<AuditView>,
}

/// Blocks that the source reported as unchanged, read from the snapshot and compared with the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// Bytes read and compared.
    pub checked: u64,
    /// Bytes skipped because source and manifest both have zeroes.
    pub holes: u64,
    /// Bytes of blocks that had changed without the source reporting it.
    pub mismatched_bytes: u64,
    /// The first such extents as (offset, length) in bytes; not all if there are very many.
    pub mismatches: Vec<(u64, u64)>,
    /// Why the audit did not read all of its blocks, if it did not.
    pub error: Option<String>,
}

/// The kind of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassKind {
    Full,
    Delta,
    /// In a cutover, with the source off.
    Final,
}

/// The result of a verification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyResult {
    pub mode: VerifyMode,
    pub at: DateTime<Utc>,
    pub disks: Vec<DiskVerifyResult>,
    /// How much was compared.
    #[serde(default)]
    pub scope: VerifyScope,
    /// The seed of a sample: the same seed draws the same blocks.
    #[serde(default)]
    pub seed: Option<u64>,
    /// For a sample: the upper bound of the probability that so many bad blocks are missed, at any position
    /// of the disks.
    #[serde(default, alias = "escapes")]
    pub miss_probabilities: Vec<MissProbability>,
}

impl VerifyResult {
    /// What was verified, in words: `readback full`, `compare sample=1%, seed 7`.
    pub fn what(&self) -> String {
        let seed = self.seed.map(|seed| format!(", seed {seed}")).unwrap_or_default();
        format!("{} {}{seed}", self.mode, self.scope)
    }

    /// Whether no mismatch was found.
    pub fn passed(&self) -> bool {
        self.disks.iter().all(|disk| disk.mismatched_bytes == 0)
    }
}

/// The result of a verification on one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskVerifyResult {
    pub key: DiskKey,
    /// Bytes compared.
    pub checked: u64,
    pub mismatched_bytes: u64,
    /// The first mismatched extents as (offset, length) in bytes; not all if there are very many.
    pub mismatches: Vec<(u64, u64)>,
    /// The manifest's root in hexadecimal.
    pub root: String,
    /// What was read instead of the target's own disk, if not that.
    #[serde(default)]
    pub image: Option<String>,
}

/// A running or finished verification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerificationView {
    /// The id by which the caller finds it again; empty without a request, or if an earlier daemon ran it.
    #[serde(default)]
    pub id: String,
    pub mode: VerifyMode,
    #[serde(default)]
    pub scope: VerifyScope,
    /// The seed of a sample.
    #[serde(default)]
    pub seed: Option<u64>,
    pub started: DateTime<Utc>,
    /// `None` while it runs.
    pub ended: Option<DateTime<Utc>>,
    /// Bytes to compare, of all disks.
    pub total: u64,
    /// Bytes compared so far.
    pub checked: u64,
    /// Why it ended without a result, if it did.
    pub error: Option<String>,
    /// Its result; `None` while it runs and if it could not be finished.
    pub result: Option<VerifyResult>,
}

/// A running or finished cutover.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutoverView {
    pub started: DateTime<Utc>,
    /// When the migration was done, or its undo was; `None` before that.
    pub ended: Option<DateTime<Utc>>,
    /// The phases so far, in order, the running one last.
    pub phases: Vec<PhaseView>,
    /// Why it was undone or stopped, if it was.
    pub failure: Option<String>,
    /// Seconds from the source stopped to the target running; `None` until then.
    pub downtime: Option<f64>,
    /// The last progress message of the running phase, a conversion.
    #[serde(default)]
    pub progress: Option<String>,
}

impl CutoverView {
    /// A cutover that began then, without a phase yet.
    pub fn begun(started: DateTime<Utc>) -> Self {
        Self { started, ended: None, phases: Vec::new(), failure: None, downtime: None, progress: None }
    }
}

/// A running or finished phase of a cutover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseView {
    pub phase: Phase,
    pub started: DateTime<Utc>,
    pub ended: Option<DateTime<Utc>>,
    /// How it ended; `None` while it runs.
    pub outcome: Option<PhaseOutcome>,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    pub at: DateTime<Utc>,
    pub migration: Option<MigrationId>,
    /// Who acted: `operator uid=0`, `schedule`, `warmd`.
    pub by: String,
    pub kind: EventKind,
    pub text: String,
}
