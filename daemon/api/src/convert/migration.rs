//! A migration.

use warmd_core::model::{
    state::State,
    view::{DiskView, MigrationView, WaitingView},
};
use warmd_proto::v1;

use super::{enums, forecast::forecast, pass::pass, scheduled_cutover::awaited, seconds, timestamp, verify};

/// A migration at one moment.
pub(crate) fn migration(view: MigrationView) -> v1::Migration {
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
        scheduled_cutover: view.scheduled_cutover.map(awaited),
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

/// The values that some states carry beside their name.
#[derive(Default)]
struct PhaseOrResumePoint<'a> {
    phase: v1::Phase,
    reason: Option<&'a str>,
    resumable: bool,
    resumes_at: v1::ResumePoint,
}

fn place(state: &State) -> PhaseOrResumePoint<'_> {
    match state {
        State::CuttingOver { phase } => {
            PhaseOrResumePoint { phase: enums::phase(*phase), ..PhaseOrResumePoint::default() }
        }
        State::Undoing { phase, reason } => PhaseOrResumePoint {
            phase: enums::phase(*phase),
            reason: Some(reason),
            ..PhaseOrResumePoint::default()
        },
        State::Paused { from } => {
            PhaseOrResumePoint { resumes_at: enums::resting(*from), ..PhaseOrResumePoint::default() }
        }
        State::Failed { reason, resumable, from } => PhaseOrResumePoint {
            reason: Some(reason),
            resumable: *resumable,
            resumes_at: enums::resting(*from),
            ..PhaseOrResumePoint::default()
        },
        State::Defined
        | State::Preparing
        | State::Seeding
        | State::Synced
        | State::Syncing
        | State::RollingBack
        | State::Cancelling
        | State::Done
        | State::Cancelled => PhaseOrResumePoint::default(),
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
        // JSON has no infinity, and a rate over no time is none.
        rate_bytes_per_second: if disk.rate.is_finite() { disk.rate } else { 0.0 },
        eta: disk.eta.and_then(seconds),
        tracking_fault: disk.tracking_fault,
    }
}
