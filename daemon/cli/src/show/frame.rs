//! Progress: as a frame of lines for a terminal, as one line for a pipe.

use warmd_core::format;
use warmd_proto::v1::{Disk, DiskPass, Migration, MigrationState};

use super::{
    super::{labels, out::one_line},
    disk_pass, is_busy, is_copying, is_verifying,
    progress::Progress,
};

/// Migrations in a frame; more would not fit on a screen.
const MAX_SHOWN: usize = 12;

/// Cells of a bar.
const BAR: u64 = 12;

/// All migrations: active ones with their disks, the others with a line each while there is room.
pub(crate) fn frame<'a>(migrations: impl IntoIterator<Item = &'a Migration>) -> Vec<String> {
    let (busy, resting): (Vec<_>, Vec<_>) = migrations.into_iter().partition(|migration| is_busy(migration));
    let hidden = (busy.len() + resting.len()).saturating_sub(MAX_SHOWN);
    let mut lines = Vec::new();
    for migration in busy.into_iter().chain(resting).take(MAX_SHOWN) {
        lines.push(head(migration));
        if is_copying(migration) {
            lines.extend(migration.disks.iter().map(|disk| disk_line(migration, disk)));
        }
        lines.extend(verifying(migration).map(|line| format!("  {line}")));
    }
    if hidden > 0 {
        lines.push(format!("and {hidden} more: see `warmctl migration list`"));
    }
    lines
}

/// One migration on one line.
pub(crate) fn line(migration: &Migration) -> String {
    one_line(&format!("{}  {}", labels::who(migration), progress(migration)))
}

/// The same without the migration's name.
pub(crate) fn progress(migration: &Migration) -> String {
    let mut line = status(migration);
    if is_copying(migration) {
        let disks: Vec<_> = migration.disks.iter().map(|disk| disk_words(migration, disk)).collect();
        line = format!("{line}: {}", disks.join("; "));
    }
    match verifying(migration) {
        Some(verifying) => format!("{line}: {verifying}"),
        None => line,
    }
}

fn head(migration: &Migration) -> String {
    one_line(&format!("{}  {}", labels::who(migration), status(migration)))
}

fn status(migration: &Migration) -> String {
    let mut parts = vec![labels::state(migration)];
    if let Some(pass) = migration.pass.as_ref().filter(|pass| pass.ended.is_none()) {
        parts.push(format!("pass {} ({})", pass.number, labels::pass_kind(pass.kind())));
    }
    parts.extend(migration.reason.clone());
    parts.extend(super::waiting(migration));
    if migration.state() == MigrationState::Synced && migration.next_pass.is_some() {
        parts.push(format!("next pass {}", labels::moment(migration.next_pass.as_ref())));
    }
    // Later there is no downtime to forecast.
    let before = !matches!(
        migration.state(),
        MigrationState::CuttingOver
            | MigrationState::Undoing
            | MigrationState::RollingBack
            | MigrationState::Done
            | MigrationState::Cancelling
            | MigrationState::Cancelled
    );
    if let Some(downtime) = migration.downtime_forecast.as_ref().filter(|_| before) {
        parts.push(format!("downtime if cut over now {}", labels::span(Some(downtime))));
    }
    one_line(&parts.join("  "))
}

fn disk_line(migration: &Migration, disk: &Disk) -> String {
    let progress = Progress::of(migration, disk);
    let full = progress.percent().unwrap_or_default() * BAR / 100;
    let bar: String = (0..BAR).map(|cell| if cell < full { '█' } else { '░' }).collect();
    one_line(&format!("  {:<6} {bar} {}", disk.key, figures(migration, disk, progress)))
}

fn disk_words(migration: &Migration, disk: &Disk) -> String {
    one_line(&format!("{} {}", disk.key, figures(migration, disk, Progress::of(migration, disk))))
}

/// Part of this pass's bytes, not of the disk's.
fn figures(migration: &Migration, disk: &Disk, progress: Progress) -> String {
    let figures = progress.words();
    match disk_pass(migration, disk) {
        Some(DiskPass { unknown: Some(why), .. }) => format!("{figures}, compared whole ({why})"),
        Some(pass) if pass.changed_bytes > 0 => {
            format!("{figures}, {} changed", format::bytes(pass.changed_bytes))
        }
        _ => figures,
    }
}

