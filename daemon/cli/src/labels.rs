//! Words for the values of messages.

use chrono::{DateTime, Utc};
use prost_types::{Duration, Timestamp};
use serde::Serialize;
use warmd_core::format;
use warmd_proto::v1::{Migration, MigrationState, PassKind, Phase, RequestOutcome, ResumePoint, VerifyMode};

/// An enum value's name, as its JSON form spells it.
pub(super) fn name<E: Serialize>(value: E) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "unknown".to_owned(),
    }
}

/// A migration's state with its details: `cutting-over (final-delta)`, `failed, resumable`.
/// One that is tried again says so: `seeding, waits`.
pub(super) fn state(migration: &Migration) -> String {
    let waits = if migration.waiting.is_some() { ", waits" } else { "" };
    format!("{}{waits}", state_alone(migration))
}

fn state_alone(migration: &Migration) -> String {
    let state = migration.state();
    let name = name(state);
    match state {
        MigrationState::CuttingOver | MigrationState::Undoing => {
            format!("{name} ({})", phase(migration.phase()))
        }
        MigrationState::Failed if migration.resumable => format!("{name}, resumable"),
        // A failure that cannot be resumed goes on nowhere.
        MigrationState::Failed if migration.resumes_at() != ResumePoint::StaleState => name,
        MigrationState::Paused | MigrationState::Failed
            if migration.resumes_at() != ResumePoint::Unspecified =>
        {
            format!("{name} ({})", self::name(migration.resumes_at()))
        }
        _ => name,
    }
}

/// An answer's text.
pub(super) fn answer(answer: RequestOutcome) -> &'static str {
    match answer {
        RequestOutcome::Unspecified => "answered",
        RequestOutcome::Accepted => "accepted",
        RequestOutcome::NoChange => "no change",
    }
}

pub(super) fn phase(phase: Phase) -> String {
    name(phase)
}

pub(super) fn pass_kind(kind: PassKind) -> String {
    name(kind)
}

pub(super) fn verify_mode(mode: VerifyMode) -> String {
    name(mode)
}

/// The end of an id: enough to name it, and short enough to type.
pub(super) fn short(id: &str) -> &str {
    id.rsplit('-').next().unwrap_or(id)
}

/// `web-1 (0191b3a24c01)`.
pub(super) fn who(migration: &Migration) -> String {
    format!("{} ({})", migration.vm_name, short(&migration.id))
}

/// The moment of a timestamp; a broken one is none.
pub(super) fn at(timestamp: Option<&Timestamp>) -> Option<DateTime<Utc>> {
    let timestamp = timestamp?;
    DateTime::from_timestamp(timestamp.seconds, u32::try_from(timestamp.nanos).ok()?)
}

/// A moment in UTC, or a dash.
pub(super) fn moment(timestamp: Option<&Timestamp>) -> String {
    at(timestamp).map_or_else(|| "-".to_owned(), format::moment)
}

/// Seconds of a length of time.
pub(super) fn seconds(duration: Option<&Duration>) -> Option<f64> {
    duration.map(|duration| duration.seconds as f64 + f64::from(duration.nanos) / 1e9)
}

/// A length of time, or a dash.
pub(super) fn span(duration: Option<&Duration>) -> String {
    seconds(duration).map_or_else(|| "-".to_owned(), format::span)
}

/// How long an operation took, or that it still runs.
pub(super) fn took(started: Option<&Timestamp>, ended: Option<&Timestamp>) -> String {
    match (at(started), at(ended)) {
        (Some(started), Some(ended)) => format::between(started, ended),
        (Some(_), None) => "runs".to_owned(),
        (None, _) => "-".to_owned(),
    }
}

/// Text that may be empty, or a dash.
pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `failed once`, `failed 3 times`.
pub(super) fn tries(tries: u32) -> String {
    if tries == 1 { "failed once".to_owned() } else { format!("failed {tries} times") }
}

/// `1 disk`, `2 disks`.
pub(super) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
