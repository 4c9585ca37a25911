//! Sources of migrations that are past the point of no return: whether one runs beside its target VM.
//!
//! Rule: "cannot be reached" is never "off", and never "running" either. What is seen is told once, durably, and told again
//! when it is over. Nothing is done about it: which of the two is to go on only people know.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use warmd_cbt::{mutant::mutant, store::StoreError};

use super::{context::Context, failure::WorkError, manager::Manager};
use crate::{
    clock,
    model::{machine::PowerState, state::State, view::EventView},
    sources::SourceErrorKind,
    store::MigrationRow,
};

/// How often the sources of migrations that are done are looked at.
const EVERY: Duration = Duration::from_mins(1);
/// How many of them at a time.
const PARALLEL: usize = 4;
/// How long one may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// The kind of the journal's lines about it.
const KIND: &str = "error";

/// What to do about both running.
const BOTH: &str = "it was started on the source after the target VM was started, and neither has what the other writes: stop \
                    it on the source, and find out who starts it (a person, high availability, a backup tool)";

/// Looks at the source once, of a migration whose target VM was started; whether it answered. Running is a failure.
pub(super) async fn source_is_off(context: &Context) -> Result<bool, WorkError> {
    if mutant("source-not-watched") {
        return Ok(true);
    }
    match tokio::time::timeout(ANSWER, context.source.power(&context.vm)).await {
        Ok(Ok(PowerState::Off)) => Ok(true),
        Ok(Ok(PowerState::Running | PowerState::Paused)) => {
            let text =
                format!("the source VM runs: {BOTH}; then resume, or go back to the source with `rollback`");
            let line = context.line("warmd", KIND, text.clone());
            tracing::error!(migration = %context.id, vm = %context.machine.name, "{text}");
            context.store.save_source_ran(context.id, Some(clock::now()), vec![line]).await?;
            Err(WorkError::operator(text))
        }
        // What is not there does not run there.
        Ok(Err(error)) if error.kind == SourceErrorKind::NotFound => Ok(true),
        Ok(Err(error)) => {
            tracing::warn!(migration = %context.id, %error, "not known whether the source VM is off");
            Ok(false)
        }
        Err(_) => {
            tracing::warn!(migration = %context.id, "not known whether the source VM is off: no answer");
            Ok(false)
        }
    }
}

/// What was told of the source before is over.
pub(super) async fn source_was_off(context: &Context) -> Result<(), StoreError> {
    context.store.save_source_ran(context.id, None, Vec::new()).await
}

/// Looks at the sources of migrations that are done, for as long as their plans wanted, until the daemon ends.
pub(super) async fn keep_looking(manager: Weak<Manager>, shutdown: CancellationToken) {
    loop {
        if shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return;
        }
        let Some(manager) = manager.upgrade() else { return };
        if shutdown.run_until_cancelled(look_at_all(&manager)).await.is_none() {
            return;
        }
    }
}

async fn look_at_all(manager: &Arc<Manager>) {
    let rows = match manager.store.sources_to_watch(clock::now()).await {
        Ok(rows) => rows,
        Err(error) => return tracing::warn!(%error, "sources of done migrations are not looked at now"),
    };
    stream::iter(rows)
        .for_each_concurrent(PARALLEL, |row| async move {
            if let Err(error) = look_at(manager, &row).await {
                tracing::error!(migration = %row.id, %error, "what is seen of its source is not stored");
            }
        })
        .await;
}

async fn look_at(manager: &Manager, row: &MigrationRow) -> Result<(), StoreError> {
    let Ok(source) = manager.source(&row.source) else { return Ok(()) };
    let runs = match tokio::time::timeout(ANSWER, source.power(&row.vm)).await {
        Ok(Ok(PowerState::Running | PowerState::Paused)) => true,
        Ok(Ok(PowerState::Off)) => false,
        Ok(Err(error)) if error.kind == SourceErrorKind::NotFound => false,
        Ok(Err(error)) => {
            tracing::debug!(migration = %row.id, %error, "not known whether its source VM is off");
            return Ok(());
        }
        Err(_) => return Ok(()),
    };
    if runs == row.source_ran.is_some() || mutant("source-not-watched") {
        return Ok(());
    }
    // A rollback that began meanwhile may have started it.
    let now = manager.store.migration(row.id).await?;
    if now.is_none_or(|now| now.state != State::Done) {
        return Ok(());
    }
    let text = if runs {
        tracing::error!(migration = %row.id, vm = %row.vm_name, "the source VM runs after its migration is done");
        format!("the source VM of {} runs, and its migration is done: {BOTH}", row.vm_name)
    } else {
        format!("the source VM of {} is off again", row.vm_name)
    };
    let (at, by) = (clock::now(), "warmd".to_owned());
    let kind = if runs { KIND } else { "warning" }.to_owned();
    let line = EventView { at, migration: Some(row.id), by, kind, text };
    manager.store.save_source_ran(row.id, runs.then_some(at), vec![line]).await
}
