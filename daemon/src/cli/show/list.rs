//! The table of migrations.

use warmd_proto::v1::{AwaitedMode, Migration, MigrationsListResponse};

use super::{
    super::{failure::Failure, out::Out, words},
    is_copying,
};
use crate::human;

/// `migration list`.
pub(in crate::cli) fn list(out: &Out, answer: &MigrationsListResponse) -> Result<(), Failure> {
    if out.is_json() {
        return out.json(answer);
    }
    let heads = [
        "ID",
        "VM",
        "PLAN",
        "STATE",
        ">SIZE",
        ">PENDING",
        ">PASS",
        ">FORECAST",
        "NEXT PASS (UTC)",
        "CUTOVER (UTC)",
    ];
    out.table(heads, answer.migrations.iter().map(row))
}

fn row(migration: &Migration) -> [String; 10] {
    [
        words::short(&migration.id).to_owned(),
        migration.vm_name.clone(),
        migration.plan.clone(),
        words::state(migration),
        human::bytes(migration.disks.iter().map(|disk| disk.size_bytes).sum()),
        human::bytes(migration.disks.iter().map(|disk| disk.pending_bytes).sum()),
        pass(migration),
        words::span(migration.downtime_forecast.as_ref()),
        words::moment(migration.next_pass.as_ref()),
        cutover(migration),
    ]
}

/// When a cutover is to begin.
fn cutover(migration: &Migration) -> String {
    let Some(awaited) = &migration.awaited_cutover else { return "-".to_owned() };
    match (awaited.mode(), &awaited.begins) {
        (AwaitedMode::Hold, _) => "held".to_owned(),
        (_, Some(begins)) => words::moment(Some(begins)),
        (_, None) => "when it can".to_owned(),
    }
}

/// The pass's number, and how far it is if it runs.
pub(in crate::cli) fn pass(migration: &Migration) -> String {
    let Some(pass) = &migration.pass else {
        return "-".to_owned();
    };
    if !is_copying(migration) {
        return pass.number.to_string();
    }
    let total = migration.disks.iter().map(|disk| disk.pass_total_bytes).sum();
    let drained = migration.disks.iter().map(|disk| disk.pass_drained_bytes).sum();
    format!("{} ({} %)", pass.number, human::percent(drained, total))
}
