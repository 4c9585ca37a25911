//! Opening: the file's owner, other users of it, and that a refused file stays unchanged.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    time::SystemTime,
};

use rusqlite::{Connection, config::DbConfig};
use warmd_cbt::store::StoreErrorKind;
use warmd_core::model::event_kind::EventKind;
use warmd_store::{FILE_NAME, OpenError, Store};

use super::{Fixture, disk, migration};

/// Every file of the directory but the lock: bytes and time of change. Of SQLite's shared memory only its
/// existence: the system writes it out when it likes.
fn contents(dir: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.file_name() != "lock")
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            if name.ends_with("-shm") {
                return (name, (Vec::new(), SystemTime::UNIX_EPOCH));
            }
            let changed = entry.metadata().unwrap().modified().unwrap();
            (name, (fs::read(entry.path()).unwrap(), changed))
        })
        .collect()
}

/// Opens a file that must be refused, and checks that nothing was touched.
fn refused(dir: &Path) -> OpenError {
    let before = contents(dir);
    let error = Store::open(dir).unwrap_err();
    assert!(before == contents(dir), "touched: {error}");
    error
}

#[tokio::test]
async fn a_second_daemon_is_told_who_holds_the_state() {
    let fixture = Fixture::new();
    let error = refused(fixture.dir.path());
    assert!(
        matches!(error, OpenError::Locked { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    let clone = fixture.store.clone();
    drop(fixture.store);
    refused(fixture.dir.path());
    drop(clone);
    Store::open(fixture.dir.path()).unwrap();
}

#[tokio::test]
async fn it_is_made_for_its_owner_alone_and_closed_whole() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("var/lib");
    let store = Store::open(&state).unwrap();
    migration(&store, "web").await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for file in fs::read_dir(&state).unwrap().map(Result::unwrap) {
        assert_eq!(mode(&file.path()), 0o600, "{:?}", file.path());
    }
    store.close().await.unwrap();
    assert_eq!(contents(&state).into_keys().collect::<Vec<_>>(), [FILE_NAME]);
    let error = store.migrations().await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    let error = store.delete_plan("x").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    store.close().await.unwrap();
    assert_eq!(Store::open(&state).unwrap().migrations().await.unwrap().len(), 1);
}

#[test]
fn file_of_another_program_stays_as_it_is() {
    let noise: Vec<u8> = (0..200_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let files: [(&str, &[u8]); 5] = [
        ("empty", b""),
        ("text", b"name = \"not a database\"\n"),
        ("noise", &noise),
        ("only the magic", b"SQLite format 3\0"),
        ("the magic and zeroes", &[b"SQLite format 3\0".as_slice(), &[0; 8000]].concat()),
    ];
    for (what, bytes) in files {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), bytes).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error, OpenError::NotOurs { .. }), "{what}: {error}");
        assert!(error.to_string().contains(FILE_NAME), "{what}: {error}");
    }

    let dir = tempfile::tempdir().unwrap();
    let other = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    other.execute_batch("CREATE TABLE addresses (name TEXT); PRAGMA user_version = 1").unwrap();
    drop(other);
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::NotOurs { .. }), "{error}");

    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(FILE_NAME)).unwrap();
    assert!(matches!(Store::open(dir.path()).unwrap_err(), OpenError::Io { .. }));
}

#[tokio::test]
async fn a_key_that_was_lost_is_told_where_people_look() {
    let fixture = Fixture::new();
    let sign_with = async |key: &str, is_new: bool| {
        fixture.store.note_report_key(key.to_owned(), "report.key", is_new).await.unwrap();
        let lines = fixture.store.events(None, None, 10).await.unwrap().lines;
        lines
            .into_iter()
            .filter(|line| line.kind == EventKind::Warning)
            .map(|line| line.text)
            .collect::<Vec<_>>()
    };
    let (first, second) = ("1".repeat(64), "2".repeat(64));
    assert_eq!(sign_with(&first, true).await, Vec::<String>::new(), "it is a new state");
    migration(&fixture.store, "web").await;
    assert_eq!(sign_with(&first, false).await, Vec::<String>::new(), "it is the same");

    let told = sign_with(&second, true).await;
    assert!(told.len() == 1 && told[0].contains(&first) && told[0].contains(&second), "{told:?}");
    let keys = async || -> Vec<_> {
        fixture.store.report_keys().await.unwrap().into_iter().map(|row| row.key).collect()
    };
    assert_eq!(keys().await, [first.clone(), second.clone()]);

    // The backup is found.
    assert_eq!(sign_with(&first, false).await.len(), 2);
    assert_eq!(sign_with(&first, false).await.len(), 2, "told once");
    assert_eq!(keys().await, [first.clone(), second, first]);
}

