//! Source monitoring after the point of no return: whether a source VM runs beside its target VM.
//!
//! Rule: "unreachable" is neither "off" nor "running". A finding is reported once, durably, and again when it
//! ends. The daemon does not act on it: only an operator knows which VM is to continue.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, stream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use warmd_cbt::store::StoreError;
use warmd_core::{
    clock, format,
    model::{
        event_kind::EventKind,
        id::{MigrationId, VmId},
        machine::PowerState,
        state::State,
        view::EventView,
    },
    sources::{Source, SourceErrorKind},
};
use warmd_store::MigrationRow;

use super::{context::Context, failure::WorkError, manager::Manager};

/// The interval between checks of the sources of done migrations.
const EVERY: Duration = Duration::from_mins(1);
/// VMs of one source checked at a time: a source that hangs does not delay the checks of others.
const PARALLEL: usize = 4;
/// A source whose VM state is unknown for this long is reported once.
const SILENT: Duration = Duration::from_hours(1);
/// The time limit of one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// What to do when both run.
const BOTH: &str = "it was started on the source after the target VM was started, and neither has what the other writes: stop \
                    it on the source, and find out who starts it (a person, high availability, a backup tool)";

/// Checks the source VM of a migration whose target VM was started; returns whether the source answered. A
/// running VM is an error.
pub(super) async fn source_is_off(context: &Context) -> Result<bool, WorkError> {
    match runs(&*context.source, &context.vm).await {
        Ok(false) => Ok(true),
        Ok(true) => {
            let text =
                format!("the source VM runs: {BOTH}; then resume, or go back to the source with `rollback`");
            let line = context.journal_entry("warmd", EventKind::Error, text.clone());
            tracing::error!(migration = %context.id, vm = %context.machine.name, "{text}");
            context.store.save_source_ran(context.id, Some(clock::now()), vec![line]).await?;
            Err(WorkError::operator(text))
        }
        Err(why) => {
            tracing::warn!(migration = %context.id, why, "not known whether the source VM is off");
            Ok(false)
        }
    }
}

/// Whether the source VM runs, there or on another of the source's hosts; the error is why that is unknown.
async fn runs(source: &dyn Source, vm: &VmId) -> Result<bool, String> {
    match tokio::time::timeout(ANSWER, source.power(vm)).await {
        Ok(Ok(PowerState::Running | PowerState::Paused)) => Ok(true),
        Ok(Ok(PowerState::Off)) => Ok(false),
        // A VM that does not exist does not run there.
        Ok(Err(error)) if error.kind == SourceErrorKind::NotFound => Ok(false),
        Ok(Err(error)) if error.runs_elsewhere() => Ok(true),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the source does not answer".to_owned()),
    }
}

/// Clears an earlier finding about the source.
pub(super) async fn source_was_off(context: &Context) -> Result<(), StoreError> {
    context.store.save_source_ran(context.id, None, Vec::new()).await
}

/// Since when a source's VM state is unknown, and whether that was reported.
type SilentSources = Mutex<BTreeMap<MigrationId, (Instant, bool)>>;

/// Checks the sources of done migrations, for as long as their plans say, and of those that failed after the
/// target VM's start, until the daemon ends.
pub(super) async fn keep_looking(manager: Weak<Manager>, shutdown: CancellationToken) {
    let silences = SilentSources::default();
    loop {
        if shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return;
        }
        let Some(manager) = manager.upgrade() else { return };
        if shutdown.run_until_cancelled(look_at_all(&manager, &silences)).await.is_none() {
            return;
        }
    }
}

async fn look_at_all(manager: &Arc<Manager>, silences: &SilentSources) {
    let rows = match manager.store.sources_to_watch(clock::now().min(clock::steady())).await {
        Ok(rows) => rows,
        Err(error) => return tracing::warn!(%error, "sources of done migrations are not looked at now"),
    };
    let mut by_source: BTreeMap<String, Vec<MigrationRow>> = BTreeMap::new();
    for row in rows {
        if is_over(manager, &row).await {
            continue;
        }
        by_source.entry(row.source.clone()).or_default().push(row);
    }
    let mut looks = Vec::new();
    for rows in by_source.into_values() {
        looks.push(look_at_those(manager, rows, silences));
    }
    futures::future::join_all(looks).await;
}

