//! The reason for which a migration's work waits before a retry, for view and journal.
//!
//! Rule: nothing is decided from it. Only here is kept since when it waits and when that was last reported;
//! an unchanged reason is journaled once, however often it occurs. A copy older than its RPO target is
//! reported elsewhere (`overdue.rs`), for every reason.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use warmd_core::{
    clock,
    model::{event_kind::EventKind, view::WaitingView},
};

use super::{
    context::Context,
    failure::{Remedy, WorkError},
};

/// One piece of work, from its first failure on.
#[derive(Debug)]
pub(super) struct RetryReporter<'a> {
    context: &'a Context,
    begun: Option<Begun>,
    told: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Begun {
    wall: DateTime<Utc>,
    tries: u32,
}

impl<'a> RetryReporter<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        Self { context, begun: None, told: None }
    }

    /// The work ran for so long that a further failure counts as new.
    pub(super) fn begin_again(&mut self) {
        self.begun = None;
    }

    /// Shows and reports that it failed, and that the retry comes after `pause`.
    pub(super) async fn report(&mut self, doing: &str, error: &WorkError, pause: Duration) {
        let now = clock::now();
        let begun = self.begun.get_or_insert(Begun { wall: now, tries: 0 });
        begun.tries += 1;
        let begun = *begun;
        let reason = error.to_string();
        let view = WaitingView {
            reason: reason.clone(),
            since: begun.wall,
            next_try: TimeDelta::from_std(pause).ok().and_then(|pause| now.checked_add_signed(pause)),
            tries: begun.tries,
            advice: advice(error.remedy).to_owned(),
        };
        self.context.live.update(|live| live.waiting = Some(view));
        if self.told.as_ref() != Some(&reason) {
            let text = match error.remedy {
                Remedy::Wait => format!("{doing} waits: {reason}"),
                Remedy::Retry | Remedy::Operator | Remedy::NextWindow | Remedy::NeedsDecision => {
                    format!("{doing}: {reason}")
                }
            };
            self.context.log_event(EventKind::Failure, text).await;
            self.told = Some(reason);
        }
    }
}

impl Context {
    /// Clears the reason for waiting.
    pub(super) fn waits_no_more(&self) {
        if self.live.view().waiting.is_some() {
            self.live.update(|view| view.waiting = None);
        }
    }
}

fn advice(remedy: Remedy) -> &'static str {
    match remedy {
        Remedy::Wait => "nothing, if it passes: it is tried again until it does",
        Remedy::Retry => "nothing yet: it is tried again; look at the reason if it stays the same",
        Remedy::Operator | Remedy::NextWindow | Remedy::NeedsDecision => {
            "remove the cause that the reason names: it is tried again until then"
        }
    }
}
