//! The one function that says what a migration's next state is, and what work each state means.
//!
//! ```text
//! Defined → Preparing → Seeding → Synced ⇄ Syncing → CuttingOver(phase …) → Done
//!                                   ▲                      │ before the point of no return
//!                                   └────── Undoing ◀──────┘
//! Paused ◀── RollingBack ◀── Done, or past the point of no return: only if a person asks for it
//! ```
//!
//! Rule: pure, and complete: every pair of state and event is named. A step that cannot be is an [`IllegalStep`],
//! never a panic. After a restart the daemon does again what [`work`] says of the saved state.

use warmd_cbt::mutant::mutant;

use super::{
    phase::Phase,
    request::{Request, Verdict, judge},
    state::{Resting, State},
};

/// Something that happened to a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A person, or a schedule in a person's name, asks.
    Request(Request),
    /// The work of the present state is done.
    WorkDone,
    /// The work of the present state failed, and trying again by itself will not help.
    WorkFailed { reason: String, resumable: bool },
    /// The target was found to be the target VM's by a cutover that this state does not know of.
    Overtaken { reason: String },
    /// The schedule says that a delta is due.
    PassDue,
    /// The daemon came up and found the migration in its saved state, and whether the target VM's start had been asked for.
    Restarted { start_asked: bool },
}

/// What is to be done in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing until a request, or never again.
    Nothing,
    /// Nothing until a request or the schedule.
    AwaitSchedule,
    /// Nothing: it goes on at once.
    Begin,
    /// Make the target's disks and the ledgers.
    Prepare,
    /// Copy until all ledgers are drained.
    Seed,
    /// Copy a delta.
    Sync,
    /// A cutover's phase.
    Phase(Phase),
    /// Take a cutover back that was in this phase.
    Undo(Phase),
    /// Go back to the source after the target VM was started.
    RollBack,
    /// Remove everything that the migration left on the source and the target.
    Clean,
}

/// An event that cannot happen in the state it met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a migration that is {state}")]
pub struct IllegalStep {
    pub state: State,
    pub event: Event,
}

/// The work that `state` means.
pub fn work(state: &State) -> Work {
    match state {
        State::Defined => Work::Begin,
        State::Preparing => Work::Prepare,
        State::Seeding => Work::Seed,
        State::Synced => Work::AwaitSchedule,
        State::Syncing => Work::Sync,
        State::CuttingOver { phase } => Work::Phase(*phase),
        State::Undoing { phase, .. } => Work::Undo(*phase),
        State::RollingBack => Work::RollBack,
        State::Cancelling => Work::Clean,
        State::Paused { .. } | State::Failed { .. } | State::Done | State::Cancelled => Work::Nothing,
    }
}

/// Nobody watched the source meanwhile, and it may have run and be off again: a
/// cutover that had its final delta takes it again, unless the target VM may have been started.
fn restarted(state: &State, start_asked: bool) -> State {
    let again = match state {
        State::CuttingOver { phase: Phase::Verify | Phase::Convert | Phase::CreateVm } => true,
        State::CuttingOver { phase: Phase::StartVm } => !start_asked,
        _ => false,
    };
    if again && !mutant("restart-trusts-source") {
        return State::CuttingOver { phase: Phase::FinalDelta };
    }
    state.clone()
}

/// The state after `event`.
pub fn next(state: &State, event: &Event) -> Result<State, IllegalStep> {
    let illegal = || IllegalStep { state: state.clone(), event: event.clone() };
    match event {
        Event::Request(request) => requested(state, *request).ok_or_else(illegal),
        Event::WorkDone => done(state).ok_or_else(illegal),
        Event::WorkFailed { reason, resumable } => failed(state, reason, *resumable).ok_or_else(illegal),
        Event::Overtaken { reason } => overtaken(state, reason).ok_or_else(illegal),
        Event::Restarted { start_asked } => Ok(restarted(state, *start_asked)),
        Event::PassDue => match state {
            State::Synced => Ok(State::Syncing),
            _ => Err(illegal()),
        },
    }
}

