//! The next decisions of a plan's schedule, for one of its migrations.

use chrono::{DateTime, Utc};
use warmd_core::{
    clock,
    control::{ControlError, ControlErrorKind, ExplainTarget, Explanation},
    model::{id::VmId, plan::Plan, selection::may_mean},
};
use warmd_schedules::{
    Tz,
    admission_queue::QuotaScope,
    explain::{ExplainedDecision, ScheduleDecision, explain},
    quota::{Allowance, Quotas},
    rules::{PassHistory, Rules},
    schedule::Problems,
};

use super::{
    admission::QuotaLocations,
    context::Context,
    manager::{DriverHandle, Manager, internal},
    pass_history::known,
};

/// A migration, its VM's rules, and its pass history.
struct Subject {
    handle: DriverHandle,
    rules: Rules,
    facts: PassHistory,
}

/// At most `count` decisions.
pub(super) async fn explained(
    manager: &Manager,
    plan: &Plan,
    whose: ExplainTarget<'_>,
    count: usize,
) -> Result<Explanation, ControlError> {
    let subject = subject(manager, plan, whose).await?;
    let (rules, facts) = if let Some(subject) = &subject {
        (subject.rules.clone(), subject.facts.clone())
    } else {
        let rules = match whose {
            ExplainTarget::Vm(vm) => plan.rules_of(vm, &VmId(vm.to_owned())),
            ExplainTarget::Oldest | ExplainTarget::Migration(_) => plan.rules(),
        };
        let rules = rules.map_err(|problems| wrong(&problems))?;
        let facts = PassHistory::unknown(rules.zone);
        (rules, facts)
    };
    let now = clock::now();
    let decisions = explain(&rules, &facts, now, count);
    let (quotas, waits) = match &subject {
        Some(Subject { handle, .. }) => {
            let admissions = &handle.context.admissions;
            (manager.gate.quotas_over(&admissions.places()), admissions.why())
        }
        None => (manager.gate.quotas_over(&QuotaLocations::ends(&plan.source, &plan.target)), None),
    };
    let mut extra = limits(&quotas, &decisions, (rules.zone, now, count));
    let waits = waits.map(|why| ScheduleDecision {
        at: now,
        zone: rules.zone,
        what: ExplainedDecision::PassBlocked,
        why,
    });
    extra.extend(waits);
    let decisions = merged(extra, decisions, count);
    let (migration, vm) = match (&subject, whose) {
        (Some(Subject { handle, .. }), _) => {
            (Some(handle.context.id), Some(handle.context.machine.name.clone()))
        }
        (None, ExplainTarget::Vm(vm)) => (None, Some(vm.to_owned())),
        (None, ExplainTarget::Oldest | ExplainTarget::Migration(_)) => (None, None),
    };
    Ok(Explanation { zone: rules.zone, migration, vm, decisions })
}

/// The selected migration, if one exists; of several the one whose last pass is the longest ago.
async fn subject(
    manager: &Manager,
    plan: &Plan,
    whose: ExplainTarget<'_>,
) -> Result<Option<Subject>, ControlError> {
    let is_finished = |handle: &DriverHandle| handle.context.state().is_final();
    let of_plan = || {
        let all = manager.handles().into_iter();
        all.filter(|handle| handle.context.plan().name == plan.name && !is_finished(handle))
    };
    let asked: Vec<DriverHandle> = match whose {
        ExplainTarget::Oldest => of_plan().collect(),
        ExplainTarget::Migration(key) => {
            let id = manager.find_migration(key).await?;
            let handle = manager.handle(id).filter(|handle| !is_finished(handle));
            vec![handle.ok_or_else(|| {
                let why = format!("migration {id} is over: nothing is decided for it any more");
                ControlError::new(ControlErrorKind::Refused, why)
            })?]
        }
        ExplainTarget::Vm(vm) => {
            let is_it =
                |handle: &DriverHandle| handle.context.machine.name == vm || handle.context.vm.0 == vm;
            let found: Vec<_> = of_plan().filter(is_it).collect();
            if found.is_empty() && !plan.vms.iter().any(|entry| may_mean(entry, vm)) {
                let why =
                    format!("plan {} names no VM {vm}: its `vms` are {}", plan.name, plan.vms.join(", "));
                return Err(ControlError::new(ControlErrorKind::NotFound, why));
            }
            found
        }
    };
    let mut next: Option<Subject> = None;
    for handle in asked {
        let Context { machine, vm, id, store, .. } = &*handle.context;
        let rules = plan.rules_of(&machine.name, vm).map_err(|problems| wrong(&problems))?;
        let at = handle.context.live.view().scheduled_cutover.and_then(|awaited| awaited.asked_for());
        let mut facts = known(store, *id, rules.zone, at).await.map_err(internal)?.facts;
        facts.last = facts.last.map(|last| handle.context.monotonic_pass.at_wall_clock(last, clock::now()));
        let snapshot = |facts: &PassHistory| facts.last.map(|last| last.snapshot);
        if next.as_ref().is_none_or(|next| snapshot(&facts) < snapshot(&next.facts)) {
            next = Some(Subject { handle, rules, facts });
        }
    }
    Ok(next)
}

fn wrong(problems: &Problems) -> ControlError {
    ControlError::new(ControlErrorKind::Invalid, problems.to_string())
}

/// What the configured quotas allow, within the explained span.
fn limits(
    quotas: &[(QuotaScope, Quotas)],
    told: &[ScheduleDecision],
    (zone, now, count): (Tz, DateTime<Utc>, usize),
) -> Vec<ScheduleDecision> {
    let end = told.last().filter(|_| told.len() >= count).map_or(DateTime::<Utc>::MAX_UTC, |last| last.at);
    let mut limits = Vec::new();
    for (scope, quotas) in quotas {
        let mut next = Some(now);
        for _ in 0..count {
            let Some(at) = next.filter(|at| *at <= end) else { break };
            if at > now || quotas.at(at) != Allowance::default() {
                let why = format!("{scope}: {}: {}", quotas.at(at).in_words(), quotas.why(at));
                limits.push(ScheduleDecision { at, zone, what: ExplainedDecision::Limits, why });
            }
            next = quotas.next_change(at);
        }
    }
    limits
}

/// In the order of their times; limits before permissions.
fn merged(
    limits: Vec<ScheduleDecision>,
    decisions: Vec<ScheduleDecision>,
    count: usize,
) -> Vec<ScheduleDecision> {
    let mut all: Vec<_> = limits.into_iter().chain(decisions).collect();
    all.sort_by_key(|decision| decision.at);
    all.truncate(count);
    all
}
