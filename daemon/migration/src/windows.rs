//! The windows and RPO targets of plans, and of VMs with a schedule of their own, for the metrics.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use warmd_core::{
    metrics_view::{SloView, WindowView},
    model::plan::Plan,
};
use warmd_schedules::{calendar::Calendar, rules::Rules};

use super::context::Context;

/// The plan of each of these migrations once, and each VM with a schedule section. An invalid schedule has no
/// windows.
pub(super) fn views<'a>(
    migrations: impl Iterator<Item = &'a Context>,
    now: DateTime<Utc>,
) -> (Vec<WindowView>, Vec<SloView>) {
    let (mut plans, mut windows, mut promises) =
        (BTreeMap::<String, Arc<Plan>>::new(), Vec::new(), Vec::new());
    for context in migrations {
        let (plan, name) = (context.plan(), &context.machine.name);
        if plan.override_by_name(name, &context.vm).is_some_and(|over| !over.schedule.is_empty()) {
            windows.extend(
                context.rules().ok().iter().flat_map(|rules| both(&plan.name, Some(name), rules, now)),
            );
            let rpo = plan.rpo_of(name, &context.vm).map(|rpo| rpo.as_secs_f64());
            let (of, vm) = (plan.name.clone(), Some(name.clone()));
            promises.push(SloView { plan: of, vm, rpo, max_downtime: None });
        }
        plans.insert(plan.name.clone(), plan);
    }
    for (name, plan) in plans {
        windows.extend(plan.rules().ok().iter().flat_map(|rules| both(&name, None, rules, now)));
        promises.push(SloView {
            plan: name,
            vm: None,
            rpo: plan.schedule.adaptive.and_then(|adaptive| adaptive.rpo).map(|rpo| rpo.as_secs_f64()),
            max_downtime: plan.cutover.max_downtime.map(|most| most.as_secs_f64()),
        });
    }
    (windows, promises)
}

fn both(plan: &str, vm: Option<&String>, rules: &Rules, now: DateTime<Utc>) -> [WindowView; 2] {
    [("copy", &rules.copy), ("cutover", &rules.cutover)].map(|(kind, calendar): (_, &Calendar)| {
        let changes_in = calendar.next_change(now).map(|(answer, _)| (answer.at - now).as_seconds_f64());
        let (plan, vm) = (plan.to_owned(), vm.cloned());
        WindowView { plan, vm, kind, is_open: calendar.is_open(now), changes_in }
    })
}
