//! The newest hashes of a manifest, as their batches brought them: short rows at the end of a table, until
//! they are compacted into the pages.
//!
//! Rule: these rows are newer than the pages, and a higher key newer than a lower one; so only the oldest row
//! of a disk may be compacted, and code that writes to the pages beside it must know that no row here has the
//! same blocks.
//!
//! A batch of scattered blocks would change a page of the file for each of them, 20,000 of them 160 MB; here
//! it is 400 KB. Compaction moves the rest of that cost to a time when no caller waits for it.

use std::{collections::BTreeSet, ops::RangeInclusive};

use rusqlite::{Connection, OptionalExtension, params};
use warmd_cbt::{
    manifest::BlockHash,
    store::DiskId,
    units::{BlockIndex, Length, blocks_in},
};

use super::{
    error::StoreFault,
    ledger::key,
    manifest::{self, Wanted},
    row::{signed, unsigned},
};

const TABLE: &str = "manifest_log";
/// Hashes in a row: 80 KiB, and what a step of compaction writes at the most.
const PIECE: usize = 4096;
/// A block's number as distance from the row's first, and its hash.
const ENTRY: usize = size_of::<u32>() + BlockHash::BYTES;
/// A disk's rows may have a sixteenth of its blocks before idle moments are used to compact them, but always
/// so many; and never more than the last, as each question for hashes goes through all that may have them.
const SHARE: u64 = 16;
const ALWAYS: u64 = 200_000;
const NEVER: u64 = 1_000_000;
/// And so many times that before commits wait for it.
const URGENT: u64 = 4;

/// A row.
struct Piece<'a> {
    first: u64,
    blocks: &'a [[u8; size_of::<u32>()]],
    hashes: &'a [[u8; BlockHash::BYTES]],
}

impl<'a> Piece<'a> {
    fn read(key: i64, range: &RangeInclusive<i64>, body: &'a [u8]) -> Result<Self, StoreFault> {
        let first = unsigned(TABLE, key, *range.start())?;
        let count = body.len() / ENTRY;
        let (blocks, hashes) = body.split_at(count * size_of::<u32>());
        let ((blocks, _), (hashes, rest)) = (blocks.as_chunks(), hashes.as_chunks());
        let piece = Self { first, blocks, hashes };
        let in_order = (1..count).all(|at| piece.block(at - 1) < piece.block(at));
        let bounds =
            count > 0 && piece.block(0) == first && Ok(piece.block(count - 1)) == u64::try_from(*range.end());
        if in_order && bounds && rest.is_empty() && body.len().is_multiple_of(ENTRY) {
            Ok(piece)
        } else {
            Err(StoreFault::bad(TABLE, key, format!("these {} bytes are no hashes of {range:?}", body.len())))
        }
    }

    fn block(&self, at: usize) -> u64 {
        self.first + u64::from(u32::from_le_bytes(self.blocks[at]))
    }

    fn entries(&self) -> impl Iterator<Item = (BlockIndex, BlockHash)> + '_ {
        self.hashes.iter().enumerate().map(|(at, hash)| (BlockIndex(self.block(at)), BlockHash(*hash)))
    }

    /// Puts its hashes over those of the wanted blocks.
    fn overlay(&self, wanted: &mut Wanted) {
        let last = self.block(self.blocks.len() - 1);
        let mut at = 0;
        wanted.overlapping(self.first..last + 1, |span, hashes| {
            while at < self.blocks.len() && self.block(at) < span.start {
                at += 1;
            }
            while at < self.blocks.len() && self.block(at) < span.end {
                hashes[(self.block(at) - span.start) as usize] = BlockHash(self.hashes[at]);
                at += 1;
            }
        });
    }
}

/// Takes `bytes` for a row, its bounds in front; whether it is one. See [`super::fuzz`].
pub(super) fn exercise(bytes: &[u8]) -> bool {
    let Some((bounds, body)) = bytes.split_first_chunk::<16>() else { return false };
    let (halves, _) = bounds.as_chunks::<8>();
    let [first, last] = halves else { return false };
    let range = i64::from_le_bytes(*first)..=i64::from_le_bytes(*last);
    Piece::read(0, &range, body).is_ok_and(|piece| piece.entries().count() > 0)
}

/// Adds hashes, in block order, none twice, on the disk.
pub(super) fn append(
    db: &Connection,
    disk: DiskId,
    mut hashes: &[(BlockIndex, BlockHash)],
) -> Result<(), StoreFault> {
    let mut number = next_number(db, disk)?;
    let mut insert = db.prepare_cached("INSERT INTO manifest_log (key, first, last) VALUES (?, ?, ?)")?;
    let mut insert_body = db.prepare_cached("INSERT INTO manifest_log_hashes (key, body) VALUES (?, ?)")?;
    let count = hashes.len() as u64;
    while let Some((BlockIndex(first), _)) = hashes.first() {
        let far = hashes.partition_point(|(block, _)| u32::try_from(block.0 - first).is_ok());
        let (piece, rest) = hashes.split_at(far.min(PIECE));
        hashes = rest;
        let mut body = Vec::with_capacity(piece.len() * ENTRY);
        body.extend(piece.iter().flat_map(|(block, _)| ((block.0 - first) as u32).to_le_bytes()));
        body.extend(piece.iter().flat_map(|(_, hash)| hash.0));
        let last = piece.last().map_or(*first, |(block, _)| block.0);
        let key = key(disk, number);
        insert.execute(params![key, signed(TABLE, key, *first)?, signed(TABLE, key, last)?])?;
        insert_body.execute(params![key, body])?;
        number = number
            .checked_add(1)
            .ok_or_else(|| StoreFault::bad(TABLE, key, "there is no number after it"))?;
    }
    db.prepare_cached(
        "INSERT INTO manifest_log_counts (disk, hashes) VALUES (?1, ?2)
         ON CONFLICT (disk) DO UPDATE SET hashes = hashes + excluded.hashes",
    )?
    .execute(params![disk.0, signed(TABLE, disk.0, count)?])?;
    Ok(())
}

