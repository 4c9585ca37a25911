//! The pre-flight rules: the checks before a plan is applied, each with a permanent id.
//!
//! Rule: an id is permanent, scripts and users filter by it. A released id never gets another meaning; a rule
//! that is dropped takes its id along. `daemon/docs/preflight.md` has the table, and a test compares it with
//! the code.

mod facts;

use serde::{Deserialize, Serialize};

/// Whether a finding prevents applying the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The plan is not applied.
    Error,
    /// The finding is reported, and the plan is applied.
    Warning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    PlanWrong,
    HookMissing,
    BootCheckUnsupported,
    ConversionMissing,
    ConversionNoOverlay,
    ConversionLocation,
    ConversionConfined,
    GuestNeedsConversion,
    GuestNotConvertible,
    GuestNamesDisks,
    GuestNamesInterfaces,
    WindowNeverOpens,
    WindowNeverFits,
    NoCommonWindow,
    TierMissing,
    TierUnmatched,
    SourceUnknown,
    SourceUnreachable,
    TargetUnknown,
    TargetUnreachable,
    EndpointFixed,
    VmNone,
    PatternUnmatched,
    VmIsMigrated,
    VmUnknown,
    VmUnreadable,
    VmTwice,
    VmTaken,
    VmFixed,
    VmPaused,
    VmTransient,
    VmSaved,
    VmBusy,
    StartBlocked,
    StartDoubtful,
    VmElsewhere,
    SharedStorage,
    VmCrashed,
    VmAutostart,
    DiskNone,
    DiskUnknown,
    DiskUnsupported,
    DiskShared,
    TrackingUnavailable,
    VmHasSnapshots,
    ForeignSnapshots,
    ConsolidationNeeded,
    TrackingSwitchedOn,
    QuiesceUnavailable,
    CheckpointsThere,
    DeviceUnmapped,
    FirmwareState,
    HardwareUnmapped,
    HardwareChanged,
    HardwareUnclassified,
    MediumBehind,
    DefinitionsDiffer,
    DiskInOneDefinition,
    BootLost,
    TpmState,
    ProtectionLost,
    EncryptionLost,
    IsolationLost,
    NameUnusable,
    NameTwice,
    NameTaken,
    MacTaken,
    NetworkUnknown,
    StorageUnknown,
    StorageUnmatched,
    Capacity,
    LocationUnusable,
    StateRoom,
}

/// The documentation of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleDoc {
    pub id: &'static str,
    pub severity: Severity,
    /// Its finding.
    pub finds: &'static str,
    /// The remedy.
    pub help: &'static str,
}

/// A reason of an endpoint not to move a VM, or a warning about the move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    pub rule: Rule,
    /// The finding, with its names and figures.
    pub found: String,
}

impl Objection {
    /// An objection under `rule`.
    pub fn new(rule: Rule, found: impl Into<String>) -> Self {
        Self { rule, found: found.into() }
    }

    /// The finding, its rule and what to do.
    pub fn advice(&self) -> String {
        format!("{} ({}): {}", self.found, self.rule.id(), self.rule.facts().help)
    }
}

impl Rule {
    /// All rules, in the order of the table.
    pub const ALL: [Self; 73] = [
        Self::PlanWrong,
        Self::HookMissing,
        Self::BootCheckUnsupported,
        Self::ConversionMissing,
        Self::ConversionNoOverlay,
        Self::ConversionLocation,
        Self::ConversionConfined,
        Self::GuestNeedsConversion,
        Self::GuestNotConvertible,
        Self::GuestNamesDisks,
        Self::GuestNamesInterfaces,
        Self::WindowNeverOpens,
        Self::WindowNeverFits,
        Self::NoCommonWindow,
        Self::TierMissing,
        Self::TierUnmatched,
        Self::SourceUnknown,
        Self::SourceUnreachable,
        Self::TargetUnknown,
        Self::TargetUnreachable,
        Self::EndpointFixed,
        Self::VmNone,
        Self::PatternUnmatched,
        Self::VmIsMigrated,
        Self::VmUnknown,
        Self::VmUnreadable,
        Self::VmTwice,
        Self::VmTaken,
        Self::VmFixed,
        Self::VmPaused,
        Self::VmTransient,
        Self::VmSaved,
        Self::VmBusy,
        Self::StartBlocked,
        Self::StartDoubtful,
        Self::VmElsewhere,
        Self::SharedStorage,
        Self::VmCrashed,
        Self::VmAutostart,
        Self::DiskNone,
        Self::DiskUnknown,
        Self::DiskUnsupported,
        Self::DiskShared,
        Self::TrackingUnavailable,
        Self::VmHasSnapshots,
        Self::ForeignSnapshots,
        Self::ConsolidationNeeded,
        Self::TrackingSwitchedOn,
        Self::QuiesceUnavailable,
        Self::CheckpointsThere,
        Self::DeviceUnmapped,
        Self::FirmwareState,
        Self::HardwareUnmapped,
        Self::HardwareChanged,
        Self::HardwareUnclassified,
        Self::MediumBehind,
        Self::DefinitionsDiffer,
        Self::DiskInOneDefinition,
        Self::BootLost,
        Self::TpmState,
        Self::ProtectionLost,
        Self::EncryptionLost,
        Self::IsolationLost,
        Self::NameUnusable,
        Self::NameTwice,
        Self::NameTaken,
        Self::MacTaken,
        Self::NetworkUnknown,
        Self::StorageUnknown,
        Self::StorageUnmatched,
        Self::Capacity,
        Self::LocationUnusable,
        Self::StateRoom,
    ];

    /// Its permanent id.
    pub fn id(self) -> &'static str {
        self.facts().id
    }

    /// Whether its finding prevents applying the plan.
    pub fn severity(self) -> Severity {
        self.facts().severity
    }

    /// Whether a plan may accept its finding by naming the rule.
    pub fn can_be_accepted(self) -> bool {
        matches!(
            self,
            Self::GuestNotConvertible
                | Self::BootLost
                | Self::TpmState
                | Self::ProtectionLost
                | Self::EncryptionLost
                | Self::IsolationLost
        )
    }

    /// The table of all rules, in Markdown.
    pub fn table() -> String {
        let row = |rule: Self| {
            let RuleDoc { id, severity, finds, help } = rule.facts();
            let severity = match severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            format!("| `{id}` | {severity} | {finds} | {help} |\n")
        };
        let head = "| rule | severity | what is found | what to do |\n| --- | --- | --- | --- |\n";
        Self::ALL.into_iter().map(row).fold(head.to_owned(), |table, row| table + &row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variants that serde lists: serde cannot miss one.
    fn variants() -> Vec<String> {
        let error = serde_json::from_str::<Rule>("\"none\"").unwrap_err().to_string();
        let known = error.split("expected one of ").nth(1).unwrap();
        known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn all_rules_are_in_the_list_under_their_names() {
        let listed: Vec<_> = Rule::ALL.into_iter().map(Rule::id).collect();
        assert_eq!(listed, variants());
    }

    #[test]
    fn the_documented_table_is_that_of_the_code() {
        let documented = include_str!("../../../docs/preflight.md");
        let rows: Vec<_> = documented.lines().filter(|line| line.starts_with('|')).collect();
        let table = Rule::table();
        assert_eq!(rows, table.lines().collect::<Vec<_>>(), "docs/preflight.md is to hold:\n{table}");
    }
}
