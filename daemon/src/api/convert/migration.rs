//! A migration.

use warmd_proto::v1;

use super::{awaited::awaited, enums, forecast::forecast, pass::pass, seconds, timestamp, verify};
use crate::model::{
    state::State,
    view::{DiskView, MigrationView, WaitingView},
};

/// A migration at one moment.
pub(in crate::api) fn migration(view: MigrationView) -> v1::Migration {
    let at = place(&view.state);
    v1::Migration {
        id: view.id.to_string(),
        plan: view.plan,
        vm_id: view.vm.0,
        vm_name: view.vm_name,
        target_name: view.target_name,
        state: enums::state(&view.state).into(),
        phase: at.phase.into(),
        reason: at.reason.map(str::to_owned),
        resumable: at.resumable,
        resumes_at: at.resumes_at.into(),
        since: Some(timestamp(view.since)),
        disks: view.disks.into_iter().map(disk).collect(),
        pass: view.pass.map(pass),
        next_pass: view.next_pass.map(timestamp),
        next_pass_why: view.next_pass_why,
        downtime_forecast: view.downtime_forecast.and_then(seconds),
        forecast: view.forecast.map(forecast),
        waiting: view.waiting.map(waiting),
        left_behind: view.left_behind,
        warnings: view.warnings,
        awaited_cutover: view.awaited_cutover.map(awaited),
        cutover: view.cutover.map(verify::cutover),
        verification: view.verification.map(verify::verification),
    }
}

fn waiting(waiting: WaitingView) -> v1::Waiting {
    v1::Waiting {
        reason: waiting.reason,
        since: Some(timestamp(waiting.since)),
        next_try: waiting.next_try.map(timestamp),
        tries: waiting.tries,
        advice: waiting.advice,
    }
}

/// What some states carry beside their name.
#[derive(Default)]
struct Place<'a> {
    phase: v1::Phase,
    reason: Option<&'a str>,
    resumable: bool,
    resumes_at: v1::Resting,
}

fn place(state: &State) -> Place<'_> {
    match state {
        State::CuttingOver { phase } => Place { phase: enums::phase(*phase), ..Place::default() },
        State::Undoing { phase, reason } => {
            Place { phase: enums::phase(*phase), reason: Some(reason), ..Place::default() }
        }
        State::Paused { from } => Place { resumes_at: enums::resting(*from), ..Place::default() },
        State::Failed { reason, resumable, from } => Place {
            reason: Some(reason),
            resumable: *resumable,
            resumes_at: enums::resting(*from),
            ..Place::default()
        },
        State::Defined
        | State::Preparing
        | State::Seeding
        | State::Synced
        | State::Syncing
        | State::RollingBack
        | State::Cancelling
        | State::Done
        | State::Cancelled => Place::default(),
    }
}

fn disk(disk: DiskView) -> v1::Disk {
    v1::Disk {
        key: disk.key.0,
        size_bytes: disk.size,
        location: disk.location,
        pending_bytes: disk.pending,
        pass_total_bytes: disk.pass_total,
        pass_drained_bytes: disk.pass_drained,
        // JSON has no infinity, and a rate of nothing per no time is none.
        rate_bytes_per_second: if disk.rate.is_finite() { disk.rate } else { 0.0 },
        eta: disk.eta.and_then(seconds),
        tracking_fault: disk.tracking_fault,
    }
}
