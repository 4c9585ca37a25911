//! The one thread that writes.
//!
//! Rule: an answer goes out after the transaction that holds its work is durable. Work that waits in the
//! queue shares a transaction (a disk's flush is what a commit costs), each piece in its own savepoint: all
//! of it or nothing.
//!
//! When nothing has come for a while, and much of a manifest waits to be compacted, it does so, a step at a
//! time.

use std::{collections::BTreeSet, sync::Arc, thread::JoinHandle, time::Duration};

use rusqlite::{Connection, ffi};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use warmd_cbt::{store::DiskId, telemetry::Histogram};

use super::{
    error::{StoreError, StoreErrorKind, StoreFault, from_sql, unavailable},
    execute,
    lock::StateLock,
    manifest_log::{self, CompactionDue},
};

/// Pieces of work that may wait; a caller beyond that waits for a place.
pub(super) const QUEUE: usize = 64;
/// A transaction takes no further piece after this time, so that the first answer is not late.
const GROUP_SPAN: Duration = Duration::from_millis(50);
/// After so long without work, the thread is idle.
const IDLE: Duration = Duration::from_secs(1);

pub(super) type Queue = mpsc::Sender<Box<dyn WriteJob>>;
pub(super) type WriterThread = JoinHandle<rusqlite::Result<()>>;

/// The outcome of the shared transaction.
type CommitOutcome = Result<(), Arc<rusqlite::Error>>;

/// A piece of work in the queue.
pub(super) trait WriteJob: Send {
    /// Does it within a savepoint, and undoes it if it fails.
    fn apply(&mut self, connection: &Connection);
    /// Sends the answer, once the transaction is durable or lost.
    fn answer(self: Box<Self>, outcome: &CommitOutcome);
}

/// Work, and its waiting caller.
pub(super) struct Task<F, T> {
    pub(super) what: String,
    pub(super) work: Option<F>,
    pub(super) result: Option<Result<T, StoreFault>>,
    pub(super) reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> WriteJob for Task<F, T>
where
    F: FnOnce(&Connection) -> Result<T, StoreFault> + Send,
    T: Send,
{
    fn apply(&mut self, connection: &Connection) {
        self.result = self.work.take().map(|work| in_savepoint(connection, work));
    }

    fn answer(self: Box<Self>, outcome: &CommitOutcome) {
        let answer = match (self.result, outcome) {
            (Some(Err(fault)), _) => Err(fault.into_error(&self.what)),
            (_, Err(lost)) => Err(from_sql(lost, &self.what)),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (None, Ok(())) => Err(unavailable(&self.what, "it was not begun")),
        };
        // No caller waits any more: the work is done all the same.
        let _ = self.reply.send(answer);
    }
}

fn in_savepoint<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, StoreFault>,
) -> Result<T, StoreFault> {
    execute(connection, "SAVEPOINT job")?;
    let result = work(connection);
    let ended = match &result {
        Ok(_) => execute(connection, "RELEASE job"),
        // SQLite itself undoes the whole transaction after some errors, such as a full disk.
        Err(_) if connection.is_autocommit() => Ok(()),
        Err(_) => connection.execute_batch("ROLLBACK TO job; RELEASE job"),
    };
    match ended {
        Ok(()) => result,
        Err(error) => {
            roll_back(connection);
            Err(error.into())
        }
    }
}

/// Starts the thread. It ends when the queue's senders are gone, then empties the write-ahead log and drops
/// the lock.
pub(super) fn spawn(
    writer: Writer,
    lock: StateLock,
    lost: CancellationToken,
) -> std::io::Result<(Queue, WriterThread)> {
    let (sender, queue) = mpsc::channel(QUEUE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let thread = std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || {
        // A panic drops it.
        let lost = lost.drop_guard();
        let closed = runtime.block_on(writer.run(queue));
        lost.disarm();
        drop(lock);
        closed
    })?;
    Ok((sender, thread))
}

/// The function that gets the commit of a transaction, and runs it.
pub(super) type Commit = Box<dyn Fn(&mut dyn FnMut() -> rusqlite::Result<()>) -> rusqlite::Result<()> + Send>;

