//! When a requested cutover begins, by the cutover windows of its VM.
//!
//! Rule: pure, except for [`turns`]. A cutover begins inside these windows, or outside if it is forced. A
//! cutover that was requested for a time and could not begin before its window closed, or within an hour
//! without windows, is missed: it is put on hold, and does not begin in the daytime because the daemon was
//! down at night.

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;
use warmd_core::{
    clock,
    model::{
        plan::{CutoverMode, Plan},
        scheduled_cutover::{
            CutoverOrder, CutoverTime, ScheduledCutover, ScheduledCutoverMode, ScheduledCutoverView,
        },
        state::State,
    },
};
use warmd_schedules::{
    rules::{NotBefore, Rules},
    zone::moment,
};

use super::{context::Context, forecast, groups::ReadyMember, timing};

/// The delay after which a cutover without windows is missed.
const LATE: TimeDelta = TimeDelta::hours(1);
/// The interval at which a negative forecast is computed again.
const AGAIN: TimeDelta = TimeDelta::minutes(1);

/// The decision on a cutover that has not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ScheduledStep {
    /// No cutover is requested.
    None,
    /// It begins now: on whose behalf, and why.
    Begin { by: String, why: String },
    /// It cannot begin any more.
    Missed { why: String },
    /// Not yet. To be decided again at `until`, or when the state, the plan or the scheduled_cutover changes.
    Wait { shown: ScheduledCutoverView, until: Option<DateTime<Utc>> },
}

/// Whether a cutover can begin in `state`, if there is no other obstacle.
pub(super) fn is_ready(state: &State) -> bool {
    matches!(state, State::Synced | State::Syncing)
}

/// The decision in `state` at `now`, by the VM's own rules.
fn step(
    plan: &Plan,
    rules: Result<&Rules, &NotBefore>,
    scheduled_cutover: Option<&ScheduledCutover>,
    state: &State,
    now: DateTime<Utc>,
) -> ScheduledStep {
    if !state.is_before_cutover() {
        return ScheduledStep::None;
    }
    match (scheduled_cutover, rules) {
        (None, _) if plan.cutover.mode == CutoverMode::Manual => ScheduledStep::None,
        (Some(ScheduledCutover::OnHold { why }), _) => {
            let shown = ScheduledCutoverView {
                mode: ScheduledCutoverMode::OnHold,
                begins: None,
                why: why.clone(),
                force: false,
            };
            ScheduledStep::Wait { shown, until: None }
        }
        (Some(ScheduledCutover::At { at, force, by }), Ok(rules)) => {
            at_a_time(rules, (*at, *force, by), state, now)
        }
        (None, Ok(rules)) => automatic(plan, rules, state, now),
        (_, Err(wait)) => {
            let mode = if scheduled_cutover.is_some() {
                ScheduledCutoverMode::At
            } else {
                ScheduledCutoverMode::Auto
            };
            let shown = ScheduledCutoverView { mode, begins: None, why: wait.why.clone(), force: false };
            ScheduledStep::Wait { shown, until: wait.until }
        }
    }
}

fn at_a_time(
    rules: &Rules,
    asked: (DateTime<Utc>, bool, &str),
    state: &State,
    now: DateTime<Utc>,
) -> ScheduledStep {
    let (at, force, by) = asked;
    let told = moment(rules.zone, at);
    let wait = |begins, why, until| {
        let shown = ScheduledCutoverView { mode: ScheduledCutoverMode::At, begins: Some(begins), why, force };
        ScheduledStep::Wait { shown, until: Some(until) }
    };
    if now < at {
        return wait(at, format!("asked for at {told} by {by}"), at);
    }
    if !force && !rules.cutover.is_open(at) {
        let why = closed(rules, at).unwrap_or_default();
        return ScheduledStep::Missed {
            why: format!("the cutover asked for at {told} did not begin: {why}"),
        };
    }
    let closes = rules.cutover.next_close(at).map(|close| close.at).filter(|_| !force);
    let late = at + LATE;
    let end = if rules.cutover.has_windows() {
        closes.unwrap_or(late)
    } else {
        closes.map_or(late, |at| at.min(late))
    };
    if now >= end {
        let why =
            format!("the cutover asked for at {told} could not begin until {}", moment(rules.zone, end));
        return ScheduledStep::Missed {
            why: format!("{why}: it was not synced, its forecast did not fit, or the daemon did not run"),
        };
    }
    if is_ready(state) {
        return ScheduledStep::Begin { by: by.to_owned(), why: format!("a cutover was asked for at {told}") };
    }
    let last = moment(rules.zone, end);
    wait(now, format!("asked for at {told} by {by}: it is {state}, and must be synced before {last}"), end)
}

