//! The ledger of one disk: which blocks the target still lacks of the anchored snapshot, and how that is
//! known.
//!
//! Rule: durable first, then known. Every change goes through [`Ledger::change`], which commits the new rows
//! and only then puts them into memory; so memory is never ahead of the store, and a reader of the store
//! after a crash at most copies too much. A commit that failed may be durable all the same: then the store is
//! loaded again before the copy in memory is used.
//!
//! ```text
//!           all blocks of the disk
//!   ┌────────────────────────────┬──────────────┐
//!   │ pending                    │ not pending  │  not pending: the target holds durably what the manifest
//!   │        ┌─────────┐         │              │               says, and that is the anchored snapshot
//!   │        │ trusted │         │              │  trusted:     the target holds durably what the manifest
//!   │        └─────────┘         │              │               says, the snapshot may differ
//!   └────────────────────────────┴──────────────┘  pending:     (the rest) the target is unknown
//! ```
//!
//! Why `trusted` is separate: comparing a block's hash with the manifest may replace writing it only where
//! the target is known to match the manifest. A block whose write was begun and never committed may have any
//! content; if the source's content then returned to the manifest's, a plain comparison would skip it, and
//! leave the wrong data. Therefore, before the first write to a trusted block it is *claimed*: its trust is
//! removed durably. Blocks that a crash leaves claimed are plain pending, and are written whatever their
//! hashes.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::sync::OwnedMutexGuard;
use tracing::Instrument as _;

use crate::{
    batch::Batch,
    chunk::ChunkBits,
    extents::{ExtentSet, block_pieces},
    mark::{ChangeMark, Changed},
    store::{ChunkRow, DiskId, LedgerCommit, LedgerStore, StoreError, StoreErrorKind, StoredLedger},
    units::{Extent, Length, MAX_DISK, Offset},
};

/// One disk's ledger. Load one for each disk and keep it as long as any task may still write to the target:
/// it prevents a new pass from starting before the last write of an abandoned one has ended.
pub struct Ledger {
    inner: Arc<Inner>,
    gate: Arc<tokio::sync::Mutex<()>>,
}

struct Inner {
    disk: DiskId,
    size: Length,
    store: Arc<dyn LedgerStore>,
    sets: Mutex<Sets>,
    /// One commit at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// A commit failed, and may be durable all the same: the copy in memory must be loaded again before it is
    /// used.
    doubt: AtomicBool,
}

struct Sets {
    anchor: Option<ChangeMark>,
    pending: ExtentSet,
    trusted: ExtentSet,
}

/// The right to write to the disk's target. Every write in flight holds a clone.
pub(crate) type WriteGate = Arc<OwnedMutexGuard<()>>;

impl Ledger {
    /// The ledger from the store. [`StoreErrorKind::Corrupt`] if the rows contradict each other.
    pub async fn load(store: Arc<dyn LedgerStore>, disk: DiskId) -> Result<Self, StoreError> {
        let stored = store.load(disk).await?;
        let size = stored.size;
        let sets = Mutex::new(Sets::from_stored(disk, stored)?);
        let inner = Inner { disk, size, store, sets, turn: Arc::default(), doubt: AtomicBool::new(false) };
        Ok(Self { inner: Arc::new(inner), gate: Arc::default() })
    }

    /// The rows of a disk that was never copied: all of it pending. A target that is known to read as zeroes
    /// is trusted, as the empty manifest matches it; any other is not.
    pub fn initial_rows(size: Length, reads_as_zeroes: bool) -> Vec<ChunkRow> {
        let full = ExtentSet::full(size);
        let row = |(chunk, bits): (u32, &ChunkBits)| ChunkRow {
            chunk,
            pending: bits.clone(),
            trusted: if reads_as_zeroes { bits.clone() } else { ChunkBits::default() },
        };
        full.chunks().map(row).collect()
    }

    /// Which disk it is.
    pub fn disk(&self) -> DiskId {
        self.inner.disk
    }

    /// Bytes on the disk.
    pub fn size(&self) -> Length {
        self.inner.size
    }

    /// The mark of the snapshot being, or last, copied; `None` before the first.
    pub fn anchor(&self) -> Option<ChangeMark> {
        self.inner.sets().anchor.clone()
    }

    /// Bytes of disk that the target may still lack.
    pub fn pending_bytes(&self) -> Length {
        self.inner.sets().pending.bytes()
    }

    /// The number of runs of pending bytes.
    pub fn pending_extents(&self) -> u64 {
        self.inner.sets().pending.extent_count()
    }

    /// Whether the target durably equals the anchored snapshot.
    pub fn is_done(&self) -> bool {
        let sets = self.inner.sets();
        sets.anchor.is_some() && sets.pending.is_empty()
    }

