//! The one function that gives a migration's next state, and the work of each state.
//!
//! ```text
//! Defined → Preparing → Seeding → Synced ⇄ Syncing → CuttingOver(phase …) → Done
//!                                   ▲                      │ before the point of no return
//!                                   └────── Undoing ◀──────┘
//! Paused ◀── RollingBack ◀── Done, or past the point of no return: only on an operator's request
//! ```
//!
//! Rule: pure, and complete: every pair of state and event is named. An impossible step is an
//! [`IllegalStep`], never a panic. After a restart the daemon repeats the [`work`] of the saved state.

use super::{
    phase::{AfterRestart, Phase},
    request::{Request, RequestOutcome, check_request},
    state::{ResumePoint, State},
};

/// An event of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationEvent {
    /// An operator, or the schedule for the operator, requests it.
    Request(Request),
    /// The work of the present state is done.
    WorkDone,
    /// The work of the present state failed, and a retry would not help.
    WorkFailed { reason: String, resumable: bool, cause: FailureCause },
    /// By a cutover that this state does not know, the target VM owns the target's disks.
    StaleState { reason: String },
    /// The schedule says that a delta is due.
    PassDue,
    /// The daemon started and loaded the migration's saved state, with whether the target VM's start was
    /// requested before.
    Restarted { start_requested: bool },
}

/// What a failure of work means for a scheduled cutover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// The cutover window closed before the cutover was admitted: nothing was stopped, and the next window
    /// will do.
    CutoverWindowClosed,
    Other,
}

impl FailureCause {
    /// The words for a window that closed.
    pub const WINDOW_CLOSED: &str =
        "the cutover window closed while the cutover waited for its turn by the quotas";

    /// The cause of a group's halt, which is saved in words alone: those of the member that failed, at their
    /// end. Words that are not known are [`Self::Other`], after which a cutover is put on hold.
    pub fn saved_as(words: &str) -> Self {
        if words.ends_with(Self::WINDOW_CLOSED) { Self::CutoverWindowClosed } else { Self::Other }
    }
}

/// The work of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateWork {
    /// Nothing until a request, or never again.
    Nothing,
    /// Nothing until a request or the schedule.
    AwaitSchedule,
    /// Nothing: the next state follows at once.
    Begin,
    /// Create the target's disks and the ledgers.
    Prepare,
    /// Copy until all ledgers are drained.
    Seed,
    /// Copy a delta.
    Sync,
    /// A cutover's phase.
    Phase(Phase),
    /// Undo a cutover that was in this phase.
    Undo(Phase),
    /// Go back to the source after the target VM was started.
    RollBack,
    /// Remove all that the migration left on the source and the target.
    Clean,
}

/// An event that is impossible in the given state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a migration that is {state}")]
pub struct IllegalStep {
    pub state: State,
    pub event: MigrationEvent,
}

/// The work of `state`.
pub fn work(state: &State) -> StateWork {
    match state {
        State::Defined => StateWork::Begin,
        State::Preparing => StateWork::Prepare,
        State::Seeding => StateWork::Seed,
        State::Synced => StateWork::AwaitSchedule,
        State::Syncing => StateWork::Sync,
        State::CuttingOver { phase } => StateWork::Phase(*phase),
        State::Undoing { phase, .. } => StateWork::Undo(*phase),
        State::RollingBack => StateWork::RollBack,
        State::Cancelling => StateWork::Clean,
        State::Paused { .. } | State::Failed { .. } | State::Done | State::Cancelled => StateWork::Nothing,
    }
}

/// While the daemon was down the source VM may have run and stopped again: a cutover repeats its final delta,
/// unless the target VM may have been started.
fn restarted(state: &State, start_requested: bool) -> State {
    let again = match state {
        State::CuttingOver { phase } => match phase.spec().after_restart {
            AfterRestart::Here => false,
            AfterRestart::FinalDelta => true,
            AfterRestart::FinalDeltaUnlessStarted => !start_requested,
        },
        _ => false,
    };
    if again {
        return State::CuttingOver { phase: Phase::FinalDelta };
    }
    state.clone()
}

