//! The evidence of a migration: everything that an auditor asks for, in one document.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    conversion::ConversionView,
    hook::HookView,
    id::{MigrationId, VmId},
    machine::Machine,
    state::State,
    view::{EventView, PassView, PhaseView, VerifyResult},
};

/// The report. Its JSON form is documented in `docs/report-format.md`; fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this form.
    pub format: u32,
    /// Version of warmd.
    pub warmd: String,
    pub migration: MigrationId,
    pub plan: String,
    pub source: String,
    /// What kind of source that is; `None` if it is not configured any more.
    pub source_kind: Option<String>,
    pub target: String,
    pub target_kind: Option<String>,
    pub vm: VmId,
    pub vm_name: String,
    pub target_name: String,
    pub state: State,
    pub made: DateTime<Utc>,
    pub machine: Machine,
    pub disks: Vec<DiskReport>,
    /// The last ones, oldest first.
    pub passes: Vec<PassView>,
    /// What older ones did that are not among them, disk by disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes_before: Vec<PassSums>,
    /// The phases of the last cutover.
    pub cutover: Vec<PhaseView>,
    /// When a person asked to go back to the source after that cutover: then what the target VM wrote is lost, and the
    /// recorded roots are of a copy that is not used.
    #[serde(default)]
    pub rolled_back: Option<DateTime<Utc>>,
    /// What was done to the target's disks in that cutover after their roots were recorded; `None` if nothing was.
    #[serde(default)]
    pub conversion: Option<ConversionView>,
    /// The hooks of the last cutover, in the order in which they were begun.
    #[serde(default)]
    pub hooks: Vec<HookView>,
    /// Seconds from the source stopped to the target running.
    pub downtime: Option<f64>,
    /// The last one.
    pub verify_result: Option<VerifyResult>,
    /// All of them, oldest first; the last hundred if there are more.
    #[serde(default)]
    pub verify_results: Vec<VerifyResult>,
    /// Who asked for what and when: the requests, granted or refused, among the journal's lines.
    pub requests: Vec<EventView>,
    /// The last lines of the journal.
    pub journal: Vec<EventView>,
    /// Older lines of it that are not in this report.
    pub journal_left_out: u64,
}

/// What many passes did on a disk, together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassSums {
    pub key: String,
    pub passes: u64,
    pub failed: u64,
    /// Bytes, as in each pass.
    pub changed: u64,
    pub read: u64,
    pub written: u64,
    pub zeroed: u64,
    pub skipped: u64,
    pub drained: u64,
}

/// A disk in the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    pub key: String,
    /// Bytes.
    pub size: u64,
    pub location: String,
    /// The last anchored change mark.
    pub mark: Option<String>,
    /// Bytes still pending.
    pub pending: u64,
    /// The manifest's root in hexadecimal, as `docs/report-format.md` defines it: the recorded one, or else that of now. `None` while
    /// the disk is not drained: then the manifest speaks of no moment.
    pub manifest_root: Option<String>,
    /// When the cutover recorded that root, after what its plan wanted verified and before anything touched the copy.
    pub root_recorded: Option<DateTime<Utc>>,
    /// How the target was verified by then: `none`, `readback full`, `compare sample=1%, seed 7`. `None` if it
    /// is not recorded, or an older warmd recorded it.
    #[serde(default)]
    pub verified_by: Option<String>,
    /// Whether change tracking told the truth, as far as was looked.
    #[serde(default)]
    pub audit: Option<AuditReport>,
}

/// What all audits of a disk's change tracking found together. The audit of each pass is with the pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Passes with an audit of this disk.
    pub passes: u32,
    /// Bytes read and compared, of all passes.
    pub checked: u64,
    /// Bytes found changed without the source having said so.
    pub mismatched_bytes: u64,
    /// How the source's tracking was found not to tell the truth, if it was.
    pub tracking_fault: Option<String>,
}

/// A key that signs or signed reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySince {
    /// The public key, in hexadecimal.
    pub key: String,
    /// Since when.
    pub since: DateTime<Utc>,
}
