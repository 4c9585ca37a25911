//! The ledger of a disk in a mover's process: a replica, made of the order.
//!
//! Rule: durable first, then known. A change goes to the state, and only its acknowledgement makes it known
//! here. Without one it may be durable all the same, so the order is void then: nothing more is committed,
//! and the daemon gives a new order, of its own ledger. A mover only claims and drains; it never adds a
//! pending block, and never moves the anchor.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use warmd_cbt::{
    chunk::ChunkBits,
    extents::ExtentSet,
    ledger::Ledger,
    manifest::BlockHash,
    mark::ChangeMark,
    store::{ChunkRow, DiskId, LedgerCommit, LedgerStore, StoreError, StoreErrorKind, StoredLedger},
    units::{Extent, Length, MAX_DISK},
};
use warmd_core::pass::{BlockChange, DiskOrder, LedgerChange, PassLedger};

/// The replica of the disk's ledger; `state` commits its changes.
pub async fn replica(
    order: &DiskOrder,
    generation: u64,
    state: Arc<dyn PassLedger>,
) -> Result<Ledger, StoreError> {
    let (disk, size) = (order.disk, order.size);
    let refused = |cause: &str| error(disk, StoreErrorKind::Corrupt, "taking an order for", cause);
    if size.0 > MAX_DISK {
        return Err(refused("it is larger than every disk"));
    }
    let Some(rows) = &order.blocks else { return Err(refused("the order names no blocks")) };
    let mut sets = Blocks { pending: ExtentSet::new(size), trusted: ExtentSet::new(size), is_void: false };
    for row in rows {
        if !sets.pending.has_chunk(row.chunk) {
            return Err(refused("the order names blocks past its end"));
        }
        sets.put(row.clone());
    }
    let (mark, blocks) = (order.mark.clone(), Mutex::new(sets));
    Ledger::load(Arc::new(OrderedStore { disk, size, mark, generation, blocks, state }), disk).await
}

/// What the state has acknowledged of one order.
struct OrderedStore {
    disk: DiskId,
    size: Length,
    mark: ChangeMark,
    generation: u64,
    blocks: Mutex<Blocks>,
    state: Arc<dyn PassLedger>,
}

struct Blocks {
    pending: ExtentSet,
    trusted: ExtentSet,
    /// A change was not acknowledged.
    is_void: bool,
}

impl Blocks {
    fn put(&mut self, row: ChunkRow) {
        self.pending.put_chunk(row.chunk, row.pending);
        self.trusted.put_chunk(row.chunk, row.trusted);
    }
}

impl OrderedStore {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, kind: StoreErrorKind, what: &str, cause: &str) -> StoreError {
        error(self.disk, kind, what, cause)
    }

    /// The commit as a message; `None` if it changes nothing.
    fn change(&self, commit: &LedgerCommit) -> Result<Option<BlockChange>, StoreError> {
        let blocks = self.blocks();
        if blocks.is_void {
            let cause = "an earlier change was not acknowledged, and the order is void";
            return Err(self.error(StoreErrorKind::Unavailable, "changing", cause));
        }
        let (mut drained, mut claimed) = (ExtentSet::new(self.size), ExtentSet::new(self.size));
        let mut is_grown = commit.anchor.is_some() || !commit.touched.is_empty();
        for row in &commit.chunks {
            let (pending, trusted) = (blocks.pending.chunk(row.chunk), blocks.trusted.chunk(row.chunk));
            is_grown |=
                !without(&row.pending, &pending).is_empty() || !without(&row.trusted, &trusted).is_empty();
            let gone = without(&pending, &row.pending);
            claimed.put_chunk(row.chunk, without(&without(&trusted, &row.trusted), &gone));
            drained.put_chunk(row.chunk, gone);
        }
        if is_grown || (!drained.is_empty() && !claimed.is_empty()) {
            let cause = "a mover claims blocks, or drains them, and changes nothing else";
            return Err(self.error(StoreErrorKind::Corrupt, "changing", cause));
        }
        let extents = |set: &ExtentSet| set.extents().collect::<Vec<Extent>>();
        Ok(if !drained.is_empty() {
            let (hashes, figures) = (commit.hashes.clone(), commit.figures);
            Some(BlockChange::Drain { extents: extents(&drained), hashes, figures })
        } else if !claimed.is_empty() {
            Some(BlockChange::Claim(extents(&claimed)))
        } else {
            None
        })
    }
}

#[async_trait]
impl LedgerStore for OrderedStore {
    async fn load(&self, _disk: DiskId) -> Result<StoredLedger, StoreError> {
        let blocks = self.blocks();
        if blocks.is_void {
            let cause = "a change was not acknowledged, and the order is void";
            return Err(self.error(StoreErrorKind::Unavailable, "loading", cause));
        }
        let rows = blocks.pending.chunks().map(|(chunk, pending)| {
            let (pending, trusted) = (pending.clone(), blocks.trusted.chunk(chunk));
            ChunkRow { chunk, pending, trusted }
        });
        let chunks = rows.collect();
        Ok(StoredLedger { size: self.size, anchor: Some(self.mark.clone()), chunks })
    }

    async fn commit(&self, disk: DiskId, commit: LedgerCommit) -> Result<(), StoreError> {
        let Some(change) = self.change(&commit)? else { return Ok(()) };
        let change = LedgerChange { disk, generation: self.generation, change };
        if let Err(error) = self.state.commit(change).await {
            self.blocks().is_void = true;
            return Err(error);
        }
        let mut blocks = self.blocks();
        commit.chunks.into_iter().for_each(|row| blocks.put(row));
        Ok(())
    }

    async fn hashes(&self, disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError> {
        self.state.hashes(disk, spans).await
    }
}

/// The bits of `all` that are not in `less`.
fn without(all: &ChunkBits, less: &ChunkBits) -> ChunkBits {
    let mut rest = all.clone();
    rest.subtract(less);
    rest
}

fn error(disk: DiskId, kind: StoreErrorKind, what: &str, cause: &str) -> StoreError {
    StoreError {
        kind,
        context: format!("{what} disk {} of an order", disk.0),
        cause: cause.to_owned().into(),
    }
}
