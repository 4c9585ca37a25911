//! From the command line to its action.

use clap::CommandFactory;

use super::{
    args::{Args, CliCommand, SourceCommand, TargetCommand},
    client::Client,
    endpoints, events,
    failure::CliFailure,
    limits, migrations,
    out::Out,
    plans, reports, schedules, top, vms,
};

/// Runs the command.
pub(super) async fn run(args: Args, out: &Out) -> Result<(), CliFailure> {
    let Args { socket, command, .. } = args;
    match command {
        CliCommand::Completions { shell } => completions(shell, out),
        CliCommand::Source(command) => {
            let client = Client::connect(&socket).await?;
            match command {
                SourceCommand::List => endpoints::list_sources(&client, out).await,
                SourceCommand::Check { name } => endpoints::check_sources(&client, out, name).await,
                SourceCommand::Vms { name, filter, refresh } => {
                    vms::list(&client, out, name, &filter, refresh).await
                }
            }
        }
        CliCommand::Target(command) => {
            let client = Client::connect(&socket).await?;
            match command {
                TargetCommand::List => endpoints::list_targets(&client, out).await,
                TargetCommand::Check { name } => endpoints::check_targets(&client, out, name).await,
            }
        }
        CliCommand::Plan(command) => plans::run(&socket, out, command).await,
        CliCommand::Schedule(command) => schedules::run(&socket, out, command).await,
        CliCommand::Migration(command) => migrations::run(&socket, out, command).await,
        CliCommand::Top => top::run(&socket, out).await,
        CliCommand::Limit(command) => limits::run(&socket, out, command).await,
        CliCommand::Report(command) => reports::run(&socket, out, command).await,
        CliCommand::Events { id, limit, follow: false } => {
            events::list(&Client::connect(&socket).await?, out, id, limit).await
        }
        CliCommand::Events { id, limit, follow: true } => events::follow(&socket, out, id, limit).await,
    }
}

fn completions(shell: clap_complete::Shell, out: &Out) -> Result<(), CliFailure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "warmctl", &mut script);
    out.text(&String::from_utf8_lossy(&script))
}
