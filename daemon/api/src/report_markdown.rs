//! The report for readers: the same evidence as its JSON, as Markdown.
//!
//! Rule: it says only what the report says. Text from outside (names, errors) cannot break out of its table
//! cell.

mod audit;
mod performance;
mod table;

use chrono::{DateTime, Utc};
use warmd_core::{
    format::{between, bytes, moment, probability, rate_of, seconds_between, span},
    model::{
        conversion::ConversionView,
        hook::HookView,
        report::Report,
        verify::VerifyScope,
        view::{DiskPassView, EventView, PassKind, PassView, SnapshotCost, VerifyResult},
    },
    signed_report::SignedReport,
};

use self::table::{Table, code, inline};

/// The report as Markdown, with a pointer to its signed form.
pub fn markdown(report: &Report, signed: &SignedReport) -> String {
    let mut out = format!("# Migration of {}\n\n", inline(&report.vm_name));
    out.push_str(&summary(report, signed));
    out.push_str("\n## Disks\n\n");
    out.push_str(&disks(report));
    out.push_str("\n## Passes\n\n");
    out.push_str(&passes_before(report));
    out.push_str(&passes(&report.passes));
    out.push_str(&performance::performance(&report.passes));
    out.push_str("\n## Cutover\n\n");
    out.push_str(&cutover(report));
    out.push_str("\n## Verification\n\n");
    out.push_str(&verification(report.verify_result.as_ref()));
    out.push_str("\n## Audit of change tracking\n\n");
    out.push_str(&audit::audits(report));
    out.push_str("\n## Machine\n\n");
    out.push_str(&machine(report));
    out.push_str("\n## Requests\n\n");
    out.push_str(&events(&report.requests));
    out.push_str("\n## Journal\n\n");
    out.push_str(&journal(report));
    out
}

fn summary(report: &Report, signed: &SignedReport) -> String {
    let mut table = Table::new(["", ""]);
    let name = &report.vm_name;
    table.row(["Outcome".into(), inline(&report.state.to_string())]);
    table.row(["Result".into(), inline(&result_line(report.verify_result.as_ref()))]);
    table.row(["Downtime".into(), report.downtime.map_or_else(|| "none yet".into(), span)]);
    if let Some(at) = report.rolled_back {
        let told = format!("asked for at {} UTC; what the target VM wrote is lost", moment(at));
        table.row(["Rolled back".into(), told]);
    }
    table.row([
        "From".into(),
        format!(
            "{} on {}{} ({})",
            inline(name),
            code(&report.source),
            kind(report.source_kind.as_deref()),
            code(&report.vm.0)
        ),
    ]);
    let to = format!(
        "{} on {}{}",
        inline(&report.target_name),
        code(&report.target),
        kind(report.target_kind.as_deref())
    );
    table.row(["To".into(), to]);
    table.row(["Plan".into(), code(&report.plan)]);
    table.row(["Migration".into(), code(&report.migration.to_string())]);
    let made = format!("{} UTC by warmd {} (form {})", moment(report.made), report.warmd, report.format);
    table.row(["Report made".into(), inline(&made)]);
    table.row(["Signed JSON form (BLAKE3)".into(), code(&signed.digest)]);
    table.row(["Signed by (Ed25519)".into(), code(&signed.key)]);
    let mut out = table.finish();
    out.push_str("\nThis text is not signed: its JSON form is. `warmctl report verify` checks that and prints the same digest.\n");
    out
}

fn kind(kind: Option<&str>) -> String {
    kind.map(|kind| format!(", {}", inline(kind))).unwrap_or_default()
}

fn result_line(result: Option<&VerifyResult>) -> String {
    let Some(result) = result else {
        return "not verified".to_owned();
    };
    let mode = match (result.scope, result.seed) {
        (VerifyScope::Full, _) => mode_name(result).to_owned(),
        (scope, None) => format!("{}, {scope}", mode_name(result)),
        (scope, Some(seed)) => format!("{}, {scope}, seed {seed}", mode_name(result)),
    };
    let checked: u64 = result.disks.iter().map(|disk| disk.checked).sum();
    let wrong: u64 = result.disks.iter().map(|disk| disk.mismatched_bytes).sum();
    if result.passed() {
        format!("passed ({mode}, {} compared)", bytes(checked))
    } else {
        format!("FAILED ({mode}, {} of {} differ)", bytes(wrong), bytes(checked))
    }
}

