//! The conversion of the target's disks, before the VM is created from them.
//!
//! ```text
//! overlays ─▶ command ─▶ answer checked ─▶ changed blocks pending ─▶ noted ─▶ committed into the disks
//!        └──────── a failure here leaves the disks unchanged ────────┘└─ here the next pass restores them ─┘
//! ```
//!
//! Rule: no byte of a disk changes before its block is pending in the ledger, the conversion is in the store,
//! and its id is noted beside the disks; in that order. So in every case the next pass copies the changed
//! blocks again, and a state that does not know the conversion trusts nothing of the disks. A conversion is
//! never resumed: after a restart the final delta restores the disks, and the command starts again.

use std::{
    ffi::OsStr,
    io::{self, Read as _},
    path::Path,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;
use warmd_cbt::stop::StopSignal;
use warmd_core::{
    clock, crash,
    format::{bytes, seconds_between, span},
    model::{
        conversion::{ConversionView, ConvertedDisk, VirtV2v, machine_back},
        event_kind::EventKind,
        id::{DiskKey, MigrationId, VmId},
        machine::Machine,
        outcome::PhaseOutcome,
    },
    targets::{
        DiskSpec, LastWriter,
        conversion_overlay::{ConversionOverlay, Overlays},
    },
};
use warmd_store::{ConversionRow, StoreError};

use super::{
    context::Context,
    conversion_program::ConversionProgram,
    cutover::{self, unless_stopped},
    failure::WorkError,
    inspection,
};

/// Version of the command's input.
const FACTS: u32 = 1;
/// Names the file into which the command may write the changed machine.
const VARIABLE: &str = "WARMD_MACHINE";
/// That file's name.
const ANSWER: &str = "machine.json";
/// The maximum size of that file, in bytes.
const MOST_ANSWER: u64 = 1 << 20;
/// The interval at which the command's output is read.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The interval of journal lines about the output while the command runs.
const NOTE_EVERY: Duration = Duration::from_mins(1);
/// Extra time beside the command and the commit.
const MARGIN: Duration = Duration::from_mins(2);

/// The command's standard input, as JSON, documented in `docs/conversion.md`. Fields are added, never
/// changed.
#[derive(Debug, Serialize)]
struct ConversionInput<'a> {
    version: u32,
    migration: MigrationId,
    plan: &'a str,
    source: &'a str,
    target: &'a str,
    vm: Vm<'a>,
    /// The number of the cutover, from 1.
    attempt: u32,
    disks: Vec<Disk<'a>>,
    machine: &'a Machine,
    /// The same value as in the environment.
    answer: &'a Path,
    /// The plan's settings, if virt-v2v converts.
    #[serde(skip_serializing_if = "Option::is_none")]
    virt_v2v: Option<&'a VirtV2v>,
}

#[derive(Debug, Serialize)]
struct Vm<'a> {
    id: &'a VmId,
    name: &'a str,
    target_name: &'a str,
}

#[derive(Debug, Serialize)]
struct Disk<'a> {
    key: &'a DiskKey,
    /// In bytes.
    size: u64,
    path: &'a Path,
    format: &'a str,
}

/// The deadline of the phase; nearly zero without a conversion.
pub(super) fn deadline(context: &Context) -> Duration {
    match context.conversion().timeout() {
        Some(timeout) => {
            // For each disk, once to write it and once to flush it.
            let times = 2 * u32::try_from(context.machine.disks.len()).unwrap_or(u32::MAX / 2).max(1);
            timeout + context.plan().cutover.delta_deadline.saturating_mul(times) + MARGIN
        }
        None => MARGIN,
    }
}

/// Fails if the plan's conversion could not even start: called before anything is stopped.
pub(super) async fn check(context: &Context) -> Result<(), WorkError> {
    let Some(program) = ConversionProgram::of(&context.conversion()) else { return Ok(()) };
    if let Some(why) = program.missing().await {
        return Err(WorkError::operator(format!("the conversion's command: {why}")));
    }
    inspection::check(context)?;
    let (overlay, _) = overlay_and_disks(context).await?;
    Ok(overlay.check().await?)
}

/// The target's overlays and the disks, each of which can have one.
pub(super) async fn overlay_and_disks(
    context: &Context,
) -> Result<(&dyn ConversionOverlay, Vec<DiskSpec>), WorkError> {
    let (overlay, disks) = (overlay_of(context).await?, context.made_disks().await?);
    match disks.iter().find_map(|disk| overlay.refusal(disk)) {
        Some(why) => Err(WorkError::operator(why)),
        None => Ok((overlay, disks)),
    }
}

async fn overlay_of(context: &Context) -> Result<&dyn ConversionOverlay, WorkError> {
    let overlay = context.target.conversion_overlay().await?;
    overlay.ok_or_else(|| {
        WorkError::operator(
            "this kind of target cannot keep a conversion's writes apart: set `conversion = \"none\"` in the plan",
        )
    })
}

