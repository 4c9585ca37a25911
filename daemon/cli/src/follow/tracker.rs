//! When a requested operation has ended, and how: pure, from one view of the migration to the next.
//!
//! Rule: views may be missed, come twice, and may at first be older than the request. A state from before the
//! request never counts as its end.

use prost_types::Timestamp;
use warmd_proto::v1::{Migration, MigrationState as State, Verification};

use super::super::labels;

/// The requested task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Sync,
    Cutover,
    AbortCutover,
    Rollback,
    Cancel,
    Verify,
}

impl Task {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Cutover => "cutover",
            Self::AbortCutover => "abort of the cutover",
            Self::Rollback => "rollback",
            Self::Cancel => "cancel",
            Self::Verify => "verification",
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    /// Why it failed; `None` if it did not.
    pub(super) failure: Option<String>,
    /// Whether the verification in the last view is the requested one, and has a result.
    pub(super) has_result: bool,
}

/// Follows one task.
#[derive(Debug)]
pub(super) struct Tracker {
    task: Task,
    /// The pass that a sync waits for.
    pass: u32,
    /// The cutover that was finished before the request.
    old_cutover: Option<Timestamp>,
    /// The id of the requested verification.
    verification: String,
    /// Since when the migration had the state of the request.
    since: Option<Timestamp>,
    /// Whether the requested task was seen running.
    seen: bool,
    /// Whether it was seen, since then, in a state in which a verification may wait or run.
    rested: bool,
    /// The daemon was away meanwhile.
    was_away: bool,
    /// Why the cutover was undone, as the daemon reported it.
    undone: Option<String>,
}

impl Tracker {
    pub(super) fn new(task: Task, before: &Migration, verification: String) -> Self {
        let runs = matches!(before.state(), State::Seeding | State::Syncing);
        let last = before.pass.as_ref().map_or(0, |pass| pass.number);
        let over = before.cutover.as_ref().filter(|cutover| cutover.ended.is_some());
        let mut tracker = Self {
            task,
            pass: if runs { last.max(1) } else { last + 1 },
            old_cutover: over.and_then(|cutover| cutover.started),
            verification,
            since: before.since,
            seen: false,
            rested: false,
            was_away: false,
            undone: None,
        };
        tracker.notice(before);
        tracker
    }

    /// Whether it has ended.
    pub(super) fn look(&mut self, now: &Migration) -> Option<Ending> {
        self.notice(now);
        match self.task {
            Task::Sync => self.sync(now),
            Task::Cutover => self.cutover(now),
            Task::AbortCutover => abort(now),
            Task::Rollback => self.rollback(now),
            Task::Cancel => self.cancel(now),
            Task::Verify => self.verify(now),
        }
    }

    /// The daemon is back. Tasks that waited or ran in its earlier run are gone.
    pub(super) fn was_away(&mut self) {
        self.was_away = true;
    }

    fn notice(&mut self, now: &Migration) {
        let at_work = match self.task {
            Task::Cutover => matches!(now.state(), State::CuttingOver | State::Undoing),
            Task::Rollback => now.state() == State::RollingBack,
            Task::Cancel => now.state() == State::Cancelling,
            Task::Verify => self.is_ours(now.verification.as_ref()),
            Task::Sync | Task::AbortCutover => false,
        };
        self.seen |= at_work;
        self.rested |= !self.is_older(now) && matches!(now.state(), State::Synced | State::Done);
        if now.state() == State::Undoing && now.reason.is_some() {
            self.undone.clone_from(&now.reason);
        }
    }

    fn sync(&self, now: &Migration) -> Option<Ending> {
        match now.state() {
            State::Failed => return Some(failed(now.reason())),
            State::Paused => return Some(failed("it was paused")),
            State::CuttingOver | State::Undoing | State::RollingBack => {
                return Some(failed("a cutover began, which also copies what changed"));
            }
            State::Cancelling | State::Cancelled => return Some(failed("it was cancelled")),
            State::Done => return Some(done()),
            // A pass that ended in these still has to release its snapshot, or is tried again.
            State::Unspecified | State::Defined | State::Preparing | State::Seeding | State::Syncing => {
                return None;
            }
            State::Synced => {}
        }
        let pass = now.pass.as_ref().filter(|pass| pass.number >= self.pass)?;
        match (&pass.error, &pass.ended) {
            (Some(error), Some(_)) => Some(failed(format!("pass {}: {error}", pass.number))),
            (None, Some(_)) => Some(done()),
            (_, None) => None,
        }
    }

