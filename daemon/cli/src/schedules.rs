//! `schedule …`.

use std::path::PathBuf;

use clap::Subcommand;
use warmd_proto::v1::PlansExplainRequest;

use super::{
    address::DaemonAddress,
    client::{Client, asked},
    failure::CliFailure,
    labels,
    out::{Out, one_line},
    plans,
};

#[derive(Debug, Subcommand)]
pub(super) enum ScheduleCommand {
    /// Print the next decisions of a plan's schedule, and the reason for each, as far as is known now
    Explain {
        /// The plan's name
        #[arg(required_unless_present = "file", conflicts_with = "file")]
        plan: Option<String>,
        /// Read this plan file instead, applied or not; - is standard input
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// For this migration; the default is the one of the plan whose last pass is the longest ago
        #[arg(long, value_name = "MIGRATION", conflicts_with = "vm")]
        migration: Option<String>,
        /// For this VM of the plan, by name or id, also before its migration begins
        #[arg(long, value_name = "VM")]
        vm: Option<String>,
        /// How many decisions
        #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
    },
}

pub(super) async fn run(
    daemon: &DaemonAddress,
    out: &Out,
    command: ScheduleCommand,
) -> Result<(), CliFailure> {
    let ScheduleCommand::Explain { plan, file, migration, vm, count } = command;
    let toml = file.as_deref().map(|file| plans::read(file, out)).transpose()?.unwrap_or_default();
    let (name, migration) = (plan.unwrap_or_default(), migration.unwrap_or_default());
    let vm = vm.unwrap_or_default();
    let request = asked(PlansExplainRequest { name, toml, migration, count, vm });
    let answer = Client::connect(daemon).await?.plans().explain(request).await;
    let answer = match &file {
        Some(file) => answer.map_err(|status| plans::in_file(file, status)),
        None => answer.map_err(CliFailure::from),
    };
    let answer = answer?.into_inner();
    if out.is_json() {
        return out.json(&answer);
    }
    let whose = match (answer.vm_name.as_str(), answer.migration_id.as_str()) {
        ("", "") => "a migration that has just begun".to_owned(),
        (vm, "") => format!("{vm}, as if its migration had just begun"),
        (vm, id) => format!("{vm} ({})", labels::short(id)),
    };
    out.text(&format!("for {}, in {}:", one_line(&whose), one_line(&answer.zone)))?;
    for decision in &answer.decisions {
        out.text(&one_line(&decision.text))?;
    }
    Ok(())
}
