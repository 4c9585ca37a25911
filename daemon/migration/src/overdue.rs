//! Copies older than their RPO target: reported once at the beginning, with the reason, and once at the end.
//!
//! Rule: only the copy's age counts, for every cause: a window, a quota, a pause, a failure, a long pass.
//! Nothing is decided from it. Ages are also counted by the monotonic clock, so that setting the clock raises
//! no alarm.

use std::{
    sync::{Mutex, PoisonError, Weak},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use warmd_core::{
    clock, format,
    metrics_view::OverdueView,
    model::{
        event_kind::EventKind,
        state::State,
        view::{MigrationView, PassView},
    },
};

use super::manager::{DriverHandle, Manager};

/// The interval of the check.
const EVERY: Duration = Duration::from_secs(30);

/// What is known of one migration's copy.
#[derive(Debug, Default)]
pub(super) struct Overdue(Mutex<Known>);

#[derive(Clone, Debug, Default)]
struct Known {
    /// The pass after which the copy's time was read from the state: its number, and whether it had ended.
    read: Option<(u32, bool)>,
    /// The time of the copy, when that was first seen, and its age then: from there on the monotonic clock
    /// counts. `None` before there is a complete one.
    copied: Option<(DateTime<Utc>, Instant, Duration)>,
    /// Whether the age was reported.
    told: bool,
}

impl Overdue {
    fn known(&self) -> Known {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, known: Known) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Whether the copy is older than its RPO target, as last found.
    pub(super) fn is_told(&self) -> bool {
        self.known().told
    }
}

/// Checks all copies until the daemon ends.
pub(super) async fn keep_looking(manager: Weak<Manager>, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        let Some(manager) = manager.upgrade() else { return };
        let looking = async {
            for handle in manager.handles() {
                look(&handle).await;
            }
        };
        if shutdown.run_until_cancelled(looking).await.is_none() {
            return;
        }
    }
}

/// The figures for the metrics, if there is an RPO target.
pub(super) fn view(handle: &DriverHandle) -> Option<OverdueView> {
    let context = &*handle.context;
    let plan = context.plan();
    plan.rpo_of(&context.machine.name, &context.vm)?;
    let vm = context.machine.name.clone();
    Some(OverdueView { plan: plan.name.clone(), vm, is_overdue: context.overdue.is_told() })
}

async fn look(handle: &DriverHandle) {
    let context = &*handle.context;
    let mut known = context.overdue.known();
    let view = handle.view();
    let ages = ages(&context.state(), context.cutover().source_stopped.is_some());
    let rpo = context.plan().rpo_of(&context.machine.name, &context.vm).filter(|_| ages);
    // Without an RPO target, or with a source that no longer writes, the alarm ends.
    let Some(rpo) = rpo else {
        if known.told {
            known.told = false;
            context.overdue.keep(known);
            context
                .log_event(EventKind::AlarmOver, "how old the copy is does not matter any more".to_owned())
                .await;
        }
        return;
    };
    let pass = view.pass.as_ref().map(|pass| (pass.number, pass.ended.is_some()));
    if known.copied.is_none() || known.read != pass {
        match context.store.last_copied(context.id).await {
            Ok(copied) => {
                if copied != known.copied.map(|(copied, ..)| copied) {
                    known.copied = copied.map(|copied| (copied, Instant::now(), clock::age(copied)));
                }
                known.read = pass;
            }
            Err(error) => {
                tracing::warn!(migration = %context.id, %error, "how old the copy is, is not known now");
                return;
            }
        }
    }
    let Some((_, seen, before)) = known.copied else {
        context.overdue.keep(known);
        return;
    };
    let age = before.saturating_add(seen.elapsed());
    let line = alarm_text(known.told, age, rpo, || why(&view));
    known.told = age > rpo;
    context.overdue.keep(known);
    if let Some((kind, text)) = line {
        if kind == EventKind::Alarm {
            tracing::error!(migration = %context.id, vm = %context.machine.name, "{text}");
        }
        context.log_event(kind, text).await;
    }
}

/// The line to write, if the finding is not reported yet.
fn alarm_text(
    is_told: bool,
    age: Duration,
    rpo: Duration,
    why: impl FnOnce() -> String,
) -> Option<(EventKind, String)> {
    let (old, promised) = (format::span(age.as_secs_f64()), format::span(rpo.as_secs_f64()));
    match (is_told, age > rpo) {
        (false, true) => {
            let why = why();
            let text = format!(
                "the copy is {old} old, and the plan promises {promised}: no pass since, because {why}"
            );
            Some((EventKind::Alarm, text))
        }
        (true, false) => Some((
            EventKind::AlarmOver,
            format!("the copy is {old} old, and the plan promises {promised}: it is kept again"),
        )),
        _ => None,
    }
}

/// Whether the source may be writing data that the copy lacks.
fn ages(state: &State, is_source_stopped: bool) -> bool {
    match state {
        State::Defined
        | State::Preparing
        | State::Seeding
        | State::Synced
        | State::Syncing
        | State::Paused { .. } => true,
        State::Failed { from, .. } => !from.past_no_return(),
        // Until the stop the copy ages; from then on the copy becomes the VM. Where the source runs again
        // after an undo, the copy ages again.
        State::CuttingOver { .. } | State::Undoing { .. } => !is_source_stopped,
        State::RollingBack | State::Cancelling | State::Done | State::Cancelled => false,
    }
}

/// The cause, for display.
fn why(view: &MigrationView) -> String {
    let running = |pass: &&PassView| pass.ended.is_none();
    if let Some(waiting) = &view.waiting {
        return waiting.reason.clone();
    }
    match &view.state {
        State::Paused { .. } => "it is paused: resume it".to_owned(),
        State::Failed { reason, .. } => format!("it is failed: {reason}"),
        State::CuttingOver { phase } => format!("its cutover is in phase {phase}"),
        State::Undoing { reason, .. } => format!("its cutover is being undone: {reason}"),
        _ => match (&view.next_pass_why, view.pass.as_ref().filter(running)) {
            (Some(why), _) => why.clone(),
            (None, Some(pass)) => format!("pass {} is not done yet", pass.number),
            (None, None) => "none has been due".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warmd_core::model::phase::Phase;

    #[test]
    fn alarm_is_reported_once_at_its_begin_and_end() {
        let minutes = Duration::from_mins;
        let mut is_told = false;
        let mut kinds = Vec::new();
        for age in [1, 29, 30, 31, 32, 500, 30, 2, 31] {
            if let Some((kind, text)) =
                alarm_text(is_told, minutes(age), minutes(30), || "it is paused".to_owned())
            {
                assert_eq!(text.contains("because it is paused"), kind == EventKind::Alarm, "{text}");
                kinds.push((age, kind));
            }
            is_told = minutes(age) > minutes(30);
        }
        assert_eq!(kinds, [(31, EventKind::Alarm), (30, EventKind::AlarmOver), (31, EventKind::Alarm)]);
    }

    #[test]
    fn nothing_ages_while_the_source_is_stopped() {
        let cutting = State::CuttingOver { phase: Phase::CatchUpDelta };
        let undoing = State::Undoing { phase: Phase::FinalDelta, reason: "it failed".to_owned() };
        for state in [cutting, undoing] {
            assert!(ages(&state, false), "{state}: the source runs");
            assert!(!ages(&state, true), "{state}: the alarm must end");
        }
        assert!(ages(&State::Synced, false) && !ages(&State::Done, true));
    }
}
