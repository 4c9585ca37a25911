//! A whole copy of the state while the daemon works, and a check of all of it.
//!
//! Rule: neither changes the state. A plain copy of the files of a live state may be torn; this one is of one
//! moment.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, backup::Backup};

use super::{FILE_NAME, OpenError, check, error::StoreFault, file, migrations, plans};

/// Pages that are copied at a time, and the pause after them.
const STEP: i32 = 1024;
const PAUSE: Duration = Duration::from_millis(5);

/// Copies the state in `dir`, whether a daemon runs or not, to the new file `to`.
pub fn back_up(dir: &Path, to: &Path) -> Result<(), OpenError> {
    let from = dir.join(FILE_NAME);
    let database = |what| {
        let file = from.clone();
        move |cause| OpenError::Database { what, file, cause }
    };
    let source = file::open_reader(&from).map_err(database("read"))?;
    let io = |cause| OpenError::Io { what: "make", path: to.to_owned(), cause };
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(io)?;
    let copied = copy(&source, to);
    if copied.is_err() {
        fs::remove_file(to).ok();
    }
    copied.map_err(database("copy"))?;
    fs::File::open(to).and_then(|file| file.sync_all()).map_err(io)
}

fn copy(source: &Connection, to: &Path) -> rusqlite::Result<()> {
    // One moment of it, which no write of the daemon's restarts.
    source.execute_batch("BEGIN")?;
    source.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
    let mut target = Connection::open_with_flags(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    Backup::new(source, &mut target)?.run_to_completion(STEP, PAUSE, None)?;
    // One file, which needs no log beside it.
    target.pragma_update(None, "journal_mode", "DELETE")?;
    target.close().map_err(|(_, error)| error)
}

/// The faults of the state in `dir` that SQLite and warmd's own readers find; empty if there are none.
pub fn look_over(dir: &Path) -> Result<Vec<String>, OpenError> {
    let from = dir.join(FILE_NAME);
    let database = |cause| OpenError::Database { what: "read", file: from.clone(), cause };
    let connection = file::open_reader(&from).map_err(database)?;
    let looked = || -> Result<Vec<String>, StoreFault> {
        let mut found = check::all(&connection)?;
        let each = migrations::find_each(&connection, "TRUE", &[])?;
        found.extend(each.unreadable.into_iter().map(|it| format!("VM {}: {}", it.vm_name, it.why)));
        let (_, unreadable) = plans::each(&connection)?;
        found.extend(unreadable.into_iter().map(|(_, error)| error.to_string()));
        Ok(found)
    };
    match looked() {
        Err(StoreFault::Sql(cause)) => Err(database(cause)),
        Err(fault) => Ok(vec![fault.into_error("reading the state").to_string()]),
        Ok(found) => Ok(found),
    }
}
