//! `plan …`.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use tonic::{Code, Status};
use warmd_core::plan_file::load_plan;
use warmd_proto::{
    MAX_REQUEST,
    v1::{
        Finding, PlanChangeKind, PlansApplyRequest, PlansApplyResponse, PlansCutoverRequest,
        PlansDeleteRequest, PlansGetRequest, PlansListRequest, PlansValidateRequest, Severity,
    },
};

use super::{
    address::DaemonAddress,
    args::{CutoverWhen, PlanCommand},
    client::{Client, asked},
    failure::{CliFailure, Exit},
    groups, labels,
    new_plan::{self, NewPlan},
    out::Out,
    table::Column,
};

const FINDINGS: [Column; 5] = [
    Column::text("SEVERITY"),
    Column::text("RULE").cut(2, 16),
    Column::text("SUBJECT").cut(1, 12),
    Column::text("FOUND").wrap(18),
    Column::text("WHAT TO DO").wrap(18),
];

const PLANS: [Column; 6] = [
    Column::text("NAME").cut(3, 12),
    Column::text("SOURCE").cut(1, 8),
    Column::text("TARGET").cut(2, 8),
    Column::figure("VMS"),
    Column::figure("INTERVAL"),
    Column::text("VERIFY"),
];

pub(super) async fn run(daemon: &DaemonAddress, out: &Out, command: PlanCommand) -> Result<(), CliFailure> {
    match command {
        PlanCommand::Apply { plan, dry_run } => {
            let request = PlansApplyRequest { toml: read(&plan.file, out)?, dry_run };
            apply(&Client::connect(daemon).await?, out, &plan.file, request).await
        }
        PlanCommand::Validate(plan) => {
            let toml = read(&plan.file, out)?;
            validate(&Client::connect(daemon).await?, out, &plan.file, toml).await
        }
        PlanCommand::New { source, target, vms, name } => {
            let new = NewPlan { name, source, target, vms };
            new_plan::print(&Client::connect(daemon).await?, out, new).await
        }
        PlanCommand::List => list(&Client::connect(daemon).await?, out).await,
        PlanCommand::Show { name } => show(&Client::connect(daemon).await?, out, name).await,
        PlanCommand::Cutover { name, when, force, wait } => {
            let CutoverWhen { abort, at, hold, unhold } = when;
            let at = at.unwrap_or_default();
            let request = PlansCutoverRequest { name, abort, at, hold, unhold, force };
            groups::cut_over(daemon, out, request, !wait.no_wait).await
        }
        PlanCommand::Delete { name } => delete(&Client::connect(daemon).await?, out, name).await,
    }
}

async fn apply(
    client: &Client,
    out: &Out,
    file: &Path,
    request: PlansApplyRequest,
) -> Result<(), CliFailure> {
    let answer =
        client.plans().apply(asked(request)).await.map_err(|status| in_file(file, status))?.into_inner();
    let is_refused = answer.findings.iter().any(|finding| finding.severity() == Severity::Error);
    if out.is_json() {
        out.json(&answer)?;
    } else {
        findings(out, &answer.findings)?;
        out.text(&headline(&answer, is_refused))?;
        for change in &answer.changes {
            let word = match (change.kind(), answer.dry_run) {
                (PlanChangeKind::Start, false) => "started".to_owned(),
                (PlanChangeKind::Keep, false) => "kept".to_owned(),
                (kind, _) => labels::name(kind),
            };
            let rest = [change.migration.as_str(), change.text.as_str()];
            let rest: Vec<_> = rest.into_iter().filter(|part| !part.is_empty()).collect();
            out.text(&format!("  {word:<7}  {}", rest.join("  ")))?;
        }
    }
    if answer.dry_run && is_refused { Err(CliFailure::already_printed(Exit::Refused)) } else { Ok(()) }
}

fn headline(answer: &PlansApplyResponse, is_refused: bool) -> String {
    let PlansApplyResponse { plan, started, kept, changes, dry_run, .. } = answer;
    if !dry_run {
        let started = labels::count(started.len(), "migration");
        return format!("plan {plan}: {started} started, {} unchanged", kept.len());
    }
    let starts = changes.iter().filter(|change| change.kind() == PlanChangeKind::Start).count();
    let (starts, kept) = (labels::count(starts, "migration"), kept.len());
    let refused = if is_refused { ", but it would be refused" } else { "" };
    format!("plan {plan}, not applied: {starts} would be started, {kept} unchanged{refused}")
}