fn mode_name(result: &VerifyResult) -> &'static str {
    use warmd_core::model::plan::VerifyMode;
    match result.mode {
        VerifyMode::None => "none",
        VerifyMode::Readback => "readback",
        VerifyMode::Compare => "compare",
    }
}

fn disks(report: &Report) -> String {
    let mut table = Table::new([
        "Disk",
        "Size",
        "Where",
        "Pending",
        "Last change mark",
        "Manifest root (BLAKE3)",
        "Root recorded (UTC)",
        "Verified by",
    ]);
    for disk in &report.disks {
        table.row([
            code(&disk.key),
            bytes(disk.size),
            code(&disk.location),
            bytes(disk.pending),
            disk.mark.as_deref().map_or_else(|| "-".into(), code),
            disk.manifest_root.as_deref().map_or_else(|| "-".into(), code),
            disk.root_recorded.map_or_else(|| "-".into(), moment),
            disk.verified_by.as_deref().map_or_else(|| "-".into(), inline),
        ]);
    }
    table.finish()
}

/// In front of the table of the last ones.
fn passes_before(report: &Report) -> String {
    let each = report.passes_before.iter().map(|sums| {
        format!(
            "{}: {} passes ({} failed), {} read, {} written",
            inline(&sums.key),
            sums.passes,
            sums.failed,
            bytes(sums.read),
            bytes(sums.written)
        )
    });
    let each: Vec<_> = each.collect();
    if each.is_empty() { String::new() } else { format!("Before these: {}.\n\n", each.join("; ")) }
}

fn passes(passes: &[PassView]) -> String {
    if passes.is_empty() {
        return "None.\n".to_owned();
    }
    let mut table = Table::new([
        "Pass",
        "Disk",
        "Started (UTC)",
        "Took",
        "Changed",
        "Extents",
        "Read",
        "Written",
        "Zeroed",
        "Skipped",
        "Speed",
        "Remark",
    ]);
    for pass in passes {
        for disk in &pass.disks {
            table.row([
                format!("{} {}", pass.number, kind_name(pass.kind)),
                code(&disk.key.0),
                moment(pass.started),
                took(pass.started, pass.ended),
                bytes(disk.changed),
                disk.extents.to_string(),
                bytes(disk.figures.read),
                bytes(disk.figures.written),
                bytes(disk.figures.zeroed),
                bytes(disk.figures.skipped),
                pass.ended.map_or_else(
                    || "-".into(),
                    |ended| rate_of(disk.figures.drained, seconds_between(pass.started, ended)),
                ),
                remark(pass, disk),
            ]);
        }
    }
    table.finish()
}

fn kind_name(kind: PassKind) -> &'static str {
    match kind {
        PassKind::Full => "full",
        PassKind::Delta => "delta",
        PassKind::Final => "final",
    }
}

fn snapshot(cost: &SnapshotCost) -> String {
    let removed = cost.removed.map(|seconds| format!(", removed in {seconds:.1} s")).unwrap_or_default();
    format!("snapshot made in {:.1} s{removed}", cost.made)
}

fn remark(pass: &PassView, disk: &DiskPassView) -> String {
    let unknown = disk.unknown.as_ref().map(|why| format!("compared whole: {why}"));
    let error = pass.error.as_ref().map(|error| format!("ended with: {error}"));
    let snapshot = pass.snapshot.as_ref().map(snapshot);
    let all: Vec<_> = unknown.into_iter().chain(error).chain(snapshot).collect();
    inline(&all.join("; "))
}

fn took(started: DateTime<Utc>, ended: Option<DateTime<Utc>>) -> String {
    ended.map_or_else(|| "still runs".to_owned(), |ended| between(started, ended))
}

fn cutover(report: &Report) -> String {
    if report.cutover.is_empty() {
        return "None.\n".to_owned();
    }
    let mut table = Table::new(["Phase", "Started (UTC)", "Took", "Outcome"]);
    for phase in &report.cutover {
        table.row([
            phase.phase.name().to_owned(),
            phase.started.format("%Y-%m-%d %H:%M:%S%.3f").to_string(),
            took(phase.started, phase.ended),
            inline(&phase.outcome.clone().map_or_else(String::new, String::from)),
        ]);
    }
    let mut out = table.finish();
    out.push_str(&conversion(report.conversion.as_ref()));
    out.push_str(&hooks(&report.hooks));
    if let Some(downtime) = report.downtime {
        out.extend([
            "\nDowntime, from the source stopped to the target running: **",
            &span(downtime),
            &format!("** ({downtime:.3} s).\n"),
        ]);
    }
    out
}