    /// Takes a new snapshot as the anchor, with the changes since the old one. To be called, and waited for,
    /// before the first byte of the snapshot is read, and before the source releases the old mark.
    ///
    /// A block that was not pending becomes pending and trusted: its target matches the manifest, so if the
    /// guest wrote the same data again, or `changed` is [`Changed::Unknown`], it need only be compared. A
    /// block that was pending keeps its trust.
    pub async fn advance(&self, mark: ChangeMark, changed: &Changed) -> Result<(), StoreError> {
        let _quiet = self.gate.lock().await;
        let mut fresh = match changed {
            Changed::Known(blocks) if blocks.size() == self.size() => blocks.clone(),
            Changed::Known(blocks) => {
                let cause = format!("they are of {} bytes, the ledger is of {}", blocks.size(), self.size());
                return Err(self.inner.error(StoreErrorKind::Corrupt, "changes of another disk", cause));
            }
            Changed::Unknown(_) => ExtentSet::full(self.size()),
        };
        self.change(|sets| {
            fresh.subtract(&sets.pending);
            let rows = fresh.chunks().map(|(chunk, fresh)| {
                let mut row = sets.row(chunk);
                row.pending.union(fresh);
                row.trusted.union(fresh);
                row
            });
            let chunks = rows.collect();
            let touched = fresh.chunks().map(|(chunk, bits)| (chunk, bits.clone())).collect();
            LedgerCommit { anchor: Some(mark), chunks, touched, ..LedgerCommit::default() }
        })
        .await
    }

    /// Removes the trust in these blocks, durably. Must be waited for before the first write to any of them.
    pub async fn claim(&self, extents: &[Extent]) -> Result<(), StoreError> {
        self.edit(extents, &[], |row, blocks| row.trusted.set(blocks, false)).await
    }

    /// Removes the trust in all blocks, durably: the pending ones are written, regardless of their hashes.
    pub async fn claim_all(&self) -> Result<(), StoreError> {
        let trusted: Vec<_> = self.look(|_, trusted| trusted.extents_from(Offset(0)).collect());
        self.claim(&trusted).await
    }

    /// Whether the target is unknown: all blocks are pending, and none is trusted.
    pub fn is_distrusted(&self) -> bool {
        self.look(|pending, trusted| pending.bytes() == self.size() && trusted.is_empty())
    }

    /// Makes all blocks pending, and untrusted: the target's content is unknown.
    pub async fn distrust_all(&self) -> Result<(), StoreError> {
        self.distrust(&Extent::whole(self.size()).into_iter().collect::<Vec<_>>()).await
    }

    /// Makes these blocks pending, and untrusted, regardless of their trust: a verification found that the
    /// target has wrong content.
    pub async fn distrust(&self, extents: &[Extent]) -> Result<(), StoreError> {
        self.edit(extents, extents, |row, blocks| {
            row.pending.set(blocks.clone(), true);
            row.trusted.set(blocks, false);
        })
        .await
    }

    /// Takes a batch out of `pending`, with its hashes and figures, in one transaction. Only blocks that are
    /// durable on the target, because they were flushed or needed no write, may be in the batch.
    pub async fn drain(&self, batch: Batch, pass: Option<i64>) -> Result<(), StoreError> {
        let (extents, hashes, figures) = batch.into_parts();
        self.change(|sets| {
            let covered = extents.iter().map(|extent| extent.covered_blocks(self.size()));
            let chunks = sets.edited(covered, |row, blocks| {
                row.pending.set(blocks.clone(), false);
                row.trusted.set(blocks, false);
            });
            LedgerCommit { chunks, hashes, figures, pass, ..LedgerCommit::default() }
        })
        .await
    }

    /// Where the hashes are kept.
    pub fn store(&self) -> &Arc<dyn LedgerStore> {
        &self.inner.store
    }

    /// Waits until no write of an earlier pass is in flight, also of a pass whose future was dropped. Call it
    /// before another ledger of the disk is loaded.
    pub async fn quiet(&self) {
        drop(self.gate.lock().await);
        drop(self.inner.turn.lock().await);
    }

    /// Waits until every write and commit of an earlier pass has ended, also of one whose future was dropped.
    pub(crate) async fn enter(&self) -> Result<WriteGate, StoreError> {
        let gate = Arc::new(Arc::clone(&self.gate).lock_owned().await);
        let _turn = self.inner.turn.lock().await;
        let anchor = self.anchor();
        self.inner.settle().await?;
        if anchor == self.anchor() {
            Ok(gate)
        } else {
            let cause =
                "an advance that had failed was durable: a pass must read the snapshot that it anchored";
            Err(self.inner.error(StoreErrorKind::Unavailable, "beginning a pass", cause))
        }
    }

