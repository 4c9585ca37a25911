//! The manifest's newest hashes, their compaction, and their size in the file.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use warmd_cbt::{
    chunk::CHUNK_BLOCKS,
    manifest::BlockHash,
    store::{DiskId, LedgerCommit, LedgerStore, StoreErrorKind},
    units::BlockIndex,
};
use warmd_store::Store;

use super::{Fixture, disk};

#[tokio::test]
async fn garbage_in_recent_hashes_is_corrupt() {
    let cases = [
        "UPDATE manifest_log SET first = 1",
        "UPDATE manifest_log SET last = 900",
        "UPDATE manifest_log SET first = -1",
        "UPDATE manifest_log_hashes SET body = substr(body, 21)",
        "UPDATE manifest_log_hashes SET body = CAST(substr(body, 5) || x'00000000' AS BLOB)",
        "UPDATE manifest_log_hashes SET body = substr(body, 1, 17)",
        "UPDATE manifest_log_hashes SET body = substr(body, 1, 56)",
        "UPDATE manifest_log_hashes SET body = x''",
        "DELETE FROM manifest_log_hashes",
    ];
    for sql in cases {
        let fixture = Fixture::new();
        let (_, row) = disk(&fixture.store, "web", 1 << 30, true).await;
        let hashes = [0, 100, 1000].map(|block| (BlockIndex(block), BlockHash([7; 16])));
        let commit = LedgerCommit { hashes: hashes.to_vec(), ..LedgerCommit::default() };
        fixture.store.commit(row, commit).await.unwrap();
        let raw = Connection::open(fixture.store.file()).unwrap();
        raw.execute_batch(&format!("PRAGMA ignore_check_constraints = ON; {sql}")).unwrap();
        for error in [
            fixture.store.hashes(row, &[0..1001]).await.unwrap_err(),
            fixture.store.compact_manifest(row).await.unwrap_err(),
        ] {
            assert_eq!(error.kind, StoreErrorKind::Corrupt, "{sql}: {error}");
            assert!(error.to_string().contains("table manifest_log, row"), "{sql}: {error}");
        }
    }
}

/// Commits 20,000 hashes, each in a page of its own or so, and says how many wait to be compacted.
async fn commit_scattered(store: &Store, disk: DiskId, number: u64) -> i64 {
    let blocks = (0..20_000).map(|block| BlockIndex(block * 50 + number % 50));
    let hashes = blocks.map(|block| (block, BlockHash([number as u8; 16]))).collect();
    store.commit(disk, LedgerCommit { hashes, ..LedgerCommit::default() }).await.unwrap();
    waiting(store)
}

fn waiting(store: &Store) -> i64 {
    let raw = Connection::open(store.file()).unwrap();
    raw.query_row("SELECT coalesce(sum(length(body) / 20), 0) FROM manifest_log_hashes", [], |row| row.get(0))
        .unwrap()
}

#[tokio::test]
async fn long_manifest_log_is_compacted_automatically() {
    let fixture = Fixture::new();
    let (_, row) = disk(&fixture.store, "web", 64 << 30, true).await;
    let mut number = 0;
    while commit_scattered(&fixture.store, row, number).await <= 200_000 {
        number += 1;
    }
    let deadline = Instant::now() + Duration::from_mins(1);
    while waiting(&fixture.store) > 200_000 {
        assert!(Instant::now() < deadline, "idle moments are not used");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(waiting(&fixture.store) > 0, "what is not much stays");
    for _ in 0..50 {
        number += 1;
        commit_scattered(&fixture.store, row, number).await;
    }
    // Nothing is done before the compaction that is urgent.
    fixture.store.commit(row, LedgerCommit::default()).await.unwrap();
    assert!(waiting(&fixture.store) <= 800_000, "{} hashes wait", waiting(&fixture.store));
    let found = fixture.store.hashes(row, &[0..50]).await.unwrap();
    for (block, hash) in (0..).zip(found) {
        let newest = (0..=number).rev().find(|number| number % 50 == block);
        assert_eq!(hash, newest.map_or(BlockHash::ZERO, |newest| BlockHash([newest as u8; 16])), "{block}");
    }
    assert_eq!(fixture.store.integrity().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_damaged_disk_keeps_no_other_from_being_folded() {
    let fixture = Fixture::new();
    let (_, damaged) = disk(&fixture.store, "web", 64 << 30, true).await;
    let (_, sound) = disk(&fixture.store, "db", 64 << 30, true).await;
    // The damaged one has more to compact, and so comes first.
    for number in 0..11 {
        commit_scattered(&fixture.store, damaged, number).await;
    }
    let raw = Connection::open(fixture.store.file()).unwrap();
    raw.execute_batch("UPDATE manifest_log_hashes SET body = zeroblob(length(body))").unwrap();
    let left = waiting(&fixture.store);
    assert!(left > 200_000, "it was compacted before it was damaged");
    let mut number = 0;
    while commit_scattered(&fixture.store, sound, number).await <= left + 200_000 {
        number += 1;
    }
    let deadline = Instant::now() + Duration::from_mins(1);
    while waiting(&fixture.store) > left + 200_000 {
        assert!(Instant::now() < deadline, "the damaged disk keeps the other from being compacted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(fixture.store.hashes(sound, &[1..2]).await.unwrap(), [BlockHash([1; 16])]);
}

/// Neither half of a row is a row: the pages would count as newest.
#[tokio::test]
async fn half_a_row_is_found_by_the_check() {
    for (table, lacks) in [("manifest_log", "blocks"), ("manifest_log_hashes", "hashes")] {
        let fixture = Fixture::new();
        let (_, row) = disk(&fixture.store, "web", 64 << 30, true).await;
        commit_scattered(&fixture.store, row, 1).await;
        assert_eq!(fixture.store.integrity().await.unwrap(), Vec::<String>::new());
        let raw = Connection::open(fixture.store.file()).unwrap();
        raw.execute(&format!("DELETE FROM {table} WHERE key = (SELECT min(key) FROM {table})"), []).unwrap();
        let found = fixture.store.integrity().await.unwrap();
        assert_eq!(found, [format!("manifest log of disk {} without their {lacks}", row.0)]);
    }
}

#[tokio::test]
async fn the_manifest_stays_within_its_share() {
    let fixture = Fixture::new();
    let (_, row) = disk(&fixture.store, "web", 64 << 30, true).await;
    let (_, other) = disk(&fixture.store, "db", 64 << 30, true).await;
    for gib in 0..64 {
        for disk in [row, other] {
            let blocks = gib * CHUNK_BLOCKS..(gib + 1) * CHUNK_BLOCKS;
            let hashes = blocks.map(|block| (BlockIndex(block), BlockHash([7; 16]))).collect();
            fixture.store.commit(disk, LedgerCommit { hashes, ..LedgerCommit::default() }).await.unwrap();
        }
    }
    fixture.store.close().await.unwrap();
    let share = std::fs::metadata(fixture.store.file()).unwrap().len() as f64 / (128_u64 << 30) as f64;
    assert!(share < 0.000_3, "the file is {:.4} % of the data", share * 100.0);
}
