//! The one decision on what happens to a migration: its record after it, what is saved, what follows, and the
//! answer.
//!
//! ```text
//! input ─▶ decide(record, input, facts, now) ─▶ save ─▶ only then: the new record, effects, answer
//!                 ▲            │ a fact is missing
//!                 └── facts ◀──┘ the caller finds it out, and asks again
//! ```
//!
//! Rule: pure. Nothing waits or acts here, and nothing of a decision is in force before its [`Save`] is
//! saved. What the decision depends on besides the record is a [`Fact`]: one that is needed and unknown is
//! asked for, never guessed.

mod request;
mod step;
#[cfg(test)]
mod tests;

use chrono::{DateTime, Utc};

use self::{request::on_request, step::step};
use super::{
    cutover_record::CutoverRecord,
    event_kind::EventKind,
    plan::CutoverMode,
    request::{CutoverOptions, Request, RequestOutcome},
    scheduled_cutover::ScheduledCutover,
    state::State,
    transition::{FailureCause, IllegalStep, MigrationEvent},
    verify::VerifyOrder,
};

/// What is known of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationRecord {
    pub state: State,
    /// The last cutover.
    pub cutover: CutoverRecord,
    /// A cutover that is scheduled or on hold.
    pub scheduled_cutover: Option<ScheduledCutover>,
    /// A requested verification that has not begun. Not saved: after a restart it is to be requested again.
    pub verify: Option<VerifyOrder>,
    /// Not saved: after a restart the windows apply.
    pub pass: PassLeave,
}

impl MigrationRecord {
    /// The record of a migration as it was saved.
    pub fn saved(state: State, cutover: CutoverRecord, scheduled_cutover: Option<ScheduledCutover>) -> Self {
        Self { state, cutover, scheduled_cutover, verify: None, pass: PassLeave::default() }
    }
}

/// Whether the pass of the state needs an open copy window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassLeave {
    /// It is suspended when the windows close.
    #[default]
    InWindows,
    /// It was suspended, and waits for a window.
    Suspended,
    /// An operator requested it: the windows do not matter.
    Requested,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// `by` requests something.
    Request { request: Request, by: String },
    /// The time of the scheduled cutover, or of an automatic one, has come.
    CutoverDue { by: String },
    /// The scheduled cutover can begin no more.
    CutoverMissed { why: String },
    /// The schedule says that a delta is due.
    PassDue,
    /// The copy windows closed during the state's pass.
    PassSuspended,
    /// The wait of a suspended pass has ended, or the schedule is to be asked again.
    PassResumed,
    /// The work of the state is done.
    WorkDone,
    /// The work of the state failed, and a retry would not help.
    WorkFailed { reason: String, resumable: bool, cause: FailureCause },
    /// By a cutover that this state does not know, the target VM owns the target's disks.
    StaleState { reason: String },
    /// The daemon loaded the migration's saved record.
    Restarted,
}

/// What a decision may depend on besides the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub plan: PlanFacts,
    /// Why its running group does not let it begin a cutover alone.
    pub group_keeps: Option<String>,
    /// Whether the plan's rules allow the requested cutover.
    pub rules: Option<Result<(), String>>,
    /// Whether the forecast allows a cutover now.
    pub forecast: Option<Result<(), String>>,
    /// Whether it has left its group, which is halted then; it has if it is in none.
    pub group_left: Option<Result<(), String>>,
    /// Whether source and target allow a rollback.
    pub rollback: Option<Result<RollbackFacts, String>>,
}

/// What a decision depends on of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanFacts {
    pub name: String,
    pub mode: CutoverMode,
    /// Whether its VMs move together.
    pub is_grouped: bool,
}

/// What is known of a rollback that is possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollbackFacts {
    /// Since when the target VM has its disks, if that is noted beside them.
    pub since: Option<DateTime<Utc>>,
    /// What is lost, in words.
    pub loss: String,
}

/// A fact that is not asked for before it is needed: to find it out takes time, or has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    Rules,
    Forecast,
    GroupLeft,
    Rollback,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The record after it.
    pub record: MigrationRecord,
    pub save: Save,
    /// In this order, after the save.
    pub effects: Vec<Effect>,
    /// For a request.
    pub answer: Option<RequestOutcome>,
}

