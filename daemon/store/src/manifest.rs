//! The manifest: pages of 64 hashes, so that zeroes cost nothing, and before them the newest hashes as they
//! came.
//!
//! Rule: both together are the manifest, in one transaction as outside of one. Hashes that lie close go into
//! the pages at once, scattered ones wait in [`manifest_log`] for their compaction.

use std::ops::Range;

use rusqlite::{CachedStatement, Connection, params};
use warmd_cbt::{
    manifest::BlockHash,
    store::DiskId,
    units::{BlockIndex, Length, blocks_in},
};

use super::{Store, StoreError, error::StoreFault, ledger::key, manifest_log, row::unsigned};

const TABLE: &str = "pages";
/// Blocks in a page: 4 MiB of disk, 1 KiB of hashes.
const PAGE_BLOCKS: u64 = 64;
const PAGE_BYTES: usize = PAGE_BLOCKS as usize * BlockHash::BYTES;
/// Hashes for each page that they touch, on average, above which they go into the pages at once.
const DENSE: usize = 16;
/// Pages between two wanted ones that are read along rather than looked up again.
const NEAR: u32 = 4;

/// The most hashes in one answer: 64 MiB of them, for 256 GiB of disk.
pub(super) const MOST: u64 = 1 << 22;

type Page = [u8; PAGE_BYTES];

impl Store {
    /// Compacts the newest hashes of the disk's manifest into its pages, in short transactions. It happens
    /// automatically as well, when there is much of it.
    pub async fn compact_manifest(&self, disk: DiskId) -> Result<(), StoreError> {
        while self
            .write(format!("compacting the manifest of disk {}", disk.0), move |db| {
                manifest_log::compact(db, disk)
            })
            .await?
        {}
        Ok(())
    }
}

/// Saves the hashes; blocks that are not named keep theirs, of a block named twice the last counts.
pub(super) fn write(
    db: &Connection,
    disk: DiskId,
    size: Length,
    mut hashes: Vec<(BlockIndex, BlockHash)>,
) -> Result<(), StoreFault> {
    if !hashes.is_sorted_by(|(one, _), (next, _)| one < next) {
        hashes.sort_by_key(|(block, _)| *block);
        hashes.reverse();
        hashes.dedup_by_key(|(block, _)| *block);
        hashes.reverse();
    }
    let (Some((first, _)), Some((last, _))) = (hashes.first(), hashes.last()) else { return Ok(()) };
    if last.0 >= blocks_in(size) {
        return Err(StoreFault::bad(TABLE, disk.0, format!("block {} is past the disk's end", last.0)));
    }
    let pages = hashes.chunk_by(|(one, _), (next, _)| page_of(one.0) == page_of(next.0)).count();
    if hashes.len() >= pages * DENSE && !manifest_log::may_have(db, disk, first.0, last.0)? {
        put(db, disk, &hashes)
    } else {
        manifest_log::append(db, disk, &hashes)
    }
}

/// Puts the hashes, in block order, into the pages.
pub(super) fn put(
    db: &Connection,
    disk: DiskId,
    hashes: &[(BlockIndex, BlockHash)],
) -> Result<(), StoreFault> {
    let mut select = db.prepare_cached("SELECT hashes FROM pages WHERE key = ?")?;
    let mut put = db.prepare_cached(
        "INSERT INTO pages (key, hashes) VALUES (?1, ?2)
         ON CONFLICT (key) DO UPDATE SET hashes = excluded.hashes",
    )?;
    let mut remove = db.prepare_cached("DELETE FROM pages WHERE key = ?")?;
    for run in hashes.chunk_by(|(one, _), (next, _)| page_of(one.0) == page_of(next.0)) {
        let Some((first, _)) = run.first() else { continue };
        let key = key(disk, page_of(first.0));
        let whole = run.len() == PAGE_BLOCKS as usize;
        let mut page = if whole { None } else { load(&mut select, key)? }.unwrap_or([0; PAGE_BYTES]);
        for (block, hash) in run {
            let at = (block.0 % PAGE_BLOCKS) as usize * BlockHash::BYTES;
            page[at..at + BlockHash::BYTES].copy_from_slice(&hash.0);
        }
        if page.iter().all(|byte| *byte == 0) {
            remove.execute([key])?;
        } else {
            put.execute(params![key, page])?;
        }
    }
    Ok(())
}

