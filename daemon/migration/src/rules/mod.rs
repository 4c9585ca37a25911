//! The pre-flight rules, applied to a plan: findings on its text, its endpoints, its VMs and its target.
//!
//! Rule: checks change nothing. Each check reports its finding under its rule ([`warmd_core::model::rule`]),
//! which alone defines the severity. A failed check is a finding too, never silence.

mod conversions;
mod ends;
mod fixed;
mod guests;
mod incoming;
mod machines;
mod names;
mod storages;
mod text;
mod tiers;
mod windows;

use warmd_core::{
    control::{ControlError, ControlErrorKind, Finding},
    model::{
        id::MigrationId,
        machine::Machine,
        plan::Plan,
        rule::{Rule, Severity},
    },
};

use super::manager::Manager;

/// The findings on a plan, and the machines that were seen.
#[derive(Debug, Default)]
pub(super) struct CheckedPlan {
    pub(super) findings: Vec<Finding>,
    pub(super) machines: Vec<Subject>,
}

/// A VM of the plan that the source described.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// Its name in the plan.
    pub(super) vm: String,
    /// The pattern that selected it, if it is not named.
    pub(super) pattern: Option<String>,
    pub(super) machine: Machine,
    /// Its name on the target.
    pub(super) name: String,
    /// The migration that moves it, or has moved it, for this plan.
    pub(super) migration: Option<MigrationId>,
}

impl CheckedPlan {
    fn find(&mut self, rule: Rule, subject: impl Into<String>, message: impl Into<String>) {
        let help = rule.facts().help.to_owned();
        let (subject, message) = (subject.into(), message.into());
        self.findings.push(Finding { rule, severity: rule.severity(), subject, message, help });
    }

    /// Turns the errors that the plan accepts into warnings.
    fn accept(&mut self, plan: &Plan) {
        for finding in &mut self.findings {
            let of = self.machines.iter().find(|subject| vm_of(&subject.vm) == finding.subject);
            let over = of.and_then(|subject| plan.override_of(&subject.vm, &subject.machine));
            if plan.accepts(over, finding.rule) {
                finding.severity = Severity::Warning;
                "the plan accepts it".clone_into(&mut finding.help);
            }
        }
    }

    /// Unchanged, if no finding prevents applying the plan.
    pub(super) fn good(self) -> Result<Self, ControlError> {
        match self.errors() {
            Some(errors) => Err(ControlError::new(ControlErrorKind::Invalid, errors)),
            None => Ok(self),
        }
    }

    /// The errors in one text; `None` if there are none.
    pub(super) fn errors(&self) -> Option<String> {
        let errors: Vec<_> = self
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .map(|Finding { rule, subject, message, help, .. }| {
                format!("{subject}: {message} ({}): {help}", rule.id())
            })
            .collect();
        (!errors.is_empty()).then(|| errors.join("\n"))
    }
}

/// Checks a plan alone and against its endpoints.
pub(super) async fn check_plan(manager: &Manager, plan: &Plan) -> Result<CheckedPlan, ControlError> {
    let mut checked = CheckedPlan::default();
    text::check_text(&mut checked, manager, plan);
    ends::judge_changed(&mut checked, manager, plan);
    if let Some(why) = manager.store.too_little_room() {
        checked.find(Rule::StateRoom, "the daemon", why);
    }
    let target = ends::target(&mut checked, manager, plan).await;
    if let Some(source) = ends::source(&mut checked, manager, plan).await {
        let policy = plan.snapshots;
        let planned = if policy.is_default() { None } else { source.with_policy(policy) };
        if planned.is_none() && !policy.is_default() {
            let found =
                format!("source {} has no settings of its snapshots: remove `[snapshots]`", plan.source);
            checked.find(Rule::PlanWrong, plan_of(plan), found);
        }
        machines::check_machines(&mut checked, manager, plan, planned.as_deref().unwrap_or(source)).await?;
    }
    fixed::check_fixed(&mut checked, manager, plan).await?;
    guests::check_guests(&mut checked, manager, plan);
    names::check_names(&mut checked, manager, plan);
    storages::check_storages(&mut checked, manager, plan);
    windows::check_windows(&mut checked, manager, plan);
    tiers::check_tiers(&mut checked, plan);
    if let Some(target) = target {
        incoming::check_incoming(&mut checked, manager, plan, target).await;
    }
    checked.accept(plan);
    Ok(checked)
}

/// A finding's subject for the plan.
fn plan_of(plan: &Plan) -> String {
    format!("plan {}", plan.name)
}

/// A finding's subject for a VM.
fn vm_of(vm: &str) -> String {
    format!("VM {vm}")
}