/// What is saved, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Save {
    Nothing,
    /// A line of the journal. If it `must` be written, nothing follows before it is.
    Line {
        line: JournalLine,
        must: bool,
    },
    /// The scheduled cutover of the record, with a line of the journal.
    Schedule {
        line: JournalLine,
    },
    /// The state of the record, and what changes with it.
    Step(SavedStep),
}

/// A step to another state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedStep {
    /// The step in words.
    pub text: String,
    /// Whether the record of the cutover changes.
    pub cutover: bool,
    /// Whether the scheduled cutover changes.
    pub scheduled_cutover: bool,
    /// Whether the forecast of the cutover that begins is saved.
    pub forecast: bool,
    /// Whether what the ended passes taught is saved.
    pub change_rates: bool,
    pub lines: Vec<JournalLine>,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalLine {
    pub by: String,
    pub kind: EventKind,
    pub text: String,
}

/// What follows a saved decision, besides the work of the new state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The work that runs ends: it is not that of the new state.
    StopWork,
    /// Its group, if it is in one, learns that it failed, and why.
    FailInGroup { reason: String },
    /// The new state is shown.
    Show,
    /// The migration counts as finished.
    CountFinished,
    /// It does not any more.
    CountUnfinished,
    /// A verification that waited is dropped: in the new state it may do harm.
    DropVerification { text: String },
    /// The forecast is computed again.
    RefreshForecast,
}

/// Why there is no decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// It needs this fact.
    Needs(Fact),
    /// The input is impossible in this state.
    Illegal(IllegalStep),
}

impl From<IllegalStep> for Undecided {
    fn from(step: IllegalStep) -> Self {
        Self::Illegal(step)
    }
}

/// warmd's own name in the journal.
const WARMD: &str = "warmd";

/// Decides on `input`.
pub fn decide(
    record: &MigrationRecord,
    input: &Input,
    facts: &Facts,
    now: DateTime<Utc>,
) -> Result<Decision, Undecided> {
    let event = match input {
        Input::Request { request, by } => return on_request(record, request, by, facts, now),
        Input::CutoverDue { by } => {
            let force = matches!(record.scheduled_cutover, Some(ScheduledCutover::At { force: true, .. }));
            let options = CutoverOptions { force, in_group: false };
            let event = MigrationEvent::Request(Request::Cutover(options));
            return Ok(step(record, &event, by, Vec::new(), facts, now)?);
        }
        Input::CutoverMissed { why } => return Ok(missed(record, why)),
        Input::PassSuspended => return Ok(with_leave(record, PassLeave::Suspended)),
        Input::PassResumed => return Ok(with_leave(record, PassLeave::InWindows)),
        Input::PassDue => {
            return Ok(step(record, &MigrationEvent::PassDue, "schedule", Vec::new(), facts, now)?);
        }
        Input::WorkDone => MigrationEvent::WorkDone,
        Input::WorkFailed { reason, resumable, cause } => {
            MigrationEvent::WorkFailed { reason: reason.clone(), resumable: *resumable, cause: *cause }
        }
        Input::StaleState { reason } => MigrationEvent::StaleState { reason: reason.clone() },
        Input::Restarted => {
            MigrationEvent::Restarted { start_requested: record.cutover.start_requested_at.is_some() }
        }
    };
    Ok(step(record, &event, WARMD, Vec::new(), facts, now)?)
}

/// A missed cutover is put on hold.
fn missed(record: &MigrationRecord, why: &str) -> Decision {
    let on_hold = ScheduledCutover::OnHold { why: why.to_owned() };
    let line = JournalLine { by: WARMD.to_owned(), kind: EventKind::Warning, text: why.to_owned() };
    Decision {
        record: MigrationRecord { scheduled_cutover: Some(on_hold), ..record.clone() },
        save: Save::Schedule { line },
        effects: Vec::new(),
        answer: None,
    }
}

/// A pass that an operator requested stays so.
fn with_leave(record: &MigrationRecord, leave: PassLeave) -> Decision {
    let pass = if record.pass == PassLeave::Requested { PassLeave::Requested } else { leave };
    Decision {
        record: MigrationRecord { pass, ..record.clone() },
        save: Save::Nothing,
        effects: Vec::new(),
        answer: None,
    }
}
