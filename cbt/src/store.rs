//! The interface between the engine's ledgers and a durable store.
//!
//! Rule: [`LedgerStore::commit`] is one transaction, durable when it returns. The store applies rows; their
//! meaning belongs to the ledger alone.

use std::ops::Range;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    chunk::ChunkBits,
    manifest::BlockHash,
    mark::ChangeMark,
    units::{BlockIndex, Length},
};

/// A disk's key in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskId(pub i64);

/// One chunk's new contents of both sets; an empty chunk is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRow {
    /// Which chunk of the disk ([`crate::extents::CHUNK_BYTES`] each).
    pub chunk: u32,
    pub pending: ChunkBits,
    /// The part of `pending` whose blocks on the target still match the manifest.
    pub trusted: ChunkBits,
}

/// Rows that change together in one durable transaction.
#[derive(Clone, Debug, Default)]
pub struct LedgerCommit {
    /// The new anchor, when this is an advance.
    pub anchor: Option<ChangeMark>,
    pub chunks: Vec<ChunkRow>,
    /// Blocks that became pending by this commit after they had been drained, by chunk: kept until a
    /// verification reports that they were verified. The first copy of a disk touches none.
    pub touched: Vec<(u32, ChunkBits)>,
    /// Hashes of the target's new content, in block order.
    pub hashes: Vec<(BlockIndex, BlockHash)>,
    /// Figures of the pass that go with these rows, added to what the store has for it.
    pub figures: PassFigures,
    /// The pass that the figures belong to; `None` outside a pass.
    pub pass: Option<i64>,
}

/// The figures of a pass, in bytes and requests; sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassFigures {
    /// Read from the source.
    pub read: u64,
    /// Written to the target as data.
    pub written: u64,
    /// Zeroed on the target, by hole or by writing.
    pub zeroed: u64,
    /// Found equal and not written (compare mode, or zero where the target is known to be zero).
    pub skipped: u64,
    /// Left `pending` (read + found zero without reading), in bytes of the disk.
    pub drained: u64,
    /// Pieces of work done.
    pub requests: u64,
    /// Durable batches committed.
    pub batches: u64,
}

impl std::ops::AddAssign for PassFigures {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.written += other.written;
        self.zeroed += other.zeroed;
        self.skipped += other.skipped;
        self.drained += other.drained;
        self.requests += other.requests;
        self.batches += other.batches;
    }
}

/// A ledger from the store.
#[derive(Clone, Debug)]
pub struct StoredLedger {
    pub size: Length,
    pub anchor: Option<ChangeMark>,
    pub chunks: Vec<ChunkRow>,
}

/// A failure of the store. A commit that failed may be durable all the same (the ledger then loads itself
/// again), but once its error is out it must not become durable later.
#[derive(Debug, thiserror::Error)]
#[error("ledger store: {context}: {cause}")]
pub struct StoreError {
    pub kind: StoreErrorKind,
    pub context: String,
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

/// The kind of store failure, to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreErrorKind {
    /// No room, or an I/O error: may succeed later.
    Unavailable,
    /// The rows are impossible: the database is damaged.
    Corrupt,
    /// The disk does not exist.
    NotFound,
}

/// A durable store of ledgers and manifests.
#[async_trait]
pub trait LedgerStore: Send + Sync {
    /// The ledger as last committed.
    async fn load(&self, disk: DiskId) -> Result<StoredLedger, StoreError>;

    /// Applies all of `commit` or nothing; durable on return. If the future is dropped, [`LedgerStore::load`]
    /// must wait until the commit has happened or can no longer happen.
    async fn commit(&self, disk: DiskId, commit: LedgerCommit) -> Result<(), StoreError>;

    /// The manifest's hashes of all blocks of `spans`, which are in order and apart; one for each, zero
    /// blocks as [`BlockHash::ZERO`]. Many spans in one call are cheap, many calls are not.
    async fn hashes(&self, disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError>;
}