    fn cutover(&self, now: &Migration) -> Option<Ending> {
        match now.state() {
            State::CuttingOver | State::Undoing => None,
            State::Done => Some(done()),
            State::RollingBack => Some(failed("a rollback to the source was requested")),
            State::Failed => Some(failed(now.reason())),
            State::Cancelling | State::Cancelled => Some(failed("it was cancelled")),
            State::Unspecified
            | State::Defined
            | State::Preparing
            | State::Seeding
            | State::Synced
            | State::Syncing
            | State::Paused => {
                let ours = now.cutover.as_ref().filter(|cutover| cutover.started != self.old_cutover);
                let over = ours.is_some_and(|cutover| cutover.ended.is_some());
                let why = ours.and_then(|cutover| cutover.failure.clone()).or_else(|| self.undone.clone());
                let why =
                    why.unwrap_or_else(|| "the daemon does not say why; see `warmctl events`".to_owned());
                (self.seen || over).then(|| failed(format!("undone: {why}")))
            }
        }
    }

    fn rollback(&self, now: &Migration) -> Option<Ending> {
        match now.state() {
            State::RollingBack | State::Unspecified => None,
            // Views from before the request.
            State::Done | State::CuttingOver | State::Failed if !self.seen && self.is_older_or_same(now) => {
                None
            }
            _ => Some(done()),
        }
    }

    /// Whether this view shows the state at the request, or an earlier one.
    fn is_older_or_same(&self, now: &Migration) -> bool {
        self.is_older(now) || now.since == self.since
    }

    fn cancel(&self, now: &Migration) -> Option<Ending> {
        match now.state() {
            State::Cancelled => Some(done()),
            State::Done => Some(failed("it was done already")),
            // It may have failed before it was cancelled.
            State::Failed if self.seen => Some(failed(now.reason())),
            _ => None,
        }
    }

    fn is_ours(&self, run: Option<&Verification>) -> bool {
        run.is_some_and(|run| !self.verification.is_empty() && run.id == self.verification)
    }

    /// Whether this view is from before the request.
    fn is_older(&self, now: &Migration) -> bool {
        let moment = |at: &Timestamp| (at.seconds, at.nanos);
        now.since.as_ref().map(moment) < self.since.as_ref().map(moment)
    }

    fn verify(&self, now: &Migration) -> Option<Ending> {
        let run = now.verification.as_ref();
        let ours = run.filter(|run| self.is_ours(Some(run)));
        if let Some(run) = ours.filter(|run| run.ended.is_some()) {
            let failure = match (&run.error, &run.result) {
                (Some(error), _) => Some(error.clone()),
                (None, Some(result)) if result.passed => None,
                (None, Some(_)) => Some("the target does not hold what it must".to_owned()),
                (None, None) => Some("it came to no result".to_owned()),
            };
            return Some(Ending { failure, has_result: run.result.is_some() });
        }
        if self.is_older(now) {
            return None;
        }
        match now.state() {
            State::Failed => Some(failed(now.reason())),
            State::Cancelling | State::Cancelled => Some(failed("it was cancelled")),
            State::Synced | State::Done if ours.is_none() => {
                let others = run.is_some_and(|run| run.ended.is_none());
                // It waits for the one that runs, unless its own turn was finished.
                let gone = self.seen || self.was_away && !others;
                gone.then(|| failed("it is not known how it ended; see `warmctl events`, or ask again"))
            }
            State::Synced | State::Done => None,
            // One that runs still reports how it ends.
            _ if ours.is_none() && self.rested => {
                Some(failed("it was dropped before its turn came, as something else began; ask again"))
            }
            _ => None,
        }
    }
}

fn abort(now: &Migration) -> Option<Ending> {
    match now.state() {
        State::CuttingOver | State::Undoing => None,
        State::Done => Some(failed("it was too late: the VM runs on the target")),
        State::RollingBack => Some(failed("it was too late, and goes back to the source by a rollback")),
        State::Failed => Some(failed(now.reason())),
        State::Unspecified
        | State::Defined
        | State::Preparing
        | State::Seeding
        | State::Synced
        | State::Syncing
        | State::Paused
        | State::Cancelling
        | State::Cancelled => Some(done()),
    }
}

/// The outcome if no further view comes.
pub(super) fn cut_off(last: &Migration) -> Ending {
    failed(format!("the migration came to its end ({}) meanwhile", labels::state(last)))
}

fn done() -> Ending {
    Ending { failure: None, has_result: false }
}

fn failed(why: impl Into<String>) -> Ending {
    Ending { failure: Some(why.into()), has_result: false }
}
