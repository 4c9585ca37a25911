//! The hooks of a phase, before it and after it.
//!
//! Rule: start and end of a hook are recorded durably: in one cutover a hook is started again only if its end
//! was not recorded. Once the target VM was started, a hook's failure does not undo the cutover.

use serde::Serialize;
use warmd_cbt::stop::StopSignal;
use warmd_core::{
    clock, crash,
    format::{seconds_between, span},
    model::{
        event_kind::EventKind,
        hook::{Hook, HookSide, OnFailure},
        id::{DiskKey, MigrationId, VmId},
        machine::Machine,
        phase::Phase,
    },
};
use warmd_store::{HookKey, HookStatus};

use super::{context::Context, failure::WorkError, forecast, hook_call, program, retry::Retry};

/// Version of a hook's input.
const FACTS: u32 = 1;

/// A hook's standard input, as JSON, documented in `docs/hooks.md`. Fields are added, never changed.
#[derive(Debug, Serialize)]
struct HookInput<'a> {
    version: u32,
    hook: Moment<'a>,
    migration: MigrationId,
    plan: &'a str,
    source: &'a str,
    target: &'a str,
    vm: Vm<'a>,
    cutover: Going,
    disks: Vec<Disk>,
    machine: &'a Machine,
}

#[derive(Debug, Serialize)]
struct Moment<'a> {
    phase: Phase,
    when: HookSide,
    command: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<&'a str>,
    /// Counted from 1.
    attempt: u32,
    /// An earlier daemon ended while it ran.
    again: bool,
}

#[derive(Debug, Serialize)]
struct Vm<'a> {
    id: &'a VmId,
    name: &'a str,
    target_name: &'a str,
}

#[derive(Debug, Serialize)]
struct Going {
    attempt: u32,
    was_running: Option<bool>,
    source_stopped: Option<chrono::DateTime<chrono::Utc>>,
    target_running: Option<chrono::DateTime<chrono::Utc>>,
    downtime_forecast: Option<f64>,
    downtime: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Disk {
    key: DiskKey,
    size: u64,
    location: String,
}

/// The number of tries to save the end of a hook.
const NOTED: u32 = 10;

/// Runs the plan's hooks of this moment, in the plan's order.
pub(super) async fn run_hooks(
    context: &Context,
    phase: Phase,
    when: HookSide,
    stop: &StopSignal,
) -> Result<(), WorkError> {
    let plan = context.plan();
    let now: Vec<_> = plan.hooks.iter().filter(|hook| (hook.phase, hook.when) == (phase, when)).collect();
    for (at, hook) in now.iter().enumerate() {
        let same = now.iter().take(at).filter(|other| other.words() == hook.words()).count();
        one(context, u32::try_from(same).unwrap_or(u32::MAX), hook, stop).await?;
    }
    Ok(())
}

async fn one(context: &Context, nth: u32, hook: &Hook, stop: &StopSignal) -> Result<(), WorkError> {
    let key = HookKey { migration: context.id, attempt: context.cutover().attempt, nth };
    let (place, program) = (hook.place(), hook.program());
    let begun = clock::now();
    let again = match context.store.begin_hook(key, hook.clone(), begun).await? {
        HookStatus::Ended => return Ok(()),
        HookStatus::CutOff => {
            let text = format!("{place}: {program} ran when the daemon ended, and is run again");
            context.log_event(EventKind::Hook, text).await;
            true
        }
        HookStatus::New => {
            context.log_event(EventKind::Hook, format!("{place}: {program} begins")).await;
            false
        }
    };
    crash::point("hook.begun");
    let fault = tokio::select! {
        biased;
        () = stop.stopped() => {
            context.log_event(EventKind::Hook, format!("{place}: {program} was stopped")).await;
            return Err(WorkError::passing(format!("hook {place} was stopped on request")));
        }
        fault = attempts(context, hook, again) => fault?,
    };
    crash::point("hook.done");
    let ended = clock::now();
    let took = span(seconds_between(begun, ended));
    let outcome = fault.as_ref().map_or_else(|| "done".to_owned(), |fault| format!("failed: {fault}"));
    // Retried alone: a retry of everything would run the hook again.
    let mut retry = Retry::times(NOTED);
    while let Err(error) = context.store.end_hook(key, hook.clone(), ended, &outcome).await {
        if !retry.pause().await {
            return Err(error.into());
        }
    }
    let Some(fault) = fault else {
        context.log_event(EventKind::Hook, format!("{place}: {program} ended well after {took}")).await;
        return Ok(());
    };
    let text = format!("hook {place} failed: {program}: {fault}");
    match hook.on_failure {
        OnFailure::Abort if !hook.past_no_return() => return Err(WorkError::operator(text)),
        OnFailure::Abort => {
            let told = format!(
                "{text}; the plan would abort for it, but the target VM was started and nothing is undone: \
                 do by hand what the hook did not"
            );
            tracing::error!(migration = %context.id, vm = %context.machine.name, "{told}");
            context.warn(told).await;
        }
        OnFailure::Warn => context.warn(text).await,
    }
    Ok(())
}

/// Retries the hook until it succeeds or no tries are left; returns the last error, if it failed.
async fn attempts(context: &Context, hook: &Hook, again: bool) -> Result<Option<String>, WorkError> {
    let mut retry = Retry::times(hook.retries);
    let mut attempt = 1;
    loop {
        let input = facts(context, hook, attempt, again).await?;
        let ended = match &hook.grpc {
            Some(address) => {
                hook_call::call_service(&*context.engine.hooks, address, hook, context.id, input).await
            }
            None => program::run_program(&hook.command, input.as_bytes(), hook.timeout).await,
        };
        if !ended.said.is_empty() {
            context
                .log_event(
                    EventKind::Hook,
                    format!("{}: {} says:\n{}", hook.place(), hook.program(), ended.said),
                )
                .await;
        }
        let Some(fault) = ended.fault else { return Ok(None) };
        if hook.retries > 0 {
            let text = format!("{}: {} failed (try {attempt}): {fault}", hook.place(), hook.program());
            context.log_event(EventKind::Hook, text).await;
        }
        if !retry.pause().await {
            return Ok(Some(fault));
        }
        attempt += 1;
    }
}

async fn facts(context: &Context, hook: &Hook, attempt: u32, again: bool) -> Result<String, WorkError> {
    let (plan, cutover) = (context.plan(), context.cutover());
    let disks = context.store.disks(context.id).await?.into_iter();
    let facts = HookInput {
        version: FACTS,
        hook: Moment {
            phase: hook.phase,
            when: hook.when,
            command: &hook.command,
            grpc: hook.grpc.as_deref(),
            attempt,
            again,
        },
        migration: context.id,
        plan: &plan.name,
        source: &plan.source,
        target: &plan.target,
        vm: Vm { id: &context.vm, name: &context.machine.name, target_name: &context.target_name },
        cutover: Going {
            attempt: cutover.attempt,
            was_running: cutover.was_running,
            source_stopped: cutover.source_stopped,
            target_running: cutover.target_running,
            downtime_forecast: context.live.view().downtime_forecast,
            downtime: forecast::measured_downtime(&cutover),
        },
        disks: disks.map(|row| Disk { key: row.key, size: row.size.0, location: row.location }).collect(),
        machine: &context.mapped_machine(),
    };
    serde_json::to_string(&facts).map_err(|error| WorkError::operator(error.to_string()))
}
