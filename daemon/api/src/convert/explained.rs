//! The next decisions of a schedule.

use warmd_core::control::Explanation;
use warmd_proto::v1;
use warmd_schedules::explain::{ExplainedDecision, ScheduleDecision};

use super::timestamp;

/// The decisions in words, and for which migration.
pub(crate) fn explained(explanation: Explanation) -> v1::PlansExplainResponse {
    let Explanation { zone, migration, vm, decisions } = explanation;
    v1::PlansExplainResponse {
        zone: zone.name().to_owned(),
        migration_id: migration.map_or_else(String::new, |id| id.to_string()),
        vm_name: vm.unwrap_or_default(),
        decisions: decisions.into_iter().map(decision).collect(),
    }
}

fn decision(decision: ScheduleDecision) -> v1::Decision {
    let kind = match decision.what {
        ExplainedDecision::PassAllowed => v1::DecisionKind::PassAllowed,
        ExplainedDecision::PassBlocked => v1::DecisionKind::PassBlocked,
        ExplainedDecision::Pass => v1::DecisionKind::Pass,
        ExplainedDecision::Passes => v1::DecisionKind::Passes,
        ExplainedDecision::CutoverAllowed => v1::DecisionKind::CutoverAllowed,
        ExplainedDecision::CutoverBlocked => v1::DecisionKind::CutoverBlocked,
        ExplainedDecision::Limits => v1::DecisionKind::Limits,
    };
    let text = decision.to_string();
    v1::Decision { at: Some(timestamp(decision.at)), kind: kind.into(), why: decision.why, text }
}
