//! A store in memory, which keeps rows in the stored form.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use async_trait::async_trait;

use super::faults::{DiskEvent, Faults, Random};
use warmd_cbt::{
    chunk::ChunkBits,
    extents::ExtentSet,
    manifest::BlockHash,
    mark::ChangeMark,
    store::{
        ChunkRow, DiskId, LedgerCommit, LedgerStore, PassFigures, StoreError, StoreErrorKind, StoredLedger,
    },
    units::{Length, blocks_in},
};

/// A store that is durable while the test runs.
pub struct MemoryStore {
    faults: Faults,
    random: Mutex<Random>,
    disks: Mutex<BTreeMap<DiskId, Disk>>,
    on_commit: OnceLock<Box<Watch>>,
}

type Watch = dyn Fn(&LedgerView, &LedgerView, &LedgerCommit) + Send + Sync;

#[derive(Clone, Default)]
struct Disk {
    size: Length,
    anchor: Option<ChangeMark>,
    /// Both sets' bytes.
    rows: BTreeMap<u32, (Vec<u8>, Vec<u8>)>,
    hashes: Vec<BlockHash>,
    figures: BTreeMap<Option<i64>, PassFigures>,
}

/// The durable part of one disk's ledger.
#[derive(Clone, Debug)]
pub struct LedgerView {
    pub anchor: Option<ChangeMark>,
    pub pending: ExtentSet,
    pub trusted: ExtentSet,
    /// One for each block.
    pub hashes: Vec<BlockHash>,
    /// Of all passes.
    pub figures: PassFigures,
}

impl MemoryStore {
    /// A store without disks.
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self {
            faults,
            random: Mutex::new(Random::new(seed)),
            disks: Mutex::default(),
            on_commit: OnceLock::new(),
        }
    }

    /// Adds a disk with these rows, as [`warmd_cbt::ledger::Ledger::initial_rows`] makes them.
    pub fn create(&self, disk: DiskId, size: Length, rows: &[ChunkRow]) {
        let mut new =
            Disk { size, hashes: vec![BlockHash::ZERO; blocks_in(size) as usize], ..Disk::default() };
        new.put(rows);
        self.disks().insert(disk, new);
    }

    /// Called with the ledger before and after each commit that became durable. At most one.
    pub fn on_commit(&self, watch: impl Fn(&LedgerView, &LedgerView, &LedgerCommit) + Send + Sync + 'static) {
        let _ = self.on_commit.set(Box::new(watch));
    }

    /// The durable part of a disk's ledger.
    pub fn view(&self, disk: DiskId) -> Option<LedgerView> {
        self.disks().get(&disk).map(Disk::view)
    }

    fn disks(&self) -> MutexGuard<'_, BTreeMap<DiskId, Disk>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, disk: DiskId, commit: &LedgerCommit) -> Result<(), StoreError> {
        let mut disks = self.disks();
        let disk = disks.get_mut(&disk).ok_or_else(|| failed(StoreErrorKind::NotFound))?;
        let before = self.on_commit.get().map(|_| disk.view());
        if commit.anchor.is_some() {
            disk.anchor.clone_from(&commit.anchor);
        }
        disk.put(&commit.chunks);
        for (block, hash) in &commit.hashes {
            disk.hashes[block.0 as usize] = *hash;
        }
        *disk.figures.entry(commit.pass).or_default() += commit.figures;
        let after = before.is_some().then(|| disk.view());
        drop(disks);
        if let (Some(watch), Some(before), Some(after)) = (self.on_commit.get(), before, after) {
            watch(&before, &after, commit);
        }
        Ok(())
    }
}

impl Disk {
    fn put(&mut self, rows: &[ChunkRow]) {
        for row in rows {
            if row.pending.is_empty() {
                self.rows.remove(&row.chunk);
            } else {
                self.rows.insert(row.chunk, (row.pending.encode(), row.trusted.encode()));
            }
        }
    }

    fn rows(&self) -> Vec<ChunkRow> {
        let decode = |bytes: &[u8]| ChunkBits::decode(bytes).unwrap_or_default();
        let row = |(chunk, (pending, trusted)): (&u32, &(Vec<u8>, Vec<u8>))| ChunkRow {
            chunk: *chunk,
            pending: decode(pending),
            trusted: decode(trusted),
        };
        self.rows.iter().map(row).collect()
    }

    fn view(&self) -> LedgerView {
        let (mut pending, mut trusted) = (ExtentSet::new(self.size), ExtentSet::new(self.size));
        for row in self.rows() {
            pending.put_chunk(row.chunk, row.pending);
            trusted.put_chunk(row.chunk, row.trusted);
        }
        let mut figures = PassFigures::default();
        for of_pass in self.figures.values() {
            figures += *of_pass;
        }
        LedgerView { anchor: self.anchor.clone(), pending, trusted, hashes: self.hashes.clone(), figures }
    }
}

#[async_trait]
impl LedgerStore for MemoryStore {
    async fn load(&self, disk: DiskId) -> Result<StoredLedger, StoreError> {
        if self.faults.strike(DiskEvent::Load).1.is_some() {
            return Err(failed(StoreErrorKind::Unavailable));
        }
        let disks = self.disks();
        let disk = disks.get(&disk).ok_or_else(|| failed(StoreErrorKind::NotFound))?;
        Ok(StoredLedger { size: disk.size, anchor: disk.anchor.clone(), chunks: disk.rows() })
    }

    async fn commit(&self, disk: DiskId, commit: LedgerCommit) -> Result<(), StoreError> {
        let (life, fault) = self.faults.strike(DiskEvent::Commit);
        let is_durable = if fault.is_some() {
            // The answer is lost; the commit may be lost too, at random.
            self.random.lock().unwrap_or_else(PoisonError::into_inner).percent(50)
        } else {
            tokio::task::yield_now().await;
            self.faults.lives(life)
        };
        if is_durable {
            self.apply(disk, &commit)?;
        }
        tokio::task::yield_now().await;
        if fault.is_some() || !self.faults.lives(life) {
            return Err(failed(StoreErrorKind::Unavailable));
        }
        Ok(())
    }

    async fn hashes(&self, disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError> {
        if self.faults.strike(DiskEvent::Hashes).1.is_some() {
            return Err(failed(StoreErrorKind::Unavailable));
        }
        tokio::task::yield_now().await;
        let disks = self.disks();
        let disk = disks.get(&disk).ok_or_else(|| failed(StoreErrorKind::NotFound))?;
        let mut hashes = Vec::new();
        for span in spans {
            let range = span.start as usize..span.end as usize;
            hashes.extend(disk.hashes.get(range).ok_or_else(|| failed(StoreErrorKind::Corrupt))?);
        }
        Ok(hashes)
    }
}

fn failed(kind: StoreErrorKind) -> StoreError {
    StoreError { kind, context: "memory store".to_owned(), cause: "a fault of the test's".into() }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
