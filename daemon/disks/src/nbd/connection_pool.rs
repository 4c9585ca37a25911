//! The connections of one disk, and their reconnection.
//!
//! Rule: a request goes to the open connection with the most room. When none is open, one request at a time
//! tries to reach the server, waiting longer from attempt to attempt, and each request fails when its own
//! deadline passes. A request that met a lost connection is repeated, unless it is a flush: the writes that
//! it covered may be gone. No request is repeated after a timeout or a violation.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::Instrument as _;

use super::{
    call::{Call, CallReply, Failed},
    connection::NbdConnection,
    dial,
    durability::Durability,
    error::{NbdCause, NbdError},
    handshake::Export,
    late_changes::LateChanges,
    options::NbdOptions,
    wire::{ExportFlags, NbdCommand},
};

/// The wait before the second attempt to reach a lost server; it doubles from attempt to attempt.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long opening waits for connections beyond the first. A server that serves fewer leaves the others
/// hanging.
const EXTRA_WAIT: Duration = Duration::from_secs(3);

/// All connections of one disk.
#[derive(Debug)]
pub(super) struct ConnectionPool {
    options: NbdOptions,
    /// The export as the first connection found it; later ones must find the same.
    export: Export,
    places: Vec<Mutex<Option<Arc<NbdConnection>>>>,
    next: AtomicUsize,
    durability: Arc<Durability>,
    late_changes: Arc<LateChanges>,
    /// Taken by the request that tries to reach a lost server.
    gate: tokio::sync::Mutex<Backoff>,
}

#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
    /// When a lane beside open ones may be tried again.
    revive_at: Option<Instant>,
}

