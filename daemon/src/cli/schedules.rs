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
    let ScheduleCommand::Explain { plan, file, migration, vm, count } = command;
    let toml = file.as_deref().map(|file| plans::read(file, out)).transpose()?.unwrap_or_default();
    let (name, migration) = (plan.unwrap_or_default(), migration.unwrap_or_default());
    let vm = vm.unwrap_or_default();
    let request = asked(PlansExplainRequest { name, toml, migration, count, vm });
    let answer = Client::connect(socket).await?.plans().explain(request).await;
    let answer = match &file {
        Some(file) => answer.map_err(|status| plans::in_file(file, status)),
        None => answer.map_err(Failure::from),
    };
    let answer = answer?.into_inner();
    if out.is_json() {
        return out.json(&answer);
    }
    let whose = match (answer.vm_name.as_str(), answer.migration_id.as_str()) {
        ("", "") => "a migration that has just begun".to_owned(),
        (vm, "") => format!("{vm}, as if its migration had just begun"),
        (vm, id) => format!("{vm} ({})", words::short(id)),
    };
    out.text(&format!("for {}, in {}:", one_line(&whose), one_line(&answer.zone)))?;
    for decision in &answer.decisions {
        out.text(&one_line(&decision.text))?;
    }
    Ok(())
}