/// The hashes of `spans`, which are in order and apart, one for each block.
pub(super) fn read(
    db: &Connection,
    disk: DiskId,
    size: Length,
    spans: Vec<Range<u64>>,
) -> Result<Vec<BlockHash>, StoreFault> {
    let mut wanted = Wanted::new(disk, size, spans)?;
    let mut select =
        db.prepare_cached("SELECT key, hashes FROM pages WHERE key BETWEEN ? AND ? ORDER BY key")?;
    for pages in wanted.pages() {
        let mut rows = select.query([key(disk, pages.start), key(disk, pages.end)])?;
        while let Some(row) = rows.next()? {
            let key: i64 = row.get(0)?;
            let page: u64 = unsigned(TABLE, key, key & i64::from(u32::MAX))?;
            let bytes = as_page(key, row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)?;
            let (found, _) = bytes.as_chunks::<{ BlockHash::BYTES }>();
            let first = page * PAGE_BLOCKS;
            wanted.overlapping(first..first + PAGE_BLOCKS, |span, hashes| {
                let inside = (span.start - first) as usize..(span.end - first) as usize;
                for (hash, found) in hashes.iter_mut().zip(&found[inside]) {
                    *hash = BlockHash(*found);
                }
            });
        }
    }
    manifest_log::overlay(db, disk, &mut wanted)?;
    Ok(wanted.hashes)
}

/// Blocks whose hashes are asked for, with the known ones.
pub(super) struct Wanted {
    /// In order and apart, each with the place of its first hash.
    spans: Vec<(Range<u64>, usize)>,
    hashes: Vec<BlockHash>,
}

impl Wanted {
    fn new(disk: DiskId, size: Length, spans: Vec<Range<u64>>) -> Result<Self, StoreFault> {
        let (mut count, mut end) = (0, 0);
        let mut placed = Vec::with_capacity(spans.len());
        for span in spans {
            if span.start < end || span.end < span.start || span.end > blocks_in(size) {
                let why = format!("blocks {span:?} are out of order, or reach past the disk's end");
                return Err(StoreFault::bad(TABLE, disk.0, why));
            }
            let len = span.end - span.start;
            end = span.end;
            placed.push((span, count as usize));
            count += len;
            if count > MOST {
                return Err(StoreFault::bad(
                    TABLE,
                    disk.0,
                    format!("more than {MOST} hashes are asked for at a time"),
                ));
            }
        }
        placed.retain(|(span, _)| !span.is_empty());
        Ok(Self { spans: placed, hashes: vec![BlockHash::ZERO; count as usize] })
    }

    /// The first and the last block; `None` if there is none.
    pub(super) fn bounds(&self) -> Option<(u64, u64)> {
        let (first, _) = self.spans.first()?;
        let (last, _) = self.spans.last()?;
        Some((first.start, last.end - 1))
    }

    /// Gives `take` each wanted part of `blocks`, in order, with the places of its hashes.
    pub(super) fn overlapping(
        &mut self,
        blocks: Range<u64>,
        mut take: impl FnMut(Range<u64>, &mut [BlockHash]),
    ) {
        let first = self.spans.partition_point(|(span, _)| span.end <= blocks.start);
        for (span, place) in self.spans[first..].iter().take_while(|(span, _)| span.start < blocks.end) {
            let part = span.start.max(blocks.start)..span.end.min(blocks.end);
            let from = place + (part.start - span.start) as usize;
            let to = from + (part.end - part.start) as usize;
            take(part, &mut self.hashes[from..to]);
        }
    }

    /// The pages that they are in, first and last of each run of near ones.
    fn pages(&self) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for (span, _) in &self.spans {
            let (first, last) = (page_of(span.start), page_of(span.end - 1));
            match runs.last_mut() {
                Some(run) if first <= run.end.saturating_add(NEAR) => run.end = last,
                _ => runs.push(first..last),
            }
        }
        runs
    }
}

fn load(select: &mut CachedStatement, key: i64) -> Result<Option<Page>, StoreFault> {
    let mut rows = select.query([key])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    as_page(key, row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?).map(Some)
}

fn as_page(key: i64, bytes: &[u8]) -> Result<Page, StoreFault> {
    bytes
        .try_into()
        .map_err(|_| StoreFault::bad(TABLE, key, format!("{} bytes are no page of hashes", bytes.len())))
}

fn page_of(block: u64) -> u32 {
    (block / PAGE_BLOCKS) as u32
}