/// The running verification; before it knows how much it has to compare, without figures.
pub(super) fn verifying(migration: &Migration) -> Option<String> {
    let run = migration.verification.as_ref().filter(|_| is_verifying(migration))?;
    let mode = match run.scope.as_str() {
        "" | "full" => labels::verify_mode(run.mode()),
        scope => format!("{}, {scope}", labels::verify_mode(run.mode())),
    };
    Some(match format::percent(run.checked_bytes, run.total_bytes) {
        Some(percent) => format!("verifying ({mode}) {percent} % of {}", format::bytes(run.total_bytes)),
        None => format!("verifying ({mode}): nothing to compare yet"),
    })
}

#[cfg(test)]
mod tests {
    use warmd_proto::v1::{Pass, PassKind, Verification, VerifyMode};

    use super::*;

    fn migration(number: usize, state: MigrationState) -> Migration {
        Migration {
            id: format!("0193-5eed{number:04}"),
            vm_name: format!("vm-{number}"),
            state: state.into(),
            ..Migration::default()
        }
    }

    fn syncing(number: usize) -> Migration {
        let disk = Disk {
            key: "vda".to_owned(),
            pass_total_bytes: 4 << 30,
            pass_drained_bytes: 1 << 30,
            rate_bytes_per_second: 1e8,
            eta: Some(prost_types::Duration { seconds: 32, nanos: 0 }),
            ..Disk::default()
        };
        let changed = DiskPass { key: "vda".to_owned(), changed_bytes: 3 << 30, ..DiskPass::default() };
        let pass = Pass { number: 3, kind: PassKind::Delta.into(), disks: vec![changed], ..Pass::default() };
        Migration { disks: vec![disk], pass: Some(pass), ..migration(number, MigrationState::Syncing) }
    }

    #[test]
    fn progress_is_of_this_pass() {
        let told = frame(&[migration(1, MigrationState::Synced), syncing(2)]);
        assert_eq!(
            told,
            [
                "vm-2 (5eed0002)  syncing  pass 3 (delta)",
                "  vda    ███░░░░░░░░░  25 % of 4.00 GiB, 95.4 MiB/s, 32 s left, 3.00 GiB changed",
                "vm-1 (5eed0001)  synced",
            ]
        );
    }

    #[test]
    fn a_verification_of_nothing_has_no_percentage() {
        let verifying = |total, checked| {
            let mut run =
                Verification { total_bytes: total, checked_bytes: checked, ..Verification::default() };
            run.set_mode(VerifyMode::Compare);
            line(&Migration { verification: Some(run), ..migration(1, MigrationState::Synced) })
        };
        let begins = "vm-1 (5eed0001)  synced: verifying (compare)";
        assert_eq!(verifying(0, 0), format!("{begins}: nothing to compare yet"));
        assert_eq!(verifying(4096, 1024), format!("{begins} 25 % of 4.00 KiB"));
    }

    #[test]
    fn what_is_tried_again_says_why_since_when_and_when_next() {
        let moment = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let waiting = warmd_proto::v1::Waiting {
            reason: "a backup job\nruns on it".to_owned(),
            since: moment(1_795_342_560),
            next_try: moment(1_795_342_620),
            tries: 3,
            advice: "nothing".to_owned(),
        };
        let waits = Migration { waiting: Some(waiting), ..migration(1, MigrationState::Seeding) };
        assert_eq!(
            line(&waits),
            "vm-1 (5eed0001)  seeding, waits  failed 3 times since 2026-11-22 10:16:00, next try 2026-11-22 10:17:00 \
             (UTC): a backup job runs on it"
        );
    }

    #[test]
    fn a_frame_fits_on_a_screen_and_shows_the_busy_ones() {
        let mut all: Vec<_> = (0..300).map(|n| migration(n, MigrationState::Synced)).collect();
        all.push(syncing(300));
        let told = frame(&all);
        assert_eq!(told.len(), MAX_SHOWN + 2);
        assert!(told[0].starts_with("vm-300 "), "{told:#?}");
        assert_eq!(told.last().map(String::as_str), Some("and 289 more: see `warmctl migration list`"));
    }
}
