//! Builds a migration's report from the store.

use std::sync::Arc;

use warmd_cbt::{ledger::Ledger, verify::manifest_root};
use warmd_core::{
    clock,
    model::{
        report::{AuditReport, DiskReport, Report},
        state::State,
        view::PassView,
    },
};
use warmd_store::{DiskRow, RecordedRoot};

use super::{context::Context, conversion, failure::WorkError, forecast};

/// Version of the report's form.
const FORMAT: u32 = 3;
/// Passes that a report lists; of older ones it has the sums.
const PASSES: u32 = 1000;
/// The maximum number of journal lines, and of requests among them, in a report.
const JOURNAL: u32 = 10_000;

/// Source and target, by name and kind. A kind is `None` where the endpoint is no longer configured.
#[derive(Clone, Debug)]
pub struct EndpointNames {
    pub source: String,
    pub source_kind: Option<String>,
    pub target: String,
    pub target_kind: Option<String>,
}

/// The report of one migration, as of now.
pub async fn report(context: &Context, ends: EndpointNames) -> Result<Report, WorkError> {
    let view = context.live.view();
    // Recorded roots of a cutover that was undone are out of date: the disks changed since.
    let recorded_roots = if view.state.is_handed_over() {
        context.store.recorded_roots(context.id).await?
    } else {
        Vec::new()
    };
    let attempt = context.cutover().attempt;
    let is_handed_over = view.state.is_handed_over() || context.cutover().rolled_back.is_some();
    let conversion = if is_handed_over { conversion::in_force(context).await? } else { None };
    let mut disks = Vec::new();
    let (passes, passes_before) = context.store.last_passes(context.id, PASSES).await?;
    let passes: Vec<PassView> = passes.into_iter().map(|pass| pass.view).collect();
    let audits = context.store.audit_sums(context.id).await?;
    for row in context.store.disks(context.id).await? {
        let recorded =
            recorded_roots.iter().find(|recorded| recorded.disk == row.id && recorded.attempt == attempt);
        let ledger = context.ledger(row.id).await?;
        // Then the ledger is being deleted, or is gone, and its disks have no figures.
        let cancelled = view.state == State::Cancelled;
        let (audited, checked, mismatched_bytes) = audits.get(&row.key).copied().unwrap_or_default();
        let audit = Some(AuditReport {
            passes: audited,
            checked,
            mismatched_bytes,
            tracking_fault: row.tracking_fault.clone(),
        });
        let pending = match &conversion {
            _ if cancelled => row.size.0,
            // What was changed on purpose is not missing.
            Some(conversion) if view.state.is_handed_over() => {
                ledger.pending_bytes().0.saturating_sub(conversion.changed(&row.key))
            }
            _ => ledger.pending_bytes().0,
        };
        disks.push(DiskReport {
            manifest_root: match recorded {
                Some(RecordedRoot { root, .. }) => Some(root.clone()),
                None if cancelled => None,
                None => root_of_now(context, &row, &ledger).await?,
            },
            root_recorded: recorded.map(|recorded| recorded.at),
            verified_by: recorded.and_then(|recorded| recorded.verified_by.clone()),
            audit,
            key: row.key.0,
            size: row.size.0,
            location: row.location,
            mark: ledger.anchor().filter(|_| !cancelled).map(|mark| mark.0),
            pending,
        });
    }
    let cutover = context.store.phases(context.id).await?;
    let hooks = context.store.hooks(context.id, attempt).await?;
    let verify_results = context.store.verify_results(context.id).await?;
    let plan = context.plan();
    let journal = context.store.journal(context.id, JOURNAL).await?;
    Ok(Report {
        format: FORMAT,
        warmd: env!("CARGO_PKG_VERSION").to_owned(),
        migration: context.id,
        plan: plan.name.clone(),
        source: ends.source,
        source_kind: ends.source_kind,
        target: ends.target,
        target_kind: ends.target_kind,
        vm: context.vm.clone(),
        vm_name: context.machine.name.clone(),
        target_name: context.target_name.clone(),
        state: view.state,
        made: clock::now(),
        machine: context.latest_machine(),
        disks,
        passes,
        passes_before,
        downtime: forecast::measured_downtime(&context.cutover()),
        cutover,
        rolled_back: context.cutover().rolled_back,
        conversion,
        hooks,
        verify_result: verify_results.last().cloned(),
        verify_results,
        requests: journal.requests,
        journal_left_out: journal.left_out,
        journal: journal.lines,
    })
}

/// The present manifest root, if the manifest is of one moment.
async fn root_of_now(
    context: &Context,
    row: &DiskRow,
    ledger: &Arc<Ledger>,
) -> Result<Option<String>, WorkError> {
    if !ledger.is_done() {
        return Ok(None);
    }
    let before = ledger.anchor();
    let root = manifest_root(&context.store, row.id, row.size).await?;
    Ok((ledger.is_done() && ledger.anchor() == before).then_some(root))
}
