//! What a pass trusts of the target's disks: before it begins, and when it opens each of them.
//!
//! Rule: the state's record of a disk is not trusted where the target shows that the two may be of different
//! times, or that the disk was changed. It is copied again then, and that is reported once.

use std::sync::Arc;

use warmd_cbt::{disk::WriteDisk, ledger::Ledger};
use warmd_core::{
    model::{event_kind::EventKind, transition::StateWork},
    targets::{DiskSpec, LastWriter, TargetErrorKind},
};
use warmd_store::DiskRow;

use super::{PassDisk, rows_at_fault};
use crate::{context::Context, conversion, failure::WorkError, manager::was_cut, stale_state};

/// A state that was restored from an older copy, or lost its last commits, does not know the writes of the
/// passes since then: where its manifest agrees with the source, the target may differ.
///
/// The target shows this by the last pass that it noted. If that is the last pass in the state, and it ended,
/// the state is as new as the target. If it did not end, the state may be a copy from the middle of it:
/// blocks pending then may have been written since, and all blocks if its audit found a fault of a source
/// that the state still trusts. Blocks that a rolled-back target VM may have written are pending already.
pub(super) async fn distrust(
    context: &Context,
    rows: &[DiskRow],
    ledgers: &[Arc<Ledger>],
) -> Result<(), WorkError> {
    let last = context.store.last_pass(context.id).await?.map(|pass| pass.view);
    let known = last.as_ref().map_or(0, |pass| pass.number);
    let ended = last.as_ref().is_none_or(|pass| pass.ended.is_some() && !was_cut(pass));
    let noted = context.target.noted_writer(context.id).await?;
    // Also for a pass that is not the work of a state, as for a comparison: before anything is noted.
    stale_state::refuse(context, StateWork::Sync, noted)?;
    let as_new = match noted {
        None => known == 0 || !ended,
        // An ended pass was noted before, and a pass that was not noted wrote nothing.
        Some(LastWriter::Pass { number, faults }) => {
            (number == known || !ended && number < known) && faults <= rows_at_fault(rows)
        }
        Some(LastWriter::Conversion(noted)) => conversion::after_pass(context, noted)
            .await?
            .is_some_and(|pass| pass == known || !ended && pass < known),
        Some(LastWriter::Machine { .. } | LastWriter::Unknown) => false,
    };
    if as_new && ended {
        return Ok(());
    }
    if as_new {
        for ledger in ledgers {
            ledger.claim_all().await?;
        }
        return Ok(());
    }
    // After a target VM that may have run the state knows that already.
    let is_news = ledgers.iter().any(|ledger| ledger.pending_bytes() < ledger.size());
    for ledger in ledgers {
        ledger.distrust_all().await?;
    }
    if !is_news {
        return Ok(());
    }
    let noted = noted.map_or("no note of any".to_owned(), |noted| format!("a note of {noted}"));
    let text = format!(
        "warmd's state and the target are not of the same time: the state knows of {known} passes, and beside the disks \
         is {noted}. Was one of them put back from a copy? Nothing that the state says of the target is trusted, and all \
         disks are copied again"
    );
    context.log_event(EventKind::Warning, text).await;
    Ok(())
}

/// The target's disk for writing. One that is missing, of another size or claimed by another owner may come
/// back changed: its content is unknown.
pub(super) async fn open_target(
    context: &Context,
    disk: &PassDisk,
    spec: &DiskSpec,
) -> Result<Arc<dyn WriteDisk>, WorkError> {
    let error = match context.target.open(context.id, spec).await {
        Ok(disk) => return Ok(disk),
        Err(error) => error,
    };
    // Each try has the same result: the disk is distrusted, and reported, once.
    if matches!(error.kind, TargetErrorKind::NotFound | TargetErrorKind::Conflict)
        && !disk.ledger.is_distrusted()
    {
        disk.ledger.distrust_all().await?;
        let text = format!(
            "disk {}: its volume is not as it was left; all of it will be copied again",
            disk.row.key
        );
        context.log_event(EventKind::Warning, text).await;
    }
    Err(error.into())
}