fn automatic(plan: &Plan, rules: &Rules, state: &State, now: DateTime<Utc>) -> ScheduledStep {
    let wait = |begins, why, until| {
        let shown = ScheduledCutoverView { mode: ScheduledCutoverMode::Auto, begins, why, force: false };
        ScheduledStep::Wait { shown, until }
    };
    if let Some(shut) = rules.shut(&rules.cutover, now) {
        return wait(shut.until, shut.why, shut.until);
    }
    let because = rules.cutover.state(now).1;
    if is_ready(state) {
        let why = format!("plan {} cuts over automatically: {because}", plan.name);
        return ScheduledStep::Begin { by: format!("plan {}", plan.name), why };
    }
    let closes = rules.cutover.next_close(now).map(|close| close.at);
    wait(None, format!("as soon as it is synced: {because}"), closes)
}

/// Why no cutover may begin at `at`, and when the next may.
fn closed(rules: &Rules, at: DateTime<Utc>) -> Option<String> {
    let (open, because) = rules.cutover.state(at);
    if open {
        return None;
    }
    Some(match rules.cutover.next_open(at) {
        Ok(open) => format!("{because}; a cutover may begin from {} on", moment(rules.zone, open.at)),
        Err(never) => format!("{because}, and {never}"),
    })
}

/// Why `order` is refused, by the clock and the VM's rules.
pub(super) fn refusal(
    rules: Result<&Rules, &NotBefore>,
    order: CutoverOrder,
    now: DateTime<Utc>,
) -> Option<String> {
    let (at, when) = match order.when {
        CutoverTime::Now => (now, "now".to_owned()),
        CutoverTime::At(at) => (at, format!("at {}", moment(rules.ok()?.zone, at))),
        CutoverTime::Hold | CutoverTime::Unhold => return None,
    };
    if at < now {
        return Some(format!(
            "a cutover {when} is refused: that is past; leave the time out to cut over now"
        ));
    }
    if order.force {
        return None;
    }
    let why = match rules {
        Ok(rules) => closed(rules, at)?,
        Err(wait) => wait.why.clone(),
    };
    Some(format!("a cutover {when} is refused: {why}; ask for it then with --at, or use --force"))
}

/// The same, with the forecast if one would begin and is not forced. Where the plan's VMs move together,
/// their group begins it.
pub(super) async fn judged(
    context: &Context,
    scheduled_cutover: Option<&ScheduledCutover>,
    state: &State,
) -> ScheduledStep {
    let now = clock::now();
    let mode = match scheduled_cutover {
        Some(ScheduledCutover::At { .. }) => ScheduledCutoverMode::At,
        Some(ScheduledCutover::OnHold { .. }) | None => ScheduledCutoverMode::Auto,
    };
    let wait = |why| {
        let shown = ScheduledCutoverView { mode, begins: None, why, force: false };
        ScheduledStep::Wait { shown, until: Some(now + AGAIN) }
    };
    if let Some(why) = context.groups.keeps(context.id).filter(|_| state.is_before_cutover()) {
        context.groups.mark_ready(context.id, None);
        return wait(why);
    }
    let found = automatic_checked(context, scheduled_cutover, state, now).await;
    let plan = context.plan();
    match found {
        ScheduledStep::Begin { by, .. } if plan.is_grouped() => {
            let force = matches!(scheduled_cutover, Some(ScheduledCutover::At { force: true, .. }));
            context.groups.mark_ready(context.id, Some(ReadyMember { plan: plan.name.clone(), by, force }));
            wait(
                "it is ready, and begins together with the other VMs of its plan, when all of them are"
                    .to_owned(),
            )
        }
        found => {
            context.groups.mark_ready(context.id, None);
            found
        }
    }
}

