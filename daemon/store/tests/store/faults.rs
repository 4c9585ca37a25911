//! A full disk, a read-only one, and a process that is killed in the middle.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use warmd_cbt::{
    chunk::ChunkBits,
    manifest::BlockHash,
    mark::ChangeMark,
    store::{ChunkRow, DiskId, LedgerCommit, LedgerStore, PassFigures, StoreErrorKind},
    units::BlockIndex,
};
use warmd_core::model::view::PassKind;
use warmd_store::{NewDiskPass, OpenError, Store};

use super::{at, disk, event, new_disk, new_migration};

/// A small file system of its own, unmounted at the end.
struct Mount(TempDir);

impl Mount {
    fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path())
            .output()
            .unwrap_or_else(|error| panic!("this test needs `mount`: {error}"));
        assert!(
            done.status.success(),
            "this test mounts a tmpfs, for which it must be root: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_read_only_directory_is_a_clear_error() {
    let mount = Mount::new("ro,size=1m,mode=700");
    for dir in [mount.path().to_owned(), mount.path().join("state")] {
        let error = Store::open(&dir).unwrap_err();
        assert!(matches!(error, OpenError::Io { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("Read-only") && text.contains(dir.to_str().unwrap()), "{text}");
    }
}

#[tokio::test]
async fn after_a_full_disk_the_store_goes_on() {
    let mount = Mount::new("size=16m");
    let state = mount.path().join("state");
    let store = Store::open(&state).unwrap();
    let (_, row) = disk(&store, "web", 1 << 40, true).await;
    fs::write(mount.path().join("ballast"), vec![1; 10 << 20]).unwrap();

    // Each commit with pages of its own, until there is no room.
    let mut done = 0;
    let error = loop {
        let hashes = (0..2000).map(|n| (BlockIndex((done * 2000 + n) * 4), hash_of(done))).collect();
        let anchor = Some(ChangeMark(done.to_string()));
        match store.commit(row, LedgerCommit { anchor, hashes, ..LedgerCommit::default() }).await {
            Ok(()) => done += 1,
            Err(error) => break error,
        }
        assert!(done < 1000, "16 MiB never fill");
    };
    assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    assert!(done > 0);
    let ledger = store.load(row).await.unwrap();
    assert_eq!(ledger.anchor, Some(ChangeMark((done - 1).to_string())), "the failed one left nothing");

    // Other calls fail as well, with the same kind, and work again later.
    let (one, two) = tokio::join!(store.append_events(vec![event(None, &"x".repeat(7 << 20))]), async {
        let hashes = (0..2000).map(|n| (BlockIndex((done * 2000 + n) * 4), hash_of(done))).collect();
        store.commit(row, LedgerCommit { hashes, ..LedgerCommit::default() }).await
    });
    for error in [one.unwrap_err(), two.unwrap_err()] {
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    }

    fs::remove_file(mount.path().join("ballast")).unwrap();
    let anchor = Some(ChangeMark("room".to_owned()));
    let hashes = (0..2000).map(|n| (BlockIndex((done * 2000 + n) * 4), hash_of(done))).collect();
    store
        .commit(row, LedgerCommit { anchor: anchor.clone(), hashes, ..LedgerCommit::default() })
        .await
        .unwrap();
    assert_eq!(store.integrity().await.unwrap(), Vec::<String>::new());
    store.close().await.unwrap();
    let store = Store::open(&state).unwrap();
    assert_eq!(store.load(row).await.unwrap().anchor, anchor);
    assert_eq!(store.hashes(row, &[0..2]).await.unwrap(), [hash_of(0), BlockHash::ZERO]);
}

const CHILD_DIR: &str = "WARMD_TEST_STORE_CHILD";
const DISKS: i64 = 3;
const BLOCKS: u64 = 300;

fn hash_of(number: u64) -> BlockHash {
    let mut hash = [0x5a; 16];
    hash[..8].copy_from_slice(&number.to_le_bytes());
    BlockHash(hash)
}

/// Commit `number`: every row in it has the number, so that a mixture shows.
fn numbered(number: u64, pass: i64) -> LedgerCommit {
    let mut pending = ChunkBits::default();
    pending.set(0..number as usize % 16_000 + 1, true);
    LedgerCommit {
        anchor: Some(ChangeMark(number.to_string())),
        chunks: vec![ChunkRow { chunk: 0, pending, trusted: ChunkBits::default() }],
        hashes: (0..BLOCKS).map(|block| (BlockIndex(block * 7), hash_of(number))).collect(),
        figures: PassFigures { batches: 1, ..PassFigures::default() },
        pass: Some(pass),
        ..LedgerCommit::default()
    }
}

async fn number_in(store: &Store, disk: DiskId) -> u64 {
    let anchor = store.load(disk).await.unwrap().anchor;
    anchor.map_or(0, |mark| mark.0.parse().unwrap())
}

/// Commits to all disks at once, and says each number when its commit has returned.
async fn commit_until_killed(dir: &Path) {
    let store = Store::open(dir).unwrap();
    let each = (1..=DISKS).map(|disk| {
        let store = store.clone();
        async move {
            loop {
                let number = number_in(&store, DiskId(disk)).await + 1;
                store.commit(DiskId(disk), numbered(number, disk)).await.unwrap();
                println!("{disk} {number}");
                if number % 16 == 0 {
                    store.compact_manifest(DiskId(disk)).await.unwrap();
                }
            }
        }
    });
    futures::future::join_all(each).await;
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_was_committed() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return commit_until_killed(Path::new(&dir)).await;
    }
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for number in 1..=DISKS {
        let mut new = new_migration(&number.to_string());
        new.events.clear();
        let id = new.id;
        store.create_migration(new).await.unwrap();
        let rows = store.save_disks(id, vec![new_disk("vda", 1 << 30, true)]).await.unwrap();
        assert_eq!(rows[0].id, DiskId(number));
        let pass = NewDiskPass {
            disk: rows[0].id,
            pending: 0,
            changed: 0,
            extents: 0,
            unknown: None,
            mark: ChangeMark(String::new()),
        };
        store.begin_pass(id, PassKind::Full, at(0), vec![pass]).await.unwrap();
    }
    store.close().await.unwrap();

    let mut total = 0;
    for round in 0..20 {
        let said = run_and_kill(dir.path(), random.random_range(1..60));
        let store = Store::open(dir.path()).unwrap();
        total = 0;
        for disk in 1..=DISKS {
            let number = number_in(&store, DiskId(disk)).await;
            let last = said.iter().rev().find(|(said, _)| *said == disk).map_or(0, |(_, number)| *number);
            assert!(number >= last, "round {round}: {last} was committed to disk {disk}, {number} is there");
            check(&store, disk, number).await;
            total += number;
        }
        assert_eq!(store.integrity().await.unwrap(), Vec::<String>::new());
        store.close().await.unwrap();
    }
    assert!(total > 100, "only {total} commits in all rounds");
}

async fn check(store: &Store, disk: i64, number: u64) {
    if number == 0 {
        return;
    }
    let expected = numbered(number, disk);
    assert_eq!(store.load(DiskId(disk)).await.unwrap().chunks, expected.chunks);
    let hashes = store.hashes(DiskId(disk), &[0..BLOCKS * 7]).await.unwrap();
    for (at, hash) in hashes.into_iter().enumerate() {
        let wanted = if at % 7 == 0 { hash_of(number) } else { BlockHash::ZERO };
        assert_eq!(hash, wanted, "disk {disk}, block {at}, commit {number}");
    }
    let raw = rusqlite::Connection::open(store.file()).unwrap();
    let batches: i64 =
        raw.query_row("SELECT batches FROM disk_passes WHERE id = ?", [disk], |row| row.get(0)).unwrap();
    assert_eq!(batches, number.cast_signed(), "the figures go with the rows");
}

/// Runs this test as a child, kills it after so many lines, and returns its output.
fn run_and_kill(dir: &Path, lines: usize) -> Vec<(i64, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["faults::a_killed_process_loses_nothing_that_was_committed", "--exact", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        let words: Vec<_> = line.split(' ').map(str::parse).collect();
        if let [Ok(disk), Ok(number)] = words[..] {
            said.push((disk, number as u64));
        }
        if said.len() == lines {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(said.len() >= lines, "the child ended early, after {} lines", said.len());
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_read_holds_up_no_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (_, row) = disk(&store, "web", 64 << 40, true).await;
    let deadline = Duration::from_mins(1);
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.load(row).await.unwrap().chunks.len() })
        })
        .collect();
    for number in 1..20 {
        let commit = LedgerCommit { anchor: numbered(number, 0).anchor, ..LedgerCommit::default() };
        tokio::time::timeout(deadline, store.commit(row, commit)).await.unwrap().unwrap();
    }
    for read in reads {
        assert_eq!(read.await.unwrap(), 65_536);
    }
}
