//! Puts a migration's evidence together from what the store holds.

use std::sync::Arc;

use warmd_cbt::{store::LedgerStore, verify::manifest_root};

use super::{context::Context, failure::WorkError, forecast};
use crate::{
    clock,
    model::report::{DiskReport, Report},
};

/// Journal lines that a report carries at the most.
const JOURNAL: u32 = 10_000;

/// The report of one migration, as of now.
pub async fn report(context: &Context) -> Result<Report, WorkError> {
    let store: Arc<dyn LedgerStore> = Arc::new(context.store.clone());
    let mut disks = Vec::new();
    for row in context.store.disks(context.id).await? {
        let ledger = context.ledger(row.id).await?;
        disks.push(DiskReport {
            key: row.key.0,
            size: row.size.0,
            location: row.location,
            mark: ledger.anchor().map(|mark| mark.0),
            pending: ledger.pending_bytes().0,
            manifest_root: Some(manifest_root(store.as_ref(), row.id, row.size).await?),
        });
    }
    let cutover = context.store.phases(context.id).await?;
    let plan = context.plan();
    let view = context.live.view();
    Ok(Report {
        format: 1,
        warmd: env!("CARGO_PKG_VERSION").to_owned(),
        migration: context.id,
        plan: plan.name.clone(),
        source: plan.source.clone(),
        target: plan.target.clone(),
        vm: context.vm.clone(),
        vm_name: context.machine.name.clone(),
        target_name: context.target_name.clone(),
        state: view.state,
        made: clock::now(),
        machine: context.machine.clone(),
        disks,
        passes: context.store.passes(context.id).await?.into_iter().map(|pass| pass.view).collect(),
        downtime: forecast::measured_downtime(&context.cutover()),
        cutover,
        verdict: context.store.verdict(context.id).await?,
        journal: context.store.events(Some(context.id), JOURNAL).await?,
    })
}
