//! What the audits of change tracking found.

use warmd_core::{format::bytes, model::report::Report};

use super::table::{Table, code, inline};

/// A line for each disk that was audited, and the consequence in words.
pub(super) fn audits(report: &Report) -> String {
    let audited = || report.disks.iter().filter_map(|disk| Some((&disk.key, disk.audit.as_ref()?)));
    if audited().all(|(_, audit)| audit.passes == 0 && audit.tracking_fault.is_none()) {
        return "None made.\n".to_owned();
    }
    let mut table =
        Table::new(["Disk", "Passes", "Called unchanged, and read", "Of these changed", "Change tracking"]);
    for (key, audit) in audited() {
        let found = match &audit.tracking_fault {
            None => "no fault found".to_owned(),
            Some(fault) => format!("CANNOT BE TRUSTED: {fault}"),
        };
        table.row([
            code(key),
            audit.passes.to_string(),
            bytes(audit.checked),
            bytes(audit.mismatched_bytes),
            inline(&found),
        ]);
    }
    table.finish()
}
