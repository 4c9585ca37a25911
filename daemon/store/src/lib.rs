//! The state: one SQLite file in `state_dir`, with all that survives a restart.
//!
//! Rule: a call's data is durable when it returns, all of it or nothing. One thread writes; readers never
//! wait for it, nor it for them. Data from the file is untrusted: garbage is an error that names its table
//! and row.
//!
//! ```text
//! callers ─▶ queue ─▶ writer thread ─▶ warmd.db (WAL, FULL) ◀─ readers ◀─ callers
//! ```
//!
//! Knows the nouns of `core`; not endpoints, not migrations at work.
#![forbid(unsafe_code)]

mod backup;
mod change_rate;
mod check;
mod conversions;
mod cutovers;
mod disks;
mod error;
mod file;
mod finished;
pub mod fuzz;
mod grants;
mod groups;
mod hooks;
mod in_memory;
mod interceptor;
mod inventories;
mod journal;
mod keys;
mod latencies;
mod ledger;
mod limits;
mod location_claims;
mod lock;
mod manifest;
mod manifest_log;
mod migrations;
mod passes;
mod phases;
mod plans;
mod readers;
mod recorded_roots;
mod reserve;
mod row;
mod schema;
mod telemetry;
mod thin;
mod unreadable;
mod verification;
mod writer;

use std::{
    any::TypeId,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use rusqlite::Connection;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;
use warmd_cbt::telemetry::{Histogram, HistogramCounts};

pub use self::{
    backup::{back_up, look_over},
    change_rate::ChangeRates,
    conversions::ConversionRow,
    cutovers::MeasuredCutovers,
    disks::{DiskRow, NewDisk},
    error::{OpenError, StoreError, StoreErrorKind},
    finished::FinishedMigration,
    grants::SavedGrants,
    groups::{MemberFacts, NewGroup},
    hooks::{HookKey, HookStatus},
    interceptor::Interceptor,
    journal::JournalEnd,
    limits::SavedLimits,
    migrations::{Created, MigrationRow, MigrationUpdate, NewMigration},
    passes::{DiskFacts, NewDiskPass, PassFacts, PassRow},
    recorded_roots::RecordedRoot,
    reserve::RESERVE,
    thin::Retention,
    unreadable::{ReadRetry, ReadableRows, Unreadable},
    verification::VerifyCursor,
};
use self::{
    error::{StoreFault, unavailable},
    lock::StateLock,
    readers::Readers,
    schema::{UPGRADES, Upgrade},
    writer::{Queue, Task, Writer, WriterThread},
};

/// The database's name in the state directory.
pub const FILE_NAME: &str = "warmd.db";

/// How long a call waits for its turn before it fails; once its turn has come it waits for the outcome.
const TURN: Duration = Duration::from_mins(1);
/// After this time a running write is logged.
const SLOW: Duration = Duration::from_secs(10);

/// The daemon's durable state. Clones share it; the last one to go closes the file, waiting for writes in the
/// queue.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    queue: Mutex<Option<Queue>>,
    thread: Mutex<Option<WriterThread>>,
    readers: Arc<Readers>,
    /// How long transactions took to become durable.
    commits: Arc<Histogram>,
    failing: reserve::Failing,
    thinned: Mutex<thin::Thinned>,
    /// The writer is gone although the state was not closed.
    lost: CancellationToken,
}

