//! The connections of one disk: opened at once, and opened again when they are lost.
//!
//! Rule: a refusal is final for all of them, with its reason. A lost peer is an error only when no
//! connection came back within the patience of a request.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use warmd_cbt::units::Length;

use super::{
    connection::{self, Connection, Destination},
    error::WireError,
};

/// Pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
struct State {
    live: Vec<Arc<Connection>>,
    size: Option<Length>,
    /// Why the last connection failed or ended.
    last: Option<WireError>,
    /// Why no connection will come any more.
    refused: Option<WireError>,
    /// Attempts that failed, ever.
    failed: usize,
}

#[derive(Debug)]
struct Shared {
    to: Destination,
    state: Mutex<State>,
    /// Changes with the state.
    changed: watch::Sender<()>,
    stop: watch::Sender<bool>,
}

#[derive(Debug)]
pub(super) struct ConnectionPool {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
    count: usize,
}

impl ConnectionPool {
    /// Opens `count` connections at once, and waits for the first of them.
    ///
    /// # Errors
    /// If the peer refuses, or none of the attempts succeeds.
    pub(super) async fn open(to: Destination, count: usize) -> Result<(Self, Arc<Connection>), WireError> {
        let deadline = Instant::now() + to.patience;
        let state = Mutex::default();
        let shared =
            Arc::new(Shared { to, state, changed: watch::Sender::new(()), stop: watch::Sender::new(false) });
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            tasks.spawn(Arc::clone(&shared).keep());
        }
        let pool = Self { shared, tasks: Mutex::new(tasks), count };
        let first = pool.pick(deadline, Some(count)).await?;
        Ok((pool, first))
    }

    /// Connections that it tries to have.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Connections that are open now.
    pub(super) fn live(&self) -> usize {
        self.shared.state().live.len()
    }

    /// The connection with most room; if there is none, waits for one.
    pub(super) async fn get(&self, deadline: Instant) -> Result<Arc<Connection>, WireError> {
        self.pick(deadline, None).await
    }

    async fn pick(&self, deadline: Instant, attempts: Option<usize>) -> Result<Arc<Connection>, WireError> {
        let mut changed = self.shared.changed.subscribe();
        loop {
            {
                let state = self.shared.state();
                if let Some(refused) = &state.refused {
                    return Err(refused.clone());
                }
                let live = state.live.iter().filter(|connection| connection.ended().is_none());
                if let Some(connection) = live.max_by_key(|connection| connection.room()) {
                    return Ok(Arc::clone(connection));
                }
                if attempts.is_some_and(|most| state.failed >= most) {
                    return Err(state.last.clone().unwrap_or(WireError::Closed));
                }
            }
            if timeout_at(deadline, changed.changed()).await.is_err() {
                let last = self.shared.state().last.clone();
                return Err(
                    last.unwrap_or(WireError::Late("connecting to the peer", self.shared.to.patience))
                );
            }
        }
    }

    /// Says goodbye on all connections.
    pub(super) async fn close(self) {
        self.shared.stop.send_replace(true);
        let mut tasks = self.tasks.into_inner().unwrap_or_else(PoisonError::into_inner);
        while tasks.join_next().await.is_some() {}
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one connection open until it is refused, or the pool is closed.
    async fn keep(self: Arc<Self>) {
        let mut stop = self.stop.subscribe();
        let mut pause = FIRST_PAUSE;
        loop {
            let opened = tokio::select! {
                opened = connection::open(&self.to) => opened.and_then(|opened| self.admit(opened)),
                _ = stop.wait_for(|stop| *stop) => return,
            };
            let error = match opened {
                Ok((connection, running)) => {
                    pause = FIRST_PAUSE;
                    let error = running.run(async { drop(stop.wait_for(|stop| *stop).await) }).await;
                    self.state().live.retain(|other| !Arc::ptr_eq(other, &connection));
                    error
                }
                Err(error) => {
                    self.state().failed += 1;
                    error
                }
            };
            if matches!(error, WireError::Ended) {
                return;
            }
            let is_final = !error.is_transient();
            tracing::debug!(address = self.to.address, %error, is_final, "a connection to a mover ended");
            {
                let mut state = self.state();
                state.last = Some(error.clone());
                if is_final {
                    state.refused.get_or_insert(error);
                }
            }
            self.changed.send_replace(());
            if is_final {
                return;
            }
            tokio::select! {
                () = sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Adds a connection to a disk of the size that it had before.
    fn admit<R>(&self, opened: (Arc<Connection>, R)) -> Result<(Arc<Connection>, R), WireError> {
        let mut state = self.state();
        let now = opened.0.welcome.size;
        match state.size {
            Some(size) if size != now => return Err(WireError::OtherSize(size.0, now.0)),
            _ => state.size = Some(now),
        }
        state.live.push(Arc::clone(&opened.0));
        drop(state);
        self.changed.send_replace(());
        Ok(opened)
    }
}