fn requested(state: &State, request: Request) -> Option<State> {
    match judge(state, request) {
        Verdict::AlreadySo => return Some(state.clone()),
        Verdict::Refused(_) => return None,
        Verdict::Accepted => {}
    }
    Some(match (request, state) {
        (Request::Sync, _) => State::Syncing,
        (Request::Pause, State::Seeding) => State::Paused { from: Resting::Seeding },
        (Request::Pause, _) => State::Paused { from: Resting::Synced },
        (Request::Resume, State::Paused { from } | State::Failed { from, .. }) => resumed(*from),
        (Request::Cutover, _) => State::CuttingOver { phase: Phase::LastDelta },
        (Request::AbortCutover, State::CuttingOver { phase }) => {
            State::Undoing { phase: *phase, reason: "aborted by the operator".to_owned() }
        }
        (Request::Rollback, _) => State::RollingBack,
        (Request::Cancel, _) => State::Cancelling,
        // Verification reads beside the waiting for the schedule, and a cutover is waited for in any state.
        (Request::Verify | Request::ArrangeCutover, _) => state.clone(),
        (Request::Resume | Request::AbortCutover, _) => return None,
    })
}

/// The last pass may have been cut short: a delta tells.
fn resumed(from: Resting) -> State {
    match from {
        Resting::Preparing => State::Preparing,
        Resting::Seeding => State::Seeding,
        // It looks again whether it is so.
        Resting::Synced | Resting::Overtaken => State::Syncing,
        Resting::Watch => State::CuttingOver { phase: Phase::Watch },
        Resting::Release => State::CuttingOver { phase: Phase::Release },
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
        // Nothing overwrites what the target VM left, and nothing is read from the source, until a person says so.
        State::RollingBack => Some(State::Paused { from: Resting::Synced }),
        State::Synced | State::Paused { .. } | State::Failed { .. } | State::Done | State::Cancelled => None,
    }
}

fn failed(state: &State, reason: &str, resumable: bool) -> Option<State> {
    let fail = |from| Some(State::Failed { reason: reason.to_owned(), resumable, from });
    match state {
        State::Defined | State::Preparing => fail(Resting::Preparing),
        State::Seeding => fail(Resting::Seeding),
        State::Syncing => fail(Resting::Synced),
        State::CuttingOver { phase: Phase::Watch } => fail(Resting::Watch),
        State::CuttingOver { phase: Phase::Release } => fail(Resting::Release),
        State::CuttingOver { phase } => Some(State::Undoing { phase: *phase, reason: reason.to_owned() }),
        // These are tried until they succeed: giving up could leave the source off, or two VMs.
        State::Undoing { .. } | State::RollingBack | State::Cancelling => None,
        State::Synced | State::Paused { .. } | State::Failed { .. } | State::Done | State::Cancelled => None,
    }
}

