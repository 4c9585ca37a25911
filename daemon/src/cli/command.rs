//! From the command line to what is done.

use clap::CommandFactory;

use super::{
    args::{Args, Command, SourceCommand, TargetCommand},
    budgets,
    client::Client,
    endpoints, events,
    failure::Failure,
    limits, migrations,
    out::Out,
    plans, reports, schedules, top, vms,
};

/// Does what the command line says.
pub(super) async fn run(args: Args, out: &Out) -> Result<(), Failure> {
    let Args { socket, command, .. } = args;
    match command {
        Command::Completions { shell } => completions(shell, out),
        Command::Source(command) => {
            let client = Client::connect(&socket).await?;
            match command {
                SourceCommand::List => endpoints::list_sources(&client, out).await,
                SourceCommand::Check { name } => endpoints::check_sources(&client, out, name).await,
                SourceCommand::Vms { name, filter, refresh } => {
                    vms::list(&client, out, name, &filter, refresh).await
                }
            }
        }
        Command::Target(command) => {
            let client = Client::connect(&socket).await?;
            match command {
                TargetCommand::List => endpoints::list_targets(&client, out).await,
                TargetCommand::Check { name } => endpoints::check_targets(&client, out, name).await,
            }
        }
        Command::Plan(command) => plans::run(&socket, out, command).await,
        Command::Schedule(command) => schedules::run(&socket, out, command).await,
        Command::Migration(command) => migrations::run(&socket, out, command).await,
        Command::Top => top::run(&socket, out).await,
        Command::Limit(command) => limits::run(&socket, out, command).await,
        Command::Budget(command) => budgets::run(&socket, out, command).await,
        Command::Report(command) => reports::run(&socket, out, command).await,
        Command::Events { id, limit, follow: false } => {
            events::list(&Client::connect(&socket).await?, out, id, limit).await
        }
        Command::Events { id, limit, follow: true } => events::follow(&socket, out, id, limit).await,
    }
}

fn completions(shell: clap_complete::Shell, out: &Out) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "warmctl", &mut script);
    out.text(&String::from_utf8_lossy(&script))
}
