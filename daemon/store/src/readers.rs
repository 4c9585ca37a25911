//! Read-only connections, opened when first needed.
//!
//! Rule: a reader sees one moment of the database and blocks no other reader or writer; a long report takes
//! one of a few, not all. Readers have threads of their own: whatever other call hangs, the state can be
//! read.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::{
    TURN,
    error::{StoreError, StoreFault, unavailable},
    execute, file,
    interceptor::BeforeRead,
    locked,
};

/// What its readers' threads are called.
const THREADS: &str = "the state";
/// Reads at the same time.
const READERS: usize = 4;

pub(super) struct Readers {
    file: PathBuf,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    before_read: BeforeRead,
    /// The database is in memory, and each read is done in the task that asks for it.
    is_in_memory: bool,
}

impl fmt::Debug for Readers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Readers").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Readers {
    pub(super) fn new(file: PathBuf, before_read: BeforeRead) -> Self {
        Self {
            file,
            turns: Arc::new(Semaphore::new(READERS)),
            idle: Mutex::new(Vec::new()),
            before_read,
            is_in_memory: false,
        }
    }

    pub(super) fn in_memory(file: PathBuf, before_read: BeforeRead) -> Self {
        Self { is_in_memory: true, ..Self::new(file, before_read) }
    }

    pub(super) async fn run<T, F>(self: &Arc<Self>, what: &str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreFault> + Send + 'static,
    {
        (self.before_read)(what).map_err(|cause| StoreFault::Sql(cause).into_error(what))?;
        let turn = tokio::time::timeout(TURN, self.turns.clone().acquire_owned())
            .await
            .map_err(|late| unavailable(what, late))?
            .map_err(|_| unavailable(what, "the state is closed"))?;
        if self.is_in_memory {
            let _turn = turn;
            return self.work(work).map_err(|fault| fault.into_error(what));
        }
        let readers = self.clone();
        let reading = move || {
            let result = readers.work(work);
            drop(turn);
            result
        };
        let lane = warmd_threads::named(THREADS.into()).map_err(|error| unavailable(what, error))?;
        lane.run(reading)
            .await
            .map_err(|error| unavailable(what, error))?
            .map_err(|fault| fault.into_error(what))
    }

    fn work<T>(&self, work: impl FnOnce(&Connection) -> Result<T, StoreFault>) -> Result<T, StoreFault> {
        let idle = locked(&self.idle).pop();
        let connection = match idle {
            Some(idle) => idle,
            None if self.is_in_memory => file::open_reader_in_memory(&self.file)?,
            None => file::open_reader(&self.file)?,
        };
        execute(&connection, "BEGIN")?;
        let result = work(&connection);
        let is_over = execute(&connection, "ROLLBACK").is_ok();
        if is_over && !self.turns.is_closed() {
            locked(&self.idle).push(connection);
        }
        result
    }

    /// No read begins after this; running ones end in their time.
    pub(super) fn close(&self) {
        self.turns.close();
        locked(&self.idle).clear();
    }
}
