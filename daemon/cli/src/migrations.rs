//! `migration …`.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
};

use warmd_proto::v1::{
    Migration, MigrationsCutoverRequest, MigrationsGetRequest, MigrationsListRequest,
    MigrationsReportRequest, MigrationsVerifyRequest, RequestOutcome, VerifyMode,
};

use super::{
    address::DaemonAddress,
    args::{CutoverWhen, MigrationCommand, Mode, ReportFormat, VerifyWhat},
    client::{Client, asked},
    failure::{CliFailure, Exit},
    follow::{self, Order, Task},
    labels,
    migration_stream::{MigrationStream, StreamItem},
    out::{Out, one_line},
    reports,
    screen::{Screen, interrupted},
    show,
};

pub(super) async fn run(
    daemon: &DaemonAddress,
    out: &Out,
    command: MigrationCommand,
) -> Result<(), CliFailure> {
    match command {
        MigrationCommand::List { plan } => {
            let request = asked(MigrationsListRequest { plan: plan.unwrap_or_default() });
            let client = Client::connect(daemon).await?;
            show::list(out, &client.migrations().list(request).await?.into_inner())
        }
        MigrationCommand::Show { id, stages } => {
            let client = Client::connect(daemon).await?;
            let request = asked(MigrationsGetRequest { migration: id });
            let answer = client.migrations().get(request).await?.into_inner();
            show::details(out, &answer.migration.unwrap_or_default(), stages)
        }
        MigrationCommand::Watch { id } => watch(daemon, out, id).await,
        MigrationCommand::Sync { id, wait } => {
            follow::run(daemon, out, id, just(Task::Sync), !wait.no_wait).await
        }
        MigrationCommand::Pause { id } => {
            let answer = Client::connect(daemon).await?.pause(id).await?;
            let what = answer.answer();
            if out.is_json() { out.json(&answer) } else { answered(out, "pause", what, answer.migration) }
        }
        MigrationCommand::Resume { id } => {
            let answer = Client::connect(daemon).await?.resume(id).await?;
            let what = answer.answer();
            if out.is_json() { out.json(&answer) } else { answered(out, "resume", what, answer.migration) }
        }
        MigrationCommand::Cutover { id, when, force, .. }
            if when.at.is_some() || when.hold || when.unhold =>
        {
            let CutoverWhen { at, hold, unhold, .. } = when;
            let at = at.unwrap_or_default();
            let request = MigrationsCutoverRequest { migration: id, abort: false, at, hold, unhold, force };
            arrange(daemon, out, request).await
        }
        MigrationCommand::Cutover { id, when, force, wait } => {
            let task = if when.abort { Task::AbortCutover } else { Task::Cutover };
            let order = Order { force, ..Order::default() };
            follow::run(daemon, out, id, (task, order), !wait.no_wait).await
        }
        MigrationCommand::Rollback { id, yes, wait } => {
            if !yes {
                accept_loss(daemon, &id).await?;
            }
            follow::run(daemon, out, id, just(Task::Rollback), !wait.no_wait).await
        }
        MigrationCommand::Cancel { id, wait } => {
            follow::run(daemon, out, id, just(Task::Cancel), !wait.no_wait).await
        }
        MigrationCommand::Verify { id, what, wait } => {
            let task = (Task::Verify, asked_for(what));
            follow::run(daemon, out, id, task, !wait.no_wait).await
        }
        MigrationCommand::Report { id, format, save } => report(daemon, out, id, format, save).await,
    }
}

/// A typing error must not cost data.
async fn accept_loss(daemon: &DaemonAddress, id: &str) -> Result<(), CliFailure> {
    let client = Client::connect(daemon).await?;
    let request = asked(MigrationsGetRequest { migration: id.to_owned() });
    let migration = client.migrations().get(request).await?.into_inner().migration.unwrap_or_default();
    let what = format!(
        "rollback of {}: all that {} wrote on the target since it was started there is lost",
        labels::who(&migration),
        one_line(&migration.target_name)
    );
    if !io::stdin().is_terminal() {
        return Err(CliFailure::new(Exit::Usage, format!("{what}; say --yes if that is wanted")));
    }
    eprint!("{what}. Type \"yes\" to go on: ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| CliFailure::new(Exit::Usage, error.to_string()))?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(CliFailure::new(Exit::Usage, "nothing was done"))
}

fn just(task: Task) -> (Task, Order) {
    (task, Order::default())
}

/// A cutover for later: there is nothing to follow yet.
async fn arrange(
    daemon: &DaemonAddress,
    out: &Out,
    request: MigrationsCutoverRequest,
) -> Result<(), CliFailure> {
    let client = Client::connect(daemon).await?;
    let answer = client.migrations().cutover(asked(request)).await?.into_inner();
    if out.is_json() {
        return out.json(&answer);
    }
    let what = answer.answer();
    let migration = answer.migration.unwrap_or_default();
    let waits = match &migration.scheduled_cutover {
        Some(awaited) => show::awaited(awaited),
        None => "no cutover is scheduled".to_owned(),
    };
    out.text(&format!("cutover of {}: {}; {waits}", labels::who(&migration), labels::answer(what)))
}

fn asked_for(what: VerifyWhat) -> Order {
    let mode = match what.mode {
        Mode::Readback => VerifyMode::Readback,
        Mode::Compare => VerifyMode::Compare,
    };
    let verify = MigrationsVerifyRequest {
        migration: String::new(),
        mode: mode.into(),
        scope: what.scope.to_string(),
        seed: what.seed,
        images: what.image.into_iter().collect(),
    };
    Order { verify, ..Order::default() }
}

fn answered(
    out: &Out,
    what: &str,
    answer: RequestOutcome,
    migration: Option<Migration>,
) -> Result<(), CliFailure> {
    let migration = migration.unwrap_or_default();
    out.text(&format!("{what} of {}: {}", labels::who(&migration), labels::answer(answer)))
}

async fn watch(daemon: &DaemonAddress, out: &Out, id: Option<String>) -> Result<(), CliFailure> {
    let client = Client::connect(daemon).await?;
    let mut feed = MigrationStream::open(&client, daemon.clone(), id, true).await?;
    let mut screen = Screen::new(out, true);
    loop {
        let news = tokio::select! {
            news = feed.next() => news?,
            () = interrupted() => {
                screen.finish(false)?;
                return Err(CliFailure::already_printed(Exit::Interrupted));
            }
        };
        match news {
            StreamItem::Migration(migration) if out.is_json() => out.json_line(&*migration)?,
            StreamItem::Migration(migration) => screen.show(*migration)?,
            StreamItem::Lost(why) => screen.aside(&why)?,
            StreamItem::Back => screen.aside("the daemon is back")?,
            StreamItem::Ended => return screen.finish(false),
        }
    }
}

async fn report(
    daemon: &DaemonAddress,
    out: &Out,
    id: String,
    format: Option<ReportFormat>,
    save: Option<PathBuf>,
) -> Result<(), CliFailure> {
    let client = Client::connect(daemon).await?;
    let request = asked(MigrationsReportRequest { migration: id });
    let answer = client.migrations().report(request).await?.into_inner();
    if let Some(base) = save {
        return reports::save(out, &base, &answer);
    }
    let json = match format {
        Some(format) => format == ReportFormat::Json,
        None => out.is_json(),
    };
    if json { out.json_text(&answer.json) } else { out.text(&answer.markdown) }
}
