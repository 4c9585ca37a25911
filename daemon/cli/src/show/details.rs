//! `migration show`.

use chrono::Utc;
use warmd_core::format;
use warmd_proto::v1::{Audit, Cutover, Migration, Pass, Verification};

use super::{
    super::{
        failure::CliFailure,
        labels,
        out::{Out, one_line},
        table::Column,
    },
    disk_pass,
    head::head,
    miss_probabilities, phases, result, telemetry,
};

const DISKS: [Column; 5] = [
    Column::text("DISK").cut(2, 8),
    Column::figure("SIZE"),
    Column::figure("PENDING"),
    Column::figure("CHANGED"),
    Column::text("ON THE TARGET").cut(1, 20),
];

const PASS: [Column; 8] = [
    Column::text("DISK").cut(3, 8),
    Column::figure("CHANGED"),
    Column::figure("EXTENTS").leave(1),
    Column::figure("READ"),
    Column::figure("WRITTEN"),
    Column::figure("ZEROED").leave(2),
    Column::figure("SKIPPED"),
    Column::text("REMARK").wrap(16),
];

const PHASES: [Column; 4] = [
    Column::text("STARTED"),
    Column::text("PHASE"),
    Column::figure("TOOK"),
    Column::text("OUTCOME").wrap(24),
];

/// One migration; with `stages`, also what each stage of its pass did.
pub(crate) fn details(out: &Out, migration: &Migration, stages: bool) -> Result<(), CliFailure> {
    if out.is_json() {
        return out.json(migration);
    }
    out.pairs(&head(migration, Utc::now()))?;
    if !migration.disks.is_empty() {
        out.text("\nDISKS")?;
        disks(out, migration)?;
    }
    for disk in &migration.disks {
        if let Some(fault) = &disk.tracking_fault {
            let fault = one_line(fault);
            out.prose(&format!("{}: CHANGE TRACKING CANNOT BE TRUSTED: {fault}", disk.key))?;
        }
    }
    if let Some(run) = &migration.pass {
        out.text("")?;
        pass(out, run, stages)?;
    }
    if let Some(run) = &migration.cutover {
        out.text("")?;
        cutover(out, run)?;
    }
    if let Some(run) = &migration.verification {
        out.text("")?;
        out.prose(&format!("VERIFICATION  {}", verification(run)))?;
        if let Some(line) = run.result.as_ref().and_then(miss_probabilities) {
            out.text(&line)?;
        }
    }
    if !migration.left_behind.is_empty() {
        out.text("\nLEFT BEHIND")?;
    }
    for left in &migration.left_behind {
        out.prose(&format!("- {left}"))?;
    }
    if !migration.warnings.is_empty() {
        out.text("\nWARNINGS")?;
    }
    for warning in &migration.warnings {
        out.prose(&format!("- {warning}"))?;
    }
    Ok(())
}

fn disks(out: &Out, migration: &Migration) -> Result<(), CliFailure> {
    let rows = migration.disks.iter().map(|disk| {
        let changed =
            disk_pass(migration, disk).map_or_else(|| "-".to_owned(), |p| format::bytes(p.changed_bytes));
        [
            disk.key.clone(),
            format::bytes(disk.size_bytes),
            format::bytes(disk.pending_bytes),
            changed,
            disk.location.clone(),
        ]
    });
    out.table(&DISKS, rows)
}

fn pass(out: &Out, pass: &Pass, stages: bool) -> Result<(), CliFailure> {
    let kind = labels::pass_kind(pass.kind());
    let took = labels::took(pass.started.as_ref(), pass.ended.as_ref());
    out.text(&format!("PASS {} ({kind})  {}  {took}", pass.number, labels::moment(pass.started.as_ref())))?;
    if let Some(error) = &pass.error {
        out.prose(&format!("ended with: {error}"))?;
    }
    if let Some(made) = labels::seconds(pass.snapshot_made.as_ref()) {
        let removed = labels::seconds(pass.snapshot_removed.as_ref());
        let removed = removed.map(|seconds| format!(", removed in {seconds:.1} s")).unwrap_or_default();
        out.text(&format!("snapshot made in {made:.1} s (the VM was stunned for a part of that){removed}"))?;
    }
    let rows = pass.disks.iter().map(|disk| {
        // Of a pass that has just begun, nothing is measured yet.
        let is_measured = pass.ended.is_some() || disk.telemetry.is_some() || disk.drained_bytes > 0;
        let done = |bytes| if is_measured { format::bytes(bytes) } else { "-".to_owned() };
        [
            disk.key.clone(),
            format::bytes(disk.changed_bytes),
            disk.extents.to_string(),
            done(disk.read_bytes),
            done(disk.written_bytes),
            done(disk.zeroed_bytes),
            done(disk.skipped_bytes),
            disk.unknown.as_ref().map_or_else(|| "-".to_owned(), |why| format!("compared whole: {why}")),
        ]
    });
    out.table(&PASS, rows)?;
    for disk in &pass.disks {
        if let Some(audit) = &disk.audit {
            out.prose(&format!("audit of {}: {}", disk.key, audited(audit)))?;
        }
    }
    if stages { telemetry::stages(out, pass) } else { telemetry::bottlenecks(out, pass) }
}

/// What the audit of change tracking found.
fn audited(audit: &Audit) -> String {
    let checked = format::bytes(audit.checked_bytes);
    let found = match audit.mismatched_bytes {
        0 if audit.checked_bytes == 0 => "nothing was read".to_owned(),
        0 => format!("{checked} called unchanged are unchanged"),
        wrong => format!("{} of {checked} called unchanged HAVE CHANGED", format::bytes(wrong)),
    };
    match &audit.error {
        Some(error) => format!("{found}; it ended early: {}", one_line(error)),
        None => found,
    }
}

fn cutover(out: &Out, cutover: &Cutover) -> Result<(), CliFailure> {
    out.text(&format!("CUTOVER  {}", labels::moment(cutover.started.as_ref())))?;
    let rows = cutover.phases.iter().map(|phase| {
        let mut row = phases::row(phase);
        // A running one's last message stands where its outcome will be.
        if let (None, Some(progress)) = (&phase.ended, &cutover.progress) {
            row[3] = one_line(progress);
        }
        row
    });
    out.table(&PHASES, rows)?;
    if let Some(failure) = &cutover.failure {
        out.prose(&format!("not done: {failure}"))?;
    }
    if cutover.downtime.is_some() {
        out.text(&format!("downtime {}", labels::span(cutover.downtime.as_ref())))?;
    }
    Ok(())
}

fn verification(run: &Verification) -> String {
    match (&run.result, &run.error) {
        (Some(found), _) => format!("{}  {}", labels::moment(run.ended.as_ref()), result(found)),
        (None, Some(error)) => format!("came to no result: {}", one_line(error)),
        (None, None) => match format::percent(run.checked_bytes, run.total_bytes) {
            Some(percent) => format!("runs, {percent} % of {}", format::bytes(run.total_bytes)),
            None => "runs, nothing to compare yet".to_owned(),
        },
    }
}
