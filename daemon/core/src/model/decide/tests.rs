//! Every state with every input, and any record and facts beside them.

use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::model::{
    phase::Phase,
    request::CutoverSchedule,
    state::ResumePoint,
    transition::{StateWork, work},
};

fn states() -> Vec<State> {
    let reason = || "x".to_owned();
    let points = [
        ResumePoint::Preparing,
        ResumePoint::Seeding,
        ResumePoint::Synced,
        ResumePoint::BootCheck,
        ResumePoint::Cleanup,
        ResumePoint::StaleState,
    ];
    let mut states = vec![
        State::Defined,
        State::Preparing,
        State::Seeding,
        State::Synced,
        State::Syncing,
        State::RollingBack,
        State::Cancelling,
        State::Done,
        State::Cancelled,
    ];
    states.extend(Phase::ALL.map(|phase| State::CuttingOver { phase }));
    let undone = Phase::ALL.into_iter().filter(|phase| !phase.past_no_return());
    states.extend(undone.map(|phase| State::Undoing { phase, reason: reason() }));
    states.extend([ResumePoint::Seeding, ResumePoint::Synced].map(|from| State::Paused { from }));
    for resumable in [true, false] {
        states.extend(points.map(|from| State::Failed { reason: reason(), resumable, from }));
    }
    states
}

fn requests() -> Vec<Request> {
    let at = moment(5);
    let mut requests = vec![
        Request::Sync,
        Request::Pause,
        Request::Resume,
        Request::ScheduleCutover(CutoverSchedule::At { at, force: false }),
        Request::ScheduleCutover(CutoverSchedule::At { at, force: true }),
        Request::ScheduleCutover(CutoverSchedule::Hold),
        Request::ScheduleCutover(CutoverSchedule::Unhold),
        Request::AbortCutover,
        Request::Rollback,
        Request::Cancel,
        Request::verify(),
    ];
    for (force, in_group) in [(false, false), (true, false), (false, true), (true, true)] {
        requests.push(Request::Cutover(CutoverOptions { force, in_group }));
    }
    requests
}

fn inputs() -> Vec<Input> {
    let reason = || "x".to_owned();
    let mut inputs = vec![
        Input::CutoverDue { by: "schedule".to_owned() },
        Input::CutoverMissed { why: reason() },
        Input::PassDue,
        Input::PassSuspended,
        Input::PassResumed,
        Input::WorkDone,
        Input::StaleState { reason: reason() },
        Input::Restarted,
    ];
    for cause in [FailureCause::CutoverWindowClosed, FailureCause::Other] {
        for resumable in [true, false] {
            inputs.push(Input::WorkFailed { reason: reason(), resumable, cause });
        }
    }
    inputs
        .extend(requests().into_iter().map(|request| Input::Request { request, by: "operator".to_owned() }));
    inputs
}

fn moment(second: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(second)
}

fn record(state: State) -> MigrationRecord {
    MigrationRecord::saved(state, CutoverRecord::default(), None)
}

/// All that a decision may ask for, and allowed.
fn allowing() -> Facts {
    Facts {
        plan: PlanFacts { name: "p".to_owned(), ..PlanFacts::default() },
        group_keeps: None,
        rules: Some(Ok(())),
        forecast: Some(Ok(())),
        group_left: Some(Ok(())),
        rollback: Some(Ok(RollbackFacts { since: Some(moment(2)), loss: "all is lost".to_owned() })),
    }
}

fn fact() -> impl Strategy<Value = Result<(), String>> {
    prop_oneof![Just(Ok(())), Just(Err("the fact is against it".to_owned()))]
}

prop_compose! {
    fn facts()(
        mode in prop_oneof![Just(CutoverMode::Manual), Just(CutoverMode::Auto)],
        is_grouped in any::<bool>(),
        group_keeps in prop::option::of(Just("it is kept".to_owned())),
        (rules, forecast, group_left, rollback) in (fact(), fact(), fact(), fact()),
        since in prop::option::of(Just(moment(2))),
    ) -> Facts {
        let rollback = rollback.map(|()| RollbackFacts { since, loss: "all is lost".to_owned() });
        Facts {
            plan: PlanFacts { name: "p".to_owned(), mode, is_grouped },
            group_keeps,
            rules: Some(rules),
            forecast: Some(forecast),
            group_left: Some(group_left),
            rollback: Some(rollback),
        }
    }
}

prop_compose! {
    fn records()(
        state in prop::sample::select(states()),
        attempt in 0_u32..3,
        requested in prop::option::of(Just(moment(1))),
        scheduled_cutover in prop::option::of(prop_oneof![
            any::<bool>().prop_map(|force| {
                ScheduledCutover::At { at: moment(5), force, by: "operator".to_owned() }
            }),
            Just(ScheduledCutover::OnHold { why: "held".to_owned() }),
        ]),
        verify in prop::option::of(Just(VerifyOrder::default())),
        pass in prop_oneof![
            Just(PassLeave::InWindows), Just(PassLeave::Suspended), Just(PassLeave::Requested)
        ],
    ) -> MigrationRecord {
        let cutover = CutoverRecord { attempt, start_requested_at: requested, ..CutoverRecord::default() };
        MigrationRecord { state, cutover, scheduled_cutover, verify, pass }
    }
}

