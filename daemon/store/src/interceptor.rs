//! What a caller may put between the store and SQLite: a simulation's faults.
//!
//! Rule: the store that is simulated is the store that ships; only what is handed in here differs. The daemon
//! hands in nothing.

use std::fmt;

use super::writer::Commit;

/// Called with the description of each read before it; an error is the read's.
pub(super) type BeforeRead = Box<dyn Fn(&str) -> rusqlite::Result<()> + Send + Sync>;

/// The functions between the store and SQLite. The default ones do nothing.
pub struct Interceptor {
    pub(super) commit: Commit,
    pub(super) before_read: BeforeRead,
}

impl Interceptor {
    /// Hands each transaction to `commit`, which makes it durable by calling its argument, or does not.
    #[must_use]
    pub fn with_commit(
        self,
        commit: impl Fn(&mut dyn FnMut() -> rusqlite::Result<()>) -> rusqlite::Result<()> + Send + 'static,
    ) -> Self {
        Self { commit: Box::new(commit), ..self }
    }

    /// Calls `before_read` with the description of each read before it; its error is the read's.
    #[must_use]
    pub fn with_reads(
        self,
        before_read: impl Fn(&str) -> rusqlite::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { before_read: Box::new(before_read), ..self }
    }
}

impl Default for Interceptor {
    fn default() -> Self {
        Self { commit: Box::new(|commit| commit()), before_read: Box::new(|_| Ok(())) }
    }
}

impl fmt::Debug for Interceptor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Interceptor").finish_non_exhaustive()
    }
}