/// Nothing goes on, and nothing is taken back: not even an undo, which would start the source.
fn overtaken(state: &State, reason: &str) -> Option<State> {
    let rests = State::Failed { reason: reason.to_owned(), resumable: true, from: Resting::Overtaken };
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

    const REQUESTS: [Request; 9] = [
        Request::Sync,
        Request::Pause,
        Request::Resume,
        Request::Cutover,
        Request::ArrangeCutover,
        Request::AbortCutover,
        Request::Rollback,
        Request::Cancel,
        Request::Verify,
    ];

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::WorkDone),
            1 => any::<bool>().prop_map(|resumable| Event::WorkFailed { reason: "x".to_owned(), resumable }),
            1 => Just(Event::Overtaken { reason: "x".to_owned() }),
            1 => Just(Event::PassDue),
            1 => any::<bool>().prop_map(|start_asked| Event::Restarted { start_asked }),
            3 => prop::sample::select(REQUESTS.to_vec()).prop_map(Event::Request),
        ]
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
        for event in [Event::WorkDone, Event::WorkDone, Event::WorkDone, Event::PassDue, Event::WorkDone] {
            state = next(&state, &event).unwrap();
            names.push(state.to_string());
        }
        state = next(&state, &Event::Request(Request::Cutover)).unwrap();
        while !state.is_final() {
            names.push(state.to_string());
            state = next(&state, &Event::WorkDone).unwrap();
        }
        assert_eq!(names.len(), 6 + Phase::ALL.len());
        assert_eq!(state, State::Done);
    }

    #[test]
    fn a_failed_cutover_is_undone_back_to_synced_before_no_return_only() {
        for phase in Phase::ALL {
            let failure = Event::WorkFailed { reason: "x".to_owned(), resumable: true };
            let state = next(&State::CuttingOver { phase }, &failure).unwrap();
            if phase.past_no_return() {
                assert!(matches!(state, State::Failed { .. }), "{phase}: {state}");
            } else {
                assert!(matches!(state, State::Undoing { .. }), "{phase}: {state}");
                assert_eq!(next(&state, &Event::WorkDone), Ok(State::Synced));
            }
        }
    }

    #[test]
    fn undo_and_clean_up_never_give_up() {
        let failure = Event::WorkFailed { reason: "x".to_owned(), resumable: true };
        let undoing = State::Undoing { phase: Phase::Verify, reason: String::new() };
        assert!(next(&undoing, &failure).is_err());
        assert!(next(&State::Cancelling, &failure).is_err());
        assert!(next(&State::RollingBack, &failure).is_err());
    }

    #[test]
    fn a_rollback_leads_to_rest_and_only_from_where_the_target_vm_was_started() {
        let request = Event::Request(Request::Rollback);
        let failed = |from| State::Failed { reason: "x".to_owned(), resumable: true, from };
        let over = |phase| State::CuttingOver { phase };
        let (watch, release) = (Phase::Watch, Phase::Release);
        for from in
            [State::Done, over(watch), over(release), failed(Resting::Watch), failed(Resting::Release)]
        {
            assert_eq!(next(&from, &request), Ok(State::RollingBack), "{from}");
        }
        let undoing = State::Undoing { phase: Phase::StartVm, reason: "x".to_owned() };
        for from in [State::Synced, over(Phase::StartVm), undoing, failed(Resting::Synced), State::Cancelled]
        {
            assert!(next(&from, &request).is_err(), "{from}");
        }
        let rest = State::Paused { from: Resting::Synced };
        assert_eq!(next(&State::RollingBack, &Event::WorkDone), Ok(rest));
        let restarted = Event::Restarted { start_asked: true };
        assert_eq!(next(&State::RollingBack, &restarted), Ok(State::RollingBack));
    }

    #[test]
    fn what_was_overtaken_stands_still_until_a_person_decides() {
        let event = Event::Overtaken { reason: "x".to_owned() };
        let reason = String::new();
        for from in [
            State::Preparing,
            State::Syncing,
            State::CuttingOver { phase: Phase::StartVm },
            State::Undoing { phase: Phase::CreateVm, reason },
            State::RollingBack,
        ] {
            let state = next(&from, &event).unwrap();
            assert!(matches!(state, State::Failed { from: Resting::Overtaken, .. }), "{from}: {state}");
            assert!(state.is_handed_over());
            assert_eq!(work(&state), Work::Nothing);
            assert_eq!(next(&state, &Event::Request(Request::Rollback)), Ok(State::RollingBack));
            assert_eq!(next(&state, &Event::Request(Request::Cancel)), Ok(State::Cancelling));
            assert_eq!(next(&state, &Event::Request(Request::Resume)), Ok(State::Syncing));
            assert!(next(&state, &Event::Request(Request::Cutover)).is_err());
            assert!(next(&state, &Event::PassDue).is_err());
        }
        for from in [State::Synced, State::Done, State::CuttingOver { phase: Phase::Watch }] {
            assert!(next(&from, &event).is_err(), "{from}");
        }
    }

    proptest! {
        /// Whatever happens in whatever order: past the point of no return there is only forward, unless a person asks
        /// for a rollback; a final state stays else, and a refused request leaves no new state.
        #[test]
        fn no_way_leads_back_over_the_point_of_no_return(events in prop::collection::vec(event(), 1..60)) {
            let mut state = State::Defined;
            for event in events {
                let Ok(new) = next(&state, &event) else {
                    if let Event::Request(request) = event {
                        prop_assert!(matches!(judge(&state, request), Verdict::Refused(_)));
                    }
                    continue;
                };
                let rolls_back = event == Event::Request(Request::Rollback) && new == State::RollingBack;
                if rolls_back {
                    let decided = matches!(state, State::Failed { from: Resting::Overtaken, .. });
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
                // The source is only ever stopped inside a cutover, which begins from a synced target.
                if matches!(new, State::CuttingOver { phase: Phase::LastDelta }) && new != state {
                    prop_assert!(matches!(state, State::Synced | State::Syncing));
                }
                state = new;
            }
        }
    }
}