/// The state after `event`.
pub fn next(state: &State, event: &MigrationEvent) -> Result<State, IllegalStep> {
    let illegal = || IllegalStep { state: state.clone(), event: event.clone() };
    match event {
        MigrationEvent::Request(request) => requested(state, request).ok_or_else(illegal),
        MigrationEvent::WorkDone => done(state).ok_or_else(illegal),
        MigrationEvent::WorkFailed { reason, resumable, .. } => {
            failed(state, reason, *resumable).ok_or_else(illegal)
        }
        MigrationEvent::StaleState { reason } => stale_state(state, reason).ok_or_else(illegal),
        MigrationEvent::Restarted { start_requested } => Ok(restarted(state, *start_requested)),
        MigrationEvent::PassDue => match state {
            State::Synced => Ok(State::Syncing),
            _ => Err(illegal()),
        },
    }
}

fn requested(state: &State, request: &Request) -> Option<State> {
    match check_request(state, request) {
        RequestOutcome::NoChange => return Some(state.clone()),
        RequestOutcome::Refused(_) => return None,
        RequestOutcome::Accepted => {}
    }
    Some(match (request, state) {
        (Request::Sync, _) => State::Syncing,
        (Request::Pause, State::Seeding) => State::Paused { from: ResumePoint::Seeding },
        (Request::Pause, _) => State::Paused { from: ResumePoint::Synced },
        (Request::Resume, State::Paused { from } | State::Failed { from, .. }) => resumed(*from),
        (Request::Cutover(_), _) => State::CuttingOver { phase: Phase::CatchUpDelta },
        (Request::AbortCutover, State::CuttingOver { phase }) => {
            State::Undoing { phase: *phase, reason: "aborted by the operator".to_owned() }
        }
        (Request::Rollback, _) => State::RollingBack,
        (Request::Cancel, _) => State::Cancelling,
        // Verification reads while the migration waits for the schedule; a cutover can be scheduled in any
        // state.
        (Request::Verify(_) | Request::ScheduleCutover(_), _) => state.clone(),
        (Request::Resume | Request::AbortCutover, _) => return None,
    })
}

/// The last pass may have been cut short: a delta finds out.
fn resumed(from: ResumePoint) -> State {
    match from {
        ResumePoint::Preparing => State::Preparing,
        ResumePoint::Seeding => State::Seeding,
        // The pass checks again whether the target is stale.
        ResumePoint::Synced | ResumePoint::StaleState => State::Syncing,
        ResumePoint::BootCheck => State::CuttingOver { phase: Phase::BootCheck },
        ResumePoint::Cleanup => State::CuttingOver { phase: Phase::Cleanup },
    }
}

fn done(state: &State) -> Option<State> {
    match state {
        State::Defined => Some(State::Preparing),
        State::Preparing => Some(State::Seeding),
        State::Seeding | State::Syncing | State::Undoing { .. } => Some(State::Synced),
        State::CuttingOver { phase } => {
            Some(phase.next().map_or(State::Done, |phase| State::CuttingOver { phase }))
        }
        State::Cancelling => Some(State::Cancelled),
        // Until an operator decides, the target VM's data is not overwritten and the source is not read.
        State::RollingBack => Some(State::Paused { from: ResumePoint::Synced }),
        State::Synced | State::Paused { .. } | State::Failed { .. } | State::Done | State::Cancelled => None,
    }
}

fn failed(state: &State, reason: &str, resumable: bool) -> Option<State> {
    let fail = |from| Some(State::Failed { reason: reason.to_owned(), resumable, from });
    match state {
        State::Defined | State::Preparing => fail(ResumePoint::Preparing),
        State::Seeding => fail(ResumePoint::Seeding),
        State::Syncing => fail(ResumePoint::Synced),
        State::CuttingOver { phase: Phase::BootCheck } => fail(ResumePoint::BootCheck),
        State::CuttingOver { phase: Phase::Cleanup } => fail(ResumePoint::Cleanup),
        State::CuttingOver { phase } => Some(State::Undoing { phase: *phase, reason: reason.to_owned() }),
        // These are retried until they succeed: stopping could leave the source off, or two VMs running.
        State::Undoing { .. } | State::RollingBack | State::Cancelling => None,
        State::Synced | State::Paused { .. } | State::Failed { .. } | State::Done | State::Cancelled => None,
    }
}