async fn validate(client: &Client, out: &Out, file: &Path, toml: String) -> Result<(), CliFailure> {
    let request = asked(PlansValidateRequest { toml });
    let answer = client.plans().validate(request).await.map_err(|status| in_file(file, status))?.into_inner();
    let errors = answer.findings.iter().filter(|finding| finding.severity() == Severity::Error).count();
    if out.is_json() {
        out.json(&answer)?;
    } else {
        findings(out, &answer.findings)?;
        let warnings = answer.findings.len() - errors;
        let summary = match (errors, warnings) {
            (0, 0) => "nothing is wrong with it".to_owned(),
            (0, _) => format!("it can be applied, with {}", labels::count(warnings, "warning")),
            (_, _) => format!("it cannot be applied: {}", labels::count(errors, "error")),
        };
        out.text(&format!("plan {}: {summary}", answer.plan.unwrap_or_default().name))?;
    }
    if errors > 0 { Err(CliFailure::already_printed(Exit::Refused)) } else { Ok(()) }
}

fn findings(out: &Out, findings: &[Finding]) -> Result<(), CliFailure> {
    if findings.is_empty() {
        return Ok(());
    }
    let row = |finding: &Finding| {
        let Finding { rule, subject, message, help, .. } = finding.clone();
        [labels::name(finding.severity()), labels::or_dash(&rule), subject, message, labels::or_dash(&help)]
    };
    out.table(&FINDINGS, findings.iter().map(row))
}

async fn list(client: &Client, out: &Out) -> Result<(), CliFailure> {
    let answer = client.plans().list(asked(PlansListRequest {})).await?.into_inner();
    if out.is_json() {
        return out.json(&answer);
    }
    let rows = answer.plans.into_iter().map(|plan| {
        let verify = labels::verify_mode(plan.verify());
        let interval = labels::span(plan.interval.as_ref());
        [plan.name, plan.source, plan.target, plan.vms.len().to_string(), interval, verify]
    });
    out.table(&PLANS, rows)
}

async fn show(client: &Client, out: &Out, name: String) -> Result<(), CliFailure> {
    let answer = client.plans().get(asked(PlansGetRequest { name })).await?.into_inner();
    if out.is_json() {
        return out.json(&answer.plan.unwrap_or_default());
    }
    out.text(&answer.plan.unwrap_or_default().toml)?;
    // In comments, so that all of it can be applied.
    answer.group.iter().flat_map(groups::lines).try_for_each(|line| out.text(&format!("# {line}")))
}

async fn delete(client: &Client, out: &Out, name: String) -> Result<(), CliFailure> {
    let answer = client.plans().delete(asked(PlansDeleteRequest { name: name.clone() })).await?.into_inner();
    if out.is_json() { out.json(&answer) } else { out.text(&format!("plan {name} is deleted")) }
}

/// The plan file's text, never more of it than the daemon accepts. A user gets every mistake with its place
/// in the file; scripts get the daemon's findings.
pub(super) fn read(file: &Path, out: &Out) -> Result<String, CliFailure> {
    let from: &mut dyn Read = if file == Path::new("-") {
        &mut io::stdin()
    } else {
        &mut File::open(file).map_err(|error| unreadable(file, &error))?
    };
    let mut text = String::new();
    from.take(MAX_REQUEST as u64).read_to_string(&mut text).map_err(|error| unreadable(file, &error))?;
    if text.len() >= MAX_REQUEST {
        let message = format!("{}: larger than 1 MiB, which is no plan", file.display());
        return Err(CliFailure::new(Exit::Usage, message));
    }
    if !out.is_json() {
        load_plan(&text, &file.display().to_string())
            .map_err(|errors| CliFailure::new(Exit::Refused, errors.to_string()))?;
    }
    Ok(text)
}

fn unreadable(file: &Path, error: &io::Error) -> CliFailure {
    CliFailure::new(Exit::Usage, format!("cannot read the plan {}: {error}", file.display()))
}

/// The daemon knows line and column, but not the file.
pub(super) fn in_file(file: &Path, status: Status) -> CliFailure {
    let about_the_text = status.code() == Code::InvalidArgument;
    let mut failure = CliFailure::from(status);
    if about_the_text {
        failure.message = format!("{}: {}", file.display(), failure.message);
    }
    failure
}
