//! What the metrics tell of plans' windows and promises.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use warmd_schedules::calendar::Calendar;

use crate::{
    metrics::{PromiseView, WindowView},
    model::plan::Plan,
};

/// Of each of these plans once. One whose schedule cannot be asked has no windows to tell of.
pub(super) fn views(
    plans: impl Iterator<Item = Arc<Plan>>,
    now: DateTime<Utc>,
) -> (Vec<WindowView>, Vec<PromiseView>) {
    let plans: BTreeMap<_, _> = plans.map(|plan| (plan.name.clone(), plan)).collect();
    let mut windows = Vec::new();
    for (name, plan) in &plans {
        let Ok(rules) = plan.rules() else { continue };
        for (kind, calendar) in [("copy", &rules.copy), ("cutover", &rules.cutover)] {
            windows.push(window(name, kind, calendar, now));
        }
    }
    let promises = plans.into_iter().map(|(name, plan)| PromiseView {
        plan: name,
        rpo: plan.schedule.adaptive.and_then(|adaptive| adaptive.rpo).map(|rpo| rpo.as_secs_f64()),
        max_downtime: plan.cutover.max_downtime.map(|most| most.as_secs_f64()),
    });
    (windows, promises.collect())
}

fn window(plan: &str, kind: &'static str, calendar: &Calendar, now: DateTime<Utc>) -> WindowView {
    let changes_in = calendar.next_change(now).map(|(answer, _)| (answer.at - now).as_seconds_f64());
    WindowView { plan: plan.to_owned(), kind, is_open: calendar.is_open(now), changes_in }
}
