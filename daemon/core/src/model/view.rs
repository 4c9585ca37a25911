//! What a migration looks like from outside at one moment: for the API, the CLI and the tests.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use warmd_cbt::{store::PassFigures, telemetry::Telemetry};

use super::{
    forecast::ForecastView,
    id::{DiskKey, MigrationId, VmId},
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
    /// When the next pass is due or a held one goes on.
    pub next_pass: Option<DateTime<Utc>>,
    /// Why not before.
    #[serde(default)]
    pub next_pass_why: Option<String>,
    /// Seconds that the VM would be down if cut over now; `None` before there is anything to tell from.
    pub downtime_forecast: Option<f64>,
    /// What is expected of a cutover; `None` before a delta has been measured.
    #[serde(default)]
    pub forecast: Option<ForecastView>,
    /// What the work that its state means waits for before it is tried again; `None` while it goes on.
    #[serde(default)]
    pub waiting: Option<WaitingView>,
    /// What warmd could not remove from the source or the target yet.
    #[serde(default)]
    pub left_behind: Vec<String>,
    /// Things that a person should know, such as a disk that cannot be tracked.
    pub warnings: Vec<String>,
    /// A cutover that is to begin later, or is held.
    #[serde(default)]
    pub scheduled_cutover: Option<ScheduledCutoverView>,
    /// The cutover that runs, or else the last one.
    #[serde(default)]
    pub cutover: Option<CutoverView>,
    /// The verification that runs, or else the last one, in a cutover or asked for by itself.
    #[serde(default)]
    pub verification: Option<VerificationView>,
}

/// Work that failed, or that something stands in the way of, and that is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// The error, in words.
    pub reason: String,
    /// When it failed first.
    pub since: DateTime<Utc>,
    /// When it is tried again; past while it is being tried.
    pub next_try: Option<DateTime<Utc>>,
    /// How often it failed since then.
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
    /// What the running pass had to do on this disk when it began, in bytes; 0 without a pass.
    pub pass_total: u64,
    /// Of these, drained.
    pub pass_drained: u64,
    /// Bytes per second in the running pass, lately.
    pub rate: f64,
    /// Seconds until this disk's pass ends, at that rate.
    pub eta: Option<f64>,
    /// How the source's change tracking was found not to tell the truth about this disk, if it was: since then every
    /// pass compares all of it, and a cutover needs a full `compare`.
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
    pub error: Option<String>,
    /// CPU seconds of the whole process while it ran, whatever else warmd did meanwhile.
    #[serde(default)]
    pub cpu: Option<f64>,
    pub disks: Vec<DiskPassView>,
}

/// One disk in a pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskPassView {
    pub key: DiskKey,
    /// Pending when the pass began, in bytes.
    pub pending: u64,
    /// What the source said had changed since the anchor, in bytes; the whole disk if it could not say.
    pub changed: u64,
    /// Extents pending when the pass began.
    pub extents: u64,
    /// Why the source could not say what changed, if it could not.
    pub unknown: Option<String>,
    pub mark: String,
    pub figures: PassFigures,
    /// What each stage did and what it waited for; of a pass that runs, some seconds ago at the most.
    #[serde(default)]
    pub telemetry: Option<Telemetry>,
    /// What was found when it was asked whether change tracking told the truth; `None` if it was not.
    #[serde(default)]
    pub audit: Option<AuditView>,
}

/// Blocks that the source called unchanged, read again from the snapshot and compared with the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// Bytes read and compared.
    pub checked: u64,
    /// Bytes passed over because source and manifest agree that they are zeroes.
    pub holes: u64,
    /// Bytes of blocks that had changed without the source saying so.
    pub mismatched_bytes: u64,
    /// The first such extents as (offset, length) in bytes; not all if there are very many.
    pub mismatches: Vec<(u64, u64)>,
    /// Why not all that was to be read was read, if it was not.
    pub error: Option<String>,
}

/// Which pass it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassKind {
    Full,
    Delta,
    /// In a cutover, with the source off.
    Final,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyResult {
    pub mode: VerifyMode,
    pub at: DateTime<Utc>,
    pub disks: Vec<DiskVerifyResult>,
    /// How much was compared.
    #[serde(default)]
    pub scope: VerifyScope,
    /// Of a sample: with it the same blocks are drawn again.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Of a sample: how likely so many bad blocks are missed, at most, wherever on the disks they lie.
    #[serde(default, alias = "escapes")]
    pub miss_probabilities: Vec<MissProbability>,
}

impl VerifyResult {
    /// What was verified, in words: `readback full`, `compare sample=1%, seed 7`.
    pub fn what(&self) -> String {
        let seed = self.seed.map(|seed| format!(", seed {seed}")).unwrap_or_default();
        format!("{} {}{seed}", self.mode, self.scope)
    }

    /// Whether all that was compared is right.
    pub fn passed(&self) -> bool {
        self.disks.iter().all(|disk| disk.mismatched_bytes == 0)
    }
}

/// What a verification found on one disk.
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
    /// What was read instead of the target's own disk, if something was.
    #[serde(default)]
    pub image: Option<String>,
}

/// A verification as it goes or went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerificationView {
    /// By this whoever asked for it finds it again; empty if nobody did, or an earlier daemon ran it.
    #[serde(default)]
    pub id: String,
    pub mode: VerifyMode,
    #[serde(default)]
    pub scope: VerifyScope,
    /// Of a sample.
    #[serde(default)]
    pub seed: Option<u64>,
    pub started: DateTime<Utc>,
    /// `None` while it runs.
    pub ended: Option<DateTime<Utc>>,
    /// Bytes to be compared, of all disks.
    pub total: u64,
    /// Of these, compared.
    pub checked: u64,
    /// Why it came to no result, if it ended without one.
    pub error: Option<String>,
    /// What it found; `None` while it runs and if it could not be finished.
    pub result: Option<VerifyResult>,
}

/// A cutover as it goes or went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutoverView {
    pub started: DateTime<Utc>,
    /// When the migration was done, or the undoing was; `None` while either goes on.
    pub ended: Option<DateTime<Utc>>,
    /// The phases so far, in order, the running one last.
    pub phases: Vec<PhaseView>,
    /// Why it was undone or stopped, if it was.
    pub failure: Option<String>,
    /// Seconds from the source stopped to the target running; `None` until then.
    pub downtime: Option<f64>,
    /// What the running phase, a conversion, said of itself last.
    #[serde(default)]
    pub progress: Option<String>,
}

impl CutoverView {
    /// One that began then, and has no phase yet.
    pub fn begun(started: DateTime<Utc>) -> Self {
        Self { started, ended: None, phases: Vec::new(), failure: None, downtime: None, progress: None }
    }
}

/// A phase of a cutover as it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseView {
    pub phase: Phase,
    pub started: DateTime<Utc>,
    pub ended: Option<DateTime<Utc>>,
    /// How it ended, in words, if there is more to say than that it did.
    pub outcome: Option<String>,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    pub at: DateTime<Utc>,
    pub migration: Option<MigrationId>,
    /// `operator uid=0`, `schedule`, `warmd`.
    pub by: String,
    /// What happened, in one word or two: `state`, `request`, `pass`, `phase`, `warning`.
    pub kind: String,
    pub text: String,
}
