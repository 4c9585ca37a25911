//! What a pass reports.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use warmd_cbt::{
    disk::{DiskError, ErrorKind, Operation},
    manifest::BlockHash,
    store::{DiskId, PassFigures, StoreErrorKind},
    telemetry::{HistogramCounts, Stage, Telemetry},
    transfer::{PassError, PassProgress, ProgressView},
    units::{BlockIndex, Extent, Offset},
};

use crate::model::{
    id::DiskKey,
    view::{AuditView, PassView},
};

/// One event of a pass, in the order in which they happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassEvent {
    /// The pass is recorded in the state, and its disks are anchored to the snapshot.
    Began(PassView),
    /// The audits have ended. Those that found a fault have made their whole disk pending.
    Audited(Vec<DiskAudit>),
    /// The disks are opened next, and drained.
    Draining,
    /// The disks are open; so many bytes of each are pending.
    Opened(Vec<(DiskKey, u64)>),
    /// A change of a disk's ledger, which must be durable before the pass goes on.
    Change(LedgerChange),
    /// The figures so far.
    Progress(Vec<DiskFigures>),
    /// No request is in flight any more.
    Drained,
    /// Reads of a disk were delayed for so many milliseconds, to spare a strained source.
    HeldBack {
        disk: DiskKey,
        millis: u64,
    },
    /// The figures are final.
    Measured,
    Ended {
        at: DateTime<Utc>,
        outcome: PassResult,
    },
}

/// The end of one disk's audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAudit {
    pub key: DiskKey,
    /// `None` if there was nothing to audit.
    pub audit: Option<AuditView>,
    /// Pending after it, in bytes.
    pub pending: u64,
    /// Where the next audit begins.
    pub next: Offset,
}

/// A change of one disk's ledger, to be committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerChange {
    pub disk: DiskId,
    /// The generation of the order.
    pub generation: u64,
    pub change: BlockChange,
}

/// What changes. Extents are block-aligned but for the end of the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockChange {
    /// These blocks are about to be written: they lose their trust.
    Claim(Vec<Extent>),
    /// These blocks are durable on the target, with these hashes of what was written; in block order.
    Drain { extents: Vec<Extent>, hashes: Vec<(BlockIndex, BlockHash)>, figures: PassFigures },
}

/// The figures of one disk's pass at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskFigures {
    pub key: DiskKey,
    pub progress: ProgressView,
    pub telemetry: Telemetry,
    /// How long the requests of each stage took.
    pub latencies: Vec<(Stage, HistogramCounts)>,
    /// The requests of each stage that are in flight.
    pub in_flight: Vec<(Stage, u64)>,
}

/// How a pass ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassResult {
    /// The target equals the snapshot.
    Drained,
    /// Stopped on request.
    Stopped,
    Failed(PassFault),
}

/// Why a pass failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassFault {
    pub cause: PassFailureCause,
    /// For people.
    pub text: String,
}

/// The failed part, to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassFailureCause {
    Disk {
        side: CopySide,
        operation: Operation,
        kind: ErrorKind,
    },
    State(StoreErrorKind),
    /// Neither a disk nor the state: a snapshot, an order that cannot be carried out.
    Other,
}

/// A side of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopySide {
    Source,
    Target,
}

impl PassResult {
    /// What the record of a pass says of its end; `None` if it was drained.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Drained => None,
            Self::Stopped => Some("stopped on request; what was drained stays drained".to_owned()),
            Self::Failed(failure) => Some(failure.text.clone()),
        }
    }
}

impl From<&PassError> for PassFault {
    fn from(error: &PassError) -> Self {
        let disk = |side, cause: &DiskError| PassFailureCause::Disk {
            side,
            operation: cause.operation,
            kind: cause.kind,
        };
        let cause = match error {
            PassError::Source(cause) => disk(CopySide::Source, cause),
            PassError::Target(cause) => disk(CopySide::Target, cause),
            PassError::Store(cause) => PassFailureCause::State(cause.kind),
        };
        Self { cause, text: error.to_string() }
    }
}

impl DiskFigures {
    /// The figures now.
    pub fn now(key: &DiskKey, progress: &PassProgress) -> Self {
        let meter = progress.meter();
        let stages = || Stage::ALL.into_iter().filter(|stage| stage.has_requests());
        Self {
            key: key.clone(),
            progress: progress.view(),
            telemetry: meter.view(),
            latencies: stages().map(|stage| (stage, meter.stage(stage).latency().counts())).collect(),
            in_flight: stages().map(|stage| (stage, meter.stage(stage).in_flight())).collect(),
        }
    }

    /// As the record of a pass has them.
    pub fn sums(&self) -> PassFigures {
        let done = self.progress;
        PassFigures {
            read: done.read,
            written: done.written,
            zeroed: done.zeroed,
            skipped: done.skipped,
            drained: done.drained,
            ..PassFigures::default()
        }
    }
}
