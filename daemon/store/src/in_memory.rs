//! A store in memory: the same tables and the same SQL, written by a task of the runtime.
//!
//! Rule: it never waits for another thread, because a simulation's paused clock would not wait for that
//! thread.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tokio::sync::mpsc;
use warmd_cbt::telemetry::Histogram;

use super::{
    Inner, Interceptor, OpenError, Store, file,
    readers::Readers,
    schema::UPGRADES,
    writer::{QUEUE, Writer},
};

impl Store {
    /// Creates the tables in the database `name`, as [`Store::in_memory`] would.
    pub fn lay_out(name: &str) -> Result<(), OpenError> {
        file::open_in_memory(Path::new(name), UPGRADES).map(drop)
    }

    /// Opens the database `name`, a URI of SQLite such as `file:/x?vfs=memdb`, which lives as long as a
    /// connection to it. It is not locked. Must be called within a tokio runtime.
    pub fn in_memory(name: &str, interceptor: Interceptor) -> Result<Self, OpenError> {
        let file = PathBuf::from(name);
        let connection = file::open_in_memory(&file, UPGRADES)?;
        let thinned = super::thin::Thinned::opened(&connection, &file)?;
        let commits = Arc::new(Histogram::default());
        let writer = Writer { connection, commits: Arc::clone(&commits), commit: interceptor.commit };
        let (queue, inbox) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            if let Err(error) = writer.run(inbox).await {
                tracing::warn!(%error, "closing the state");
            }
        });
        Ok(Self(Arc::new(Inner {
            readers: Arc::new(Readers::in_memory(file.clone(), interceptor.before_read)),
            file,
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(None),
            commits,
            failing: super::reserve::Failing::default(),
            thinned: Mutex::new(thinned),
            lost: tokio_util::sync::CancellationToken::new(),
        })))
    }
}