#[tokio::test]
async fn missing_key_beside_migrations_is_reported_unrecorded() {
    let fixture = Fixture::new();
    migration(&fixture.store, "web").await;
    fixture.store.note_report_key("1".repeat(64), "report.key", true).await.unwrap();
    let lines = fixture.store.events(None, None, 10).await.unwrap().lines;
    assert!(lines.iter().any(|line| line.text.contains("THERE WAS NO report.key")), "{lines:?}");
}

#[test]
fn a_newer_schema_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let file = dir.path().join(FILE_NAME);
    let raw = Connection::open(&file).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    drop(raw);
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("newer warmd"), "{error}");
}

#[test]
fn a_newer_schema_is_seen_in_the_log_of_a_crashed_daemon() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let file = dir.path().join(FILE_NAME);
    let raw = Connection::open(&file).unwrap();
    raw.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    drop(raw);
    // SQLite's shared memory is rebuilt from the log at each opening; the data are the other two.
    let data = |dir: &Path| {
        let mut found = contents(dir);
        found.remove("warmd.db-shm");
        found
    };
    let before = data(dir.path());
    assert!(before["warmd.db-wal"].0.len() > 1000, "the version is in the log alone");
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
    assert!(before == data(dir.path()));
}

#[tokio::test]
async fn a_damaged_file_stays_as_it_is() {
    let fixture = Fixture::new();
    disk(&fixture.store, "web", 1 << 40, true).await;
    fixture.store.close().await.unwrap();
    let file = fs::OpenOptions::new().write(true).open(fixture.store.file()).unwrap();
    // The schema's own page, after the file's header.
    file.write_all_at(&[0xff; 4000], 100).unwrap();
    let error = refused(fixture.dir.path());
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[test]
fn a_file_that_ends_too_early_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let file = fs::OpenOptions::new().write(true).open(dir.path().join(FILE_NAME)).unwrap();
    file.set_len(9000).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn what_a_crash_left_of_making_it_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("warmd.db.new"), b"half of a datab").unwrap();
    fs::write(dir.path().join("warmd.db.new-journal"), b"half of a jour").unwrap();
    let store = Store::open(dir.path()).unwrap();
    migration(&store, "web").await;
    store.close().await.unwrap();
    assert_eq!(contents(dir.path()).into_keys().collect::<Vec<_>>(), [FILE_NAME]);
}

#[tokio::test]
async fn garbage_in_a_row_names_the_row() {
    let cases: [(&str, &str); 6] = [
        ("UPDATE migrations SET state = 'null'", "table migrations"),
        ("UPDATE migrations SET state = '{\"v\":1,\"is\":{\"name\":\"flying\"}}'", "flying"),
        ("UPDATE migrations SET machine = '{\"v\":7,\"is\":{}}'", "version 7"),
        ("UPDATE migrations SET id = 'no uuid'", "no uuid"),
        ("UPDATE migrations SET since = 9223372036854775807", "no time"),
        ("UPDATE migrations SET attempt = -1", "out of range"),
    ];
    for (sql, named) in cases {
        let fixture = Fixture::new();
        migration(&fixture.store, "web").await;
        let raw = Connection::open(fixture.store.file()).unwrap();
        raw.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).unwrap();
        let error = fixture.store.migrations().await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Corrupt, "{sql}: {error}");
        assert!(error.to_string().contains("table migrations"), "{sql}: {error}");
        assert!(error.to_string().contains(named), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_sound_file_has_nothing_wrong_and_a_broken_one_has() {
    let fixture = Fixture::new();
    disk(&fixture.store, "web", 1 << 40, true).await;
    fixture.store.append_events(vec![super::event(None, "x")]).await.unwrap();
    assert_eq!(fixture.store.integrity().await.unwrap(), Vec::<String>::new());
    let raw = Connection::open(fixture.store.file()).unwrap();
    raw.execute_batch(
        "PRAGMA foreign_keys = OFF; UPDATE disks SET migration = 'x'; UPDATE disks SET id = 77",
    )
    .unwrap();
    let wrong = fixture.store.integrity().await.unwrap();
    assert_eq!(
        wrong,
        ["table disks has rows that belong to nothing", "chunks of disk 1, which is not there"]
    );
}

#[test]
fn directory_of_another_user_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    if std::os::unix::fs::chown(dir.path(), Some(4242), None).is_err() {
        // Only root may change a directory's owner.
        return;
    }
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("user 4242") && error.contains("chown 0"), "{error}");
}
