//! Migrations in the state that cannot be read.
//!
//! Rule: they are shown, with the reason; no work on them runs, nothing of them is deleted, and every request
//! to them is refused. If the cause is not the state itself but temporary, reading is retried, and a readable
//! migration continues.

use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;
use warmd_core::{
    clock,
    control::{ControlError, ControlErrorKind},
    model::{
        event_kind::EventKind,
        id::{MigrationId, VmId},
        plan::Plan,
    },
};
use warmd_store::{ReadRetry, Unreadable};

use super::manager::Manager;

/// The pauses before retries of reading: doubled each time, from the first to the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(5);

/// Retries what could not be read for now, until all is read or the daemon ends.
pub(super) async fn keep_reading(manager: Weak<Manager>, shutdown: CancellationToken) {
    loop {
        let Some(manager) = manager.upgrade() else { return };
        let passing = manager.all_unreadable().into_iter().filter_map(|it| Some((it.passing?.tries, it.id)));
        let passing: Vec<_> = passing.collect();
        // All of them failed for the first time at the start: later there are no more.
        let Some(tries) = passing.iter().map(|(tries, _)| *tries).min() else { return };
        let work = async {
            tokio::time::sleep(pause(tries)).await;
            for (_, id) in passing {
                Box::pin(manager.read_again(id)).await;
            }
        };
        if shutdown.run_until_cancelled(work).await.is_none() {
            return;
        }
    }
}

/// Why a migration has no plan. A temporary failure needs only time.
pub(super) fn without_plan(plan: &str, error: &ControlError) -> String {
    match error.kind {
        ControlErrorKind::Unavailable => format!("its plan {plan} cannot be read ({error})"),
        _ => format!("its plan cannot be read: apply plan {plan} again ({error})"),
    }
}

/// The pause before the next try, after `tries`.
fn pause(tries: u32) -> Duration {
    FIRST.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(LONGEST)
}

/// The retry to show after one more failure.
fn once_more(before: Option<ReadRetry>) -> ReadRetry {
    let now = clock::now();
    let tries = before.map_or(0, |retry| retry.tries).saturating_add(1);
    let next_try = TimeDelta::from_std(pause(tries)).ok().and_then(|pause| now.checked_add_signed(pause));
    ReadRetry { since: before.map_or(now, |retry| retry.since), next_try: next_try.unwrap_or(now), tries }
}

impl Manager {
    /// All that are not known to be finished.
    pub(super) fn all_unreadable(&self) -> Vec<Unreadable> {
        self.unread().values().cloned().collect()
    }

    pub(super) fn unreadable(&self, id: MigrationId) -> Option<Unreadable> {
        self.unread().get(&id).cloned()
    }

    /// The unreadable migration that moves this VM of this source.
    pub(super) fn unreadable_of(&self, source: &str, vm: &VmId) -> Option<Unreadable> {
        self.all_unreadable().into_iter().find(|each| each.source == source && each.vm == *vm)
    }

    /// A refusal, if the migration cannot be read.
    pub(super) fn check_readable(&self, id: MigrationId) -> Result<(), ControlError> {
        match self.unreadable(id) {
            None => Ok(()),
            Some(it) => Err(ControlError::new(ControlErrorKind::Refused, it.reason())),
        }
    }

    /// Records and reports that a migration cannot be read.
    pub(super) async fn know_unreadable(&self, it: Unreadable) {
        let text = format!("migration {} of VM {} of plan {}: {}", it.id, it.vm_name, it.plan, it.reason());
        self.unread().insert(it.id, it);
        self.tell(None, EventKind::Warning, text).await;
    }

    /// The same; temporary if `error` says so.
    pub(super) async fn know_unread(&self, it: Unreadable, error: &ControlError) {
        let is_passing = error.kind == ControlErrorKind::Unavailable;
        self.know_unreadable(Unreadable { passing: is_passing.then(|| once_more(None)), ..it }).await;
    }

    /// Resumes a migration that could not be read, if it can be read by now.
    async fn read_again(&self, id: MigrationId) {
        // Otherwise a plan that is applied meanwhile resumes it too, and it would have two drivers.
        let _one_at_a_time = self.change_alone().await;
        let Some(it) = self.unreadable(id).filter(|it| it.passing.is_some()) else { return };
        let started = async {
            let row = self.row(id).await?;
            let plan = self.plan_of(&row).await?;
            self.spawn_driver(row, plan).await
        };
        match started.await {
            Ok(_) => {
                let text = format!("migration {id} of VM {} can be read again, and goes on", it.vm_name);
                tracing::warn!("{text}");
                self.try_journal(Some(id), EventKind::Warning, text).await;
                // The journal comes first: who sees the migration readable finds why.
                self.unread().remove(&id);
            }
            Err(error) if error.kind == ControlErrorKind::Unavailable => {
                tracing::warn!(migration = %id, %error, "still not readable");
                let passing = Some(once_more(it.passing));
                self.unread().insert(id, Unreadable { why: error.to_string(), passing, ..it });
            }
            Err(error) => {
                self.know_unreadable(Unreadable { why: error.to_string(), passing: None, ..it }).await;
            }
        }
    }

    /// A plan with an invalid row was applied again: migrations that were unreadable because of it are
    /// resumed.
    pub(super) async fn start_readable(&self, plan: &Arc<Plan>) {
        for it in self.all_unreadable().into_iter().filter(|each| each.plan == plan.name) {
            let Ok(row) = self.row(it.id).await else { continue };
            if self.spawn_driver(row, Arc::clone(plan)).await.is_ok() {
                self.unread().remove(&it.id);
            }
        }
    }

    fn unread(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Unreadable>> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{context::Engine, manager::Endpoints};
    use warmd_store::Store;

    #[test]
    fn pauses_are_doubled_up_to_the_longest() {
        let pauses: Vec<_> = [0, 1, 2, 3, 9, 10, 11, u32::MAX].map(|tries| pause(tries).as_secs()).to_vec();
        assert_eq!(pauses, [1, 1, 2, 4, 256, 300, 300, 300]);
        let first = once_more(None);
        let second = once_more(Some(first));
        assert_eq!((first.tries, second.tries, second.since), (1, 2, first.since));
    }

    #[test]
    fn only_a_plan_that_stays_unreadable_is_to_be_applied_again() {
        let why = |kind| without_plan("web", &ControlError::new(kind, "an I/O error"));
        let (passing, lasting) = (why(ControlErrorKind::Unavailable), why(ControlErrorKind::Internal));
        assert!(!passing.contains("again") && passing.contains("an I/O error"), "{passing}");
        assert!(lasting.contains("apply plan web again") && lasting.contains("an I/O error"), "{lasting}");
    }

    #[tokio::test]
    async fn nothing_is_waited_for_when_all_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (store, shutdown) = (Store::open(dir.path()).unwrap(), CancellationToken::new());
        let manager =
            Manager::start(store, Endpoints::default(), Engine::for_tests(), shutdown.clone()).await.unwrap();
        let reading = keep_reading(Arc::downgrade(&manager), CancellationToken::new());
        tokio::time::timeout(Duration::from_secs(5), reading).await.expect("there is nothing to read");
        shutdown.cancel();
    }
}