/// No work continues, and nothing is undone: an undo would start the source VM.
fn stale_state(state: &State, reason: &str) -> Option<State> {
    let rests = State::Failed { reason: reason.to_owned(), resumable: true, from: ResumePoint::StaleState };
    match state {
        State::Preparing | State::Seeding | State::Syncing | State::Undoing { .. } | State::RollingBack => {
            Some(rests)
        }
        State::CuttingOver { phase } if !phase.past_no_return() => Some(rests),
        State::CuttingOver { .. }
        | State::Defined
        | State::Synced
        | State::Cancelling
        | State::Paused { .. }
        | State::Failed { .. }
        | State::Done
        | State::Cancelled => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::request::CutoverSchedule;

    fn requests() -> [Request; 9] {
        [
            Request::Sync,
            Request::Pause,
            Request::Resume,
            Request::cutover(),
            Request::ScheduleCutover(CutoverSchedule::Hold),
            Request::AbortCutover,
            Request::Rollback,
            Request::Cancel,
            Request::verify(),
        ]
    }

    fn event() -> impl Strategy<Value = MigrationEvent> {
        prop_oneof![
            4 => Just(MigrationEvent::WorkDone),
            1 => any::<bool>().prop_map(failure),
            1 => Just(MigrationEvent::StaleState { reason: "x".to_owned() }),
            1 => Just(MigrationEvent::PassDue),
            1 => any::<bool>().prop_map(|start_requested| MigrationEvent::Restarted { start_requested }),
            3 => prop::sample::select(requests().to_vec()).prop_map(MigrationEvent::Request),
        ]
    }

    fn failure(resumable: bool) -> MigrationEvent {
        MigrationEvent::WorkFailed { reason: "x".to_owned(), resumable, cause: FailureCause::Other }
    }

    fn past_no_return(state: &State) -> bool {
        match state {
            State::CuttingOver { phase } => phase.past_no_return(),
            State::Failed { from, .. } => from.past_no_return(),
            State::Done => true,
            _ => false,
        }
    }

    #[test]
    fn the_happy_way_ends_done() {
        let mut state = State::Defined;
        let mut names = vec![state.to_string()];
        for event in [
            MigrationEvent::WorkDone,
            MigrationEvent::WorkDone,
            MigrationEvent::WorkDone,
            MigrationEvent::PassDue,
            MigrationEvent::WorkDone,
        ] {
            state = next(&state, &event).unwrap();
            names.push(state.to_string());
        }
        state = next(&state, &MigrationEvent::Request(Request::cutover())).unwrap();
        while !state.is_final() {
            names.push(state.to_string());
            state = next(&state, &MigrationEvent::WorkDone).unwrap();
        }
        assert_eq!(names.len(), 6 + Phase::ALL.len());
        assert_eq!(state, State::Done);
    }

    #[test]
    fn failed_cutover_before_no_return_is_undone_to_synced() {
        for phase in Phase::ALL {
            let failure = failure(true);
            let state = next(&State::CuttingOver { phase }, &failure).unwrap();
            if phase.past_no_return() {
                assert!(matches!(state, State::Failed { .. }), "{phase}: {state}");
            } else {
                assert!(matches!(state, State::Undoing { .. }), "{phase}: {state}");
                assert_eq!(next(&state, &MigrationEvent::WorkDone), Ok(State::Synced));
            }
        }
    }

    #[test]
    fn undo_and_clean_up_never_give_up() {
        let failure = failure(true);
        let undoing = State::Undoing { phase: Phase::Verify, reason: String::new() };
        assert!(next(&undoing, &failure).is_err());
        assert!(next(&State::Cancelling, &failure).is_err());
        assert!(next(&State::RollingBack, &failure).is_err());
    }

    #[test]
    fn rollback_only_after_target_start_ends_in_paused() {
        let request = MigrationEvent::Request(Request::Rollback);
        let failed = |from| State::Failed { reason: "x".to_owned(), resumable: true, from };
        let over = |phase| State::CuttingOver { phase };
        let (watch, release) = (Phase::BootCheck, Phase::Cleanup);
        for from in [
            State::Done,
            over(watch),
            over(release),
            failed(ResumePoint::BootCheck),
            failed(ResumePoint::Cleanup),
        ] {
            assert_eq!(next(&from, &request), Ok(State::RollingBack), "{from}");
        }
        let undoing = State::Undoing { phase: Phase::StartVm, reason: "x".to_owned() };
        for from in
            [State::Synced, over(Phase::StartVm), undoing, failed(ResumePoint::Synced), State::Cancelled]
        {
            assert!(next(&from, &request).is_err(), "{from}");
        }
        let rest = State::Paused { from: ResumePoint::Synced };
        assert_eq!(next(&State::RollingBack, &MigrationEvent::WorkDone), Ok(rest));
        let restarted = MigrationEvent::Restarted { start_requested: true };
        assert_eq!(next(&State::RollingBack, &restarted), Ok(State::RollingBack));
    }

    #[test]
    fn stale_state_waits_until_an_operator_decides() {
        let event = MigrationEvent::StaleState { reason: "x".to_owned() };
        let reason = String::new();
        for from in [
            State::Preparing,
            State::Syncing,
            State::CuttingOver { phase: Phase::StartVm },
            State::Undoing { phase: Phase::CreateVm, reason },
            State::RollingBack,
        ] {
            let state = next(&from, &event).unwrap();
            assert!(matches!(state, State::Failed { from: ResumePoint::StaleState, .. }), "{from}: {state}");
            assert!(state.is_handed_over());
            assert_eq!(work(&state), StateWork::Nothing);
            assert_eq!(next(&state, &MigrationEvent::Request(Request::Rollback)), Ok(State::RollingBack));
            assert_eq!(next(&state, &MigrationEvent::Request(Request::Cancel)), Ok(State::Cancelling));
            assert_eq!(next(&state, &MigrationEvent::Request(Request::Resume)), Ok(State::Syncing));
            assert!(next(&state, &MigrationEvent::Request(Request::cutover())).is_err());
            assert!(next(&state, &MigrationEvent::PassDue).is_err());
        }
        for from in [State::Synced, State::Done, State::CuttingOver { phase: Phase::BootCheck }] {
            assert!(next(&from, &event).is_err(), "{from}");
        }
    }

    /// These words are in the state of released versions.
    #[test]
    fn the_halt_of_a_group_tells_its_cause() {
        let closed = "VM web: the cutover window closed while the cutover waited for its turn by the quotas";
        assert_eq!(FailureCause::saved_as(closed), FailureCause::CutoverWindowClosed);
        for other in ["", "VM web: no space", "the cutover window closed"] {
            assert_eq!(FailureCause::saved_as(other), FailureCause::Other);
        }
    }

    proptest! {
        /// For events in any order: past the point of no return there is only forward, unless an operator
        /// requests a rollback; a final state stays otherwise, and a refused request leaves the state
        /// unchanged.
        #[test]
        fn no_way_leads_back_over_the_point_of_no_return(events in prop::collection::vec(event(), 1..60)) {
            let mut state = State::Defined;
            for event in events {
                let Ok(new) = next(&state, &event) else {
                    if let MigrationEvent::Request(request) = &event {
                        prop_assert!(matches!(check_request(&state, request), RequestOutcome::Refused(_)));
                    }
                    continue;
                };
                let is_rollback = event == MigrationEvent::Request(Request::Rollback);
                let rolls_back = is_rollback && new == State::RollingBack;
                if rolls_back {
                    let decided = matches!(state, State::Failed { from: ResumePoint::StaleState, .. });
                    prop_assert!(
                        decided || past_no_return(&state) || state == State::RollingBack,
                        "{state} → {new}"
                    );
                } else if past_no_return(&state) {
                    prop_assert!(past_no_return(&new), "{state} → {new}");
                }
                if state.is_final() && !rolls_back {
                    prop_assert_eq!(&state, &new);
                }
                // The source is stopped only inside a cutover, which begins from a synced target.
                if matches!(new, State::CuttingOver { phase: Phase::CatchUpDelta }) && new != state {
                    prop_assert!(matches!(state, State::Synced | State::Syncing));
                }
                state = new;
            }
        }
    }
}
