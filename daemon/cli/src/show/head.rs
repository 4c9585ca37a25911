//! The head of `migration show`: what an operator needs first. Rule: state, lag, obstacle and remedy, then
//! the forecast; names and ids come last.

use chrono::{DateTime, Utc};
use warmd_core::format;
use warmd_proto::v1::{Forecast, Migration, MigrationState};

use super::{
    super::{labels, out::one_line},
    advice::advice,
    frame::verifying,
    is_copying,
    lag::lag,
    may_cut_over,
    progress::Progress,
};

type Pair = (&'static str, String);

/// Names and values, in their order.
pub(super) fn head(migration: &Migration, now: DateTime<Utc>) -> Vec<Pair> {
    let since = labels::moment(migration.since.as_ref());
    let mut pairs = vec![
        ("VM", format!("{}, plan {}", migration.vm_name, migration.plan)),
        ("State", format!("{} (since {since} UTC)", labels::state(migration))),
    ];
    pairs.extend(migration.reason.clone().map(|reason| ("Reason", reason)));
    if let Some(pass) = migration.pass.as_ref().filter(|_| is_copying(migration)) {
        let (kind, progress) = (labels::pass_kind(pass.kind()), Progress::of_all(migration).words());
        pairs.push(("Pass", format!("{} ({kind}), {}", pass.number, progress.trim_start())));
    }
    pairs.extend(verifying(migration).map(|verifying| ("Verification", verifying)));
    pairs.extend(lag(migration, now).map(|lag| ("Lag (RPO)", lag)));
    pairs.extend(waits(migration));
    pairs.extend(advice(migration).map(|advice| ("What to do", advice)));
    pairs.extend(next(migration));
    pairs.extend(downtime(migration));
    pairs.extend([
        ("Target name", migration.target_name.clone()),
        ("Migration", migration.id.clone()),
        ("VM on the source", migration.vm_id.clone()),
    ]);
    pairs
}

/// Why work does not go on.
fn waits(migration: &Migration) -> Vec<Pair> {
    let Some(waiting) = &migration.waiting else { return Vec::new() };
    let (since, tries) = (labels::moment(waiting.since.as_ref()), labels::tries(waiting.tries));
    vec![
        ("Waits because", waiting.reason.clone()),
        ("Waits since (UTC)", format!("{since}, {tries}")),
        ("Next try (UTC)", labels::moment(waiting.next_try.as_ref())),
    ]
}

/// What comes next, and when.
fn next(migration: &Migration) -> Vec<Pair> {
    let mut pairs = Vec::new();
    if matches!(migration.state(), MigrationState::Done | MigrationState::Cancelled) {
        return pairs;
    }
    match (&migration.next_pass, &migration.next_pass_why) {
        (Some(next), Some(why)) => {
            pairs.push(("Next pass (UTC)", format!("{}: {why}", labels::moment(Some(next)))));
        }
        (Some(next), None) => pairs.push(("Next pass (UTC)", labels::moment(Some(next)))),
        (None, Some(why)) => pairs.push(("Waits because", why.clone())),
        (None, None) => {}
    }
    pairs.extend(migration.scheduled_cutover.as_ref().map(|awaited| ("Cutover", super::awaited(awaited))));
    pairs
}

/// How long the VM was down, or would be.
fn downtime(migration: &Migration) -> Vec<Pair> {
    if !may_cut_over(migration) {
        let was = migration.cutover.as_ref().and_then(|cutover| cutover.downtime.as_ref());
        return was.map(|was| ("Downtime", labels::span(Some(was)))).into_iter().collect();
    }
    match (&migration.forecast, &migration.downtime_forecast) {
        (Some(forecast), _) => foretold(forecast),
        (None, Some(expected)) => {
            vec![("Downtime", format!("{} if cut over now", labels::span(Some(expected))))]
        }
        (None, None) => Vec::new(),
    }
}

fn foretold(forecast: &Forecast) -> Vec<Pair> {
    let range = |low, expected, high| format!("about {expected} ({low} to {high} in nine of ten)");
    let span = |length: &Option<prost_types::Duration>| labels::span(length.as_ref());
    let [low, expected, high] =
        [&forecast.downtime_low, &forecast.downtime_expected, &forecast.downtime_high].map(span);
    let begins = labels::moment(forecast.at.as_ref());
    let mut pairs = vec![("Downtime", format!("{}, from {begins} (UTC)", range(low, expected, high)))];
    pairs.extend(forecast.against.iter().map(|why| ("AGAINST A CUTOVER", one_line(why))));
    let [low, expected, high] = [
        forecast.final_delta_low_bytes,
        forecast.final_delta_expected_bytes,
        forecast.final_delta_high_bytes,
    ]
    .map(format::bytes);
    pairs.push(("Final delta", range(low, expected, high)));
    pairs.push(("Passes", one_line(&forecast.convergence)));
    pairs.extend(forecast.remarks.iter().map(|remark| ("Remark", one_line(remark))));
    pairs
}
