//! `source …` and `target …`.

use serde::Serialize;
use tonic::{Code, Status};
use warmd_proto::v1::{
    Endpoint, SourcesCheckRequest, SourcesListRequest, TargetsCheckRequest, TargetsListRequest,
};

use super::{
    client::{Client, asked},
    failure::{CliFailure, Exit, is_connection},
    out::Out,
    table::Column,
};

const ENDPOINTS: [Column; 3] =
    [Column::text("NAME").cut(2, 12), Column::text("KIND"), Column::text("ADDRESS").cut(1, 20)];

const CHECKS: [Column; 3] =
    [Column::text("NAME").cut(1, 12), Column::text("RESULT"), Column::text("WHAT IT SAYS").wrap(24)];

/// The result of reaching one endpoint.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    ok: bool,
    /// Its description, or why it could not be reached.
    message: String,
}

/// The form of `source check` and `target check`.
#[derive(Debug, Serialize)]
struct Checks {
    checks: Vec<Check>,
}

pub(super) async fn list_sources(client: &Client, out: &Out) -> Result<(), CliFailure> {
    let answer = client.sources().list(asked(SourcesListRequest {})).await?.into_inner();
    if out.is_json() { out.json(&answer) } else { table(out, answer.sources) }
}

pub(super) async fn list_targets(client: &Client, out: &Out) -> Result<(), CliFailure> {
    let answer = client.targets().list(asked(TargetsListRequest {})).await?.into_inner();
    if out.is_json() { out.json(&answer) } else { table(out, answer.targets) }
}

fn table(out: &Out, endpoints: Vec<Endpoint>) -> Result<(), CliFailure> {
    out.table(&ENDPOINTS, endpoints.into_iter().map(|e| [e.name, e.kind, e.address]))
}

pub(super) async fn check_sources(
    client: &Client,
    out: &Out,
    name: Option<String>,
) -> Result<(), CliFailure> {
    let alone = name.is_some();
    let names = match name {
        Some(name) => vec![name],
        None => names(client.sources().list(asked(SourcesListRequest {})).await?.into_inner().sources),
    };
    check(out, names, alone, async |name| {
        let answer = client.sources().check(asked(SourcesCheckRequest { name })).await?;
        Ok(answer.into_inner().description)
    })
    .await
}

pub(super) async fn check_targets(
    client: &Client,
    out: &Out,
    name: Option<String>,
) -> Result<(), CliFailure> {
    let alone = name.is_some();
    let names = match name {
        Some(name) => vec![name],
        None => names(client.targets().list(asked(TargetsListRequest {})).await?.into_inner().targets),
    };
    check(out, names, alone, async |name| {
        let answer = client.targets().check(asked(TargetsCheckRequest { name })).await?;
        Ok(answer.into_inner().description)
    })
    .await
}

fn names(endpoints: Vec<Endpoint>) -> Vec<String> {
    endpoints.into_iter().map(|endpoint| endpoint.name).collect()
}

/// Reaches each in turn. One that does not answer is a result; no daemon, and no such name, are failures.
async fn check(
    out: &Out,
    names: Vec<String>,
    alone: bool,
    reach: impl AsyncFn(String) -> Result<String, Status>,
) -> Result<(), CliFailure> {
    let mut checks = Vec::new();
    for name in names {
        let (ok, message) = match reach(name.clone()).await {
            Ok(message) => (true, message),
            Err(status) if is_connection(&status) || (alone && status.code() == Code::NotFound) => {
                return Err(status.into());
            }
            Err(status) => (false, status.message().to_owned()),
        };
        checks.push(Check { name, ok, message });
    }
    let failed = checks.iter().any(|check| !check.ok);
    if out.is_json() {
        out.json(&Checks { checks })?;
    } else {
        let row = |check: Check| {
            let result = if check.ok { "ok" } else { "FAILED" };
            [check.name, result.to_owned(), check.message]
        };
        out.table(&CHECKS, checks.into_iter().map(row))?;
    }
    if failed { Err(CliFailure::already_printed(Exit::Failed)) } else { Ok(()) }
}
