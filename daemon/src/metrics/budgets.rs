//! Budgets as metrics.

use std::fmt;

use super::exposition::{Labels, Sink};
use crate::model::budget::BudgetView;

/// What budgets allow now, what of it is in use, and who waits.
pub(super) fn encode(budgets: &[BudgetView], to: &mut Sink) -> fmt::Result {
    let labels = |budget: &BudgetView| -> Labels { vec![("scope", budget.scope.path())] };
    let counts = |budget: &BudgetView| {
        [
            ("passes", budget.allowance.passes, budget.passes),
            ("snapshots", budget.allowance.snapshots, budget.snapshots),
            ("disks", budget.allowance.disks, budget.disks),
        ]
    };
    let of = |budget: &BudgetView, kind: &str| [labels(budget), vec![("kind", kind.to_owned())]].concat();
    to.gauge(
        "warmd_budget_allowed",
        "What the budgets of a scope allow now; absent where they do not limit it.",
        budgets.iter().flat_map(|budget| {
            let limited = counts(budget).into_iter();
            limited.filter_map(move |(kind, most, _)| Some((of(budget, kind), f64::from(most?.get()))))
        }),
    )?;
    to.gauge(
        "warmd_budget_used",
        "What is in use of what the budgets of a scope count.",
        budgets.iter().flat_map(|budget| {
            counts(budget).into_iter().map(move |(kind, _, used)| (of(budget, kind), f64::from(used)))
        }),
    )?;
    to.gauge(
        "warmd_budget_allowed_bytes_per_second",
        "The rate that the budgets of a scope allow now; absent where they do not limit it.",
        budgets.iter().filter_map(|budget| {
            let rate = budget.allowance.bytes_per_second?;
            Some((labels(budget), rate.get() as f64))
        }),
    )?;
    to.gauge(
        "warmd_budget_used_bytes_per_second",
        "What went through a scope with budgets, over the last five seconds.",
        budgets.iter().map(|budget| (labels(budget), budget.rate)),
    )?;
    to.gauge(
        "warmd_budget_waiting_passes",
        "Passes that wait for their turn and need something of a scope with budgets.",
        budgets.iter().map(|budget| (labels(budget), budget.waiting as f64)),
    )
}