/// Runs the plan's conversion, if it has one; returns the outcome.
pub(super) async fn run_conversion(context: &Context, stop: &StopSignal) -> Result<PhaseOutcome, WorkError> {
    let Some(program) = ConversionProgram::of(&context.conversion()) else {
        return Ok(PhaseOutcome::NotInPlan);
    };
    cutover::fence(context).await?;
    cutover::drained_by_ledger(context, None).await?;
    let (overlay, disks) = (overlay_of(context).await?, context.made_disks().await?);
    let overlays = overlay.create_overlays(context.id, &disks).await?;
    crash::point("conversion.guarded");
    let started = clock::now();
    let machine = unless_stopped(stop, Box::pin(command(context, &program, &overlays))).await?;
    crash::point("conversion.ran");
    let command = program.shown;
    let view = ConversionView { command, started, committed: None, machine, disks: Vec::new() };
    // Not retried: the command would run twice in one cutover, or on half-converted disks.
    let told =
        unless_stopped(stop, write(context, overlay, (&disks, overlays), view)).await.map_err(|error| {
            WorkError::operator(format!("what the conversion changed is not all on the disks: {error}"))
        })?;
    // All is on the disks: leftovers do not justify failing the cutover.
    if let Err(error) = overlay.remove_overlays(context.id, &disks).await {
        context.warn(format!("what the conversion worked on is not removed: {error}")).await;
    }
    crash::point("conversion.lowered");
    Ok(PhaseOutcome::DoneWith(told))
}

/// Runs the command; returns the machine if the command changed it.
async fn command(
    context: &Context,
    converter: &ConversionProgram,
    overlays: &Overlays,
) -> Result<Option<Machine>, WorkError> {
    let (program, given) = (converter.name(), context.mapped_machine());
    let answer = overlays.folder.join(ANSWER);
    let input = facts(context, overlays, &given, &answer)?;
    let names: Vec<_> = overlays.disks.iter().map(|disk| disk.key.to_string()).collect();
    context.log_event(EventKind::Conversion, format!("{program} begins on {}", names.join(", "))).await;
    let begun = clock::now();
    let latest = Mutex::new(String::new());
    let mut tell = |line: &str| line.clone_into(&mut latest.lock().unwrap_or_else(PoisonError::into_inner));
    let variables = [(VARIABLE, OsStr::new(&answer))];
    let running = converter.run(input.as_bytes(), &variables, &mut tell);
    let ended = shown(context, program, running, &latest).await;
    if !ended.said.is_empty() {
        context.log_event(EventKind::Conversion, format!("{program} says:\n{}", ended.said)).await;
    }
    if let Some(fault) = ended.fault {
        let last = latest.into_inner().unwrap_or_else(PoisonError::into_inner);
        let last = if last.is_empty() { last } else { format!("; it said last: {last}") };
        return Err(WorkError::operator(format!("the conversion failed: {program}: {fault}{last}")));
    }
    let took = span(seconds_between(begun, clock::now()));
    context.log_event(EventKind::Conversion, format!("{program} ended well after {took}")).await;
    let useless = |why: String| {
        WorkError::operator(format!("the machine that {program} handed back cannot be used: {why}"))
    };
    let json = read(&answer).await.map_err(|error| useless(error.to_string()))?;
    if json.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let machine = machine_back(&given, &json).map_err(useless)?;
    Ok((machine != given).then_some(machine))
}

/// The input of a conversion or an inspection.
pub(super) fn facts(
    context: &Context,
    overlays: &Overlays,
    machine: &Machine,
    answer: &Path,
) -> Result<String, WorkError> {
    let (plan, conversion) = (context.plan(), context.conversion());
    let size =
        |key: &DiskKey| machine.disks.iter().find(|disk| disk.key == *key).map_or(0, |disk| disk.size.0);
    let disks = overlays.disks.iter().map(|disk| Disk {
        key: &disk.key,
        size: size(&disk.key),
        path: &disk.path,
        format: disk.format,
    });
    let facts = ConversionInput {
        version: FACTS,
        migration: context.id,
        plan: &plan.name,
        source: &plan.source,
        target: &plan.target,
        vm: Vm { id: &context.vm, name: &context.machine.name, target_name: &context.target_name },
        attempt: context.cutover().attempt,
        disks: disks.collect(),
        machine,
        answer,
        virt_v2v: conversion.virt_v2v(),
    };
    serde_json::to_string(&facts).map_err(|error| WorkError::operator(error.to_string()))
}

