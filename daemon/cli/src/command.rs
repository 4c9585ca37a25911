//! From the command line to its action.

use clap::CommandFactory;

use super::{
    access,
    args::{Args, CliCommand, ReportCommand, SourceCommand, TargetCommand},
    client::Client,
    contexts::{self, ChosenDaemon},
    endpoints, events,
    failure::CliFailure,
    limits, migrations,
    out::Out,
    plans, reports, schedules, top, vms,
};

/// Runs the command.
pub(super) async fn run(command: CliCommand, chosen: ChosenDaemon, out: &Out) -> Result<(), CliFailure> {
    // What needs no daemon works also with an unreadable file of contexts.
    let daemon = || contexts::resolve(&chosen);
    match command {
        CliCommand::Completions { shell } => completions(shell, out),
        CliCommand::Context(command) => contexts::run(chosen, out, command),
        CliCommand::Source(command) => {
            let client = Client::connect(&daemon()?).await?;
            match command {
                SourceCommand::List => endpoints::list_sources(&client, out).await,
                SourceCommand::Check { name } => endpoints::check_sources(&client, out, name).await,
                SourceCommand::Vms { name, filter, refresh } => {
                    vms::list(&client, out, name, &filter, refresh).await
                }
            }
        }
        CliCommand::Target(command) => {
            let client = Client::connect(&daemon()?).await?;
            match command {
                TargetCommand::List => endpoints::list_targets(&client, out).await,
                TargetCommand::Check { name } => endpoints::check_targets(&client, out, name).await,
            }
        }
        CliCommand::Plan(command) => plans::run(&daemon()?, out, command).await,
        CliCommand::Schedule(command) => schedules::run(&daemon()?, out, command).await,
        CliCommand::Migration(command) => migrations::run(&daemon()?, out, command).await,
        CliCommand::Top => top::run(&daemon()?, out).await,
        CliCommand::Limit(command) => limits::run(&daemon()?, out, command).await,
        CliCommand::Report(ReportCommand::Verify { file, key }) => {
            reports::verify(out, &file, key.as_deref())
        }
        CliCommand::Report(ReportCommand::Key { pem }) => reports::print_key(&daemon()?, out, pem).await,
        CliCommand::Access(command) => access::run(&daemon()?, out, command).await,
        CliCommand::Events { id, limit, follow: false } => {
            events::list(&Client::connect(&daemon()?).await?, out, id, limit).await
        }
        CliCommand::Events { id, limit, follow: true } => events::follow(&daemon()?, out, id, limit).await,
    }
}

fn completions(shell: clap_complete::Shell, out: &Out) -> Result<(), CliFailure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "warmctl", &mut script);
    out.text(&String::from_utf8_lossy(&script))
}
