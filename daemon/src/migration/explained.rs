//! What a plan's schedule will decide next, for one of its migrations.

use chrono::{DateTime, Utc};
use warmd_schedules::{
    Tz,
    arbiter::Scope,
    budget::{Allowance, Budgets},
    explain::{Decision, What, explain},
    rules::{Facts, Rules},
    schedule::Problems,
};

use super::{
    admission::Places,
    context::Context,
    control::{ControlError, ControlErrorKind, Whose},
    facts::known,
    manager::{Handle, Manager, internal},
};
use crate::{
    clock,
    model::{
        id::{MigrationId, VmId},
        plan::Plan,
        selection::may_mean,
    },
};

/// The next decisions and their reasons.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// In which they are told.
    pub zone: Tz,
    /// The migration that they are told for; `None` is for one that has just begun.
    pub migration: Option<MigrationId>,
    /// Its VM, if it is for one.
    pub vm: Option<String>,
    pub decisions: Vec<Decision>,
}

/// A migration, its VM's rules, and what is known of it.
struct Subject {
    handle: Handle,
    rules: Rules,
    facts: Facts,
}

/// At most `count` decisions.
pub(super) async fn explained(
    manager: &Manager,
    plan: &Plan,
    whose: Whose<'_>,
    count: usize,
) -> Result<Explanation, ControlError> {
    let subject = subject(manager, plan, whose).await?;
    let (rules, facts) = if let Some(subject) = &subject {
        (subject.rules.clone(), subject.facts.clone())
    } else {
        let rules = match whose {
            Whose::Vm(vm) => plan.rules_of(vm, &VmId(vm.to_owned())),
            Whose::Oldest | Whose::Migration(_) => plan.rules(),
        };
        let rules = rules.map_err(|problems| wrong(&problems))?;
        let facts = Facts::unknown(rules.zone);
        (rules, facts)
    };
    let now = clock::now();
    let decisions = explain(&rules, &facts, now, count);
    let (budgets, waits) = match &subject {
        Some(Subject { handle, .. }) => {
            let admissions = &handle.context.admissions;
            (manager.gate.budgets_over(&admissions.places), admissions.why())
        }
        None => (manager.gate.budgets_over(&Places::ends(&plan.source, &plan.target)), None),
    };
    let mut extra = limits(&budgets, &decisions, (rules.zone, now, count));
    let waits = waits.map(|why| Decision { at: now, zone: rules.zone, what: What::PassBlocked, why });
    extra.extend(waits);
    let decisions = merged(extra, decisions, count);
    let (migration, vm) = match (&subject, whose) {
        (Some(Subject { handle, .. }), _) => {
            (Some(handle.context.id), Some(handle.context.machine.name.clone()))
        }
        (None, Whose::Vm(vm)) => (None, Some(vm.to_owned())),
        (None, Whose::Oldest | Whose::Migration(_)) => (None, None),
    };
    Ok(Explanation { zone: rules.zone, migration, vm, decisions })
}

/// The migration that is meant, as far as one has begun; of several the one whose last pass is the longest ago.
async fn subject(manager: &Manager, plan: &Plan, whose: Whose<'_>) -> Result<Option<Subject>, ControlError> {
    let is_over = |handle: &Handle| handle.context.live.view().state.is_final();
    let of_plan = || {
        let all = manager.handles().into_iter();
        all.filter(|handle| handle.context.plan().name == plan.name && !is_over(handle))
    };
    let asked: Vec<Handle> = match whose {
        Whose::Oldest => of_plan().collect(),
        Whose::Migration(key) => {
            let id = manager.find_migration(key).await?;
            let handle = manager.handle(id).filter(|handle| !is_over(handle));
            vec![handle.ok_or_else(|| {
                let why = format!("migration {id} is over: nothing is decided for it any more");
                ControlError::new(ControlErrorKind::Refused, why)
            })?]
        }
        Whose::Vm(vm) => {
            let is_it = |handle: &Handle| handle.context.machine.name == vm || handle.context.vm.0 == vm;
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
        let at = handle.context.live.view().awaited_cutover.and_then(|awaited| awaited.asked_for());
        let mut facts = known(store, *id, rules.zone, at).await.map_err(internal)?.facts;
        facts.last = facts.last.map(|last| handle.context.steady.told(last, clock::now()));
        let snapshot = |facts: &Facts| facts.last.map(|last| last.snapshot);
        if next.as_ref().is_none_or(|next| snapshot(&facts) < snapshot(&next.facts)) {
            next = Some(Subject { handle, rules, facts });
        }
    }
    Ok(next)
}

fn wrong(problems: &Problems) -> ControlError {
    ControlError::new(ControlErrorKind::Invalid, problems.to_string())
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
