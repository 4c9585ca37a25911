//! The table of migrations.

use warmd_core::format;
use warmd_proto::v1::{Migration, MigrationState, MigrationsListResponse, ScheduledCutoverMode};

use super::{
    super::{failure::CliFailure, labels, out::Out, table::Column},
    is_copying,
    progress::Progress,
};

const COLUMNS: [Column; 10] = [
    Column::text("ID"),
    Column::text("VM").cut(3, 16),
    Column::text("PLAN").leave(1),
    Column::text("STATE").cut(6, 16),
    Column::figure("SIZE").leave(2),
    Column::figure("PENDING"),
    Column::figure("PASS"),
    Column::figure("FORECAST"),
    Column::text("NEXT PASS (UTC)").leave(4),
    Column::text("CUTOVER (UTC)").leave(5),
];

/// `migration list`.
pub(crate) fn list(out: &Out, answer: &MigrationsListResponse) -> Result<(), CliFailure> {
    if out.is_json() {
        return out.json(answer);
    }
    out.table(&COLUMNS, answer.migrations.iter().map(row))?;
    for migration in &answer.migrations {
        if let Some(waiting) = super::waiting(migration) {
            out.prose(&format!("{}: {waiting}", labels::who(migration)))?;
        }
    }
    Ok(())
}

fn row(migration: &Migration) -> [String; 10] {
    [
        labels::short(&migration.id).to_owned(),
        migration.vm_name.clone(),
        migration.plan.clone(),
        labels::state(migration),
        format::bytes(migration.disks.iter().map(|disk| disk.size_bytes).sum()),
        format::bytes(migration.disks.iter().map(|disk| disk.pending_bytes).sum()),
        pass(migration),
        labels::span(migration.downtime_forecast.as_ref()),
        next_pass(migration),
        cutover(migration),
    ]
}

/// When it begins; one that waits for others has no time.
fn next_pass(migration: &Migration) -> String {
    let begun = matches!(
        migration.state(),
        MigrationState::Seeding | MigrationState::Syncing | MigrationState::CuttingOver
    );
    match (&migration.next_pass, &migration.next_pass_why) {
        (None, Some(_)) if begun => "waits".to_owned(),
        (next, _) => labels::moment(next.as_ref()),
    }
}

/// When a cutover is to begin.
fn cutover(migration: &Migration) -> String {
    let Some(awaited) = &migration.scheduled_cutover else { return "-".to_owned() };
    match (awaited.mode(), &awaited.begins) {
        (ScheduledCutoverMode::OnHold, _) => "on hold".to_owned(),
        (_, Some(begins)) => labels::moment(Some(begins)),
        (_, None) => "when it can".to_owned(),
    }
}

/// The pass's number, and its progress if it runs.
pub(crate) fn pass(migration: &Migration) -> String {
    let Some(pass) = &migration.pass else {
        return "-".to_owned();
    };
    if !is_copying(migration) {
        return pass.number.to_string();
    }
    match Progress::of_all(migration).percent() {
        Some(percent) => format!("{} ({percent} %)", pass.number),
        None => format!("{} (runs)", pass.number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_up_by_others_has_no_time_and_says_so() {
        let mut migration = Migration::default();
        assert_eq!(next_pass(&migration), "-");
        migration.next_pass_why = Some("waits for admission: plan web: 2 of 2 passes are in use".to_owned());
        assert_eq!(next_pass(&migration), "-", "it has not begun");
        migration.set_state(MigrationState::Syncing);
        assert_eq!(next_pass(&migration), "waits");
        migration.next_pass = Some(prost_types::Timestamp { seconds: 1_795_342_560, nanos: 0 });
        assert_eq!(next_pass(&migration), "2026-11-22 10:16:00");
    }
}
