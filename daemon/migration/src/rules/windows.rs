//! Whether a cutover ever fits into its windows.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use warmd_core::{
    clock, format,
    model::{plan::Plan, rule::Rule},
};
use warmd_schedules::{calendar::Calendar, rules::Rules};

use super::{CheckedPlan, Subject, plan_of, vm_of};
use crate::manager::Manager;

/// The time span that is checked.
pub(super) const AHEAD: TimeDelta = TimeDelta::days(366);
/// Windows that are checked: those of a year, one a day.
const MOST: usize = 400;

pub(super) fn check_windows(checked: &mut CheckedPlan, manager: &Manager, plan: &Plan) {
    let Ok(rules) = plan.rules() else { return };
    let of = |rules: &Rules| longest(&rules.cutover, clock::now()).map(TimeDelta::as_seconds_f64);
    let of_plan = of(&rules);
    promised(checked, plan, (plan_of(plan), of_plan));
    let mut of_vms = BTreeMap::new();
    for (vm, over) in plan.vm.iter().filter(|(_, over)| over.schedule.moves_windows()) {
        let Ok(rules) = plan.schedule.rules_with(&over.schedule) else { continue };
        of_vms.insert(vm.as_str(), of(&rules));
        promised(checked, plan, (vm_of(vm), of_vms[vm.as_str()]));
    }
    for Subject { vm, machine, migration, .. } in &checked.machines.clone() {
        let own = [&machine.name, &machine.id.0].into_iter().find(|key| plan.vm.contains_key(*key));
        let longest = own.and_then(|key| of_vms.get(key.as_str())).copied().unwrap_or(of_plan);
        let Some(handle) = migration.and_then(|id| manager.handle(id)) else { continue };
        let Some(forecast) = handle.context.live.view().forecast else { continue };
        if let Some(longest) = longest.filter(|longest| forecast.downtime.expected > *longest) {
            let expected = format::span(forecast.downtime.expected);
            let found = format!("{}, and it is expected to be down for {expected}", longest_window(longest));
            checked.find(Rule::WindowNeverFits, vm_of(vm), found);
        }
    }
}

/// Whether the plan's limits fit into the longest window of the plan, or of a VM.
fn promised(checked: &mut CheckedPlan, plan: &Plan, (subject, longest): (String, Option<f64>)) {
    let Some(longest) = longest else { return };
    if let Some(most) = plan.cutover.max_downtime.filter(|most| most.as_secs_f64() > longest) {
        let most = format::span(most.as_secs_f64());
        let found = format!("{}, and `cutover.max_downtime` is {most}", longest_window(longest));
        checked.find(Rule::WindowNeverFits, subject, found);
    }
}

fn longest_window(longest: f64) -> String {
    format!("the longest window for cutovers of the coming year has {}", format::span(longest))
}

/// The longest time for which the calendar is open in the coming year; `None` if it never closes, or never
/// opens.
fn longest(calendar: &Calendar, now: DateTime<Utc>) -> Option<TimeDelta> {
    let mut longest = None;
    let mut at = now;
    for _ in 0..MOST {
        let Ok(open) = calendar.next_open(at) else { break };
        if open.at > now + AHEAD {
            break;
        }
        let close = calendar.next_close(open.at)?;
        longest = longest.max(Some(close.at - open.at));
        at = close.at;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(schedule: &str) -> Option<i64> {
        let plan = format!("name = \"p\"\nsource = \"s\"\ntarget = \"t\"\nvms = [\"v\"]\n{schedule}");
        let plan: Plan = toml::from_str(&plan).unwrap();
        let now = DateTime::parse_from_rfc3339("2026-11-25T12:00:00Z").unwrap().to_utc();
        longest(&plan.rules().unwrap().cutover, now).map(|longest| longest.num_hours())
    }

    #[test]
    fn the_longest_window_is_found() {
        assert_eq!(hours(""), None);
        assert_eq!(hours("[schedule.cutover]\nwindows = [\"daily 22:00–23:00 UTC\"]"), Some(1));
        let two = "[schedule.cutover]\nwindows = [\"Wed 01:00–02:00 UTC\", \"Sat 22:00–Sun 04:00 UTC\"]";
        assert_eq!(hours(two), Some(6));
        let cut = format!("{two}\nblackouts = [\"Sun UTC\"]");
        assert_eq!(hours(&cut), Some(2));
        assert_eq!(hours("[schedule.cutover]\nwindows = [\"2020-01-01 UTC\"]"), None);
    }
}
