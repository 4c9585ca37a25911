//! `budget …`.

use std::path::Path;

use warmd_proto::v1::{BudgetState, LimitsBudgetsRequest};

use super::{
    args::BudgetCommand,
    client::{Client, asked},
    failure::Failure,
    out::{Out, one_line},
    words,
};
use crate::{human, model::limit::rate};

pub(super) async fn run(socket: &Path, out: &Out, command: BudgetCommand) -> Result<(), Failure> {
    let BudgetCommand::Show { scope } = command;
    let request = asked(LimitsBudgetsRequest { scope: scope.unwrap_or_default() });
    let answer = Client::connect(socket).await?.limits().budgets(request).await?.into_inner();
    if out.is_json() {
        return out.json(&answer);
    }
    let heads = [
        "SCOPE",
        ">RATE",
        ">NOW",
        ">PASSES",
        ">SNAPSHOTS",
        ">DISKS",
        ">WAITING",
        "NEXT CHANGE (UTC)",
        "HOLDS",
    ];
    out.table(heads, answer.budgets.iter().map(row))
}

fn row(budget: &BudgetState) -> [String; 9] {
    [
        one_line(&budget.scope),
        budget.rate_bytes_per_second.map_or_else(|| "none".to_owned(), rate::text),
        human::rate(budget.now_bytes_per_second),
        used(budget.passes_used, budget.passes),
        used(budget.snapshots_used, budget.snapshots),
        used(budget.disks_used, budget.disks),
        budget.waiting.to_string(),
        words::moment(budget.next_change.as_ref()),
        one_line(&budget.why),
    ]
}

/// How many of how many.
fn used(used: u32, of: Option<u32>) -> String {
    of.map_or_else(|| used.to_string(), |of| format!("{used} of {of}"))
}