/// The writing side.
pub(super) struct Writer {
    pub(super) connection: Connection,
    /// How long commits took.
    pub(super) commits: Arc<Histogram>,
    pub(super) commit: Commit,
}

impl Writer {
    /// Works until the queue's senders are gone.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Box<dyn WriteJob>>) -> rusqlite::Result<()> {
        let mut compaction = Compaction::default();
        let mut due = compaction.due(&self.connection);
        let mut patience = IDLE;
        loop {
            let next = match due {
                Some(_) => tokio::time::timeout(patience, queue.recv()).await,
                None => Ok(queue.recv().await),
            };
            match (next, due) {
                (Ok(Some(first)), _) => {
                    self.run_group(first, &mut queue);
                    patience = IDLE;
                    due = compaction.due(&self.connection);
                }
                (Ok(None), _) => break,
                (Err(_), Some(now)) => {
                    patience = Duration::ZERO;
                    due = compaction.step(&self, now);
                }
                (Err(_), None) => {}
            }
            while let Some(now) = due.filter(|due| due.urgent) {
                due = compaction.step(&self, now);
            }
        }
        close(self.connection)
    }

    fn run_group(&self, first: Box<dyn WriteJob>, queue: &mut mpsc::Receiver<Box<dyn WriteJob>>) {
        let connection = &self.connection;
        if let Err(error) = execute(connection, "BEGIN IMMEDIATE") {
            first.answer(&Err(Arc::new(error)));
            return;
        }
        let began = Instant::now();
        let mut done = Vec::new();
        let mut next = Some(first);
        while let Some(mut job) = next {
            job.apply(connection);
            done.push(job);
            let full = done.len() >= QUEUE || began.elapsed() >= GROUP_SPAN || connection.is_autocommit();
            next = if full { None } else { queue.try_recv().ok() };
        }
        let commit = Instant::now();
        let outcome = self.end_transaction().map_err(Arc::new);
        if outcome.is_ok() {
            self.commits.record(commit.elapsed());
        }
        for job in done {
            job.answer(&outcome);
        }
    }

    fn end_transaction(&self) -> rusqlite::Result<()> {
        if self.connection.is_autocommit() {
            return Err(rusqlite::Error::SqliteFailure(
                ffi::Error::new(ffi::SQLITE_ABORT_ROLLBACK),
                Some("a write beside it failed and took it along".to_owned()),
            ));
        }
        (self.commit)(&mut || execute(&self.connection, "COMMIT"))
            .inspect_err(|_| roll_back(&self.connection))
    }
}

/// The compaction of manifests between commits.
#[derive(Default)]
struct Compaction {
    /// Disks whose recent hashes are damaged: they stay as they are, and keep no other disk from being
    /// compacted.
    damaged: BTreeSet<DiskId>,
}

impl Compaction {
    fn due(&self, connection: &Connection) -> Option<CompactionDue> {
        manifest_log::due(connection, &self.damaged).unwrap_or_else(|fault| {
            let error = fault.into_error("looking for manifests to compact");
            tracing::warn!(%error, "manifests are not compacted");
            None
        })
    }

    /// Takes a step, and returns the next one; `None` after a passing failure: the next commit tries again.
    fn step(&mut self, writer: &Writer, now: CompactionDue) -> Option<CompactionDue> {
        let connection = &writer.connection;
        let step = || -> Result<(), StoreFault> {
            execute(connection, "BEGIN IMMEDIATE")?;
            manifest_log::compact(connection, now.disk)?;
            Ok(writer.end_transaction()?)
        };
        if let Err(fault) = step() {
            roll_back(connection);
            let error = fault.into_error(&format!("compacting the manifest of disk {}", now.disk.0));
            tracing::warn!(%error, "what is recent of it stays as it is");
            if error.kind != StoreErrorKind::Corrupt {
                return None;
            }
            self.damaged.insert(now.disk);
        }
        self.due(connection)
    }
}

fn roll_back(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "rolling back a failed transaction");
    }
}

fn close(connection: Connection) -> rusqlite::Result<()> {
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(%error, "the state stays in its write-ahead log, from which the next start reads it");
    }
    connection.close().map_err(|(_, error)| error)
}
