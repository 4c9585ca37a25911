//! What a plan's schedule will decide next, for one of its migrations.

use warmd_schedules::{
    Tz,
    explain::{Decision, explain},
    rules::Facts,
};

use super::{
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
    let decisions = explain(&rules, &facts, clock::now(), count);
    let migration = next.map(|(handle, _)| (handle.context.id, handle.context.machine.name.clone()));
    Ok(Explanation { zone: rules.zone, migration, decisions })
}
