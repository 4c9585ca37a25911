//! What a plan's schedule will decide next, for one of its migrations.

use chrono::{DateTime, Utc};
use warmd_schedules::{
    Tz,
    arbiter::Scope,
    budget::{Allowance, Budgets},
    explain::{Decision, What, explain},
    rules::Facts,
};

use super::{
    admission::Places,
    control::{ControlError, ControlErrorKind},
    facts::known,
    manager::{Handle, Manager, internal},
};
use crate::{
    clock,
    model::{id::MigrationId, plan::Plan},
};

/// The next decisions and their reasons.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// In which they are told.
    pub zone: Tz,
    /// The migration that they are told for, and its VM; `None` is for one that has just begun.
    pub migration: Option<(MigrationId, String)>,
    pub decisions: Vec<Decision>,
}

/// At most `count` decisions. Without a migration's name it is the plan's whose last pass is the longest ago.
pub(super) async fn explained(
    manager: &Manager,
    plan: &Plan,
    migration: Option<&str>,
    count: usize,
) -> Result<Explanation, ControlError> {
    let rules = plan
        .rules()
        .map_err(|problems| ControlError::new(ControlErrorKind::Invalid, problems.to_string()))?;
    let asked: Vec<Handle> = match migration {
        Some(key) => {
            let id = manager.find_migration(key).await?;
            let handle = manager.handle(id).filter(|handle| !handle.context.live.view().state.is_final());
            vec![handle.ok_or_else(|| {
                let why = format!("migration {id} is over: nothing is decided for it any more");
                ControlError::new(ControlErrorKind::Refused, why)
            })?]
        }
        None => {
            manager.handles().into_iter().filter(|handle| handle.context.plan().name == plan.name).collect()
        }
    };
    let mut next: Option<(Handle, Facts)> = None;
    for handle in asked {
        let view = handle.context.live.view();
        if view.state.is_final() {
            continue;
        }
        let at = view.awaited_cutover.and_then(|awaited| awaited.asked_for());
        let found = known(&handle.context.store, view.id, rules.zone, at).await.map_err(internal)?.facts;
        let snapshot = |facts: &Facts| facts.last.map(|last| last.snapshot);
        if next.as_ref().is_none_or(|(_, facts)| snapshot(&found) < snapshot(facts)) {
            next = Some((handle, found));
        }
    }
    let facts = next.as_ref().map_or_else(|| Facts::unknown(rules.zone), |(_, facts)| facts.clone());
    let now = clock::now();
    let decisions = explain(&rules, &facts, now, count);
    let (budgets, waits) = match &next {
        Some((handle, _)) => {
            let admissions = &handle.context.admissions;
            (manager.gate.budgets_over(&admissions.places), admissions.why())
        }
        None => (manager.gate.budgets_over(&Places::ends(&plan.source, &plan.target)), None),
    };
    let mut extra = limits(&budgets, &decisions, (rules.zone, now, count));
    let waits = waits.map(|why| Decision { at: now, zone: rules.zone, what: What::PassBlocked, why });
    extra.extend(waits);
    let decisions = merged(extra, decisions, count);
    let migration = next.map(|(handle, _)| (handle.context.id, handle.context.machine.name.clone()));
    Ok(Explanation { zone: rules.zone, migration, decisions })
}

/// What the configured budgets allow, as far as is told.
fn limits(
    budgets: &[(Scope, Budgets)],
    told: &[Decision],
    (zone, now, count): (Tz, DateTime<Utc>, usize),
) -> Vec<Decision> {
    let end = told.last().filter(|_| told.len() >= count).map_or(DateTime::<Utc>::MAX_UTC, |last| last.at);
    let mut limits = Vec::new();
    for (scope, budgets) in budgets {
        let mut next = Some(now);
        for _ in 0..count {
            let Some(at) = next.filter(|at| *at <= end) else { break };
            if at > now || budgets.at(at) != Allowance::default() {
                let why = format!("{scope}: {}: {}", budgets.at(at).in_words(), budgets.why(at));
                limits.push(Decision { at, zone, what: What::Limits, why });
            }
            next = budgets.next_change(at);
        }
    }
    limits
}

/// In the order of their times; what limits stands before what allows.
fn merged(limits: Vec<Decision>, decisions: Vec<Decision>, count: usize) -> Vec<Decision> {
    let mut all: Vec<_> = limits.into_iter().chain(decisions).collect();
    all.sort_by_key(|decision| decision.at);
    all.truncate(count);
    all
}
