//! Views of a migration.

mod advice;
mod details;
mod frame;
mod head;
mod lag;
mod list;
mod phases;
mod progress;
mod telemetry;

pub(super) use self::{
    details::details,
    frame::{frame, line, progress},
    list::{list, pass},
    phases::Phases,
    telemetry::bottleneck,
};

use warmd_core::format;
use warmd_proto::v1::{
    Disk, DiskPass, Migration, MigrationState, MissProbability, ScheduledCutover, ScheduledCutoverMode,
    VerifyResult,
};

use self::progress::Progress;
use super::{labels, out::one_line};

/// Whether warmd works on it.
pub(super) fn is_busy(migration: &Migration) -> bool {
    matches!(
        migration.state(),
        MigrationState::Preparing
            | MigrationState::Seeding
            | MigrationState::Syncing
            | MigrationState::CuttingOver
            | MigrationState::Undoing
            | MigrationState::RollingBack
            | MigrationState::Cancelling
    ) || is_verifying(migration)
}

/// Whether a verification of it runs.
pub(super) fn is_verifying(migration: &Migration) -> bool {
    migration.verification.as_ref().is_some_and(|verification| verification.ended.is_none())
}

/// Whether a pass runs.
pub(super) fn is_copying(migration: &Migration) -> bool {
    migration.pass.as_ref().is_some_and(|pass| pass.ended.is_none())
}

/// Whether a cutover may still come.
pub(super) fn may_cut_over(migration: &Migration) -> bool {
    use MigrationState as S;
    matches!(
        migration.state(),
        S::Defined | S::Preparing | S::Seeding | S::Synced | S::Syncing | S::Paused | S::Failed
    )
}

/// Bytes per second of the running pass; `None` without one, and before anything was measured.
pub(super) fn rate(migration: &Migration) -> Option<f64> {
    Progress::of_all(migration).rate().filter(|_| is_copying(migration))
}

/// What the pass reported of this disk.
fn disk_pass<'a>(migration: &'a Migration, disk: &Disk) -> Option<&'a DiskPass> {
    migration.pass.as_ref()?.disks.iter().find(|pass| pass.key == disk.key)
}

/// `passed, 10.0 GiB compared`.
pub(super) fn result(result: &VerifyResult) -> String {
    let mode = match (result.scope.as_str(), result.seed) {
        ("" | "full", _) => labels::verify_mode(result.mode()),
        (scope, None) => format!("{}, {scope}", labels::verify_mode(result.mode())),
        (scope, Some(seed)) => format!("{}, {scope}, seed {seed}", labels::verify_mode(result.mode())),
    };
    let checked: u64 = result.disks.iter().map(|disk| disk.checked_bytes).sum();
    let wrong: u64 = result.disks.iter().map(|disk| disk.mismatched_bytes).sum();
    if result.passed && checked == 0 {
        return format!("passed ({mode}, there was nothing to compare)");
    }
    let checked = format::bytes(checked);
    if result.passed {
        format!("passed ({mode}, {checked} compared)")
    } else {
        format!("FAILED ({mode}, {} of {checked} differ)", format::bytes(wrong))
    }
}

/// A scheduled cutover: `at 2026-11-28 21:00:00 (UTC), asked for at …`.
pub(super) fn awaited(awaited: &ScheduledCutover) -> String {
    let when = match (awaited.mode(), &awaited.begins) {
        (ScheduledCutoverMode::OnHold, _) => "on hold".to_owned(),
        (ScheduledCutoverMode::Auto, None) => "automatic".to_owned(),
        (ScheduledCutoverMode::Auto, Some(begins)) => {
            format!("automatic at {} (UTC)", labels::moment(Some(begins)))
        }
        (_, begins) => format!("at {} (UTC)", labels::moment(begins.as_ref())),
    };
    let forced = if awaited.force { ", also outside the windows" } else { "" };
    format!("{when}{forced}: {}", one_line(&awaited.why))
}

/// Why work is tried again: `waits since 2026-11-28 21:00:00 for …; next try 21:01:00 (UTC)`.
pub(super) fn waiting(migration: &Migration) -> Option<String> {
    let waiting = migration.waiting.as_ref()?;
    let (since, next) = (labels::moment(waiting.since.as_ref()), labels::moment(waiting.next_try.as_ref()));
    let tries = labels::tries(waiting.tries);
    Some(one_line(&format!("{tries} since {since}, next try {next} (UTC): {}", waiting.reason)))
}

/// The probability that a sample misses bad blocks: a line, if it was a sample.
pub(super) fn miss_probabilities(result: &VerifyResult) -> Option<String> {
    let of = |miss: &MissProbability| {
        let probability = format::probability(miss.probability);
        format!(
            "{probability} if {} {} bad",
            labels::count(miss.blocks as usize, "block"),
            if miss.blocks == 1 { "is" } else { "are" }
        )
    };
    let all: Vec<_> = result.miss_probabilities.iter().map(of).collect();
    (!all.is_empty())
        .then(|| format!("chance, at most, that the sample misses all bad blocks: {}", all.join(", ")))
}