impl ConnectionPool {
    /// Opens the first connection, and more if the server allows.
    pub(super) async fn open(options: NbdOptions) -> Result<Self, NbdError> {
        let late_changes = LateChanges::of(&options);
        if options.writable {
            // Before the server is asked for a connection: it may allow only one, and that one is in use.
            late_changes.settled(options.request_timeout).await?;
        }
        let first = dial::open(&options).await?;
        let export = first.2.clone();
        if options.writable && export.flags.has(ExportFlags::READ_ONLY) {
            return Err(NbdError::of(NbdCause::ReadOnly));
        }
        if options.writable {
            late_changes.begin(export.size, options.unknown_past);
            late_changes.settled(options.request_timeout).await?;
        }
        let durability = Arc::new(Durability::default());
        let start = |parts| {
            let connection = NbdConnection::start(
                parts,
                options.in_flight,
                options.request_timeout,
                &durability,
                &late_changes,
            );
            Mutex::new(Some(Arc::new(connection)))
        };
        let mut places = vec![start(first)];
        if export.flags.has(ExportFlags::MULTI_CONN) && options.connections > 1 {
            let with_short_timeout = with_short_timeout(&options);
            let extra = (1..options.connections).map(|_| dial::open(&with_short_timeout));
            for opened in futures::future::join_all(extra).await {
                match opened {
                    Ok(parts) => {
                        same(&export, &parts.2)?;
                        places.push(start(parts));
                    }
                    Err(error) => tracing::debug!(%error, "NBD server gives no further connection"),
                }
            }
        }
        Ok(Self {
            options,
            export,
            places,
            next: AtomicUsize::new(0),
            durability,
            late_changes,
            gate: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn options(&self) -> &NbdOptions {
        &self.options
    }

    pub(super) fn export(&self) -> &Export {
        &self.export
    }

    pub(super) fn durability(&self) -> &Durability {
        &self.durability
    }

    /// Changes that earlier connections to the export may still make.
    pub(super) fn late_changes(&self) -> &LateChanges {
        &self.late_changes
    }

    /// Connections that were opened.
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    /// Makes a request on some connection, and again on another if the first is lost. Gives the connection's
    /// meta contexts with the answer, whose numbers are that connection's.
    pub(super) async fn call(
        self: &Arc<Self>,
        call: Call,
    ) -> Result<(CallReply, Arc<NbdConnection>), NbdError> {
        let (at, mut call) = (call.at(), call);
        let mut patience = RetryDeadline::new(self.options.reconnect_for);
        loop {
            let connection = self.connection(&mut patience).await.map_err(|error| error.at(at))?;
            match connection.call(call).await {
                Ok(answer) => return Ok((answer, connection)),
                Err(Failed { error, call: Some(again) })
                    if error.lost_connection() && again.command != NbdCommand::Flush =>
                {
                    patience.spend(error).await?;
                    call = again;
                }
                Err(Failed { error, .. }) => return Err(error),
            }
        }
    }

    /// Says goodbye to the server on every connection.
    pub(super) async fn close(&self) {
        for lane in &self.places {
            let connection = lane.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(task) = connection.and_then(|connection| connection.take_task()) else { continue };
            // Sending a farewell must not delay any caller.
            let _ = tokio::time::timeout(self.options.request_timeout, task).await;
        }
    }

    async fn connection(
        self: &Arc<Self>,
        patience: &mut RetryDeadline,
    ) -> Result<Arc<NbdConnection>, NbdError> {
        if let Some(open) = self.roomiest() {
            self.reconnect();
            return Ok(open);
        }
        if self.options.reconnect_for.is_zero() {
            return Err(NbdError::of(NbdCause::Closed("it has ended, and reconnecting is off")));
        }
        let mut backoff = patience.wait_for(self.gate.lock()).await?;
        loop {
            if let Some(open) = self.roomiest() {
                return Ok(open);
            }
            let lane = self.next.fetch_add(1, Ordering::Relaxed) % self.places.len();
            match patience.wait_for(self.reopen(lane, &self.options)).await.and_then(|reopened| reopened) {
                Ok(connection) => {
                    backoff.failures = 0;
                    return Ok(connection);
                }
                Err(error) if error.may_come_back() => {
                    let wait = wait_after(backoff.failures);
                    backoff.failures = backoff.failures.saturating_add(1);
                    tracing::debug!(%error, ?wait, "NBD server not reached");
                    patience.sleep(wait, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn roomiest(&self) -> Option<Arc<NbdConnection>> {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let mut best: Option<Arc<NbdConnection>> = None;
        for step in 0..self.places.len() {
            let lane = &self.places[(start.wrapping_add(step)) % self.places.len()];
            let lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(connection) = lane.as_ref().filter(|connection| connection.is_open()) else { continue };
            if best.as_ref().is_none_or(|best| connection.room() > best.room()) {
                best = Some(Arc::clone(connection));
            }
        }
        best
    }

    /// Reopens a lane, in place of a connection that has ended.
    async fn reopen(&self, lane: usize, options: &NbdOptions) -> Result<Arc<NbdConnection>, NbdError> {
        let parts = dial::open(options).await?;
        same(&self.export, &parts.2)?;
        let (in_flight, timeout) = (self.options.in_flight, self.options.request_timeout);
        let connection =
            NbdConnection::start(parts, in_flight, timeout, &self.durability, &self.late_changes);
        let connection = Arc::new(connection);
        let mut place = self.places[lane].lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Tries in the background to open one lost lane again while others work.
    fn reconnect(self: &Arc<Self>) {
        let lost = self.places.iter().position(|lane| {
            let lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            lane.as_ref().is_none_or(|connection| !connection.is_open())
        });
        let Some(lane) = lost.filter(|_| !self.options.reconnect_for.is_zero()) else { return };
        let now = Instant::now();
        let Ok(mut backoff) = self.gate.try_lock() else { return };
        if backoff.revive_at.is_some_and(|at| now < at) {
            return;
        }
        backoff.revive_at = Some(now + LONGEST_WAIT);
        drop(backoff);
        let lanes = Arc::clone(self);
        let reopening = async move {
            match lanes.reopen(lane, &with_short_timeout(&lanes.options)).await {
                Ok(_) => lanes.gate.lock().await.revive_at = None,
                Err(error) => tracing::debug!(%error, lane, "NBD connection not reopened"),
            }
        };
        tokio::spawn(reopening.in_current_span());
    }
}

/// How long one request is retried after the first lost connection.
#[derive(Debug)]
struct RetryDeadline {
    total: Duration,
    until: Option<Instant>,
    /// Connections that this request has lost.
    spent: u32,
}

impl RetryDeadline {
    fn new(total: Duration) -> Self {
        Self { total, until: None, spent: 0 }
    }

    fn until(&mut self) -> Instant {
        *self.until.get_or_insert_with(|| Instant::now() + self.total)
    }

    /// A connection was lost under the request; waits before another attempt if that happened before.
    async fn spend(&mut self, error: NbdError) -> Result<(), NbdError> {
        let wait = if self.spent == 0 { Duration::ZERO } else { wait_after(self.spent - 1) };
        self.spent = self.spent.saturating_add(1);
        self.sleep(wait, error).await
    }

    /// Waits, or gives `error` back if the deadline would have passed after that.
    async fn sleep(&mut self, wait: Duration, error: NbdError) -> Result<(), NbdError> {
        let until = self.until();
        if Instant::now() + wait >= until {
            return Err(error);
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    async fn wait_for<T>(&mut self, work: impl Future<Output = T>) -> Result<T, NbdError> {
        let (waiting, after) = ("waiting for the server to come back", self.total);
        tokio::time::timeout_at(self.until(), work)
            .await
            .map_err(|_| NbdError::of(NbdCause::Timeout { waiting, after }))
    }
}

/// The options for a connection that the disk does not need.
fn with_short_timeout(options: &NbdOptions) -> NbdOptions {
    NbdOptions {
        connect_timeout: options.connect_timeout.min(EXTRA_WAIT),
        handshake_timeout: options.handshake_timeout.min(EXTRA_WAIT),
        ..options.clone()
    }
}

fn wait_after(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.min(16)).min(LONGEST_WAIT)
}

/// Fails unless a later connection found the same export as the first.
fn same(first: &Export, later: &Export) -> Result<(), NbdError> {
    let names = |export: &Export| {
        let mut names: Vec<_> = export.contexts.iter().map(|(_, name)| name.clone()).collect();
        names.sort();
        names
    };
    let change = if first.size != later.size {
        format!("it had {} bytes, now {}", first.size, later.size)
    } else if names(first) != names(later) {
        format!("it had the meta contexts {:?}, now {:?}", names(first), names(later))
    } else if (first.flags, first.blocks) != (later.flags, later.blocks) {
        "its flags or block sizes are others".into()
    } else {
        return Ok(());
    };
    Err(NbdError::of(NbdCause::Changed(change)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<_> = (0..8).map(|n| wait_after(n).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(wait_after(u32::MAX), LONGEST_WAIT);
    }
}