impl Store {
    /// Opens the state in `dir`, making it (0700, 0600) if there is none, and locks it against a second
    /// daemon for as long as the store lives. Blocks; a file that is not ours, is newer or is damaged stays
    /// as it is.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_intercepted(dir, Interceptor::default())
    }

    /// [`Self::open`], with the caller's functions between the store and SQLite.
    pub fn open_intercepted(dir: &Path, interceptor: Interceptor) -> Result<Self, OpenError> {
        Self::open_at(dir, UPGRADES, interceptor)
    }

    fn open_at(dir: &Path, upgrades: &[Upgrade], interceptor: Interceptor) -> Result<Self, OpenError> {
        file::make_dir(dir)?;
        let lock = StateLock::take(dir)?;
        let file = dir.join(FILE_NAME);
        let connection = file::open_file(&file, upgrades)?;
        let thinned = thin::Thinned::opened(&connection, &file)?;
        let commits = Arc::new(Histogram::default());
        let writer = Writer { connection, commits: Arc::clone(&commits), commit: interceptor.commit };
        let lost = CancellationToken::new();
        let (queue, thread) = writer::spawn(writer, lock, lost.clone()).map_err(|cause| OpenError::Io {
            what: "start the writer's thread for",
            path: file.clone(),
            cause,
        })?;
        Ok(Self(Arc::new(Inner {
            readers: Arc::new(Readers::new(file.clone(), interceptor.before_read)),
            file,
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
            commits,
            failing: reserve::Failing::default(),
            thinned: Mutex::new(thinned),
            lost,
        })))
    }

    /// Writes a row that is never read, durably: success shows that the state can be written.
    pub async fn beat(&self) -> Result<(), StoreError> {
        let at = row::micros(warmd_core::clock::now());
        self.write("writing to the state for the watchdog", move |db| {
            db.prepare_cached("INSERT OR REPLACE INTO heartbeat (id, at) VALUES (1, ?)")?.execute([at])?;
            Ok(())
        })
        .await
    }

    /// Resolves when the thread that writes has ended though the state was not closed: nothing is saved any
    /// more.
    pub async fn lost(&self) {
        self.0.lost.cancelled().await;
    }

    /// The database file.
    pub fn file(&self) -> &Path {
        &self.0.file
    }

    /// How long the durable commits took since the file was opened.
    pub fn commits(&self) -> HistogramCounts {
        self.0.commits.counts()
    }

    /// Finishes what is queued, folds the write-ahead log into the file and drops the lock. Later calls on
    /// any clone fail with [`StoreErrorKind::Unavailable`].
    pub async fn close(&self) -> Result<(), StoreError> {
        let context = format!("closing {}", self.0.file.display());
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || inner.close())
            .await
            .map_err(|panic| unavailable(&context, panic))?
            .map_err(|cause| StoreFault::Sql(cause).into_error(&context))
    }

    /// Runs `work` in a durable transaction of the writer. `what` names the work in errors. Queued work is
    /// done even if the caller is gone.
    async fn write<T, F>(&self, what: impl Into<String>, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreFault> + Send + 'static,
    {
        let what = what.into();
        let queue = locked(&self.0.queue).clone().ok_or_else(|| unavailable(&what, "the state is closed"))?;
        // Each kind of write alone: a small one may succeed where a large one finds no room.
        let kind = TypeId::of::<F>();
        let ended = || {
            self.0.failing.note(kind, true);
            unavailable(&what, "the state's writer has ended")
        };
        let (reply, mut answer) = oneshot::channel();
        let (mut place, asked) = (pin!(queue.reserve()), Instant::now());
        let place = loop {
            match tokio::time::timeout(SLOW, &mut place).await {
                Ok(Ok(place)) => break place,
                Ok(Err(_)) => return Err(ended()),
                Err(late) => {
                    self.0.failing.note(kind, true);
                    if asked.elapsed() >= TURN {
                        return Err(unavailable(&what, late));
                    }
                }
            }
        };
        place.send(Box::new(Task { what: what.clone(), work: Some(work), result: None, reply }));
        loop {
            match tokio::time::timeout(SLOW, &mut answer).await {
                Ok(Ok(answer)) => {
                    // A garbage row is no sign of a state that cannot be written.
                    let failed =
                        answer.as_ref().err().filter(|error| error.kind == StoreErrorKind::Unavailable);
                    self.0.failing.note(kind, failed.is_some());
                    if let Some(error) = failed {
                        self.give_up_reserve(error);
                    }
                    return answer;
                }
                Ok(Err(_)) => return Err(ended()),
                Err(_) => {
                    self.0.failing.note(kind, true);
                    tracing::warn!(what, "a write to the state takes long: is its disk stuck?");
                }
            }
        }
    }

    /// Runs `work` on one consistent snapshot of the database.
    async fn read<T, F>(&self, what: impl Into<String>, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreFault> + Send + 'static,
    {
        let what = what.into();
        self.0.readers.run(&what, work).await
    }
}

impl Inner {
    fn close(&self) -> rusqlite::Result<()> {
        self.readers.close();
        drop(locked(&self.queue).take());
        // The lock is kept until the thread is done, so that no second close returns before that.
        let mut thread = locked(&self.thread);
        match thread.take().map(JoinHandle::join) {
            Some(Ok(closed)) => closed,
            Some(Err(_)) => {
                tracing::error!("the state's writer panicked");
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(file = %self.file.display(), %error, "closing the state");
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins or ends a transaction; planned once for a connection, as every read and every write says it.
fn execute(connection: &Connection, what: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(what)?.execute([]).map(drop)
}

#[cfg(test)]
mod tests {
    use warmd_cbt::{
        chunk::CHUNK_BLOCKS,
        manifest::BlockHash,
        store::{DiskId, LedgerCommit, LedgerStore},
        units::BlockIndex,
    };

    use super::*;
    use warmd_core::model::{id::MigrationId, phase::Phase, plan::VerifyMode};

    const OWNER: Upgrade = |transaction| {
        transaction.execute_batch("ALTER TABLE plans ADD COLUMN owner TEXT NOT NULL DEFAULT 'nobody'")
    };
    const BROKEN: Upgrade = |transaction| transaction.execute_batch("DROP TABLE plans; nonsense");

    impl Store {
        fn open_with(dir: &Path, upgrades: &[Upgrade]) -> Result<Self, OpenError> {
            Self::open_at(dir, upgrades, Interceptor::default())
        }
    }

    fn then(step: Upgrade) -> Vec<Upgrade> {
        [UPGRADES, &[step]].concat()
    }

    fn newest() -> i32 {
        schema::newest(UPGRADES)
    }

    #[tokio::test]
    async fn a_writer_that_panics_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.beat().await.unwrap();
        let wait = |for_a| tokio::time::timeout(Duration::from_millis(for_a), store.lost());
        assert!(wait(50).await.is_err(), "it lives");
        let work = |_: &Connection| -> Result<(), StoreFault> { panic!("a defect") };
        assert_eq!(store.write("failing", work).await.unwrap_err().kind, StoreErrorKind::Unavailable);
        wait(5000).await.unwrap();
        assert_eq!(store.beat().await.unwrap_err().kind, StoreErrorKind::Unavailable, "nobody answers");
        let other = tempfile::tempdir().unwrap();
        let closed = Store::open(other.path()).unwrap();
        closed.close().await.unwrap();
        assert!(!closed.0.lost.is_cancelled(), "that is no loss");
    }

    #[test]
    fn a_file_goes_up_and_the_older_warmd_refuses_it_then() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        drop(Store::open_with(dir.path(), &then(OWNER)).unwrap());
        let error = Store::open(dir.path()).unwrap_err();
        let versions = (newest() + 1, newest());
        let newer = matches!(error, OpenError::Newer { found, known, .. } if (found, known) == versions);
        assert!(newer, "{error}");
        let store = Store::open_with(dir.path(), &then(OWNER)).unwrap();
        let raw = Connection::open(store.file()).unwrap();
        raw.prepare("SELECT owner FROM plans").unwrap();
    }

    #[tokio::test]
    async fn a_ledger_of_the_first_version_is_read_and_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let old = Store::open_with(dir.path(), &UPGRADES[..1]).unwrap();
        let raw = Connection::open(old.file()).unwrap();
        raw.execute_batch(
            "PRAGMA foreign_keys = OFF;
             INSERT INTO disks (id, migration, key, size, location, reads_zero)
             VALUES (1, '01890a5d-ac96-774b-bcce-b302099a8057', 'vda', 8388608, '/x', 1);
             INSERT INTO chunks VALUES (1 << 32, x'01', x'020700')",
        )
        .unwrap();
        raw.execute("INSERT INTO pages VALUES ((1 << 32) | 1, ?)", [[7_u8; 1024]]).unwrap();
        drop((raw, old));
        let store = Store::open(dir.path()).unwrap();
        let disk = DiskId(1);
        let chunks = store.load(disk).await.unwrap().chunks;
        assert_eq!(chunks[0].pending.count(), CHUNK_BLOCKS);
        assert_eq!((chunks[0].trusted.count(), chunks[0].trusted.first_set(0)), (1, Some(7)));
        let all = || async { store.hashes(disk, &[0..64, 64..128]).await.unwrap() };
        let mut wanted = vec![BlockHash::ZERO; 128];
        wanted[64..].fill(BlockHash([7; 16]));
        assert_eq!(all().await, wanted);
        let hashes = vec![(BlockIndex(3), BlockHash([8; 16])), (BlockIndex(127), BlockHash::ZERO)];
        store.commit(disk, LedgerCommit { hashes, ..LedgerCommit::default() }).await.unwrap();
        (wanted[3], wanted[127]) = (BlockHash([8; 16]), BlockHash::ZERO);
        assert_eq!(all().await, wanted);
    }

    #[tokio::test]
    async fn what_nobody_noted_before_the_upgrade_counts_as_touched() {
        let dir = tempfile::tempdir().unwrap();
        let old = Store::open_with(dir.path(), &UPGRADES[..4]).unwrap();
        let raw = Connection::open(old.file()).unwrap();
        let insert = "PRAGMA foreign_keys = OFF;
             INSERT INTO disks (id, migration, key, size, location, reads_zero, anchor)
             VALUES (1, 'ID', 'vda', 3221291008, '/x', 1, 'mark'), (2, 'ID', 'vdb', 8388608, '/y', 1, NULL)";
        raw.execute_batch(&insert.replace("ID", "01890a5d-ac96-774b-bcce-b302099a8057")).unwrap();
        drop((raw, old));
        let store = Store::open(dir.path()).unwrap();
        let size = warmd_cbt::units::Length(3_221_291_008);
        let full = warmd_cbt::extents::ExtentSet::full(size);
        for mode in [VerifyMode::Readback, VerifyMode::Compare] {
            assert_eq!(store.unverified(DiskId(1), mode).await.unwrap(), full, "three GiB and a block");
            assert!(store.unverified(DiskId(2), mode).await.unwrap().is_empty(), "it was never copied");
        }
    }

    #[tokio::test]
    async fn blocks_read_back_before_the_upgrade_await_a_compare() {
        let dir = tempfile::tempdir().unwrap();
        let old = Store::open_with(dir.path(), &UPGRADES[..8]).unwrap();
        let raw = Connection::open(old.file()).unwrap();
        let insert = "PRAGMA foreign_keys = OFF;
             INSERT INTO disks (id, migration, key, size, location, reads_zero, anchor)
             VALUES (1, 'ID', 'vda', 3221291008, '/x', 1, 'mark')";
        raw.execute_batch(&insert.replace("ID", "01890a5d-ac96-774b-bcce-b302099a8057")).unwrap();
        drop((raw, old));
        let store = Store::open(dir.path()).unwrap();
        let full = warmd_cbt::extents::ExtentSet::full(warmd_cbt::units::Length(3_221_291_008));
        assert_eq!(store.unverified(DiskId(1), VerifyMode::Compare).await.unwrap(), full);
        assert!(store.unverified(DiskId(1), VerifyMode::Readback).await.unwrap().is_empty());
    }

    /// A cutover that was under way finds its phases and hooks again, whose keys hold the phase's name.
    #[tokio::test]
    async fn old_names_of_phases_and_tables_lead_to_the_same_rows() {
        let dir = tempfile::tempdir().unwrap();
        let old = Store::open_with(dir.path(), &UPGRADES[..24]).unwrap();
        let raw = Connection::open(old.file()).unwrap();
        let insert = "PRAGMA foreign_keys = OFF;
             INSERT INTO phases (migration, attempt, position, phase, started, ended, outcome, cut) VALUES
             ('ID', 2, 0, 'last-delta', 1, 2, 'done', 0), ('ID', 2, 1, 'stop-source', 3, 4, 'done', 0),
             ('ID', 2, 7, 'watch', 5, NULL, NULL, 2), ('ID', 2, 8, 'release', 6, 7, 'done', 0);
             INSERT INTO hooks (migration, attempt, position, phase, side, command, started, ended, outcome) VALUES
             ('ID', 2, 0, 'watch', 'before', '[\"/bin/true\"]', 1, 2, 'done'),
             ('ID', 2, 1, 'release', 'after', '[\"/bin/true\"]', 1, NULL, NULL);
             INSERT INTO disks (id, migration, key, size, location, reads_zero, place, audited_to)
             VALUES (1, 'ID', 'vda', 8388608, '/x', 1, '/dev/x', 65536);
             INSERT INTO seals (disk, attempt, root, at, proved_by) VALUES (1, 2, 'ROOT', 9, 'readback full');
             INSERT INTO verdicts (migration, body) VALUES ('ID', '{\"v\":1,\"is\":{\"mode\":\"readback\",
             \"at\":\"2026-01-02T03:04:05Z\",\"disks\":[],\"escapes\":[{\"blocks\":1,\"chance\":0.5}]}}');
             INSERT INTO verifications (disk, what, seed, ledger, sure_to) VALUES (1, 'w', NULL, 'l', 131072);
             INSERT INTO uncompared VALUES (1 << 32, x'01')";
        let id: MigrationId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        raw.execute_batch(&insert.replace("'ID'", &format!("'{id}'")).replace("ROOT", &"a".repeat(64)))
            .unwrap();
        drop((raw, old));
        let store = Store::open(dir.path()).unwrap();
        let phases: Vec<_> = store.phases(id).await.unwrap().into_iter().map(|run| run.phase).collect();
        assert_eq!(phases, [Phase::CatchUpDelta, Phase::StopSource, Phase::BootCheck, Phase::Cleanup]);
        let now = warmd_core::clock::now();
        let (began, interrupted) = store.begin_phase(id, 2, Phase::BootCheck, now).await.unwrap();
        assert_eq!((began.timestamp_micros(), interrupted), (5, 3), "the row that was there goes on");
        let key = HookKey { migration: id, attempt: 2, nth: 0 };
        for (phase, side, status) in
            [("boot-check", "before", HookStatus::Ended), ("cleanup", "after", HookStatus::CutOff)]
        {
            let text = format!(r#"{{"phase":"{phase}","when":"{side}","command":["/bin/true"]}}"#);
            let hook = serde_json::from_str(&text).unwrap();
            assert_eq!(store.begin_hook(key, hook, now).await.unwrap(), status, "{text}");
        }
        let disk = store.disks(id).await.unwrap().remove(0);
        assert_eq!((disk.requested_location.as_deref(), disk.audit_cursor.0), (Some("/dev/x"), 65_536));
        let root = store.recorded_roots(id).await.unwrap().remove(0);
        assert_eq!((root.attempt, root.verified_by.as_deref()), (2, Some("readback full")));
        let result = store.verify_result(id).await.unwrap().unwrap();
        assert!((result.miss_probabilities[0].probability - 0.5).abs() < f64::EPSILON);
        assert_eq!(store.verify_cursors(id, "w").await.unwrap()[0].checked_to.0, 131_072);
        assert!(!store.unverified(DiskId(1), VerifyMode::Compare).await.unwrap().is_empty());
        assert!(store.unverified(DiskId(1), VerifyMode::Readback).await.unwrap().is_empty());
    }

    #[test]
    fn a_failing_upgrade_leaves_the_file_usable_for_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        let error = Store::open_with(dir.path(), &then(BROKEN)).unwrap_err();
        assert!(matches!(error, OpenError::Upgrade { from, .. } if from == newest()), "{error}");
        drop(Store::open(dir.path()).unwrap());
    }

    #[tokio::test]
    async fn a_write_that_fails_takes_no_other_along() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let insert = |name: &'static str, fail: bool| {
            store.write(name, move |db| {
                db.execute("INSERT INTO plans VALUES (?, 'x', 0, 0)", [name])?;
                if fail { Err(StoreFault::Missing(name.to_owned())) } else { Ok(()) }
            })
        };
        let (one, two, three) =
            tokio::join!(insert("one", false), insert("two", true), insert("three", false));
        one.unwrap();
        assert_eq!(two.unwrap_err().kind, StoreErrorKind::NotFound);
        three.unwrap();
        let names: String = store
            .read("names", |db| {
                Ok(db.query_row("SELECT group_concat(name) FROM plans", [], |row| row.get(0))?)
            })
            .await
            .unwrap();
        assert_eq!(names, "one,three");
    }

    #[tokio::test]
    async fn work_that_panics_fails_its_callers_and_not_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let read: Result<(), _> = store.read("a bad read", |_| panic!("a bug")).await;
        assert_eq!(read.unwrap_err().kind, StoreErrorKind::Unavailable);
        assert!(store.plans().await.unwrap().is_empty(), "the other readers go on");
        let write: Result<(), _> = store.write("a bad write", |_| panic!("a bug")).await;
        assert_eq!(write.unwrap_err().kind, StoreErrorKind::Unavailable);
        assert_eq!(store.delete_plan("x").await.unwrap_err().kind, StoreErrorKind::Unavailable);
        drop(store);
        Store::open(dir.path()).unwrap();
    }
}
