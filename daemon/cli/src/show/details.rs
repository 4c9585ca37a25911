//! `migration show`.

use warmd_core::format;
use warmd_proto::v1::{Audit, Cutover, Migration, Pass, Verification};

use super::{
    super::{
        failure::CliFailure,
        labels,
        out::{Out, one_line},
    },
    disk_pass, miss_probabilities, phases, result, telemetry,
};

/// Everything about one migration.
pub(crate) fn details(out: &Out, migration: &Migration) -> Result<(), CliFailure> {
    if out.is_json() {
        return out.json(migration);
    }
    out.pairs(&head(migration))?;
    out.text("\nDISKS")?;
    disks(out, migration)?;
    for disk in &migration.disks {
        if let Some(fault) = &disk.tracking_fault {
            let fault = one_line(fault);
            out.text(&format!("{}: CHANGE TRACKING CANNOT BE TRUSTED: {fault}", disk.key))?;
        }
    }
    if let Some(run) = &migration.pass {
        out.text("")?;
        pass(out, run)?;
    }
    if let Some(run) = &migration.cutover {
        out.text("")?;
        cutover(out, run)?;
    }
    if let Some(run) = &migration.verification {
        out.text(&format!("\nVERIFICATION  {}", verification(run)))?;
        if let Some(line) = run.result.as_ref().and_then(miss_probabilities) {
            out.text(&line)?;
        }
    }
    if !migration.left_behind.is_empty() {
        out.text("\nLEFT BEHIND")?;
    }
    for left in &migration.left_behind {
        out.text(&format!("- {}", one_line(left)))?;
    }
    if !migration.warnings.is_empty() {
        out.text("\nWARNINGS")?;
    }
    for warning in &migration.warnings {
        out.text(&format!("- {}", one_line(warning)))?;
    }
    Ok(())
}

fn head(migration: &Migration) -> Vec<(&'static str, String)> {
    let mut pairs = vec![
        ("VM", format!("{} ({} on the source)", migration.vm_name, migration.vm_id)),
        ("Target name", migration.target_name.clone()),
        ("Plan", migration.plan.clone()),
        ("Migration", migration.id.clone()),
        ("State", labels::state(migration)),
        ("Since (UTC)", labels::moment(migration.since.as_ref())),
    ];
    if let Some(reason) = &migration.reason {
        pairs.push(("Reason", reason.clone()));
    }
    if let Some(waiting) = &migration.waiting {
        pairs.push(("Waits because", one_line(&waiting.reason)));
        let (since, tries) = (labels::moment(waiting.since.as_ref()), labels::tries(waiting.tries));
        pairs.push(("Waits since (UTC)", format!("{since}, {tries}")));
        pairs.push(("Next try (UTC)", labels::moment(waiting.next_try.as_ref())));
        pairs.push(("What to do", one_line(&waiting.advice)));
    }
    if migration.next_pass.is_some() {
        pairs.push(("Next pass (UTC)", labels::moment(migration.next_pass.as_ref())));
    }
    if let Some(why) = &migration.next_pass_why {
        pairs.push(("Waits because", why.clone()));
    }
    if let Some(awaited) = &migration.scheduled_cutover {
        pairs.push(("Cutover", super::awaited(awaited)));
    }
    let Some(forecast) = &migration.forecast else {
        pairs.push(("Downtime if cut over now", labels::span(migration.downtime_forecast.as_ref())));
        return pairs;
    };
    let range = |low, expected, high| format!("about {expected} ({low} to {high} in nine of ten)");
    let span = |length: &Option<prost_types::Duration>| labels::span(length.as_ref());
    let downtime = [&forecast.downtime_low, &forecast.downtime_expected, &forecast.downtime_high].map(span);
    let [low, expected, high] = downtime;
    let begins = labels::moment(forecast.at.as_ref());
    pairs.push(("Downtime", format!("{}, from {begins} (UTC)", range(low, expected, high))));
    let [low, expected, high] = [
        forecast.final_delta_low_bytes,
        forecast.final_delta_expected_bytes,
        forecast.final_delta_high_bytes,
    ]
    .map(format::bytes);
    pairs.push(("Final delta", range(low, expected, high)));
    pairs.push(("Passes", one_line(&forecast.convergence)));
    for why in &forecast.against {
        pairs.push(("AGAINST A CUTOVER", one_line(why)));
    }
    for remark in &forecast.remarks {
        pairs.push(("Remark", one_line(remark)));
    }
    pairs
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
    out.table(["DISK", ">SIZE", ">PENDING", ">CHANGED", "ON THE TARGET"], rows)
}

fn pass(out: &Out, pass: &Pass) -> Result<(), CliFailure> {
    let kind = labels::pass_kind(pass.kind());
    let took = labels::took(pass.started.as_ref(), pass.ended.as_ref());
    out.text(&format!("PASS {} ({kind})  {}  {took}", pass.number, labels::moment(pass.started.as_ref())))?;
    if let Some(error) = &pass.error {
        out.text(&format!("ended with: {}", one_line(error)))?;
    }
    if let Some(made) = labels::seconds(pass.snapshot_made.as_ref()) {
        let removed = labels::seconds(pass.snapshot_removed.as_ref());
        let removed = removed.map(|seconds| format!(", removed in {seconds:.1} s")).unwrap_or_default();
        out.text(&format!("snapshot made in {made:.1} s (the VM was stunned for a part of that){removed}"))?;
    }
    let rows = pass.disks.iter().map(|disk| {
        [
            disk.key.clone(),
            format::bytes(disk.changed_bytes),
            disk.extents.to_string(),
            format::bytes(disk.read_bytes),
            format::bytes(disk.written_bytes),
            format::bytes(disk.zeroed_bytes),
            format::bytes(disk.skipped_bytes),
            disk.unknown.as_ref().map_or_else(|| "-".to_owned(), |why| format!("compared whole: {why}")),
        ]
    });
    let heads = ["DISK", ">CHANGED", ">EXTENTS", ">READ", ">WRITTEN", ">ZEROED", ">SKIPPED", "REMARK"];
    out.table(heads, rows)?;
    for disk in &pass.disks {
        if let Some(audit) = &disk.audit {
            out.text(&format!("audit of {}: {}", disk.key, audited(audit)))?;
        }
    }
    telemetry::telemetry(out, pass)
}

/// What the audit of change tracking found.
fn audited(audit: &Audit) -> String {
    let checked = format::bytes(audit.checked_bytes);
    let found = match audit.mismatched_bytes {
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
    out.table(["STARTED", "PHASE", ">TOOK", "OUTCOME"], rows)?;
    if let Some(failure) = &cutover.failure {
        out.text(&format!("not done: {}", one_line(failure)))?;
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
        (None, None) => format!("runs, {} %", format::percent(run.checked_bytes, run.total_bytes)),
    }
}
