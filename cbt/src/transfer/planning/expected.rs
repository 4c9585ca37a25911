//! The manifest's hashes of a window's trusted blocks, fetched in few calls.

use std::ops::Range;

use crate::{
    extents::CHUNK_BYTES,
    ledger::Ledger,
    manifest::BlockHash,
    store::{StoreError, StoreErrorKind},
    units::Extent,
};

/// The most hashes that are fetched in one call, 1 MiB of them; a span is within one chunk, so at least four
/// fit.
const CALL: u64 = 1 << 16;

/// Each trusted block with its hash, in order. `trusted` is in order and without overlap.
pub(super) async fn hashes_of(
    ledger: &Ledger,
    trusted: &[Extent],
) -> Result<Vec<(u64, BlockHash)>, StoreError> {
    let mut found = Vec::new();
    let mut call = Vec::new();
    let mut count = 0;
    for piece in trusted.iter().flat_map(|extent| extent.split(CHUNK_BYTES)) {
        let span = piece.blocks();
        let blocks = span.end - span.start;
        if count + blocks > CALL {
            fetch(ledger, std::mem::take(&mut call), &mut found).await?;
            count = 0;
        }
        call.push(span);
        count += blocks;
    }
    fetch(ledger, call, &mut found).await?;
    Ok(found)
}

async fn fetch(
    ledger: &Ledger,
    spans: Vec<Range<u64>>,
    found: &mut Vec<(u64, BlockHash)>,
) -> Result<(), StoreError> {
    if spans.is_empty() {
        return Ok(());
    }
    let hashes = ledger.store().hashes(ledger.disk(), &spans).await?;
    let blocks: u64 = spans.iter().map(|span| span.end - span.start).sum();
    if hashes.len() as u64 != blocks {
        return Err(StoreError {
            kind: StoreErrorKind::Corrupt,
            context: format!("hashes of disk {}", ledger.disk().0),
            cause: format!("{} hashes for {blocks} blocks", hashes.len()).into(),
        });
    }
    found.extend(spans.into_iter().flatten().zip(hashes));
    Ok(())
}
