//! The order of a pass.

use std::{num::NonZeroU64, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use warmd_cbt::{
    mark::ChangeMark,
    store::{ChunkRow, DiskId},
    transfer::TransferSettings,
    units::{Length, Offset},
};

use crate::model::{
    id::{DiskKey, MigrationId},
    view::PassKind,
};

/// Which pass it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassLabels {
    pub migration: MigrationId,
    pub plan: String,
    pub vm: String,
    pub kind: PassKind,
}

/// A pass over a migration's disks. Their ledgers were advanced to the snapshot, durably, before it is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassOrder {
    pub pass: PassLabels,
    /// Counted from 1 within the migration.
    pub number: u32,
    /// The attachment of the mover that the order is for. The state refuses changes of an older one.
    pub generation: u64,
    pub started: DateTime<Utc>,
    /// Sizes and numbers of requests. Where the source is off, reads are not slowed down to spare it.
    pub settings: TransferSettings,
    /// The limits and quotas of the pass as it begins, for a mover that does not share the daemon's.
    pub ceilings: Vec<RateCeiling>,
    pub disks: Vec<DiskOrder>,
}

/// A bound of the rate of all reads, and of all writes, of a pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateCeiling {
    /// The limit or quota.
    pub scope: String,
    pub bytes_per_second: NonZeroU64,
}

/// One disk of a pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskOrder {
    pub key: DiskKey,
    pub disk: DiskId,
    /// The pass of this disk in the state, which its figures belong to.
    pub record: Option<i64>,
    pub size: Length,
    /// The anchor: the snapshot to read.
    pub mark: ChangeMark,
    /// Where the disk is on the target.
    pub location: String,
    /// Bytes of disk that are pending now.
    pub pending: u64,
    /// The pending blocks, and the trusted ones among them. `None` where the ledger itself is at hand, as it
    /// is in the daemon. At most 4 KiB for each GiB of disk.
    pub blocks: Option<Vec<ChunkRow>>,
    /// The audit of change tracking before anything is copied.
    pub audit: Option<AuditOrder>,
    /// The usual latencies of the source's reads, by size class.
    pub latencies: Vec<(usize, Duration)>,
}

/// The audit of one disk's change tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditOrder {
    /// Bytes to read.
    pub budget: Length,
    /// Where the last audit ended.
    pub from: Offset,
    /// Decides which blocks in holes are read all the same.
    pub round: u64,
    /// After this time it ends with what it has.
    pub deadline: Duration,
}
