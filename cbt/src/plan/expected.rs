//! The manifest's hashes of a window's trusted blocks, fetched in few calls.

use crate::{
    extents::{CHUNK_BYTES, coalesce},
    ledger::Ledger,
    manifest::BlockHash,
    store::{StoreError, StoreErrorKind},
    units::{BLOCK, Extent},
};

/// Hashes between two trusted runs that are fetched along rather than asked around: 32 KiB, cheaper than a call.
const GAP: u64 = 2048 * BLOCK;

/// Each trusted block with its hash, in order. `trusted` is in order and without overlap.
pub(super) async fn hashes_of(
    ledger: &Ledger,
    trusted: &[Extent],
) -> Result<Vec<(u64, BlockHash)>, StoreError> {
    let mut found = Vec::new();
    let spans: Vec<_> = coalesce(trusted.iter().copied(), GAP).collect();
    for span in spans.into_iter().flat_map(|span| span.split(CHUNK_BYTES)) {
        let blocks = span.blocks();
        let hashes = ledger.store().hashes(ledger.disk(), blocks.clone()).await?;
        if hashes.len() as u64 != blocks.end - blocks.start {
            return Err(StoreError {
                kind: StoreErrorKind::Corrupt,
                context: format!("hashes of disk {} at {span}", ledger.disk().0),
                cause: format!("{} hashes for {} blocks", hashes.len(), blocks.end - blocks.start).into(),
            });
        }
        let first = trusted.partition_point(|extent| extent.end() <= span.start());
        let inside = trusted[first..].iter().map_while(|extent| extent.intersect(&span));
        let wanted = inside.flat_map(|extent| extent.blocks());
        found.extend(wanted.map(|block| (block, hashes[(block - blocks.start) as usize])));
    }
    Ok(found)
}
