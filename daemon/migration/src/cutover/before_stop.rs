//! What is checked before the source is stopped.
//!
//! Rule: the source is not stopped before warmd knows that it can copy the last changes, or start it again.

use warmd_core::model::id::DiskKey;

use crate::{context::Context, failure::WorkError};

/// Checks what the phases after the stop need: later the VM would be off when it is found missing.
pub(super) async fn can_finish(context: &Context) -> Result<(), WorkError> {
    let disks: Vec<_> = context.machine.disks.iter().map(|disk| disk.key.clone()).collect();
    Ok(context.source.can_finish(&context.vm, context.id, &disks).await?)
}

/// A disk that was added to the VM since the migration began is in no ledger: without it nothing may be
/// handed over.
pub(super) async fn same_disks(context: &Context) -> Result<(), WorkError> {
    // Only their names: the sizes may be unknown for a VM that is off.
    let now = context.source.disk_keys(&context.vm).await?;
    let is_known = |key: &DiskKey| context.machine.disks.iter().any(|disk| disk.key == *key);
    let added: Vec<_> = now.iter().filter(|key| !is_known(key)).map(ToString::to_string).collect();
    if added.is_empty() {
        return Ok(());
    }
    Err(WorkError::operator(format!(
        "the source VM has got disks since the migration began, and they are not copied: {}; detach them, or cancel \
         and apply the plan again",
        added.join(", ")
    )))
}