/// Whether the source of a done migration has been checked for as long as its plan says. The start is
/// recorded as a time of day, and the clock may have been set since.
async fn is_over(manager: &Manager, row: &MigrationRow) -> bool {
    let Some(until) = row
        .cutover
        .monitor_until
        .filter(|_| row.state == State::Done && row.source_seen_running_at.is_none())
    else {
        return false;
    };
    if (clock::now() - clock::steady()).abs() < TimeDelta::minutes(1) {
        return until <= clock::now();
    }
    match manager.plan_of(row).await {
        Ok(plan) => is_over_at(until, plan.cutover.monitor_source),
        // One check too many does no harm.
        Err(_) => false,
    }
}

/// Whether `span`, which was to end at `until`, has passed, regardless of the clock that recorded `until`.
fn is_over_at(until: DateTime<Utc>, span: Duration) -> bool {
    let began = TimeDelta::from_std(span).ok().and_then(|span| until.checked_sub_signed(span));
    began.is_none_or(|began| clock::age(began) >= span)
}

/// Checks the VMs of one source.
async fn look_at_those(manager: &Manager, rows: Vec<MigrationRow>, silences: &SilentSources) {
    stream::iter(rows)
        .for_each_concurrent(PARALLEL, |row| async move {
            if let Err(error) = look_at(manager, &row, silences).await {
                tracing::error!(migration = %row.id, %error, "what is seen of its source is not stored");
            }
        })
        .await;
}

/// Records whether the source answered; returns the length of its silence when it must be reported, once.
fn silence(silences: &SilentSources, id: MigrationId, has_answered: bool) -> Option<Duration> {
    let mut silences = silences.lock().unwrap_or_else(PoisonError::into_inner);
    if has_answered {
        silences.remove(&id);
        return None;
    }
    let (since, told) = silences.entry(id).or_insert_with(|| (Instant::now(), false));
    let silent = since.elapsed();
    (silent >= SILENT && !std::mem::replace(told, silent >= SILENT)).then_some(silent)
}

async fn look_at(manager: &Manager, row: &MigrationRow, silences: &SilentSources) -> Result<(), StoreError> {
    let Ok(source) = manager.source(&row.source) else { return Ok(()) };
    let runs = runs(source.as_ref(), &row.vm).await;
    let silent = silence(silences, row.id, runs.is_ok());
    let runs = match runs {
        Ok(runs) => runs,
        Err(why) => {
            tracing::debug!(migration = %row.id, why, "not known whether its source VM is off");
            let Some(silent) = silent else { return Ok(()) };
            let text = format!(
                "whether the source VM of {} is off has not been known for {}: {why}",
                row.vm_name,
                format::span(silent.as_secs_f64())
            );
            tracing::warn!(migration = %row.id, "{text}");
            return manager.store.append_events(vec![line(row, EventKind::Warning, text)]).await;
        }
    };
    if runs == row.source_seen_running_at.is_some() {
        return Ok(());
    }
    // A rollback that began meanwhile may have started the VM.
    let now = manager.store.migration(row.id).await?;
    if now.is_none_or(|now| !now.state.rests_past_no_return()) {
        return Ok(());
    }
    let text = if runs {
        tracing::error!(migration = %row.id, vm = %row.vm_name, "the source VM runs after the target VM was started");
        format!("the source VM of {} runs, and its migration is {}: {BOTH}", row.vm_name, row.state.name())
    } else {
        format!("the source VM of {} is off again", row.vm_name)
    };
    let line = line(row, if runs { EventKind::Error } else { EventKind::Warning }, text);
    manager.store.save_source_ran(row.id, runs.then_some(line.at), vec![line]).await
}

/// A line of the migration's journal.
fn line(row: &MigrationRow, kind: EventKind, text: String) -> EventView {
    EventView { at: clock::now(), migration: Some(row.id), by: "warmd".to_owned(), kind, text }
}