fn past_no_return(state: &State) -> bool {
    match state {
        State::CuttingOver { phase } => phase.past_no_return(),
        State::Failed { from, .. } => from.past_no_return(),
        State::Done => true,
        _ => false,
    }
}

fn lines(save: &Save) -> &[JournalLine] {
    match save {
        Save::Nothing => &[],
        Save::Line { line, .. } | Save::Schedule { line } => std::slice::from_ref(line),
        Save::Step(step) => &step.lines,
    }
}

/// All that holds for a decision, whatever led to it.
fn holds(record: &MigrationRecord, input: &Input, facts: &Facts) -> Result<(), TestCaseError> {
    let now = moment(9);
    let decided = decide(record, input, facts, now);
    let decision = match (decided, input) {
        (Ok(decision), _) => decision,
        (Err(Undecided::Needs(fact)), _) => {
            return Err(TestCaseError::fail(format!("{fact:?} is known, and asked for")));
        }
        (Err(Undecided::Illegal(step)), Input::Request { .. }) => {
            return Err(TestCaseError::fail(format!("a request is never impossible: {step}")));
        }
        (Err(Undecided::Illegal(_)), _) => return Ok(()),
    };
    let after = &decision.record;

    // A request is never silently dropped, and the answer agrees with what is saved.
    if let Input::Request { request, by } = input {
        let lines = lines(&decision.save);
        let told = lines.iter().filter(|line| line.kind == EventKind::Request && line.by == *by).count();
        prop_assert_eq!(told, 1, "the journal tells once of a request");
        let may_be_lost = matches!(&decision.save, Save::Line { must: false, .. });
        match &decision.answer {
            None => return Err(TestCaseError::fail("a request has no answer")),
            Some(RequestOutcome::Accepted) => {
                prop_assert!(after != record, "accepted, and nothing changes");
                prop_assert!(!may_be_lost, "accepted, and the line may be lost");
            }
            Some(RequestOutcome::NoChange | RequestOutcome::Refused(_)) => {
                prop_assert_eq!(after, record);
                prop_assert!(may_be_lost, "{:?}", decision.save);
                prop_assert!(decision.effects.is_empty());
            }
        }
        let stops = decision.effects.contains(&Effect::StopWork);
        prop_assert_eq!(stops, after.state != record.state, "{}", request.name());
    } else {
        prop_assert_eq!(&decision.answer, &None);
    }

    // What is saved is what changed.
    let (cutover, scheduled) =
        (after.cutover != record.cutover, after.scheduled_cutover != record.scheduled_cutover);
    match &decision.save {
        Save::Nothing | Save::Line { .. } => {
            prop_assert!(after.state == record.state && !cutover && !scheduled);
        }
        Save::Schedule { .. } => prop_assert!(after.state == record.state && !cutover),
        Save::Step(step) => {
            prop_assert!(after.state != record.state && decision.effects.contains(&Effect::Show));
            prop_assert!(step.cutover || !cutover);
            prop_assert!(step.scheduled_cutover || !scheduled);
            prop_assert!(
                step.lines.iter().any(|line| line.kind == EventKind::State && line.text == step.text)
            );
            // It was accepted for another state.
            prop_assert_eq!(&after.verify, &None);
        }
    }

    // Past the point of no return nothing but an accepted rollback leads to the start of the source.
    let is_rollback = matches!(input, Input::Request { request: Request::Rollback, .. });
    if past_no_return(&record.state) && !is_rollback {
        prop_assert!(past_no_return(&after.state), "{} → {}", record.state, after.state);
    }
    if after.state != record.state {
        match work(&after.state) {
            StateWork::Undo(_) => prop_assert!(
                matches!(&record.state, State::CuttingOver { phase } if !phase.past_no_return()),
                "{} → {}",
                record.state,
                after.state
            ),
            StateWork::RollBack => {
                prop_assert!(is_rollback && facts.rollback.as_ref().is_some_and(Result::is_ok));
                prop_assert_eq!(after.cutover.rolled_back, Some(now));
            }
            // The source is stopped only inside a cutover, which begins from a synced target.
            StateWork::Phase(Phase::CatchUpDelta) => {
                prop_assert!(matches!(record.state, State::Synced | State::Syncing));
                prop_assert_eq!(after.cutover.attempt, record.cutover.attempt + 1);
                prop_assert_eq!(&after.scheduled_cutover, &None);
            }
            _ => {}
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each case takes all inputs.
    #[test]
    fn any_record_with_every_input_is_decided_soundly(record in records(), facts in facts()) {
        for input in inputs() {
            holds(&record, &input, &facts).map_err(|error| {
                TestCaseError::fail(format!("{error} on {input:?}"))
            })?;
        }
    }
}

#[test]
fn every_state_with_every_input_is_decided_soundly() {
    for state in states() {
        for input in inputs() {
            if let Err(error) = holds(&record(state.clone()), &input, &allowing()) {
                panic!("{state} on {input:?}: {error}");
            }
        }
    }
}

#[test]
fn a_fact_is_asked_for_before_it_is_needed_and_never_guessed() {
    let request = |request| Input::Request { request, by: "operator".to_owned() };
    let unknown = Facts { rules: None, forecast: None, group_left: None, rollback: None, ..allowing() };
    let forced = Request::Cutover(CutoverOptions { force: true, in_group: false });
    let cutting = State::CuttingOver { phase: Phase::FinalDelta };
    let cases: [(State, Request, &[Fact]); 7] = [
        (State::Synced, Request::cutover(), &[Fact::Rules, Fact::Forecast]),
        (State::Synced, forced, &[Fact::Rules]),
        (State::Synced, Request::ScheduleCutover(CutoverSchedule::Hold), &[Fact::Rules]),
        (cutting, Request::AbortCutover, &[Fact::GroupLeft]),
        (State::Done, Request::Rollback, &[Fact::Rollback]),
        (State::Synced, Request::Rollback, &[]),
        (State::Synced, Request::Sync, &[]),
    ];
    for (state, asked, needs) in cases {
        let (mut facts, mut seen) = (unknown.clone(), Vec::new());
        while let Err(Undecided::Needs(fact)) =
            decide(&record(state.clone()), &request(asked.clone()), &facts, moment(9))
        {
            seen.push(fact);
            match fact {
                Fact::Rules => facts.rules = Some(Ok(())),
                Fact::Forecast => facts.forecast = Some(Ok(())),
                Fact::GroupLeft => facts.group_left = Some(Ok(())),
                Fact::Rollback => facts.rollback = allowing().rollback,
            }
        }
        assert_eq!(seen, needs, "{state} {asked:?}");
    }
}

#[test]
fn undone_auto_cutover_is_on_hold_unless_its_window_closed() {
    let facts = Facts { plan: PlanFacts { mode: CutoverMode::Auto, ..PlanFacts::default() }, ..allowing() };
    let cutting = record(State::CuttingOver { phase: Phase::CatchUpDelta });
    let scheduled = |cause| {
        // The text decides nothing.
        let reason =
            "the cutover window closed while the cutover waited for its turn by the quotas".to_owned();
        let input = Input::WorkFailed { reason, resumable: true, cause };
        decide(&cutting, &input, &facts, moment(9)).unwrap().record.scheduled_cutover
    };
    assert_eq!(scheduled(FailureCause::CutoverWindowClosed), None);
    assert!(matches!(scheduled(FailureCause::Other), Some(ScheduledCutover::OnHold { .. })));
}

#[test]
fn a_due_cutover_is_forced_if_it_was_scheduled_so() {
    for force in [true, false] {
        let at = ScheduledCutover::At { at: moment(5), force, by: "operator".to_owned() };
        let record = MigrationRecord { scheduled_cutover: Some(at), ..record(State::Synced) };
        let due = Input::CutoverDue { by: "operator".to_owned() };
        let after = decide(&record, &due, &Facts::default(), moment(9)).unwrap().record;
        assert_eq!(after.state, State::CuttingOver { phase: Phase::CatchUpDelta });
        assert_eq!((after.cutover.forced, after.scheduled_cutover), (force, None));
    }
}

#[test]
fn suspended_pass_continues_on_request_outside_windows() {
    let suspended = MigrationRecord { pass: PassLeave::Suspended, ..record(State::Syncing) };
    let sync = Input::Request { request: Request::Sync, by: "operator".to_owned() };
    let decision = decide(&suspended, &sync, &Facts::default(), moment(9)).unwrap();
    assert_eq!(
        (decision.answer, decision.record.pass),
        (Some(RequestOutcome::Accepted), PassLeave::Requested)
    );
    let decision = decide(&decision.record, &Input::PassResumed, &Facts::default(), moment(9)).unwrap();
    assert_eq!(decision.record.pass, PassLeave::Requested);
    let decision = decide(&decision.record, &Input::WorkDone, &Facts::default(), moment(9)).unwrap();
    assert_eq!((decision.record.state, decision.record.pass), (State::Synced, PassLeave::InWindows));
}

#[test]
fn a_second_verification_is_refused_while_the_first_waits() {
    let verify = Input::Request { request: Request::verify(), by: "operator".to_owned() };
    let first = decide(&record(State::Synced), &verify, &Facts::default(), moment(9)).unwrap();
    assert_eq!(first.record.verify, Some(VerifyOrder::default()));
    let second = decide(&first.record, &verify, &Facts::default(), moment(9)).unwrap();
    assert!(matches!(second.answer, Some(RequestOutcome::Refused(why)) if why.contains("waits already")));
    // A step to another state drops it, and says so.
    let due = decide(&first.record, &Input::PassDue, &Facts::default(), moment(9)).unwrap();
    assert!(due.effects.iter().any(|effect| matches!(effect, Effect::DropVerification { .. })));
}
