//! The manifest in pages of 64 hashes, so that a commit touches only what it changes and zeroes cost nothing.

use std::ops::Range;

use rusqlite::{Connection, OptionalExtension, params};
use warmd_cbt::{
    manifest::BlockHash,
    store::DiskId,
    units::{BlockIndex, Length, blocks_in},
};

use super::{error::Fault, ledger::key, row::unsigned};

const TABLE: &str = "pages";
/// Blocks in a page: 4 MiB of disk, 1 KiB of hashes.
const PAGE_BLOCKS: u64 = 64;
const PAGE_BYTES: usize = PAGE_BLOCKS as usize * BlockHash::BYTES;

/// The most hashes in one answer: 64 MiB of them, for 256 GiB of disk.
pub(super) const MOST: u64 = 1 << 22;

type Page = [u8; PAGE_BYTES];

/// Puts the hashes in; blocks that are not named keep theirs.
pub(super) fn write(
    db: &Connection,
    disk: DiskId,
    size: Length,
    hashes: &[(BlockIndex, BlockHash)],
) -> Result<(), Fault> {
    let end = blocks_in(size);
    if let Some((block, _)) = hashes.iter().find(|(block, _)| block.0 >= end) {
        return Err(Fault::bad(TABLE, disk.0, format!("block {} is past the disk's end", block.0)));
    }
    let mut put = db.prepare_cached(
        "INSERT INTO pages (key, hashes) VALUES (?1, ?2)
         ON CONFLICT (key) DO UPDATE SET hashes = excluded.hashes",
    )?;
    let mut remove = db.prepare_cached("DELETE FROM pages WHERE key = ?")?;
    for run in hashes.chunk_by(|(one, _), (next, _)| page_of(one.0) == page_of(next.0)) {
        let Some((first, _)) = run.first() else { continue };
        let key = key(disk, page_of(first.0));
        let mut page = load(db, key)?.unwrap_or([0; PAGE_BYTES]);
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

/// The hashes of `blocks`, one for each.
pub(super) fn read(
    db: &Connection,
    disk: DiskId,
    size: Length,
    blocks: Range<u64>,
) -> Result<Vec<BlockHash>, Fault> {
    if blocks.is_empty() {
        return Ok(Vec::new());
    }
    if blocks.end > blocks_in(size) || blocks.end - blocks.start > MOST {
        return Err(Fault::bad(
            TABLE,
            disk.0,
            format!("blocks {blocks:?} reach past the disk's end, or are more than {MOST} at a time"),
        ));
    }
    let mut hashes = vec![BlockHash::ZERO; (blocks.end - blocks.start) as usize];
    let mut select =
        db.prepare_cached("SELECT key, hashes FROM pages WHERE key BETWEEN ? AND ? ORDER BY key")?;
    let mut rows = select.query([key(disk, page_of(blocks.start)), key(disk, page_of(blocks.end - 1))])?;
    while let Some(row) = rows.next()? {
        let key: i64 = row.get(0)?;
        let page: u64 = unsigned(TABLE, key, key & i64::from(u32::MAX))?;
        let bytes = as_page(key, row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)?;
        let (found, _) = bytes.as_chunks::<{ BlockHash::BYTES }>();
        for (block, hash) in (page * PAGE_BLOCKS..).zip(found) {
            if blocks.contains(&block) {
                hashes[(block - blocks.start) as usize] = BlockHash(*hash);
            }
        }
    }
    Ok(hashes)
}

fn load(db: &Connection, key: i64) -> Result<Option<Page>, Fault> {
    db.prepare_cached("SELECT hashes FROM pages WHERE key = ?")?
        .query_row([key], |row| row.get::<_, Vec<u8>>(0))
        .optional()?
        .map(|bytes| as_page(key, &bytes))
        .transpose()
}

fn as_page(key: i64, bytes: &[u8]) -> Result<Page, Fault> {
    bytes
        .try_into()
        .map_err(|_| Fault::bad(TABLE, key, format!("{} bytes are no page of hashes", bytes.len())))
}

fn page_of(block: u64) -> u32 {
    (block / PAGE_BLOCKS) as u32
}