fn conversion(conversion: Option<&ConversionView>) -> String {
    let Some(conversion) = conversion else { return String::new() };
    let mut table = Table::new(["Disk", "Changed by the conversion"]);
    for disk in &conversion.disks {
        table.row([code(&disk.key.0), bytes(disk.changed)]);
    }
    let machine = if conversion.machine.is_some() { ", and handed back another machine" } else { "" };
    format!(
        "\nAfter the copy was verified and its roots were recorded the disks were converted by {}, from {} UTC{machine}: they hold what that \
         made of the copy.\n\n{}",
        code(&conversion.command.join(" ")),
        moment(conversion.started),
        table.finish()
    )
}

fn hooks(hooks: &[HookView]) -> String {
    if hooks.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["Hook", "Command", "Started (UTC)", "Took", "Outcome"]);
    for hook in hooks {
        table.row([
            format!("{} {}", hook.when, hook.phase),
            code(&hook.command.join(" ")),
            hook.started.format("%Y-%m-%d %H:%M:%S%.3f").to_string(),
            took(hook.started, hook.ended),
            inline(hook.outcome.as_deref().unwrap_or("")),
        ]);
    }
    format!("\n{}", table.finish())
}

fn verification(result: Option<&VerifyResult>) -> String {
    let Some(result) = result else {
        return "None.\n".to_owned();
    };
    let mut table = Table::new(["Disk", "Compared", "Differs", "Manifest root (BLAKE3)"]);
    for disk in &result.disks {
        table.row([code(&disk.key.0), bytes(disk.checked), bytes(disk.mismatched_bytes), code(&disk.root)]);
    }
    let line = result_line(Some(result));
    let mut out = format!("{} UTC: {line}.\n\n{}", moment(result.at), table.finish());
    if !result.miss_probabilities.is_empty() {
        let mut table = Table::new(["Bad blocks of 64 KiB", "Chance that the sample misses all, at most"]);
        for miss in &result.miss_probabilities {
            table.row([miss.blocks.to_string(), probability(miss.probability)]);
        }
        out.extend(["\n", &table.finish()]);
    }
    for disk in result.disks.iter().filter(|disk| disk.mismatched_bytes > 0) {
        out.extend(["\nExtents of ", &code(&disk.key.0), " that differ:\n\n"]);
        let mut table = Table::new(["Byte offset", "Length in bytes"]);
        for (offset, length) in &disk.mismatches {
            table.row([offset.to_string(), length.to_string()]);
        }
        out.push_str(&table.finish());
    }
    out
}

fn machine(report: &Report) -> String {
    use warmd_core::model::machine::Firmware;
    let machine = &report.machine;
    let mut table = Table::new(["", ""]);
    table.row(["UUID".into(), code(&machine.uuid)]);
    let cpu = machine.cpu;
    let topology =
        format!("{} ({} sockets × {} cores × {} threads)", cpu.vcpus(), cpu.sockets, cpu.cores, cpu.threads);
    table.row(["Processors".into(), topology]);
    table.row(["Memory".into(), bytes(machine.memory.0)]);
    let firmware = match machine.firmware {
        Firmware::Bios => "BIOS",
        Firmware::Uefi => "UEFI",
        Firmware::UefiSecure => "UEFI, secure boot",
    };
    let kind = format!("{}, {}, {firmware}", machine.machine_type, machine.architecture);
    table.row(["Type".into(), inline(&kind)]);
    for nic in &machine.nics {
        let line = format!("{} {} on {}", code(&nic.mac), inline(&nic.model), inline(&nic.network));
        table.row(["Network".into(), line]);
    }
    table.finish()
}

fn journal(report: &Report) -> String {
    let mut out = events(&report.journal);
    if report.journal_left_out > 0 {
        out.extend(["\n", &report.journal_left_out.to_string(), " older lines are not in this report.\n"]);
    }
    out
}

fn events(events: &[EventView]) -> String {
    if events.is_empty() {
        return "None.\n".to_owned();
    }
    let mut table = Table::new(["At (UTC)", "By", "What", ""]);
    for event in events {
        table.row([moment(event.at), inline(&event.by), inline(event.kind.as_str()), inline(&event.text)]);
    }
    table.finish()
}
