//! Read-only connections, opened when first needed.
//!
//! Rule: a reader sees one moment of the database and blocks no other reader or writer; a long report takes
//! one of a few, not all. Readers have threads of their own: whatever other call hangs, the state can be
//! read.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::{
    TURN,
    error::{StoreError, StoreFault, unavailable},
    execute, file, locked,
};

/// What its readers' threads are called.
const THREADS: &str = "the state";
/// Reads at the same time.
const READERS: usize = 4;

#[cfg(all(feature = "simulation", debug_assertions))]
thread_local! {
    static FAILING: std::cell::RefCell<(String, u32)> = const { std::cell::RefCell::new((String::new(), 0)) };
}

/// Lets the next `times` reads whose description begins so fail on this thread, as by an I/O error.
#[cfg(all(feature = "simulation", debug_assertions))]
pub fn fail_reads(what: &str, times: u32) {
    FAILING.set((what.to_owned(), times));
}

#[cfg(all(feature = "simulation", debug_assertions))]
fn is_to_fail(what: &str) -> bool {
    FAILING.with_borrow_mut(|(failing, times)| {
        let is_meant = *times > 0 && what.starts_with(failing.as_str());
        *times -= u32::from(is_meant);
        is_meant
    })
}

#[derive(Debug)]
pub(super) struct Readers {
    file: PathBuf,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    #[cfg(all(feature = "simulation", debug_assertions))]
    pub(super) on_the_spot: bool,
}

impl Readers {
    pub(super) fn new(file: PathBuf) -> Self {
        Self {
            file,
            turns: Arc::new(Semaphore::new(READERS)),
            idle: Mutex::new(Vec::new()),
            #[cfg(all(feature = "simulation", debug_assertions))]
            on_the_spot: false,
        }
    }

    pub(super) async fn run<T, F>(self: &Arc<Self>, what: &str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreFault> + Send + 'static,
    {
        #[cfg(all(feature = "simulation", debug_assertions))]
        if is_to_fail(what) {
            let cause = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_READ);
            return Err(StoreFault::Sql(rusqlite::Error::SqliteFailure(cause, None)).into_error(what));
        }
        let turn = tokio::time::timeout(TURN, self.turns.clone().acquire_owned())
            .await
            .map_err(|late| unavailable(what, late))?
            .map_err(|_| unavailable(what, "the state is closed"))?;
        #[cfg(all(feature = "simulation", debug_assertions))]
        if self.on_the_spot {
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
        let connection = idle.map_or_else(|| file::open_reader(&self.file), Ok)?;
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
