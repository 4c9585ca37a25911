//! When a migration's passes may run, by its VM's schedule.
//!
//! Rule: the schedule decides and gives the reason; an operator's explicit request takes precedence. A plan
//! with an invalid schedule copies nothing until it is applied again.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{sync::watch, time::Instant};
use warmd_core::{clock, model::plan::Plan};
use warmd_schedules::{
    rules::{NotBefore, PassDecision, PassHistory, Rules},
    schedule::Problems,
};

use super::{context::Context, monotonic_pass::SLEW};

/// How long a timer runs before the wall clock, which may have been set, is read again.
const LOOK: Duration = Duration::from_mins(1);

/// What delays the next delta, by the pass history; `None` if it may start.
pub(super) fn next_pass(context: &Context, facts: &PassHistory, now: DateTime<Utc>) -> Option<NotBefore> {
    next_pass_by(asked(context), facts, now)
}

fn next_pass_by(
    rules: Result<Rules, NotBefore>,
    facts: &PassHistory,
    now: DateTime<Utc>,
) -> Option<NotBefore> {
    let rules = match rules {
        Ok(rules) => rules,
        Err(wait) => return Some(wait),
    };
    match rules.pass(facts, now) {
        PassDecision::Start { .. } => None,
        PassDecision::Wait { until, why } => Some(NotBefore { until: Some(until), why }),
        PassDecision::Never { why } => Some(NotBefore { until: None, why }),
    }
}

/// Why a started pass is suspended; `None` if data may be copied now.
pub(super) fn suspended(context: &Context, now: DateTime<Utc>) -> Option<NotBefore> {
    suspended_by(asked(context), now)
}

fn suspended_by(rules: Result<Rules, NotBefore>, now: DateTime<Utc>) -> Option<NotBefore> {
    match rules {
        Ok(rules) => rules.shut(&rules.copy, now),
        Err(wait) => Some(wait),
    }
}

/// Returns when data may no longer be copied.
pub(super) async fn closed(context: &Context) {
    let mut plans = context.plans();
    loop {
        let now = clock::now();
        if suspended(context, now).is_some() {
            return;
        }
        let closes = context.rules().ok().and_then(|rules| rules.copy_until(now)).map(|answer| answer.at);
        until(&mut plans, closes).await;
    }
}

/// Returns at `at`, or before: when the plan has changed since `plans` was last read, or the wall clock was
/// set back.
pub(super) async fn until(plans: &mut watch::Receiver<Arc<Plan>>, at: Option<DateTime<Utc>>) {
    let timer = async {
        let Some(at) = at else { return std::future::pending().await };
        let (mut before, mut looked) = (clock::now(), Instant::now());
        while before < at {
            tokio::time::sleep((at - before).to_std().unwrap_or_default().min(LOOK)).await;
            let (now, passed) = (clock::now(), TimeDelta::from_std(looked.elapsed()).unwrap_or_default());
            if now - before < passed - SLEW {
                return;
            }
            (before, looked) = (now, Instant::now());
        }
    };
    tokio::select! {
        biased;
        Ok(()) = plans.changed() => {}
        () = timer => {}
    }
}

/// The rules of a migration, or the message to show while its plan has none.
pub(super) fn asked(context: &Context) -> Result<Rules, NotBefore> {
    context.rules().map_err(|problems| unasked(&context.plan().name, &problems))
}

/// The message for a plan with an invalid schedule.
pub(super) fn unasked(plan: &str, problems: &Problems) -> NotBefore {
    NotBefore {
        until: None,
        why: format!("the schedule of plan {plan} is wrong, apply it again: {problems}"),
    }
}

#[cfg(test)]
mod tests {
    use warmd_schedules::{Tz, rules::LastPass};

    use super::*;

    fn rules(plan: &Plan) -> Result<Rules, NotBefore> {
        plan.rules().map_err(|problems| unasked(&plan.name, &problems))
    }

    fn suspended(plan: &Plan, now: DateTime<Utc>) -> Option<NotBefore> {
        suspended_by(rules(plan), now)
    }

