//! Plans, endpoints, and the findings of their checks.

use warmd_core::{
    control::{ControlError, ControlErrorKind, EndpointInfo, Finding, PlanChange},
    model::{
        machine::{Inventory, VmSummary},
        plan::Plan,
    },
};
use warmd_proto::v1;

use super::enums;

/// A source or a target.
pub(crate) fn endpoint(endpoint: EndpointInfo) -> v1::Endpoint {
    v1::Endpoint { name: endpoint.name, kind: endpoint.kind, address: endpoint.address }
}

/// The contents of a source.
pub(crate) fn inventory(inventory: Inventory) -> v1::SourcesListVmsResponse {
    v1::SourcesListVmsResponse {
        vms: inventory.vms.into_iter().map(vm_summary).collect(),
        seen: Some(super::timestamp(inventory.seen)),
        stale: inventory.stale,
    }
}

/// A VM of a source.
fn vm_summary(vm: VmSummary) -> v1::VmSummary {
    v1::VmSummary {
        id: vm.id.0,
        name: vm.name,
        power: enums::power(vm.power).into(),
        disks: vm.disks,
        size_bytes: vm.bytes.0,
        warnings: vm.warnings,
        tracked: vm.tracked,
        snapshots: vm.snapshots,
    }
}

/// A plan, with its text.
pub(crate) fn plan(plan: &Plan) -> Result<v1::Plan, ControlError> {
    let toml = toml::to_string(plan).map_err(|error| {
        ControlError::new(
            ControlErrorKind::Internal,
            format!("plan {} cannot be written as TOML: {error}", plan.name),
        )
    })?;
    Ok(v1::Plan {
        name: plan.name.clone(),
        source: plan.source.clone(),
        target: plan.target.clone(),
        vms: plan.vms.clone(),
        interval: plan.schedule.every.and_then(|every| prost_types::Duration::try_from(every).ok()),
        verify: enums::verify_mode(plan.verify.mode).into(),
        verify_scope: plan.verify.scope.to_string(),
        toml,
    })
}

/// A finding of a plan's check.
pub(crate) fn finding(finding: Finding) -> v1::Finding {
    v1::Finding {
        severity: enums::severity(finding.severity).into(),
        subject: finding.subject,
        message: finding.message,
        rule: finding.rule.id().to_owned(),
        help: finding.help,
    }
}

/// One effect of applying a plan.
pub(crate) fn plan_change(change: PlanChange) -> v1::PlanChange {
    v1::PlanChange {
        kind: enums::plan_change_kind(change.kind).into(),
        vm: change.vm.unwrap_or_default(),
        migration: change.migration.map(|id| id.to_string()).unwrap_or_default(),
        text: change.text,
    }
}
