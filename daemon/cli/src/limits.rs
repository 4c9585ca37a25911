//! `limit …`.

use warmd_core::{format, model::limit::rate};
use warmd_proto::v1::{
    LimitChange, LimitReset, LimitState, LimitsGetRequest, LimitsSetRequest, limits_set_request::Change,
};

use super::{
    address::DaemonAddress,
    args::{LimitCommand, LimitTo},
    client::{Client, asked},
    failure::CliFailure,
    labels,
    out::Out,
    quotas::quotas,
    table::Column,
};

const COLUMNS: [Column; 8] = [
    Column::text("SCOPE").cut(5, 20),
    Column::text("VM").cut(3, 8),
    Column::figure("RATE"),
    Column::figure("REQUESTS"),
    Column::figure("NOW"),
    Column::figure("IN FLIGHT").leave(4),
    Column::figure("WAITING"),
    Column::text("SET BY (UTC)").cut(1, 20).leave(2),
];

pub(super) async fn run(daemon: &DaemonAddress, out: &Out, command: LimitCommand) -> Result<(), CliFailure> {
    let client = Client::connect(daemon).await?;
    match command {
        LimitCommand::Show { scope } => show(&client, out, scope).await,
        LimitCommand::Set { scope, to } => set(&client, out, scope, &to).await,
        LimitCommand::Quotas { scope } => quotas(&client, out, scope).await,
    }
}

async fn show(client: &Client, out: &Out, scope: Option<String>) -> Result<(), CliFailure> {
    let request = LimitsGetRequest { scope: scope.unwrap_or_default() };
    let answer = client.limits().get(asked(request)).await?.into_inner();
    if out.is_json() { out.json(&answer) } else { table(out, &answer.limits) }
}

async fn set(client: &Client, out: &Out, scope: String, to: &LimitTo) -> Result<(), CliFailure> {
    let change = if to.reset {
        Change::Reset(LimitReset {})
    } else {
        Change::To(LimitChange {
            rate_bytes_per_second: to.rate.map(|rate| rate.0.unwrap_or_default()),
            requests: to.requests.map(|requests| requests.0.unwrap_or_default()),
        })
    };
    let request = LimitsSetRequest { scope, change: Some(change) };
    let answer = client.limits().set(asked(request)).await?.into_inner();
    if out.is_json() { out.json(&answer) } else { table(out, answer.limit.as_slice()) }
}

fn table(out: &Out, limits: &[LimitState]) -> Result<(), CliFailure> {
    let row = |limit: &LimitState| {
        [
            scope(&limit.scope),
            labels::or_dash(&limit.vm_name),
            limit.rate_bytes_per_second.map_or_else(|| "none".to_owned(), rate::text),
            limit.requests.map_or_else(|| "none".to_owned(), |requests| requests.to_string()),
            format::rate(limit.now_bytes_per_second),
            limit.in_flight.to_string(),
            limit.waiting.to_string(),
            match limit.set_by() {
                "" => "-".to_owned(),
                by => format!("{by}, {}", labels::moment(limit.set_at.as_ref())),
            },
        ]
    };
    out.table(&COLUMNS, limits.iter().map(row))
}

/// With the end of a migration's id, by which it can be named too.
fn scope(scope: &str) -> String {
    let mut parts: Vec<_> = scope.splitn(3, '/').collect();
    if let ["migration", id, ..] = parts.as_mut_slice() {
        *id = labels::short(id);
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_scope_is_as_short_as_it_can_be_typed() {
        for (long, short) in [
            ("global", "global"),
            ("source/a-b-c", "source/a-b-c"),
            ("migration/01a20345-02c9-7185-9dfe-772ccf7b3237", "migration/772ccf7b3237"),
            ("migration/01a20345-02c9-7185-9dfe-772ccf7b3237/a-b/c", "migration/772ccf7b3237/a-b/c"),
        ] {
            assert_eq!(super::scope(long), short);
        }
    }
}