    fn plan(schedule: &str) -> Plan {
        let text =
            format!("name = \"p\"\nsource = \"s\"\ntarget = \"t\"\nvms = [\"v\"]\n[schedule]\n{schedule}\n");
        toml::from_str(&text).unwrap()
    }

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    fn next_pass(
        plan: &Plan,
        last: Option<LastPass>,
        cutover_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Option<NotBefore> {
        next_pass_by(rules(plan), &PassHistory { last, cutover_at, ..PassHistory::unknown(Tz::UTC) }, now)
    }

    #[expect(clippy::unnecessary_wraps, reason = "as it is passed on")]
    fn last(ended: &str) -> Option<LastPass> {
        Some(LastPass { snapshot: at(ended), ended: at(ended) })
    }

    #[test]
    fn an_interval_and_cron_say_when_and_why() {
        let every = plan("interval = \"1h\"");
        assert_eq!(next_pass(&every, None, None, at("2026-11-22T10:00:00Z")), None);
        assert_eq!(next_pass(&every, last("2026-11-22T10:00:00Z"), None, at("2026-11-22T11:00:00Z")), None);
        let wait = next_pass(&every, last("2026-11-22T10:00:00Z"), None, at("2026-11-22T10:59:59Z")).unwrap();
        assert_eq!(wait.until, Some(at("2026-11-22T11:00:00Z")));
        assert!(wait.why.contains("every 1h"), "{}", wait.why);

        let cron = plan("cron = \"30 22 * * * Europe/Berlin\"");
        let wait = next_pass(&cron, last("2026-11-22T10:00:00Z"), None, at("2026-11-22T10:00:01Z")).unwrap();
        assert_eq!(wait.until, Some(at("2026-11-22T21:30:00Z")));
        assert!(wait.why.contains("cron 30 22"), "{}", wait.why);
    }

    #[test]
    fn outside_the_copy_windows_passes_wait_and_are_held() {
        let nights = plan("every = \"1h\"\n[schedule.copy]\nwindows = [\"daily 22:00–05:00 Europe/Berlin\"]");
        let (noon, night) = (at("2026-11-22T12:00:00Z"), at("2026-11-22T23:00:00Z"));
        let opens = Some(at("2026-11-22T21:00:00Z"));
        let wait = next_pass(&nights, last("2026-11-22T04:00:00Z"), None, noon).unwrap();
        assert_eq!((wait.until, wait.why.starts_with("blocked until 2026-11-22 22:00 CET")), (opens, true));
        let wait = suspended(&nights, noon).unwrap();
        assert_eq!((wait.until, wait.why.starts_with("blocked until 2026-11-22 22:00 CET")), (opens, true));
        assert_eq!(suspended(&nights, night), None);
        assert_eq!(next_pass(&nights, last("2026-11-22T04:00:00Z"), None, night), None);
    }

    #[test]
    fn a_pass_is_pulled_forward_before_a_cutover() {
        let daily = plan("every = \"24h\"\n[schedule.cutover]\nwindows = [\"daily 22:00–04:00 UTC\"]");
        // The last pass took ten minutes.
        let last = Some(LastPass { snapshot: at("2026-11-22T09:50:00Z"), ended: at("2026-11-22T10:00:00Z") });
        let wait = next_pass(&daily, last, None, at("2026-11-22T12:00:00Z")).unwrap();
        assert!(
            wait.until.unwrap() < at("2026-11-22T21:50:00Z") && wait.why.contains("pulled forward"),
            "{wait:?}"
        );
        let any = plan("every = \"24h\"");
        let asked = Some(at("2026-11-22T14:00:00Z"));
        let wait = next_pass(&any, last, asked, at("2026-11-22T12:00:00Z")).unwrap();
        assert_eq!(wait.until, Some(at("2026-11-22T13:44:50Z")));
        assert_eq!(next_pass(&any, last, asked, at("2026-11-22T13:44:50Z")), None);
        let none = next_pass(&any, last, None, at("2026-11-22T12:00:00Z")).unwrap();
        assert_eq!(none.until, Some(at("2026-11-23T10:00:00Z")));
    }

    #[test]
    fn what_never_opens_again_waits_for_another_plan() {
        let over = plan("every = \"1h\"\n[schedule.copy]\nwindows = [\"2020-01-01 UTC\"]");
        let now = at("2026-11-22T12:00:00Z");
        assert_eq!(suspended(&over, now).unwrap().until, None);
        assert_eq!(next_pass(&over, last("2026-11-22T04:00:00Z"), None, now).unwrap().until, None);
    }

    #[test]
    fn a_schedule_that_cannot_be_asked_copies_nothing() {
        let wrong = plan("every = \"1h\"\ncron = \"* * * * * UTC\"");
        let wait = suspended(&wrong, at("2026-11-22T12:00:00Z")).unwrap();
        assert!(wait.until.is_none() && wait.why.contains("apply it again"), "{}", wait.why);
    }
}
