//! Preparing: creates the target's disks and the ledgers.
//!
//! Rule: repeatable. Existing disks are found, and an existing ledger is never created again. A disk's
//! location is decided once, when it is created.

use warmd_store::NewDisk;

use super::{context::Context, failure::WorkError};

/// Creates the disks on the target and a ledger for each.
pub async fn prepare(context: &Context) -> Result<(), WorkError> {
    if context.machine.disks.is_empty() {
        return Err(WorkError::operator(format!(
            "VM {:?} has no disks that can be copied: remove it from the plan",
            context.machine.name
        )));
    }
    for disk in &context.machine.disks {
        if let Some(why) = &disk.untracked {
            let text = format!(
                "disk {}: changes cannot be tracked ({why}); every pass compares the whole disk",
                disk.key
            );
            context.warn(text).await;
        }
    }
    let made = context.made_disks().await?;
    if made.is_empty() && !context.plan().storage.is_empty() && !context.source.is_configured() {
        return Err(WorkError::operator(
            "the source is not in the daemon's configuration, so it is not known where its disks lie and to which storage of \
             the target each goes: add it there again and restart the daemon",
        ));
    }
    let specs = context.disk_specs().into_iter();
    let specs: Vec<_> =
        specs.map(|spec| made.iter().find(|made| made.key == spec.key).cloned().unwrap_or(spec)).collect();
    let prepared = context.target.prepare(context.id, &specs).await?;
    warmd_core::crash::point("disks.prepared");
    let rows = specs
        .into_iter()
        .map(|spec| {
            let made = prepared.iter().find(|made| made.key == spec.key).ok_or_else(|| {
                WorkError::operator(format!("the target did not make disk {}: check the target", spec.key))
            })?;
            Ok(NewDisk {
                key: spec.key,
                size: spec.size,
                location: made.location.clone(),
                requested_location: spec.place,
                reads_zero: made.reads_zero,
            })
        })
        .collect::<Result<Vec<_>, WorkError>>()?;
    let disks = context.store.save_disks(context.id, rows).await?;
    context.live.update(|view| {
        for disk in &mut view.disks {
            if let Some(row) = disks.iter().find(|row| row.key == disk.key) {
                disk.location.clone_from(&row.location);
                disk.pending = row.size.0;
            }
        }
    });
    Ok(())
}