async fn automatic_checked(
    context: &Context,
    scheduled_cutover: Option<&ScheduledCutover>,
    state: &State,
    now: DateTime<Utc>,
) -> ScheduledStep {
    let rules = timing::asked(context);
    let found = step(&context.plan(), rules.as_ref(), scheduled_cutover, state, now);
    let (force, mode) = match scheduled_cutover {
        Some(ScheduledCutover::At { force, .. }) => (*force, ScheduledCutoverMode::At),
        Some(ScheduledCutover::OnHold { .. }) | None => (false, ScheduledCutoverMode::Auto),
    };
    if force || !matches!(found, ScheduledStep::Begin { .. }) {
        return found;
    }
    match forecast::veto(context).await {
        None => found,
        Some(why) => {
            let shown = ScheduledCutoverView { mode, begins: None, why, force };
            ScheduledStep::Wait { shown, until: Some(now + AGAIN) }
        }
    }
}

/// Shows a waiting cutover, and returns when it needs action, or its plan has changed.
pub(super) async fn turns(context: &Context, scheduled_cutover: Option<ScheduledCutover>, state: State) {
    let mut plans: watch::Receiver<_> = context.plans();
    let mut groups = context.groups.turns();
    loop {
        let found = judged(context, scheduled_cutover.as_ref(), &state).await;
        show(context, &found);
        match found {
            ScheduledStep::Begin { .. } | ScheduledStep::Missed { .. } => return,
            ScheduledStep::None | ScheduledStep::Wait { .. } => {
                let until = if let ScheduledStep::Wait { until, .. } = found { until } else { None };
                tokio::select! {
                    biased;
                    () = timing::until(&mut plans, until) => {}
                    () = groups.changed() => {}
                }
            }
        }
    }
}

/// Shows the decision in the view.
pub(super) fn show(context: &Context, step: &ScheduledStep) {
    let shown = if let ScheduledStep::Wait { shown, .. } = step { Some(shown.clone()) } else { None };
    if context.live.view().scheduled_cutover != shown {
        context.live.update(|view| view.scheduled_cutover = shown);
    }
}

#[cfg(test)]
mod tests {
    use super::{refusal as refusal_by, step as step_by, *};
    use warmd_core::model::state::ResumePoint;

    fn step(
        plan: &Plan,
        scheduled_cutover: Option<&ScheduledCutover>,
        state: &State,
        now: DateTime<Utc>,
    ) -> ScheduledStep {
        step_by(plan, Ok(&plan.rules().unwrap()), scheduled_cutover, state, now)
    }

    fn refusal(plan: &Plan, order: CutoverOrder, now: DateTime<Utc>) -> Option<String> {
        refusal_by(Ok(&plan.rules().unwrap()), order, now)
    }

    const BY: &str = "operator";

    fn plan(cutover: &str) -> Plan {
        let text = format!("name = \"p\"\nsource = \"s\"\ntarget = \"t\"\nvms = [\"v\"]\n{cutover}\n");
        toml::from_str(&text).unwrap()
    }

