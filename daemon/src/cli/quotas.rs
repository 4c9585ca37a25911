//! `quota …`.

use std::path::Path;

use warmd_proto::v1::{LimitsQuotasRequest, QuotaState};

use super::{
    args::QuotaCommand,
    client::{Client, asked},
    failure::CliFailure,
    labels,
    out::{Out, one_line},
};
use crate::{format, model::limit::rate};

pub(super) async fn run(socket: &Path, out: &Out, command: QuotaCommand) -> Result<(), CliFailure> {
    let QuotaCommand::Show { scope } = command;
    let request = asked(LimitsQuotasRequest { scope: scope.unwrap_or_default() });
    let answer = Client::connect(socket).await?.limits().quotas(request).await?.into_inner();
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
    out.table(heads, answer.quotas.iter().map(row))
}

fn row(quota: &QuotaState) -> [String; 9] {
    [
        one_line(&quota.scope),
        quota.rate_bytes_per_second.map_or_else(|| "none".to_owned(), rate::text),
        format::rate(quota.now_bytes_per_second),
        used(quota.passes_used, quota.passes),
        used(quota.snapshots_used, quota.snapshots),
        used(quota.disks_used, quota.disks),
        quota.waiting.to_string(),
        labels::moment(quota.next_change.as_ref()),
        one_line(&quota.why),
    ]
}

/// How many of how many.
fn used(used: u32, of: Option<u32>) -> String {
    of.map_or_else(|| used.to_string(), |of| format!("{used} of {of}"))
}