/// Lets the command run, and shows its latest output.
async fn shown<T>(
    context: &Context,
    program: &str,
    running: impl Future<Output = T>,
    latest: &Mutex<String>,
) -> T {
    let mut running = pin!(running);
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut noted) = (String::new(), Instant::now());
    loop {
        tokio::select! {
            biased;
            ended = &mut running => return ended,
            _ = looks.tick() => {}
        }
        let line = latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if line == seen {
            continue;
        }
        context.live.update(|view| {
            if let Some(cutover) = &mut view.cutover {
                cutover.progress = Some(line.clone());
            }
        });
        if noted.elapsed() >= NOTE_EVERY {
            context.log_event(EventKind::Conversion, format!("{program}: {line}")).await;
            noted = Instant::now();
        }
        seen = line;
    }
}

/// The content of the file; empty if there is none.
pub(super) async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let there = path.to_owned();
    warmd_threads::on(path)?.run(move || read_all(&there)).await?
}

fn read_all(path: &Path) -> io::Result<Vec<u8>> {
    match std::fs::symlink_metadata(path) {
        // Opening a pipe would wait for its other end.
        Ok(found) if !found.is_file() => {
            return Err(io::Error::other(format!("{} is no file", path.display())));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut json = Vec::new();
    std::fs::File::open(path)?.take(MOST_ANSWER + 1).read_to_end(&mut json)?;
    if json.len() as u64 > MOST_ANSWER {
        return Err(io::Error::other(format!("it is longer than {MOST_ANSWER} bytes")));
    }
    Ok(json)
}

/// Records the changes, and only then writes them into the disks; returns them in words.
async fn write(
    context: &Context,
    overlay: &dyn ConversionOverlay,
    (disks, overlays): (&[DiskSpec], Overlays),
    mut view: ConversionView,
) -> Result<String, WorkError> {
    cutover::fence(context).await?;
    // From here on the overlays belong to warmd alone, also if the command left a process behind.
    let overlays = overlay.detach_overlays(context.id, overlays).await?;
    let changed = overlay.changed(context.id, disks, &overlays).await?;
    for row in context.store.disks(context.id).await? {
        let ledger = context.ledger(row.id).await?;
        let extents = changed.iter().find(|(key, _)| *key == row.key);
        if let Some((_, extents)) = extents {
            ledger.distrust(extents).await?;
        }
        view.disks.push(ConvertedDisk { key: row.key, changed: ledger.pending_bytes().0 });
    }
    crash::point("conversion.pending");
    let told: Vec<_> =
        view.disks.iter().map(|disk| format!("{} of disk {}", bytes(disk.changed), disk.key)).collect();
    let other = if view.machine.is_some() { ", and the machine" } else { "" };
    let told = format!("{} changed {}{other}", view.program(), told.join(", "));
    let pass = context.store.last_pass(context.id).await?.map_or(0, |pass| pass.view.number);
    let (id, attempt) = (Uuid::now_v7(), context.cutover().attempt);
    context.store.begin_conversion(context.id, ConversionRow { id, attempt, pass, view }).await?;
    context.target.note_writer(context.id, Some(LastWriter::Conversion(id))).await?;
    crash::point("conversion.noted");
    overlay.commit(context.id, disks, &overlays, context.plan().cutover.delta_deadline).await?;
    crash::point("conversion.written");
    context.store.commit_conversion(context.id, id, clock::now()).await?;
    crash::point("conversion.committed");
    Ok(told)
}

/// The conversion on the disks since the last pass, in this cutover, if it is complete.
pub(super) async fn in_force(context: &Context) -> Result<Option<ConversionView>, StoreError> {
    let Some(row) = context.store.conversion(context.id).await? else { return Ok(None) };
    let last = context.store.last_pass(context.id).await?.map_or(0, |pass| pass.view.number);
    let is_whole = row.view.committed.is_some() && row.attempt == context.cutover().attempt;
    Ok((is_whole && row.pass == last).then_some(row.view))
}

/// The last pass before the conversion that is noted beside the disks; `None` if the state does not know the
/// conversion.
pub(super) async fn after_pass(context: &Context, noted: Uuid) -> Result<Option<u32>, StoreError> {
    let row = context.store.conversion(context.id).await?;
    Ok(row.filter(|row| row.id == noted).map(|row| row.pass))
}

/// Removes a conversion's overlays, if one was started, once nothing writes to them any more.
pub(super) async fn remove_overlays(context: &Context) -> Result<(), WorkError> {
    if let Some(overlay) = context.target.conversion_overlay().await? {
        overlay.remove_overlays(context.id, &context.made_disks().await?).await?;
    }
    Ok(())
}

/// The same for a cutover that is undone; also shows what the next pass will copy again.
pub(super) async fn give_up(context: &Context) -> Result<(), WorkError> {
    remove_overlays(context).await?;
    let mut pending = Vec::new();
    for row in context.store.disks(context.id).await? {
        pending.push((row.key, context.ledger(row.id).await?.pending_bytes().0));
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