    fn nights(mode: &str) -> Plan {
        plan(&format!(
            "[cutover]\nmode = \"{mode}\"\n[schedule.cutover]\nwindows = [\"daily 22:00–04:00 Europe/Berlin\"]"
        ))
    }

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-11-{text}:00Z").parse().unwrap()
    }

    fn asked(time: &str, force: bool) -> ScheduledCutover {
        ScheduledCutover::At { at: at(time), force, by: BY.to_owned() }
    }

    fn missed(step: ScheduledStep) -> String {
        match step {
            ScheduledStep::Missed { why } => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_a_word_nothing_begins() {
        assert_eq!(step(&nights("manual"), None, &State::Synced, at("22T22:00")), ScheduledStep::None);
    }

    #[test]
    fn a_time_is_waited_for_and_then_it_begins() {
        let (plan, order) = (nights("manual"), asked("22T22:30", false));
        let ScheduledStep::Wait { shown, until } = step(&plan, Some(&order), &State::Synced, at("22T22:29"))
        else {
            panic!("it waits")
        };
        assert_eq!(
            (shown.mode, shown.begins, until),
            (ScheduledCutoverMode::At, until, Some(at("22T22:30")))
        );
        assert_eq!(shown.why, "asked for at 2026-11-22 23:30 CET by operator");
        for state in [State::Synced, State::Syncing] {
            let begins = step(&plan, Some(&order), &state, at("22T22:30"));
            assert!(matches!(begins, ScheduledStep::Begin { ref by, .. } if by == BY), "{begins:?}");
        }
        let paused = State::Paused { from: ResumePoint::Synced };
        for state in [State::Seeding, paused] {
            let ScheduledStep::Wait { shown, until } = step(&plan, Some(&order), &state, at("22T22:30"))
            else {
                panic!("it waits")
            };
            assert_eq!(until, Some(at("23T03:00")), "the window's end");
            assert!(shown.why.ends_with("must be synced before 2026-11-23 04:00 CET"), "{}", shown.why);
        }
    }

    #[test]
    fn what_could_not_begin_in_its_window_is_missed() {
        let order = asked("22T22:30", false);
        let late = step(&nights("manual"), Some(&order), &State::Synced, at("23T03:00"));
        assert!(missed(late).contains("could not begin until 2026-11-23 04:00 CET"));
        // Without windows an hour.
        let any = plan("");
        let just = step(&any, Some(&order), &State::Synced, at("22T23:29"));
        assert!(matches!(just, ScheduledStep::Begin { .. }), "{just:?}");
        assert!(
            missed(step(&any, Some(&order), &State::Synced, at("22T23:30"))).contains("2026-11-22 23:30 UTC")
        );
        // The plan was changed meanwhile.
        let day = asked("22T12:00", false);
        let closed = missed(step(&nights("manual"), Some(&day), &State::Synced, at("22T12:00")));
        assert!(
            closed.contains("no window is open; a cutover may begin from 2026-11-22 22:00 CET on"),
            "{closed}"
        );
        let forced = asked("22T12:00", true);
        let begins = step(&nights("manual"), Some(&forced), &State::Synced, at("22T12:00"));
        assert!(matches!(begins, ScheduledStep::Begin { .. }), "{begins:?}");
    }

    #[test]
    fn auto_cutover_begins_in_its_windows_unless_on_hold() {
        let plan = nights("auto");
        let ScheduledStep::Wait { shown, until } = step(&plan, None, &State::Synced, at("22T12:00")) else {
            panic!("it waits")
        };
        assert_eq!((shown.mode, until), (ScheduledCutoverMode::Auto, Some(at("22T21:00"))));
        assert!(shown.why.starts_with("blocked until 2026-11-22 22:00 CET, because"), "{}", shown.why);
        assert!(matches!(step(&plan, None, &State::Synced, at("22T21:00")), ScheduledStep::Begin { .. }));
        let waits = step(&plan, None, &State::Seeding, at("22T21:00"));
        assert!(
            matches!(waits, ScheduledStep::Wait { until, .. } if until == Some(at("23T03:00"))),
            "{waits:?}"
        );
        let held = ScheduledCutover::OnHold { why: "put on hold by operator".to_owned() };
        let waits = step(&plan, Some(&held), &State::Synced, at("22T21:00"));
        assert!(matches!(waits, ScheduledStep::Wait { until: None, .. }), "{waits:?}");
        assert_eq!(step(&plan, None, &State::Done, at("22T21:00")), ScheduledStep::None);
    }

    #[test]
    fn cutover_outside_its_windows_is_refused_naming_the_next() {
        let plan = nights("manual");
        let order = |when, force| CutoverOrder { when, force, ..CutoverOrder::default() };
        let noon = at("22T12:00");
        let why = refusal(&plan, order(CutoverTime::Now, false), noon).unwrap();
        assert!(why.contains("a cutover may begin from 2026-11-22 22:00 CET on; ask"), "{why}");
        assert_eq!(refusal(&plan, order(CutoverTime::Now, true), noon), None);
        assert_eq!(refusal(&plan, order(CutoverTime::Now, false), at("22T22:00")), None);
        assert_eq!(refusal(&plan, order(CutoverTime::At(at("22T22:00")), false), noon), None);
        let why = refusal(&plan, order(CutoverTime::At(at("23T12:00")), false), noon).unwrap();
        assert!(
            why.contains("at 2026-11-23 13:00 CET is refused") && why.contains("from 2026-11-23 22:00 CET"),
            "{why}"
        );
        let why = refusal(&plan, order(CutoverTime::At(at("21T22:00")), true), noon).unwrap();
        assert!(why.contains("that is past"), "{why}");
        assert_eq!(refusal(&plan, order(CutoverTime::Hold, false), noon), None);
        assert_eq!(refusal(&self::plan(""), order(CutoverTime::Now, false), noon), None);
    }
}
