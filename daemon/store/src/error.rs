//! Failures of the state, sorted by their remedy.
//!
//! Rule: every failure names the operation; the cause stays as SQLite or the system reported it.

use std::{error::Error, fmt, io, path::PathBuf, sync::Arc};

use rusqlite::{ErrorCode, ffi};
pub use warmd_cbt::store::{StoreError, StoreErrorKind};

/// Why the state cannot be opened. Nothing was changed, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon has it.
    #[error("{dir} is in use by another warmd{}: {}", named(*pid), advice(dying.as_deref()))]
    Locked {
        dir: PathBuf,
        pid: Option<u32>,
        /// Why it has not ended although it was killed, if so.
        dying: Option<String>,
    },
    /// The file is no warmd database.
    #[error(
        "{file} is not a warmd database ({why}); it was left as it is: move it away, or set another `state_dir`"
    )]
    NotOurs { file: PathBuf, why: String },
    /// The file was written by a newer warmd.
    #[error(
        "{file} has schema {found}, and this warmd knows up to {known}; it was left as it is: run the newer warmd"
    )]
    Newer { file: PathBuf, found: i32, known: i32 },
    /// The file is a warmd database, and damaged.
    #[error("{file} is damaged, and was left as it is: restore it from a backup: {cause}")]
    Damaged {
        file: PathBuf,
        #[source]
        cause: rusqlite::Error,
    },
    /// An upgrade failed; the schema is that of `from`.
    #[error("upgrading {file} from schema {from} failed, and was undone: {cause}")]
    Upgrade {
        file: PathBuf,
        from: i32,
        #[source]
        cause: rusqlite::Error,
    },
    /// SQLite cannot use it now: no room, an I/O error, a read-only file system.
    #[error("cannot {what} {file}: {cause}")]
    Database {
        what: &'static str,
        file: PathBuf,
        #[source]
        cause: rusqlite::Error,
    },
    /// Other users could replace the state there.
    #[error(
        "others can write into {dir} (mode {mode:04o}): take that right from them (chmod go-w), or set another `state_dir`"
    )]
    Exposed { dir: PathBuf, mode: u32 },
    /// It belongs to another user.
    #[error(
        "{dir} belongs to user {owner}, and warmd runs as user {me}: give it over (chown {me} {dir}), or set another `state_dir`"
    )]
    Foreign { dir: PathBuf, owner: u32, me: u32 },
    /// The system refuses a call.
    #[error("cannot {what} {path}: {cause}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

fn advice(dying: Option<&str>) -> String {
    match dying {
        None => "stop that one first, or set another `state_dir`".to_owned(),
        Some(why) => format!(
            "it was killed and cannot end, as {why}. What it had begun to write may still happen, so its state is not \
             taken over: let the storage answer again, or detach it (`umount -f`, `umount -l`), or restart the host"
        ),
    }
}

fn named(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// A failure that leaves the store.
#[derive(Debug)]
pub(super) enum StoreFault {
    Sql(rusqlite::Error),
    /// A row that warmd cannot have written, or cannot write.
    Bad {
        table: &'static str,
        row: String,
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The named row does not exist.
    Missing(String),
}

impl From<rusqlite::Error> for StoreFault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl StoreFault {
    pub(super) fn bad(
        table: &'static str,
        row: impl fmt::Display,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Bad { table, row: row.to_string(), cause: cause.into() }
    }

    pub(super) fn into_error(self, context: &str) -> StoreError {
        match self {
            Self::Sql(error) => from_sql(&Arc::new(error), context),
            Self::Bad { table, row, cause } => StoreError {
                kind: StoreErrorKind::Corrupt,
                context: format!("{context}: table {table}, row {row}"),
                cause,
            },
            Self::Missing(what) => {
                StoreError { kind: StoreErrorKind::NotFound, context: context.to_owned(), cause: what.into() }
            }
        }
    }
}

/// One SQLite error for all who shared the transaction.
#[derive(Debug, Clone)]
struct Shared(Arc<rusqlite::Error>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Shared {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Whether the file system of the state had no room.
pub(super) fn is_full(error: &StoreError) -> bool {
    let shared = error.cause.downcast_ref::<Shared>();
    shared.is_some_and(|Shared(cause)| cause.sqlite_error_code() == Some(ErrorCode::DiskFull))
}

pub(super) fn from_sql(error: &Arc<rusqlite::Error>, context: &str) -> StoreError {
    StoreError { kind: kind(error), context: context.to_owned(), cause: Box::new(Shared(error.clone())) }
}

pub(super) fn unavailable(context: &str, cause: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError { kind: StoreErrorKind::Unavailable, context: context.to_owned(), cause: cause.into() }
}

/// Whether the fault is in the file, or in its environment.
fn kind(error: &rusqlite::Error) -> StoreErrorKind {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::ReadOnly
            | ErrorCode::CannotOpen
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::PermissionDenied
            | ErrorCode::OperationInterrupted
            | ErrorCode::OperationAborted
            | ErrorCode::OutOfMemory,
        ) => StoreErrorKind::Unavailable,
        Some(ErrorCode::ConstraintViolation) if is_foreign_key(error) => StoreErrorKind::NotFound,
        // A value of the wrong type, a broken constraint, a missing table: not what warmd wrote.
        _ => StoreErrorKind::Corrupt,
    }
}

/// The row that a new row refers to does not exist.
fn is_foreign_key(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

/// Whether SQLite says that the file is no database, or a broken one.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}
