//! The report of a migration: all evidence for an auditor, in one document.

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
    /// The source's kind; `None` if the source is no longer configured.
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
    /// The last passes, oldest first.
    pub passes: Vec<PassView>,
    /// Sums of older passes that are not among them, disk by disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes_before: Vec<PassSums>,
    /// The phases of the last cutover.
    pub cutover: Vec<PhaseView>,
    /// When an operator requested a rollback after that cutover: then what the target VM wrote is lost, and
    /// the recorded roots are of a copy that is not used.
    #[serde(default)]
    pub rolled_back: Option<DateTime<Utc>>,
    /// The conversion of the target's disks in that cutover, after their roots were recorded; `None` if there
    /// was none.
    #[serde(default)]
    pub conversion: Option<ConversionView>,
    /// The hooks of the last cutover, in the order of their start.
    #[serde(default)]
    pub hooks: Vec<HookView>,
    /// Seconds from the source stopped to the target running.
    pub downtime: Option<f64>,
    /// The last verification's result.
    pub verify_result: Option<VerifyResult>,
    /// All results, oldest first; at most the last hundred.
    #[serde(default)]
    pub verify_results: Vec<VerifyResult>,
    /// All requests from the journal, granted or refused, with who made them and when.
    pub requests: Vec<EventView>,
    /// The last lines of the journal.
    pub journal: Vec<EventView>,
    /// Number of older lines that are not in this report.
    pub journal_left_out: u64,
}

/// Sums of many passes on a disk.
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
    /// The manifest's root in hexadecimal, as `docs/report-format.md` defines it: the recorded root, or else
    /// the present one. `None` while the disk is not drained: then the manifest is of no single moment.
    pub manifest_root: Option<String>,
    /// When the cutover recorded that root: after the plan's verification and before any change of the copy.
    pub root_recorded: Option<DateTime<Utc>>,
    /// How the target was verified by then: `none`, `readback full`, `compare sample=1%, seed 7`. `None` if
    /// not recorded, or recorded by an older warmd.
    #[serde(default)]
    pub verified_by: Option<String>,
    /// The results of the audits of change tracking.
    #[serde(default)]
    pub audit: Option<AuditReport>,
}

/// The sum of all audits of a disk's change tracking. The audit of each pass is with the pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Passes with an audit of this disk.
    pub passes: u32,
    /// Bytes read and compared, of all passes.
    pub checked: u64,
    /// Bytes that had changed without the source reporting it.
    pub mismatched_bytes: u64,
    /// How the source's tracking was found wrong, if it was.
    pub tracking_fault: Option<String>,
}

/// A key that signs or signed reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySince {
    /// The public key, in hexadecimal.
    pub key: String,
    /// The time of its first use.
    pub since: DateTime<Utc>,
}
