//! A migration's view after a restart, from what the store holds.

use warmd_cbt::ledger::Ledger;
use warmd_core::{
    format::moment,
    model::{
        state::State,
        view::{CutoverView, DiskView, MigrationView, PhaseView, VerificationView},
    },
};
use warmd_store::{MigrationRow, Store};

use super::{failure::WorkError, forecast};

/// The initial view.
pub async fn view(store: &Store, row: &MigrationRow) -> Result<MigrationView, WorkError> {
    let rows = store.disks(row.id).await?;
    let mut disks = Vec::new();
    for disk in &row.machine.disks {
        let made = rows.iter().find(|made| made.key == disk.key);
        let pending = match made {
            // A done migration has nothing pending, and a cancelled one has no disks left.
            _ if row.state == State::Done => 0,
            _ if row.state == State::Cancelled => disk.size.0,
            Some(made) => Ledger::load(std::sync::Arc::new(store.clone()), made.id).await?.pending_bytes().0,
            None => disk.size.0,
        };
        disks.push(DiskView {
            key: disk.key.clone(),
            size: disk.size.0,
            location: made.map(|made| made.location.clone()).unwrap_or_default(),
            pending,
            pass_total: 0,
            pass_drained: 0,
            rate: 0.0,
            eta: None,
            tracking_fault: made.and_then(|made| made.tracking_fault.clone()),
        });
    }
    let phases = store.phases(row.id).await?;
    let cutover = phases.first().map(|first| CutoverView {
        started: first.started,
        ended: (matches!(row.state, State::Done | State::Synced) || row.cutover.rolled_back.is_some())
            .then(|| phases.last().and_then(|last| last.ended))
            .flatten(),
        downtime: forecast::measured_downtime(&row.cutover),
        failure: failure(row, phases.last()),
        phases: phases.clone(),
        progress: None,
    });
    let verification = store.verify_result(row.id).await?.map(|result| {
        let checked = result.disks.iter().map(|disk| disk.checked).sum();
        VerificationView {
            id: String::new(),
            mode: result.mode,
            scope: result.scope,
            seed: result.seed,
            started: result.at,
            ended: Some(result.at),
            total: checked,
            checked,
            error: None,
            result: Some(result),
        }
    });
    Ok(MigrationView {
        waiting: None,
        left_behind: Vec::new(),
        id: row.id,
        plan: row.plan.clone(),
        vm: row.vm.clone(),
        vm_name: row.vm_name.clone(),
        target_name: row.target_name.clone(),
        state: row.state.clone(),
        since: row.since,
        disks,
        pass: store.last_pass(row.id).await?.map(|pass| pass.view),
        next_pass: None,
        next_pass_why: None,
        scheduled_cutover: None,
        downtime_forecast: None,
        forecast: None,
        warnings: warnings(row),
        cutover,
        verification,
    })
}

/// The saved warnings, and that its source runs beside the target VM.
fn warnings(row: &MigrationRow) -> Vec<String> {
    let runs = row.source_seen_running_at.map(|at| {
        format!(
            "the source VM was seen running at {} UTC, after the target VM was started: stop it on the source",
            moment(at)
        )
    });
    row.warnings.iter().cloned().chain(runs).collect()
}

/// Why the last cutover was undone or stopped. An undone one is shown until the next begins, also after a
/// restart.
fn failure(row: &MigrationRow, last: Option<&PhaseView>) -> Option<String> {
    if let Some(at) = row.cutover.rolled_back {
        return Some(format!(
            "rolled back, as was asked for at {} UTC: what the target VM wrote is lost",
            moment(at)
        ));
    }
    if let State::Undoing { reason, .. } = &row.state {
        return Some(reason.clone());
    }
    last?.outcome.as_ref()?.failure().map(str::to_owned)
}
