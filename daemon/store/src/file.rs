//! The database file: checking it before it is touched, creating it, opening it.
//!
//! Rule: a file that is not warmd's, is newer than this warmd or is damaged stays byte for byte as it is. A
//! new database is created under another name and renamed when it is whole, so that the file of that name is
//! always whole.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, config::DbConfig, limits::Limit};

use super::{
    error::{OpenError, is_damage},
    schema::{self, APPLICATION_ID, Upgrade},
};

/// With 8 KiB, seven manifest pages fill one page of the file, and the manifest stays under 0.03 % of the
/// data; with SQLite's 4 KiB only three fit, and it would not.
const PAGE_BYTES: i32 = 8192;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const BUSY: Duration = Duration::from_secs(5);
/// The most bytes of one value, or one row.
const MAX_VALUE: i32 = 64 << 20;

/// Creates the directory for its owner alone, if it is missing. One into which other users can write is
/// refused: they could replace the state.
pub(super) fn make_dir(dir: &Path) -> Result<(), OpenError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error("create the state directory", dir))?;
    let meta = fs::metadata(dir).map_err(io_error("look at", dir))?;
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 {
        return Err(OpenError::Foreign { dir: dir.to_owned(), owner: meta.uid(), me });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 == 0 { Ok(()) } else { Err(OpenError::Exposed { dir: dir.to_owned(), mode }) }
}

/// Removes other users' rights on a database, which a copy or a restore may have given.
fn make_private(file: &Path) -> Result<(), OpenError> {
    for file in [file.to_owned(), sibling(file, "-wal"), sibling(file, "-shm")] {
        let mode = match fs::metadata(&file) {
            Ok(meta) => meta.mode() & 0o777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(cause) => return Err(io_error("look at", &file)(cause)),
        };
        if mode & 0o077 != 0 {
            tracing::warn!(file = %file.display(), mode = format!("{mode:o}"), "others could read the state: not any more");
            fs::set_permissions(&file, Permissions::from_mode(0o600))
                .map_err(io_error("set the mode of", &file))?;
        }
    }
    Ok(())
}

/// Opens the database for writing; creates it if there is none, and upgrades it if it is older.
pub(super) fn open_file(file: &Path, upgrades: &[Upgrade]) -> Result<Connection, OpenError> {
    if file.try_exists().map_err(io_error("look at", file))? {
        look(file, schema::newest(upgrades))?;
        make_private(file)?;
    } else {
        create(file, upgrades)?;
    }
    let pragmas =
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 67108864;
                   PRAGMA cache_size = -16384;";
    open_upgraded(file, OpenFlags::SQLITE_OPEN_READ_WRITE, pragmas, upgrades)
}

/// Opens a database in memory that lives as long as a connection to it. `file` names it as a URI of SQLite.
pub(super) fn open_in_memory(file: &Path, upgrades: &[Upgrade]) -> Result<Connection, OpenError> {
    let access =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
    open_upgraded(file, access, "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF", upgrades)
}

fn open_upgraded(
    file: &Path,
    access: OpenFlags,
    pragmas: &str,
    upgrades: &[Upgrade],
) -> Result<Connection, OpenError> {
    let failed = |cause| OpenError::Database { what: "open", file: file.to_owned(), cause };
    let mut connection = Connection::open_with_flags(file, flags(access)).map_err(failed)?;
    settle(&connection).map_err(failed)?;
    connection.execute_batch(pragmas).map_err(failed)?;
    schema::upgrade(&mut connection, upgrades).map_err(|(from, cause)| OpenError::Upgrade {
        file: file.to_owned(),
        from,
        cause,
    })?;
    Ok(connection)
}

/// Opens the database for reading only. A file of that path: it is never taken for a URI.
pub(super) fn open_reader(file: &Path) -> rusqlite::Result<Connection> {
    reader(file, flags(OpenFlags::SQLITE_OPEN_READ_ONLY))
}

/// Opens a database in memory for reading only.
pub(super) fn open_reader_in_memory(file: &Path) -> rusqlite::Result<Connection> {
    reader(file, flags(OpenFlags::SQLITE_OPEN_READ_ONLY) | OpenFlags::SQLITE_OPEN_URI)
}

fn reader(file: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(file, access)?;
    settle(&connection)?;
    Ok(connection)
}

fn flags(access: OpenFlags) -> OpenFlags {
    access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    // Nothing that warmd keeps comes near: a damaged file cannot make it ask for more memory than that.
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // A statement is planned once, not again for every value that is bound to it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(256);
    Ok(())
}

