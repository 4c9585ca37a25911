//! The engine's ledgers: each commit is one durable transaction.
//!
//! Rule: rows are applied as they come; their meaning belongs to the ledger. Only rows that no disk can have
//! are refused.

use std::ops::Range;

use async_trait::async_trait;
use rusqlite::{Connection, params};
use warmd_cbt::{
    chunk::ChunkBits,
    extents::CHUNK_BYTES,
    manifest::BlockHash,
    store::{ChunkRow, DiskId, LedgerCommit, LedgerStore, StoredLedger},
    units::Length,
};
use warmd_core::crash;

use super::{Store, StoreError, disks, error::StoreFault, manifest, passes, row::unsigned, verification};

const TABLE: &str = "chunks";
/// Instead of bits that are those of `pending`, as an advance leaves most of them. No bits are kept like
/// this.
const AS_PENDING: &[u8] = &[0];

#[async_trait]
impl LedgerStore for Store {
    async fn load(&self, disk: DiskId) -> Result<StoredLedger, StoreError> {
        self.read(format!("reading the ledger of disk {}", disk.0), move |db| {
            let row = disks::get(db, disk)?;
            let chunks = chunks(db, disk, row.size)?;
            Ok(StoredLedger { size: row.size, anchor: row.anchor, chunks })
        })
        .await
    }

    async fn commit(&self, disk: DiskId, commit: LedgerCommit) -> Result<(), StoreError> {
        crash::point("commit.before");
        self.write(format!("committing to the ledger of disk {}", disk.0), move |db| apply(db, disk, commit))
            .await?;
        crash::point("commit.after");
        Ok(())
    }

    /// At most [`manifest::MOST`] blocks at a time, so that memory stays bounded.
    async fn hashes(&self, disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError> {
        let spans = spans.to_vec();
        self.read(format!("reading the manifest of disk {}", disk.0), move |db| {
            let row = disks::get(db, disk)?;
            manifest::read(db, disk, row.size, spans)
        })
        .await
    }
}

fn apply(db: &Connection, disk: DiskId, commit: LedgerCommit) -> Result<(), StoreFault> {
    let size = disks::get(db, disk)?.size;
    if let Some(anchor) = commit.anchor {
        db.prepare_cached("UPDATE disks SET anchor = ? WHERE id = ?")?.execute(params![anchor.0, disk.0])?;
    }
    let last = chunks_in(size);
    if let Some(row) = commit.chunks.iter().find(|row| u64::from(row.chunk) >= last) {
        return Err(StoreFault::bad(TABLE, disk.0, format!("chunk {} is past the disk's end", row.chunk)));
    }
    if commit.touched.iter().any(|(chunk, _)| u64::from(*chunk) >= last) {
        return Err(StoreFault::bad(TABLE, disk.0, "a chunk past the disk's end was touched"));
    }
    put_chunks(db, disk, commit.chunks)?;
    verification::mark_unverified(db, disk, &commit.touched)?;
    manifest::write(db, disk, size, commit.hashes)?;
    if let Some(pass) = commit.pass {
        passes::add_figures(db, pass, disk, &commit.figures)?;
    }
    Ok(())
}

/// Chunks that a disk of `size` bytes has.
fn chunks_in(size: Length) -> u64 {
    size.0.div_ceil(CHUNK_BYTES)
}

/// A disk's rows are adjacent, in order.
pub(super) fn key(disk: DiskId, number: u32) -> i64 {
    (disk.0 << 32) | i64::from(number)
}

pub(super) fn put_chunks(
    db: &Connection,
    disk: DiskId,
    chunks: impl IntoIterator<Item = ChunkRow>,
) -> Result<(), StoreFault> {
    let mut put = db.prepare_cached(
        "INSERT INTO chunks (key, pending, trusted) VALUES (?1, ?2, ?3)
         ON CONFLICT (key) DO UPDATE SET pending = excluded.pending, trusted = excluded.trusted",
    )?;
    let mut remove = db.prepare_cached("DELETE FROM chunks WHERE key = ?")?;
    for row in chunks {
        let key = key(disk, row.chunk);
        if row.pending.is_empty() && row.trusted.is_empty() {
            remove.execute([key])?;
        } else {
            let pending = row.pending.encode();
            if row.trusted == row.pending {
                put.execute(params![key, pending, AS_PENDING])?;
            } else {
                put.execute(params![key, pending, row.trusted.encode()])?;
            }
        }
    }
    Ok(())
}

fn chunks(db: &Connection, disk: DiskId, size: Length) -> Result<Vec<ChunkRow>, StoreFault> {
    let mut select =
        db.prepare_cached("SELECT key, pending, trusted FROM chunks WHERE key BETWEEN ? AND ? ORDER BY key")?;
    let mut rows = select.query([key(disk, 0), key(disk, u32::MAX)])?;
    let mut chunks = Vec::new();
    while let Some(row) = rows.next()? {
        let key: i64 = row.get(0)?;
        let chunk: u32 = unsigned(TABLE, key, key & i64::from(u32::MAX))?;
        if u64::from(chunk) >= chunks_in(size) {
            return Err(StoreFault::bad(TABLE, key, "it is past the disk's end"));
        }
        let bits = |bytes| {
            ChunkBits::decode(bytes).ok_or_else(|| StoreFault::bad(TABLE, key, "these bits cannot be"))
        };
        let bytes = |column| -> Result<&[u8], StoreFault> {
            Ok(row.get_ref(column)?.as_blob().map_err(rusqlite::Error::from)?)
        };
        let pending = bits(bytes(1)?)?;
        let trusted = if bytes(2)? == AS_PENDING { pending.clone() } else { bits(bytes(2)?)? };
        chunks.push(ChunkRow { chunk, pending, trusted });
    }
    Ok(chunks)
}