fn next_number(db: &Connection, disk: DiskId) -> Result<u32, StoreFault> {
    let last: Option<i64> = db
        .prepare_cached("SELECT max(key) FROM manifest_log WHERE key BETWEEN ? AND ?")?
        .query_row([key(disk, 0), key(disk, u32::MAX)], |row| row.get(0))?;
    let Some(last) = last else { return Ok(0) };
    let number = (last & i64::from(u32::MAX)) + 1;
    unsigned(TABLE, last, number)
}

/// Whether a row has, or may have, one of the blocks from `first` to `last`.
pub(super) fn may_have(db: &Connection, disk: DiskId, first: u64, last: u64) -> Result<bool, StoreFault> {
    let mut select = db.prepare_cached(
        "SELECT 1 FROM manifest_log WHERE key BETWEEN ? AND ? AND first <= ? AND last >= ?",
    )?;
    let number = |block| signed(TABLE, disk.0, block);
    Ok(select.exists(params![key(disk, 0), key(disk, u32::MAX), number(last)?, number(first)?])?)
}

/// Puts the newer hashes over those of the pages.
pub(super) fn overlay(db: &Connection, disk: DiskId, wanted: &mut Wanted) -> Result<(), StoreFault> {
    let Some((first, last)) = wanted.bounds() else { return Ok(()) };
    let mut select = db.prepare_cached(
        "SELECT manifest_log.key, first, last, body FROM manifest_log LEFT JOIN manifest_log_hashes ON manifest_log_hashes.key = manifest_log.key
         WHERE manifest_log.key BETWEEN ? AND ? AND first <= ? AND last >= ? ORDER BY manifest_log.key",
    )?;
    let number = |block| signed(TABLE, disk.0, block);
    let mut rows = select.query(params![key(disk, 0), key(disk, u32::MAX), number(last)?, number(first)?])?;
    while let Some(row) = rows.next()? {
        let (key, range) = (row.get(0)?, row.get(1)?..=row.get(2)?);
        let body = row.get_ref(3)?.as_blob_or_null().map_err(rusqlite::Error::from)?;
        Piece::read(key, &range, body.ok_or_else(|| no_body(key))?)?.overlay(wanted);
    }
    Ok(())
}

/// Without them the pages would count as newest.
fn no_body(key: i64) -> StoreFault {
    StoreFault::bad(TABLE, key, "its hashes are missing")
}

/// The next row to compact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CompactionDue {
    pub(super) disk: DiskId,
    /// Whether commits should wait for it.
    pub(super) urgent: bool,
}

/// The disk with the most to compact, if any has more than it should; those in `spared` are left out.
pub(super) fn due(db: &Connection, spared: &BTreeSet<DiskId>) -> Result<Option<CompactionDue>, StoreFault> {
    let mut select = db.prepare_cached(
        "SELECT disk, hashes, size FROM manifest_log_counts JOIN disks ON disks.id = disk ORDER BY hashes DESC",
    )?;
    let mut rows = select.query([])?;
    let mut idle = None;
    while let Some(row) = rows.next()? {
        let disk = DiskId(row.get(0)?);
        if spared.contains(&disk) {
            continue;
        }
        let hashes: u64 = unsigned(TABLE, disk.0, row.get(1)?)?;
        let blocks = blocks_in(Length(unsigned(TABLE, disk.0, row.get(2)?)?));
        let most = (blocks / SHARE).clamp(ALWAYS, NEVER);
        if hashes > most * URGENT {
            return Ok(Some(CompactionDue { disk, urgent: true }));
        }
        if hashes > most {
            idle = idle.or(Some(CompactionDue { disk, urgent: false }));
        }
    }
    Ok(idle)
}

/// Moves the disk's oldest row into the pages; false if there is none.
pub(super) fn compact(db: &Connection, disk: DiskId) -> Result<bool, StoreFault> {
    let oldest = db
        .prepare_cached(
            "SELECT manifest_log.key, first, last, body FROM manifest_log
             LEFT JOIN manifest_log_hashes ON manifest_log_hashes.key = manifest_log.key
             WHERE manifest_log.key BETWEEN ? AND ? ORDER BY manifest_log.key LIMIT 1",
        )?
        .query_row([key(disk, 0), key(disk, u32::MAX)], |row| {
            Ok((row.get(0)?, row.get(1)?..=row.get(2)?, row.get::<_, Option<Vec<u8>>>(3)?))
        })
        .optional()?;
    let Some((key, range, body)) = oldest else {
        db.prepare_cached("DELETE FROM manifest_log_counts WHERE disk = ?")?.execute([disk.0])?;
        return Ok(false);
    };
    let body = body.ok_or_else(|| no_body(key))?;
    let entries: Vec<_> = Piece::read(key, &range, &body)?.entries().collect();
    manifest::put(db, disk, &entries)?;
    db.prepare_cached("DELETE FROM manifest_log WHERE key = ?")?.execute([key])?;
    db.prepare_cached("DELETE FROM manifest_log_hashes WHERE key = ?")?.execute([key])?;
    db.prepare_cached("UPDATE manifest_log_counts SET hashes = hashes - ? WHERE disk = ?")?
        .execute(params![signed(TABLE, key, entries.len() as u64)?, disk.0])?;
    Ok(true)
}
