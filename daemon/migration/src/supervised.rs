//! Supervision of the daemon's tasks that panic: a source VM may be off at that moment, and nothing else
//! would power it on.
//!
//! Rule: no panic goes unnoticed. A migration or a group is restarted once from the store, as after a restart
//! of the daemon. A second panic, or one outside a migration or group, ends the process, and the service
//! manager starts it again.

use std::{
    any::Any,
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use warmd_core::{
    clock,
    control::ControlError,
    model::{event_kind::EventKind, id::MigrationId, view::EventView},
    span,
};

use super::{context::Context, manager::Manager};

/// The kind of the journal lines about a panic.
const FAILURE: EventKind = EventKind::Failure;

/// The record of the supervision.
#[derive(Debug, Default)]
pub(super) struct Supervision {
    /// What was restarted after a panic: `migration ID`, `group ID`.
    again: Mutex<BTreeSet<String>>,
    /// Why the process must end.
    why: OnceLock<String>,
    ends: CancellationToken,
}

/// Runs `work`; the error is the panic's text.
pub(super) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| text(panic.as_ref()))
}

/// The text of a panic.
fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
}

impl Manager {
    /// Resolves with the reason when the daemon must end; the process then ends with a failure.
    pub async fn fatal(&self) -> String {
        self.supervision.ends.cancelled().await;
        self.supervision.why.get().cloned().unwrap_or_default()
    }

    /// Ends the process.
    pub(super) fn end(&self, why: String) {
        tracing::error!("{why}: the daemon ends, and is to be started again");
        // The first reason counts.
        let _ = self.supervision.why.set(why);
        self.supervision.ends.cancel();
    }

    /// Whether it is the first panic of `what`.
    fn is_first(&self, what: &str) -> bool {
        self.supervision.again.lock().unwrap_or_else(PoisonError::into_inner).insert(what.to_owned())
    }

    /// Runs `work` of the whole daemon: a panic ends the process.
    pub fn supervise(self: &Arc<Self>, what: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let manager = Arc::clone(self);
        self.owners.spawn(async move {
            if let Err(panic) = caught(work).await {
                manager.end(format!("{what} ended in a panic ({panic})"));
            }
        });
    }

    /// Detects that the store's writer ended before it was closed.
    pub(super) fn watch_store(self: &Arc<Self>) {
        let manager = Arc::clone(self);
        self.owners.spawn(async move {
            tokio::select! {
                biased;
                () = manager.store.lost() => manager.end("the state's writer ended in a panic".to_owned()),
                () = manager.shutdown.cancelled() => {}
            }
        });
    }

    /// Restarts a migration's driver from the store after a panic, once.
    // Boxed, as drivers start drivers here.
    pub(super) fn restart_driver(
        self: Arc<Self>,
        gone: Arc<Context>,
        panic: String,
    ) -> BoxFuture<'static, ()> {
        let span = span::migration_span(gone.id, &gone.machine.name);
        let again = async move {
            let (id, vm) = (gone.id, &gone.machine.name);
            let text = format!("the work on it ended in a panic ({panic})");
            if !self.is_first(&format!("migration {id}")) {
                self.tell(Some(id), FAILURE, format!("{text} again: the daemon ends")).await;
                self.end(format!("migration {id} of VM {vm}: {text} for the second time"));
                return;
            }
            self.tell(Some(id), FAILURE, format!("{text}: it is restarted from the state")).await;
            // A request meanwhile waits for the new driver.
            let _one_at_a_time = self.taking_up.lock().await;
            // Writes that the old driver started end before the new driver writes.
            gone.quiet().await;
            if let Err(error) = self.taken_from_store(gone.id).await {
                self.end(format!("migration {id} of VM {vm}: {text}, and it cannot be restarted: {error}"));
            }
        };
        Box::pin(again.instrument(span))
    }

    async fn taken_from_store(&self, id: MigrationId) -> Result<(), ControlError> {
        let row = self.row(id).await?;
        let plan = self.plan_of(&row).await?;
        self.spawn_driver(row, plan).await.map(drop)
    }

    /// Runs a group's `work`, and a second time if it panics.
    pub(super) async fn once_again<F: Future<Output = ()>>(
        &self,
        group: u64,
        plan: &str,
        work: impl Fn() -> F,
    ) {
        while let Err(panic) = caught(work()).await {
            let text = format!("the cutover of plan {plan} together ended in a panic ({panic})");
            if !self.is_first(&format!("group {group}")) {
                self.tell(None, FAILURE, format!("{text} again: the daemon ends")).await;
                self.end(format!("{text} for the second time"));
                return;
            }
            self.tell(None, FAILURE, format!("{text}: it is restarted from the state")).await;
        }
    }

    /// Writes an error to the log, and a line of that kind to the journal, if possible; the caller continues
    /// in both cases.
    pub(super) async fn tell(&self, migration: Option<MigrationId>, kind: EventKind, text: String) {
        tracing::error!("{text}");
        self.try_journal(migration, kind, text).await;
    }

    /// Writes a line to the journal, if possible; the caller continues in both cases.
    pub(super) async fn try_journal(&self, migration: Option<MigrationId>, kind: EventKind, text: String) {
        let line = EventView { at: clock::now(), migration, by: "warmd".to_owned(), kind, text };
        if let Err(error) = self.store.append_events(vec![line]).await {
            tracing::error!(%error, "journal not written");
        }
    }
}
