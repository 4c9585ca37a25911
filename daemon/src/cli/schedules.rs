//! `schedule …`.

use std::path::Path;

use warmd_proto::v1::PlansExplainRequest;

use super::{
    args::ScheduleCommand,
    client::{Client, asked},
    failure::Failure,
    out::{Out, one_line},
    plans, words,
};

pub(super) async fn run(socket: &Path, out: &Out, command: ScheduleCommand) -> Result<(), Failure> {
    let ScheduleCommand::Explain { plan, file, migration, count } = command;
    let toml = file.as_deref().map(|file| plans::read(file, out)).transpose()?.unwrap_or_default();
    let (name, migration) = (plan.unwrap_or_default(), migration.unwrap_or_default());
    let request = asked(PlansExplainRequest { name, toml, migration, count });
    let answer = Client::connect(socket).await?.plans().explain(request).await;
    let answer = match &file {
        Some(file) => answer.map_err(|status| plans::in_file(file, status)),
        None => answer.map_err(Failure::from),
    };
    let answer = answer?.into_inner();
    if out.is_json() {
        return out.json(&answer);
    }
    let whose = if answer.migration_id.is_empty() {
        "a migration that has just begun".to_owned()
    } else {
        format!("{} ({})", answer.vm_name, words::short(&answer.migration_id))
    };
    out.text(&format!("for {}, in {}:", one_line(&whose), one_line(&answer.zone)))?;
    for decision in &answer.decisions {
        out.text(&one_line(&decision.text))?;
    }
    Ok(())
}
