//! Valid rows of a ledger, and refused ones.

use rusqlite::Connection;
use warmd_cbt::{
    chunk::ChunkBits,
    manifest::BlockHash,
    store::{ChunkRow, DiskId, LedgerCommit, LedgerStore, StoreErrorKind},
    units::{BLOCK, BlockIndex, Length, blocks_in},
};

use super::{Fixture, disk};

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let fixture = Fixture::new();
    let nobody = DiskId(42);
    let error = fixture.store.commit(nobody, LedgerCommit::default()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound);
    assert!(error.to_string().contains("disk 42"), "{error}");
    assert_eq!(fixture.store.load(nobody).await.unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(fixture.store.hashes(nobody, &[0..1]).await.unwrap_err().kind, StoreErrorKind::NotFound);
}

#[tokio::test]
async fn ranges_that_no_disk_has_are_refused() {
    let fixture = Fixture::new();
    let (_, row) = disk(&fixture.store, "web", 10 * BLOCK, true).await;
    assert_eq!(fixture.store.hashes(row, &[9..10]).await.unwrap().len(), 1);
    assert_eq!(fixture.store.hashes(row, &[10..10]).await.unwrap(), []);
    assert_eq!(fixture.store.hashes(row, &[]).await.unwrap(), []);
    assert_eq!(fixture.store.hashes(row, &[0..1, 1..2, 5..6]).await.unwrap().len(), 3);
    #[expect(clippy::reversed_empty_ranges, reason = "it is what must be refused")]
    let refused =
        [vec![9..11], vec![0..u64::MAX], vec![u64::MAX - 1..u64::MAX], vec![3..4, 2..3], vec![3..2]];
    for spans in refused {
        assert!(fixture.store.hashes(row, &spans).await.is_err(), "{spans:?}");
    }
    let mut pending = ChunkBits::default();
    pending.set(0..1, true);
    for chunk in [1, u32::MAX] {
        let row_past = ChunkRow { chunk, pending: pending.clone(), trusted: ChunkBits::default() };
        let commit = LedgerCommit { chunks: vec![row_past], ..LedgerCommit::default() };
        assert!(fixture.store.commit(row, commit).await.is_err(), "chunk {chunk}");
    }
    let (_, big) = disk(&fixture.store, "big", 1 << 50, true).await;
    let last = blocks_in(Length(1 << 50)) - 1;
    let commit =
        LedgerCommit { hashes: vec![(BlockIndex(last), BlockHash([9; 16]))], ..LedgerCommit::default() };
    fixture.store.commit(big, commit).await.unwrap();
    assert_eq!(fixture.store.hashes(big, &[last..last + 1]).await.unwrap(), [BlockHash([9; 16])]);
    assert!(fixture.store.hashes(big, &[0..last]).await.is_err(), "too many hashes for one answer");
}

#[tokio::test]
async fn garbage_in_a_ledger_is_corrupt() {
    let cases = [
        ("UPDATE chunks SET pending = x'09'", "these bits cannot be"),
        ("UPDATE chunks SET key = key + 100", "past the disk's end"),
        ("UPDATE disks SET size = 9223372036854775807", "more than a disk can have"),
    ];
    for (sql, named) in cases {
        let fixture = Fixture::new();
        let (_, row) = disk(&fixture.store, "web", 1 << 30, true).await;
        Connection::open(fixture.store.file()).unwrap().execute_batch(sql).unwrap();
        let error = fixture.store.load(row).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Corrupt, "{sql}: {error}");
        assert!(error.to_string().contains(named), "{sql}: {error}");
    }
    let fixture = Fixture::new();
    let (_, row) = disk(&fixture.store, "web", 1 << 30, true).await;
    let raw = Connection::open(fixture.store.file()).unwrap();
    raw.execute_batch(&format!(
        "PRAGMA ignore_check_constraints = ON; INSERT INTO pages VALUES ({}, x'0102')",
        row.0 << 32
    ))
    .unwrap();
    let error = fixture.store.hashes(row, &[0..4]).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Corrupt);
    assert!(error.to_string().contains("table pages"), "{error}");
}
