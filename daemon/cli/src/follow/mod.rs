//! Requesting an operation that takes time, and following it to its end.
//!
//! Rule: the watch begins before the request is made, so that no change is missed, however short the
//! operation is.

mod request;
mod tracker;

use serde::Serialize;
use warmd_core::model::outcome::PhaseOutcome;
use warmd_proto::v1::{Migration, RequestOutcome};

use self::{
    request::RequestAnswer,
    tracker::{Ending, Tracker, cut_off},
};
pub(super) use self::{
    request::{Order, ask},
    tracker::Task,
};
use super::{
    address::DaemonAddress,
    client::Client,
    failure::{CliFailure, Exit},
    labels,
    migration_stream::{MigrationStream, StreamItem},
    out::Out,
    screen::{Screen, interrupted},
    show::{self, Phases},
};

/// The JSON form of the outcome.
#[derive(Debug, Serialize)]
struct Followed<'a> {
    answer: String,
    /// `done`, `failed`, `begun`.
    outcome: &'static str,
    reason: Option<&'a str>,
    migration: &'a Migration,
}

/// Requests `task` for the migration that `key` names and, if `wait`, follows it. `order` has its options.
pub(super) async fn run(
    daemon: &DaemonAddress,
    out: &Out,
    key: String,
    (task, order): (Task, Order),
    wait: bool,
) -> Result<(), CliFailure> {
    let client = Client::connect(daemon).await?;
    if !wait {
        let RequestAnswer { answer, migration, .. } = ask(&client, &key, task, order).await?;
        return begun(out, task, answer, &migration);
    }
    // A finished migration can still be verified, and rolled back.
    let until_final = !matches!(task, Task::Verify | Task::Rollback);
    let mut feed = MigrationStream::open(&client, daemon.clone(), Some(key.clone()), until_final).await?;
    let RequestAnswer { answer, migration: before, verification } = ask(&client, &key, task, order).await?;

    let mut screen = Screen::new(out, false);
    let mut tracker = Tracker::new(task, &before, verification);
    let mut phases = Phases::after(&before);
    if !out.is_json() {
        screen.say(&format!("{} of {}: {}", task.name(), labels::who(&before), labels::answer(answer)))?;
    }
    let mut last = before;
    let ending = loop {
        let news = tokio::select! {
            news = feed.next() => news?,
            () = interrupted() => {
                screen.finish(false)?;
                return Err(left(task, &last));
            }
        };
        match news {
            StreamItem::Migration(now) => {
                last = *now;
                if !out.is_json() {
                    for line in phases.news(&last) {
                        screen.say(&line)?;
                    }
                    screen.show(last.clone())?;
                }
            }
            StreamItem::Lost(why) => screen.aside(&why)?,
            StreamItem::Back => {
                tracker.was_away();
                screen.aside("the daemon is back")?;
                continue;
            }
            // The last state is final: if that is no end for the tracker, no later state will be.
            StreamItem::Ended => break tracker.look(&last).unwrap_or_else(|| cut_off(&last)),
        }
        if let Some(ending) = tracker.look(&last) {
            break ending;
        }
    };
    screen.finish(true)?;
    ended(out, task, answer, &last, &ending)
}

fn begun(out: &Out, task: Task, answer: RequestOutcome, migration: &Migration) -> Result<(), CliFailure> {
    if out.is_json() {
        return out.json(&Followed {
            answer: labels::name(answer),
            outcome: "begun",
            reason: None,
            migration,
        });
    }
    out.text(&format!(
        "{} of {}: {}; follow it with `warmctl migration watch {}`",
        task.name(),
        labels::who(migration),
        labels::answer(answer),
        labels::short(&migration.id)
    ))
}

