//! The decision on a request: by the state, then by what waits, the clock, the plan and the group.
//!
//! Rule: a request always has an answer and a line of the journal. An accepted one changes the record, any
//! other leaves it as it is.

use chrono::{DateTime, Utc};

use super::{
    Decision, Effect, Fact, Facts, JournalLine, MigrationRecord, PassLeave, Save, Undecided, step::step,
};
use crate::model::{
    event_kind::EventKind,
    plan::CutoverMode,
    request::{CutoverOptions, CutoverSchedule, Request, RequestOutcome, check_request},
    scheduled_cutover::ScheduledCutover,
    transition::MigrationEvent,
};

/// What becomes of the scheduled cutover: `None` leaves it as it is.
type Scheduled = Option<Option<ScheduledCutover>>;

pub(super) fn on_request(
    record: &MigrationRecord,
    request: &Request,
    by: &str,
    facts: &Facts,
    now: DateTime<Utc>,
) -> Result<Decision, Undecided> {
    let (outcome, scheduled) = judged(record, request, by, facts)?;
    let text = journaled(request, &outcome, scheduled.as_ref(), facts);
    let line = JournalLine { by: by.to_owned(), kind: EventKind::Request, text };
    let answer = Some(outcome.clone());
    if outcome != RequestOutcome::Accepted {
        let save = Save::Line { line, must: false };
        return Ok(Decision { record: record.clone(), save, effects: Vec::new(), answer });
    }
    if let Some(scheduled_cutover) = scheduled {
        let record = MigrationRecord { scheduled_cutover, ..record.clone() };
        return Ok(Decision { record, save: Save::Schedule { line }, effects: Vec::new(), answer });
    }
    let event = MigrationEvent::Request(request.clone());
    let mut decision = step(record, &event, by, vec![line.clone()], facts, now)?;
    if decision.save == Save::Nothing {
        decision.save = Save::Line { line, must: true };
    } else {
        decision.effects.insert(0, Effect::StopWork);
    }
    match request {
        Request::Verify(order) => decision.record.verify = Some(order.clone()),
        Request::Sync => decision.record.pass = PassLeave::Requested,
        _ => {}
    }
    Ok(Decision { answer, ..decision })
}

fn judged(
    record: &MigrationRecord,
    request: &Request,
    by: &str,
    facts: &Facts,
) -> Result<(RequestOutcome, Scheduled), Undecided> {
    use RequestOutcome::{Accepted, NoChange, Refused};
    let outcome = check_request(&record.state, request);
    let plain = |outcome| Ok((outcome, None));
    match (request, outcome) {
        (Request::Verify(_), Accepted) if record.verify.is_some() => {
            plain(Refused("a verification waits already; ask again when it runs".to_owned()))
        }
        (Request::Verify(order), Accepted) => plain(order.refusal(&record.state).map_or(Accepted, Refused)),
        // The suspended pass continues at once, regardless of the schedule.
        (Request::Sync, NoChange) if record.pass == PassLeave::Suspended => plain(Accepted),
        (Request::Rollback, Accepted) => match &facts.rollback {
            None => Err(Undecided::Needs(Fact::Rollback)),
            Some(Ok(_)) => plain(Accepted),
            Some(Err(why)) => plain(Refused(why.clone())),
        },
        (Request::Cutover(options), Accepted) => {
            plain(against_now(*options, facts)?.map_or(Accepted, Refused))
        }
        (Request::ScheduleCutover(schedule), Accepted) => match allowed(facts.rules.as_ref(), Fact::Rules)? {
            Some(why) => plain(Refused(why)),
            None => Ok(scheduled(record, *schedule, by)),
        },
        (Request::AbortCutover, Accepted) => {
            plain(allowed(facts.group_left.as_ref(), Fact::GroupLeft)?.map_or(Accepted, Refused))
        }
        // There is none to undo, but there may be a scheduled one to withdraw.
        (Request::AbortCutover, Refused(why)) if record.state.is_before_cutover() => {
            let is_auto = facts.plan.mode == CutoverMode::Auto;
            match &record.scheduled_cutover {
                Some(ScheduledCutover::OnHold { .. }) if is_auto => plain(NoChange),
                _ if is_auto => {
                    let why = format!("aborted by {by}");
                    Ok((Accepted, Some(Some(ScheduledCutover::OnHold { why }))))
                }
                Some(_) => Ok((Accepted, Some(None))),
                None => plain(Refused(why)),
            }
        }
        (_, outcome) => plain(outcome),
    }
}

