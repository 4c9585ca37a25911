//! The daemon's side of a pass in a mover: its ledgers, which commit what the mover reports.
//!
//! Rule: a report is outside data. What an order of this generation does not allow is refused before anything
//! changes: another disk, blocks that are not pending, hashes of other blocks. A success is returned only
//! when the change is durable.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use async_trait::async_trait;
use warmd_cbt::{
    batch::Batch,
    extents::ExtentSet,
    ledger::Ledger,
    manifest::BlockHash,
    store::{DiskId, PassFigures, StoreError, StoreErrorKind},
    units::{BLOCK, BlockIndex, Extent, blocks_in},
};
use warmd_core::pass::{BlockChange, LedgerChange, PassLedger};

/// The ledgers of the disks of one order.
#[derive(Debug)]
pub struct LedgerKeeper {
    generation: u64,
    /// Each with its pass in the state.
    ledgers: BTreeMap<DiskId, (Arc<Ledger>, Option<i64>)>,
}

impl LedgerKeeper {
    /// For the order of this generation.
    pub fn new(generation: u64, ledgers: impl IntoIterator<Item = (Arc<Ledger>, Option<i64>)>) -> Self {
        let ledgers = ledgers.into_iter().map(|(ledger, record)| (ledger.disk(), (ledger, record)));
        Self { generation, ledgers: ledgers.collect() }
    }

    fn find(&self, disk: DiskId) -> Result<&(Arc<Ledger>, Option<i64>), StoreError> {
        let missing = || refused(StoreErrorKind::NotFound, disk, "the order has no such disk".to_owned());
        self.ledgers.get(&disk).ok_or_else(missing)
    }
}

#[async_trait]
impl PassLedger for LedgerKeeper {
    async fn commit(&self, change: LedgerChange) -> Result<(), StoreError> {
        let LedgerChange { disk, generation, change } = change;
        let (ledger, record) = self.find(disk)?;
        let corrupt = |why: String| refused(StoreErrorKind::Corrupt, disk, why);
        if generation != self.generation {
            let why = format!("it is of generation {generation}, and the order of {}", self.generation);
            return Err(refused(StoreErrorKind::Unavailable, disk, why));
        }
        match change {
            BlockChange::Claim(extents) => {
                check_extents(ledger, &extents).map_err(corrupt)?;
                ledger.claim(&extents).await
            }
            BlockChange::Drain { extents, hashes, figures } => {
                check_extents(ledger, &extents).map_err(corrupt)?;
                check_hashes(ledger, &extents, &hashes).map_err(corrupt)?;
                ledger.drain(batch(extents, hashes, figures), *record).await
            }
        }
    }

    async fn hashes(&self, disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError> {
        let (ledger, _) = self.find(disk)?;
        let (mut at, blocks) = (0, blocks_in(ledger.size()));
        for span in spans {
            if span.start < at || span.end < span.start || span.end > blocks {
                let why = format!("it asks for the hashes of blocks {span:?} of {blocks}");
                return Err(refused(StoreErrorKind::Corrupt, disk, why));
            }
            at = span.end;
        }
        ledger.store().hashes(disk, spans).await
    }
}

/// Whole blocks that are pending.
fn check_extents(ledger: &Ledger, extents: &[Extent]) -> Result<(), String> {
    let size = ledger.size();
    for extent in extents {
        let ends_whole = extent.end().0.is_multiple_of(BLOCK) || extent.end().0 == size.0;
        if !extent.within(size) || !extent.start().0.is_multiple_of(BLOCK) || !ends_whole {
            return Err(format!("{extent} is not of whole blocks of a disk of {size} bytes"));
        }
    }
    let mut settled = ledger.settled();
    settled.intersect(&ExtentSet::of(size, extents.iter().copied()));
    match settled.extents().next() {
        Some(extent) => Err(format!("{extent} is not pending")),
        None => Ok(()),
    }
}

/// Hashes of blocks in these extents, in order.
fn check_hashes(
    ledger: &Ledger,
    extents: &[Extent],
    hashes: &[(BlockIndex, BlockHash)],
) -> Result<(), String> {
    let set = ExtentSet::of(ledger.size(), extents.iter().copied());
    let mut last = None;
    for (block, _) in hashes {
        if !set.contains(block.0) || last.is_some_and(|last| last >= block.0) {
            return Err(format!("it has a hash of block {} where there may be none", block.0));
        }
        last = Some(block.0);
    }
    Ok(())
}

fn batch(extents: Vec<Extent>, hashes: Vec<(BlockIndex, BlockHash)>, figures: PassFigures) -> Batch {
    let mut batch = Batch::default();
    let (mut hashes, mut figures) = (Some(hashes), Some(figures));
    for extent in extents {
        batch.add(extent, hashes.take().unwrap_or_default(), figures.take().unwrap_or_default());
    }
    batch
}

fn refused(kind: StoreErrorKind, disk: DiskId, why: String) -> StoreError {
    StoreError { kind, context: format!("a mover's change of disk {}", disk.0), cause: why.into() }
}