fn ended(
    out: &Out,
    task: Task,
    answer: RequestOutcome,
    last: &Migration,
    ending: &Ending,
) -> Result<(), CliFailure> {
    let reason = ending.failure.as_deref();
    if out.is_json() {
        let outcome = if reason.is_some() { "failed" } else { "done" };
        out.json(&Followed { answer: labels::name(answer), outcome, reason, migration: last })?;
    } else {
        for line in ending_lines(task, last, ending) {
            out.text(&line)?;
        }
    }
    match reason {
        None => Ok(()),
        Some(_) if out.is_json() => Err(CliFailure::already_printed(Exit::Failed)),
        Some(reason) => {
            let message = format!(
                "{} of {} failed: {}; it is {} now",
                task.name(),
                labels::who(last),
                super::out::one_line(reason),
                labels::state(last)
            );
            Err(CliFailure::new(Exit::Failed, message))
        }
    }
}

fn ending_lines(task: Task, last: &Migration, ending: &Ending) -> Vec<String> {
    let mut lines = Vec::new();
    let cutover = last.cutover.as_ref();
    let found = last.verification.as_ref().and_then(|verification| verification.result.as_ref());
    match (task, ending.failure.is_none()) {
        (Task::Cutover, true) => {
            // A verification from before the cutover says nothing about it.
            let began = cutover.and_then(|cutover| labels::at(cutover.started.as_ref()));
            let result = found.filter(|found| labels::at(found.at.as_ref()) >= began);
            let result = result.map_or_else(|| "none made".to_owned(), show::result);
            let downtime = cutover.and_then(|cutover| cutover.downtime.as_ref());
            lines.push(format!("downtime      {}", labels::span(downtime)));
            lines.push(format!("verification  {result}"));
            lines.push(format!("{} {} as {}", last.vm_name, moved(last), last.target_name));
        }
        (Task::Verify, _) if ending.has_result => {
            lines.extend(found.map(|found| format!("verification  {}", show::result(found))));
            lines.extend(found.and_then(show::miss_probabilities));
            lines.extend(found.into_iter().flat_map(|found| &found.disks).flat_map(|disk| {
                disk.mismatches.iter().map(|extent| {
                    let (offset, length) = (extent.offset_bytes, extent.length_bytes);
                    format!("  {} differs at byte {offset}, {length} bytes", disk.key)
                })
            }));
        }
        (Task::AbortCutover, true) => {
            lines.push(format!("the cutover of {} was aborted; the VM runs on the source", last.vm_name));
        }
        (Task::Rollback, true) => {
            lines.push(format!("{} is back on the source; its target VM is removed", last.vm_name));
            lines.push(format!(
                "the target's disks are kept; resumed, the migration copies all of them again: \
                 `warmctl migration resume {}`",
                labels::short(&last.id)
            ));
        }
        (Task::Cancel, true) => {
            lines.push(format!("{} was cancelled; the VM stays on the source", labels::who(last)));
        }
        (Task::Sync, true) => lines.push(format!("{} is synced", labels::who(last))),
        (
            Task::Cutover | Task::Verify | Task::AbortCutover | Task::Rollback | Task::Cancel | Task::Sync,
            _,
        ) => {}
    }
    lines
}

/// Where the VM of a cutover that is done is now. One that was off is not started, and where the target keeps
/// only disks the machine is started by another tool.
fn moved(last: &Migration) -> &'static str {
    let phases = last.cutover.iter().flat_map(|cutover| &cutover.phases);
    let outcomes: Vec<_> = phases.filter_map(|phase| phase.outcome.clone()).map(PhaseOutcome::from).collect();
    if outcomes.contains(&PhaseOutcome::StartedOutside) {
        "has its disks on the target, where another tool starts the VM,"
    } else if outcomes.contains(&PhaseOutcome::NotStarted) {
        "is on the target, powered off as it was on the source,"
    } else {
        "runs on the target"
    }
}

fn left(task: Task, last: &Migration) -> CliFailure {
    let message = format!(
        "interrupted: the {} of {} goes on in the daemon; see `warmctl migration watch {}`{}",
        task.name(),
        labels::who(last),
        labels::short(&last.id),
        if task == Task::Cutover { ", or stop it with `warmctl migration cutover --abort`" } else { "" }
    );
    CliFailure::new(Exit::Interrupted, message)
}