/// Why not, by the fact.
fn allowed(known: Option<&Result<(), String>>, fact: Fact) -> Result<Option<String>, Undecided> {
    known.map(|found| found.clone().err()).ok_or(Undecided::Needs(fact))
}

/// Why a cutover does not begin now: by its group, the windows, the forecast.
fn against_now(options: CutoverOptions, facts: &Facts) -> Result<Option<String>, Undecided> {
    if let Some(why) = left_to_group(options, facts) {
        return Ok(Some(why));
    }
    if let Some(why) = allowed(facts.rules.as_ref(), Fact::Rules)? {
        return Ok(Some(why));
    }
    if options.force {
        return Ok(None);
    }
    let why = allowed(facts.forecast.as_ref(), Fact::Forecast)?;
    Ok(why.map(|why| format!("a cutover now is refused: {why}; wait for another pass, or use --force")))
}

/// Why a cutover of this VM alone is refused, if the VMs of its plan move together.
fn left_to_group(options: CutoverOptions, facts: &Facts) -> Option<String> {
    if options.in_group {
        return None;
    }
    let plan = &facts.plan.name;
    if let Some(why) = &facts.group_keeps {
        return Some(format!(
            "{why}: see `plan show {plan}`, or take it back with `plan cutover {plan} --abort`"
        ));
    }
    let is_alone = !facts.plan.is_grouped || options.force;
    (!is_alone).then(|| {
        format!(
            "the VMs of plan {plan} move together: use `plan cutover {plan}`, or --force to move this one alone"
        )
    })
}

/// The answer to a cutover that is to begin later, and what is scheduled then.
fn scheduled(record: &MigrationRecord, schedule: CutoverSchedule, by: &str) -> (RequestOutcome, Scheduled) {
    use RequestOutcome::{Accepted, NoChange, Refused};
    match (schedule, &record.scheduled_cutover) {
        (
            CutoverSchedule::At { at, force },
            Some(ScheduledCutover::At { at: known_at, force: known_force, .. }),
        ) if (at, force) == (*known_at, *known_force) => (NoChange, None),
        (CutoverSchedule::At { at, force }, _) => {
            (Accepted, Some(Some(ScheduledCutover::At { at, force, by: by.to_owned() })))
        }
        (CutoverSchedule::Hold, Some(ScheduledCutover::OnHold { .. })) | (CutoverSchedule::Unhold, None) => {
            (NoChange, None)
        }
        (CutoverSchedule::Hold, _) => {
            (Accepted, Some(Some(ScheduledCutover::OnHold { why: format!("put on hold by {by}") })))
        }
        (CutoverSchedule::Unhold, Some(ScheduledCutover::OnHold { .. })) => (Accepted, Some(None)),
        (CutoverSchedule::Unhold, Some(ScheduledCutover::At { .. })) => {
            let why =
                "a cutover is asked for at a time, and is not held; take it back with `cutover --abort`";
            (Refused(why.to_owned()), None)
        }
    }
}

/// The request's line in the journal.
fn journaled(
    request: &Request,
    outcome: &RequestOutcome,
    scheduled: Option<&Option<ScheduledCutover>>,
    facts: &Facts,
) -> String {
    let name = request.name();
    match (outcome, request, &facts.rollback) {
        (RequestOutcome::Refused(why), ..) => why.clone(),
        (RequestOutcome::NoChange, ..) => format!("{name}: no change"),
        (RequestOutcome::Accepted, Request::Verify(order), _) => format!("{name} accepted: {order}"),
        (RequestOutcome::Accepted, Request::Rollback, Some(Ok(found))) => {
            format!("{name} accepted: {}", found.loss)
        }
        (RequestOutcome::Accepted, ..) => {
            let waits = match scheduled {
                None => String::new(),
                Some(None) => ": no cutover is waited for".to_owned(),
                Some(Some(ScheduledCutover::At { at, force, .. })) => {
                    let forced = if *force { ", also outside the windows" } else { "" };
                    format!(": at {}{forced}", at.format("%Y-%m-%d %H:%M:%S UTC"))
                }
                Some(Some(ScheduledCutover::OnHold { why })) => format!(": {why}"),
            };
            format!("{name} accepted{waits}")
        }
    }
}
