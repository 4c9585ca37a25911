//! Rollback: going back to the source after the target VM was started, on an operator's request.
//!
//! Rule: the target VM's writes are in no ledger, so first every ledger stops trusting its disks. Then the
//! target VM is removed with certainty, and only then is the source powered on. Each step may be repeated,
//! and none is abandoned: never do both VMs run.

use std::time::Duration;

use chrono::{DateTime, Utc};
use warmd_core::{
    crash,
    format::moment,
    model::{event_kind::EventKind, machine::PowerState},
    sources::{SourceError, SourceErrorKind},
    targets::{LastWriter, MachineState},
};

use super::{afterwards, context::Context, cutover, failure::WorkError, prepare, stale_state};

/// The time limit for source and target to answer whether a rollback is possible.
const ANSWER: Duration = Duration::from_secs(45);

/// Since when the target VM of the rollback has its disks, if that is noted beside them; or what prevents a
/// rollback, and what to do.
pub(super) async fn judged(context: &Context) -> Result<Option<DateTime<Utc>>, String> {
    let found = tokio::time::timeout(ANSWER, look(context)).await;
    let found =
        found.unwrap_or_else(|_| Err("source or target does not answer; try again when both do".to_owned()));
    found.map_err(|why| format!("rollback is refused: {why}"))
}

async fn look(context: &Context) -> Result<Option<DateTime<Utc>>, String> {
    match context.target.look(context.id).await {
        Ok(MachineState::NotManaged) => {
            return Err("the target only keeps disks, and warmd cannot stop what another program starts from them: stop \
                        the VM there, then start the source VM by hand"
                .to_owned());
        }
        Ok(_) => {}
        Err(error) => return Err(format!("it is not known whether the target VM can be stopped: {error}")),
    }
    let now = context.source.disk_sizes_if_known(&context.vm).await.map_err(|error| match error.kind {
        SourceErrorKind::NotFound => format!("the source VM is not there any more: {error}"),
        _ => format!("it is not known whether the source VM can be started: {error}"),
    })?;
    // A disk size that only a running VM reports is no objection.
    let same = |disk: &&warmd_core::model::machine::MachineDisk| {
        now.iter().any(|(key, size)| *key == disk.key && size.is_none_or(|size| size == disk.size))
    };
    let lost: Vec<_> =
        context.machine.disks.iter().filter(|disk| !same(disk)).map(|disk| disk.key.to_string()).collect();
    if !lost.is_empty() {
        return Err(format!(
            "disks of the source VM were removed, or have another size, since the cutover: {}; put them back",
            lost.join(", ")
        ));
    }
    match context.target.noted_writer(context.id).await {
        Ok(Some(LastWriter::Machine { since, .. })) => Ok(Some(since)),
        Ok(None | Some(LastWriter::Pass { .. } | LastWriter::Conversion(_) | LastWriter::Unknown)) => {
            Ok(None)
        }
        Err(error) => Err(format!("it is not known who wrote to the target's disks last: {error}")),
    }
}

/// The loss by a rollback, in words.
pub(super) fn loss(context: &Context) -> String {
    let name = &context.machine.name;
    match context.cutover().target_running {
        Some(at) => format!("what {name} wrote on the target since {} UTC is lost", moment(at)),
        None => format!("{name} was not seen running on the target; whatever it wrote there is lost"),
    }
}

/// Rolls back: removes the target VM, restores the source as before the cutover.
pub(super) async fn roll_back(context: &Context) -> Result<(), WorkError> {
    distrust(context).await?;
    crash::point("rollback.distrusted");
    context.target.discard_machine(context.id).await?;
    let state = context.target.look(context.id).await?;
    if state != MachineState::Absent {
        return Err(WorkError::passing(format!("the target VM was removed, and is {state:?}")));
    }
    crash::point("rollback.discarded");
    let back = source_back(context).await;
    let source = cutover::unless_away(context, back, "is not there", "runs on another host").await?;
    crash::point("rollback.powered-on");
    if context.store.disks(context.id).await?.is_empty() {
        // A restored state from before their creation: on resume it copies all that it knows.
        prepare::prepare(context).await?;
        distrust(context).await?;
    }
    take_back(context).await?;
    cutover::let_go(context).await?;
    afterwards::source_was_off(context).await?;
    let text = format!(
        "rolled back: the target VM is removed, the source VM {source}; {}. The target's disks stay as the target VM left \
         them until the migration is resumed: then they are copied again, whole",
        loss(context)
    );
    context.log_event(EventKind::Rollback, text).await;
    Ok(())
}

/// From here on no ledger trusts any content of the target's disks.
async fn distrust(context: &Context) -> Result<(), WorkError> {
    let mut pending = Vec::new();
    for row in context.store.disks(context.id).await? {
        let ledger = context.ledger(row.id).await?;
        ledger.distrust_all().await?;
        pending.push((row.key, ledger.pending_bytes().0));
    }
    context.live.update(|view| {
        for disk in &mut view.disks {
            if let Some((_, bytes)) = pending.iter().find(|(key, _)| *key == disk.key) {
                disk.pending = *bytes;
            }
        }
    });
    Ok(())
}

/// Records that the target VM's writes are not trusted, and that this VM is the one noted beside the disks.
async fn take_back(context: &Context) -> Result<(), WorkError> {
    context
        .remember(|cutover| {
            let since = *cutover.handed_over_at.get_or_insert_with(stale_state::moment);
            cutover.reclaimed_at = Some(since);
        })
        .await?;
    cutover::note_machine(context, true).await
}

/// Restores the source as before the cutover; returns its power state in words.
async fn source_back(context: &Context) -> Result<&'static str, SourceError> {
    if context.cutover().was_running == Some(true) {
        cutover::power_on_and_end_snapshot(context, false).await?;
        return Ok("is started");
    }
    context.source.end_snapshot(&context.vm, context.id).await?;
    Ok(match context.source.power(&context.vm).await? {
        PowerState::Off if context.cutover().was_running.is_none() => {
            "is off, and whether it ran before the cutover is not known: start it by hand if it did"
        }
        PowerState::Off => "stays off, as it was before the cutover",
        PowerState::Running | PowerState::Paused => "was started, and not by warmd",
    })
}
