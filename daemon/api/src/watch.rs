//! The stream behind `Migrations.Watch`: the present state, then every change.
//!
//! Rule: memory does not grow with the reader's slowness. Unread changes wait in the daemon's one bounded
//! broadcast; if they are gone from there, the reader gets the present state again instead of the missed
//! changes. A reader whose role is revoked gets no further change.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use warmd_core::{
    control::{Control as _, ControlError},
    guarded::Guarded,
    model::{id::MigrationId, view::MigrationView},
};
use warmd_proto::v1::{MigrationsWatchResponse, WatchKind};

use super::{convert, status::status};

/// After this long without a change, the reader gets a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The watched migrations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WatchFilter {
    One(MigrationId),
    Plan(String),
    All,
}

impl WatchFilter {
    fn holds(&self, view: &MigrationView) -> bool {
        match self {
            Self::One(id) => view.id == *id,
            Self::Plan(plan) => view.plan == *plan,
            Self::All => true,
        }
    }
}

/// One reader's position in the changes.
pub(super) struct Watcher {
    control: Guarded,
    changes: Receiver<MigrationView>,
    scope: WatchFilter,
    until_final: bool,
    keepalive: Duration,
    /// Present states that are still to be sent.
    current: VecDeque<MigrationView>,
    /// Migrations that were sent and are not final.
    open: BTreeSet<MigrationId>,
    /// Whether the present state must be fetched.
    stale: bool,
    ended: bool,
}

impl Watcher {
    /// A reader of `changes`, which must have been opened before now.
    pub(super) fn new(
        control: Guarded,
        changes: Receiver<MigrationView>,
        scope: WatchFilter,
        until_final: bool,
    ) -> Self {
        Self {
            control,
            changes,
            scope,
            until_final,
            keepalive: KEEPALIVE,
            current: VecDeque::new(),
            open: BTreeSet::new(),
            stale: true,
            ended: false,
        }
    }

    /// The stream; it ends at `shutdown`.
    pub(super) fn into_stream(
        self,
        shutdown: CancellationToken,
    ) -> impl Stream<Item = Result<MigrationsWatchResponse, Status>> + Send {
        stream::unfold((self, shutdown), |(mut watcher, shutdown)| async move {
            let next = tokio::select! {
                () = shutdown.cancelled() => None,
                next = watcher.next() => next,
            }?;
            Some((next, (watcher, shutdown)))
        })
    }

    async fn next(&mut self) -> Option<Result<MigrationsWatchResponse, Status>> {
        let silence = Instant::now() + self.keepalive;
        loop {
            if self.ended {
                return None;
            }
            if self.stale {
                match self.look().await {
                    Ok(views) => self.current = views.into(),
                    Err(error) => {
                        self.ended = true;
                        return Some(Err(status(&error)));
                    }
                }
                self.stale = false;
            }
            if let Some(view) = self.current.pop_front() {
                return Some(Ok(self.response(WatchKind::Current, view)));
            }
            if self.until_final && self.open.is_empty() {
                return None;
            }
            let change = tokio::select! {
                change = self.changes.recv() => Some(change),
                () = sleep_until(silence) => None,
            };
            if let Err(error) = self.control.may_look() {
                self.ended = true;
                return Some(Err(status(&error)));
            }
            match change {
                None => {
                    let kind = WatchKind::Keepalive.into();
                    return Some(Ok(MigrationsWatchResponse { kind, migration: None }));
                }
                Some(Ok(view)) if self.scope.holds(&view) && self.control.sees(&view.plan) => {
                    return Some(Ok(self.response(WatchKind::Change, view)));
                }
                Some(Ok(_)) => {}
                Some(Err(RecvError::Lagged(missed))) => {
                    tracing::debug!(missed, "a watcher is slow; it gets the present state again");
                    self.stale = true;
                }
                Some(Err(RecvError::Closed)) => self.ended = true,
            }
        }
    }

    async fn look(&self) -> Result<Vec<MigrationView>, ControlError> {
        match &self.scope {
            WatchFilter::One(id) => Ok(vec![self.control.migration(&id.to_string()).await?]),
            WatchFilter::Plan(plan) => self.control.migrations(Some(plan)).await,
            WatchFilter::All => self.control.migrations(None).await,
        }
    }

    fn response(&mut self, kind: WatchKind, view: MigrationView) -> MigrationsWatchResponse {
        if view.state.is_final() {
            self.open.remove(&view.id);
        } else {
            self.open.insert(view.id);
        }
        MigrationsWatchResponse { kind: kind.into(), migration: Some(convert::migration(view)) }
    }
}
