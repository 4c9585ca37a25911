//! `limit quotas`.

use warmd_core::{format, model::limit::rate};
use warmd_proto::v1::{LimitsQuotasRequest, QuotaState};

use super::{
    client::{Client, asked},
    failure::CliFailure,
    labels,
    out::{Out, one_line},
    table::Column,
};

const COLUMNS: [Column; 9] = [
    Column::text("SCOPE").cut(4, 16),
    Column::figure("RATE"),
    Column::figure("NOW"),
    Column::figure("PASSES"),
    Column::figure("SNAPSHOTS").leave(2),
    Column::figure("DISKS").leave(3),
    Column::figure("WAITING"),
    Column::text("NEXT CHANGE (UTC)").leave(1),
    Column::text("HOLDS").wrap(16),
];

pub(super) async fn quotas(client: &Client, out: &Out, scope: Option<String>) -> Result<(), CliFailure> {
    let request = asked(LimitsQuotasRequest { scope: scope.unwrap_or_default() });
    let answer = client.limits().quotas(request).await?.into_inner();
    if out.is_json() {
        return out.json(&answer);
    }
    out.table(&COLUMNS, answer.quotas.iter().map(row))
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