/// Refuses a file that must not be touched, without touching it: first by the header's bytes, then as SQLite
/// sees it.
fn look(file: &Path, known: i32) -> Result<(), OpenError> {
    let not_ours = |why: &str| OpenError::NotOurs { file: file.to_owned(), why: why.to_owned() };
    let header = read_header(file)?;
    if header.len() < 100 || &header[..16] != MAGIC {
        return Err(not_ours("it is no SQLite file"));
    }
    let number = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if number(68) != APPLICATION_ID {
        return Err(not_ours("it is another program's SQLite file"));
    }
    check_version(file, number(60), known)?;

    // The write-ahead log of a crashed daemon counts too. Without one the file is read as immutable, so
    // that SQLite creates no file beside it.
    let wal = sibling(file, "-wal");
    let has_wal = fs::metadata(&wal).is_ok_and(|found| found.len() > 0);
    let result = if has_wal { open_reader(file) } else { open_immutable(file) };
    let seen = result.and_then(|connection| {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let version = schema::version(&connection)?;
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
        Ok(version)
    });
    match seen {
        Ok(version) => check_version(file, version, known),
        Err(cause) if is_damage(&cause) => Err(OpenError::Damaged { file: file.to_owned(), cause }),
        Err(cause) => Err(OpenError::Database { what: "read", file: file.to_owned(), cause }),
    }
}

fn check_version(file: &Path, found: i32, known: i32) -> Result<(), OpenError> {
    if found > known {
        return Err(OpenError::Newer { file: file.to_owned(), found, known });
    }
    if found < 1 {
        return Err(OpenError::NotOurs {
            file: file.to_owned(),
            why: format!("schema {found} never existed"),
        });
    }
    Ok(())
}

fn read_header(file: &Path) -> Result<Vec<u8>, OpenError> {
    let mut header = Vec::with_capacity(100);
    let open = File::open(file).map_err(io_error("read", file))?;
    open.take(100).read_to_end(&mut header).map_err(io_error("read", file))?;
    Ok(header)
}

fn open_immutable(file: &Path) -> rusqlite::Result<Connection> {
    let path: String = file
        .to_string_lossy()
        .chars()
        .map(|each| match each {
            '%' | '?' | '#' => format!("%{:02x}", each as u32),
            other => other.to_string(),
        })
        .collect();
    Connection::open_with_flags(
        format!("file:{path}?immutable=1"),
        flags(OpenFlags::SQLITE_OPEN_READ_ONLY) | OpenFlags::SQLITE_OPEN_URI,
    )
}

/// Creates a whole database under another name, then gives it its own.
fn create(file: &Path, upgrades: &[Upgrade]) -> Result<(), OpenError> {
    // SQLite would replay an old log into the new file.
    for left in [sibling(file, "-wal"), sibling(file, "-shm")] {
        if left.exists() {
            let cause = io::Error::other("it belongs to a database that is not there: move it away too");
            return Err(OpenError::Io { what: "create a database beside", path: left, cause });
        }
    }
    let draft = sibling(file, ".new");
    for left in [draft.clone(), sibling(&draft, "-journal")] {
        match fs::remove_file(&left) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::Io { what: "remove", path: left, cause });
            }
            _ => {}
        }
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io_error("create", &draft))?;
    fill(&draft, upgrades).map_err(|cause| OpenError::Database {
        what: "create",
        file: draft.clone(),
        cause,
    })?;
    let sync = |path: &Path| File::open(path).and_then(|open| open.sync_all());
    sync(&draft).map_err(io_error("sync", &draft))?;
    fs::rename(&draft, file).map_err(io_error("create", file))?;
    let dir = file.parent().unwrap_or(Path::new("."));
    sync(dir).map_err(io_error("sync", dir))
}

fn fill(draft: &Path, upgrades: &[Upgrade]) -> rusqlite::Result<()> {
    let mut connection = Connection::open_with_flags(draft, flags(OpenFlags::SQLITE_OPEN_READ_WRITE))?;
    connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    // Before there is a table: thinned pages can be returned to the file system.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    schema::upgrade(&mut connection, upgrades).map_err(|(_, error)| error)?;
    connection.close().map_err(|(_, error)| error)
}

fn sibling(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> OpenError {
    move |cause| OpenError::Io { what, path: path.to_owned(), cause }
}
