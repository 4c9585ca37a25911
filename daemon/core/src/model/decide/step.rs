//! A step to another state, and what it takes with it.
//!
//! Rule: a scheduled cutover is deleted in the step that begins the cutover, and not before. Where the plan
//! cuts over automatically, an undone cutover is put on hold in the step that undoes it: no VM is stopped
//! again and again in the night.

use chrono::{DateTime, Utc};

use super::{Decision, Effect, Facts, JournalLine, MigrationRecord, PassLeave, Save, SavedStep};
use crate::model::{
    cutover_record::CutoverRecord,
    event_kind::EventKind,
    plan::CutoverMode,
    request::Request,
    scheduled_cutover::ScheduledCutover,
    state::State,
    transition::{FailureCause, IllegalStep, MigrationEvent, next},
};

/// The step that `event` causes, with `lines` of the journal before its own; no change where it leads to the
/// same state.
pub(super) fn step(
    record: &MigrationRecord,
    event: &MigrationEvent,
    by: &str,
    mut lines: Vec<JournalLine>,
    facts: &Facts,
    now: DateTime<Utc>,
) -> Result<Decision, IllegalStep> {
    let state = next(&record.state, event)?;
    if state == record.state {
        let (record, save, effects) = (record.clone(), Save::Nothing, Vec::new());
        return Ok(Decision { record, save, effects, answer: None });
    }
    let text = format!("{} → {state}{}", record.state, because(event));
    lines.push(JournalLine { by: by.to_owned(), kind: EventKind::State, text: text.clone() });
    let cutover = cutover_after(record, event, facts, now);
    let scheduled = scheduled_after(record, &state, event, facts);
    let save = SavedStep {
        text,
        cutover: cutover.is_some(),
        scheduled_cutover: scheduled.is_some(),
        forecast: matches!(event, MigrationEvent::Request(Request::Cutover(_))),
        change_rates: record.state.is_busy() && !state.is_busy(),
        lines,
    };
    let effects = effects(record, &state);
    let pass =
        if matches!(state, State::Seeding | State::Syncing) { record.pass } else { PassLeave::InWindows };
    let record = MigrationRecord {
        state,
        cutover: cutover.unwrap_or_else(|| record.cutover.clone()),
        scheduled_cutover: scheduled.unwrap_or_else(|| record.scheduled_cutover.clone()),
        verify: None,
        pass,
    };
    Ok(Decision { record, save: Save::Step(save), effects, answer: None })
}

fn effects(record: &MigrationRecord, state: &State) -> Vec<Effect> {
    let mut effects = Vec::new();
    if let State::Undoing { reason, .. } = state {
        effects.push(Effect::FailInGroup { reason: reason.clone() });
    }
    effects.push(Effect::Show);
    if state.is_final() {
        effects.push(Effect::CountFinished);
    } else if record.state.is_final() {
        effects.push(Effect::CountUnfinished);
    }
    // It was accepted in another state.
    if let Some(order) = &record.verify {
        let text = format!("{} that waited is dropped: it is {state} now; ask again", order.mode);
        effects.push(Effect::DropVerification { text });
    }
    if !state.is_busy() {
        // Loads all passes: once at the end of the work, not at each of its steps.
        effects.push(Effect::RefreshForecast);
    }
    effects
}

/// The record of the last cutover after the event; `None` if unchanged.
fn cutover_after(
    record: &MigrationRecord,
    event: &MigrationEvent,
    facts: &Facts,
    now: DateTime<Utc>,
) -> Option<CutoverRecord> {
    let known = &record.cutover;
    match event {
        MigrationEvent::Request(Request::Cutover(options)) => Some(CutoverRecord {
            attempt: known.attempt + 1,
            reclaimed_at: known.reclaimed_at,
            forced: options.force,
            ..CutoverRecord::default()
        }),
        MigrationEvent::Request(Request::Rollback) => {
            let since = facts.rollback.as_ref().and_then(|found| found.as_ref().ok()?.since);
            let handed_over_at = since.or(known.handed_over_at);
            Some(CutoverRecord { rolled_back: Some(now), handed_over_at, ..known.clone() })
        }
        _ => None,
    }
}

/// The scheduled cutover after the step to `state`; `None` if unchanged.
#[expect(clippy::option_option, reason = "nothing, or that there is none, is to be saved")]
fn scheduled_after(
    record: &MigrationRecord,
    state: &State,
    event: &MigrationEvent,
    facts: &Facts,
) -> Option<Option<ScheduledCutover>> {
    let was_before = record.state.is_before_cutover();
    let is_auto = facts.plan.mode == CutoverMode::Auto;
    let on_hold = |why: String| Some(Some(ScheduledCutover::OnHold { why }));
    match (state, event) {
        // Nothing was stopped yet, and the plan sets the time: the next window will do.
        (
            State::Undoing { .. },
            MigrationEvent::WorkFailed { cause: FailureCause::CutoverWindowClosed, .. },
        ) => None,
        (State::Undoing { reason, .. }, _) if is_auto && !was_before => {
            on_hold(format!("the last cutover was undone: {reason}"))
        }
        // After a rollback an operator investigates before the next cutover.
        (State::RollingBack, _) if is_auto => on_hold("it was rolled back".to_owned()),
        (State::CuttingOver { .. } | State::Cancelling, _)
            if was_before && record.scheduled_cutover.is_some() =>
        {
            Some(None)
        }
        _ => None,
    }
}

fn because(event: &MigrationEvent) -> String {
    match event {
        MigrationEvent::Request(request) => format!(" ({} asked)", request.name()),
        MigrationEvent::WorkFailed { reason, .. } | MigrationEvent::StaleState { reason } => {
            format!(" because {reason}")
        }
        MigrationEvent::WorkDone => String::new(),
        MigrationEvent::Restarted { .. } => " (after a restart)".to_owned(),
        MigrationEvent::PassDue => " (a delta is due)".to_owned(),
    }
}