    /// Reads `pending` and `trusted`, briefly: commits wait meanwhile.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&ExtentSet, &ExtentSet) -> T) -> T {
        let sets = self.inner.sets();
        look(&sets.pending, &sets.trusted)
    }

    /// The blocks that are not pending: for these the ledger says that the anchored snapshot matches the
    /// manifest.
    pub fn settled(&self) -> ExtentSet {
        let mut settled = ExtentSet::full(self.size());
        settled.subtract(&self.inner.sets().pending);
        settled
    }

    /// Commits the rows of all blocks that `extents` touch, each as `edit` leaves it, and notes those that
    /// `touched` touch.
    async fn edit(
        &self,
        extents: &[Extent],
        touched: &[Extent],
        edit: impl Fn(&mut ChunkRow, Range<usize>),
    ) -> Result<(), StoreError> {
        if extents.is_empty() {
            return Ok(());
        }
        self.change(|sets| {
            let chunks = sets.edited(extents.iter().map(Extent::blocks), edit);
            let touched = ExtentSet::of(self.size(), touched.iter().copied());
            let touched = touched.chunks().map(|(chunk, bits)| (chunk, bits.clone())).collect();
            LedgerCommit { chunks, touched, ..LedgerCommit::default() }
        })
        .await
    }

    async fn change(&self, build: impl FnOnce(&Sets) -> LedgerCommit) -> Result<(), StoreError> {
        let turn = Arc::clone(&self.inner.turn).lock_owned().await;
        self.inner.settle().await?;
        let commit = build(&self.inner.sets());
        let inner = Arc::clone(&self.inner);
        // A task of its own: a caller that is dropped must not leave a commit behind that never reaches
        // memory.
        let commit = async move {
            let result = inner.commit(commit).await;
            drop(turn);
            result
        };
        let task = tokio::spawn(commit.in_current_span());
        let ended = |cause| Err(self.inner.error(StoreErrorKind::Unavailable, "committing", cause));
        task.await.unwrap_or_else(ended)
    }
}

impl Inner {
    /// Durable first, then known. Called with the turn.
    async fn commit(&self, commit: LedgerCommit) -> Result<(), StoreError> {
        let (rows, anchor) = (commit.chunks.clone(), commit.anchor.clone());
        self.doubt.store(true, Relaxed);
        if let Err(error) = self.store.commit(self.disk, commit).await {
            // Now if the store can, else before the copy is used.
            let _ = self.settle().await;
            return Err(error);
        }
        let mut sets = self.sets();
        for row in rows {
            sets.put(row);
        }
        if anchor.is_some() {
            sets.anchor = anchor;
        }
        self.doubt.store(false, Relaxed);
        Ok(())
    }

    /// Reloads the doubtful rows. Called with the turn.
    async fn settle(&self) -> Result<(), StoreError> {
        if self.doubt.load(Relaxed) {
            let sets = Sets::from_stored(self.disk, self.store.load(self.disk).await?)?;
            if sets.pending.size() != self.size {
                let cause = format!("{} bytes, before it was {}", sets.pending.size(), self.size);
                return Err(self.error(StoreErrorKind::Corrupt, "the disk's size has changed", cause));
            }
            *self.sets() = sets;
            self.doubt.store(false, Relaxed);
        }
        Ok(())
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(
        &self,
        kind: StoreErrorKind,
        what: &str,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        StoreError { kind, context: format!("ledger of disk {}: {what}", self.disk.0), cause: cause.into() }
    }
}

impl Sets {
    fn from_stored(disk: DiskId, stored: StoredLedger) -> Result<Self, StoreError> {
        let size = stored.size;
        if size.0 > MAX_DISK {
            return Err(corrupt(disk, format!("a size of {size} bytes is above every disk's")));
        }
        let mut sets =
            Self { anchor: stored.anchor, pending: ExtentSet::new(size), trusted: ExtentSet::new(size) };
        for row in stored.chunks {
            if !sets.pending.has_chunk(row.chunk) {
                return Err(corrupt(disk, format!("chunk {} is past the disk's {size} bytes", row.chunk)));
            }
            let mut beyond = row.trusted.clone();
            beyond.subtract(&row.pending);
            if !beyond.is_empty() {
                return Err(corrupt(disk, format!("chunk {} trusts blocks that are not pending", row.chunk)));
            }
            sets.put(row);
        }
        Ok(sets)
    }

    fn row(&self, chunk: u32) -> ChunkRow {
        ChunkRow { chunk, pending: self.pending.chunk(chunk), trusted: self.trusted.chunk(chunk) }
    }

    /// The rows of these blocks, after `edit` has changed each with its part of them.
    fn edited(
        &self,
        blocks: impl Iterator<Item = Range<u64>>,
        edit: impl Fn(&mut ChunkRow, Range<usize>),
    ) -> Vec<ChunkRow> {
        let mut rows = BTreeMap::new();
        for (chunk, blocks) in blocks.flat_map(block_pieces) {
            edit(rows.entry(chunk).or_insert_with(|| self.row(chunk)), blocks);
        }
        rows.into_values().collect()
    }

    fn put(&mut self, row: ChunkRow) {
        self.pending.put_chunk(row.chunk, row.pending);
        self.trusted.put_chunk(row.chunk, row.trusted);
    }
}

fn corrupt(disk: DiskId, cause: String) -> StoreError {
    StoreError {
        kind: StoreErrorKind::Corrupt,
        context: format!("loading the ledger of disk {}", disk.0),
        cause: cause.into(),
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("disk", &self.disk())
            .field("size", &self.size())
            .field("anchor", &self.anchor())
            .field("pending", &self.pending_bytes())
            .finish_non_exhaustive()
    }
}
