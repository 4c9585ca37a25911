//! Finished migrations: found on request, and without a ledger if they were cancelled.

use std::sync::Arc;

use rusqlite::Connection;
use warmd_cbt::{
    chunk::ChunkBits,
    ledger::Ledger,
    manifest::BlockHash,
    mark::{ChangeMark, Changed},
    store::{DiskId, LedgerCommit, LedgerStore},
    units::BlockIndex,
};
use warmd_core::model::{id::MigrationId, state::State, view::PassKind};
use warmd_store::{MigrationUpdate, StoreErrorKind};

use super::{Fixture, at, new_disk, new_migration};

/// Tables of ledgers, by the condition of a disk's rows.
const LEDGER: [(&str, &str); 9] = [
    ("chunks", "key >> 32"),
    ("pages", "key >> 32"),
    ("unverified_readback", "key >> 32"),
    ("unverified_compare", "key >> 32"),
    ("manifest_log", "key >> 32"),
    ("manifest_log_hashes", "key >> 32"),
    ("manifest_log_counts", "disk"),
    ("verify_cursors", "disk"),
    ("latencies", "disk"),
];

/// Tables that have rows of the disk.
fn filled(fixture: &Fixture, disk: DiskId) -> Vec<&'static str> {
    let db = Connection::open(fixture.store.file()).unwrap();
    let has = |(table, of): &(&str, &str)| {
        db.prepare(&format!("SELECT 1 FROM {table} WHERE {of} = ?")).unwrap().exists([disk.0]).unwrap()
    };
    LEDGER.iter().filter(|row| has(row)).map(|(table, _)| *table).collect()
}

/// Every table of a ledger gets rows, of some more than go in one step.
async fn fill(fixture: &Fixture, disk: DiskId) {
    let ledger = Ledger::load(Arc::new(fixture.store.clone()), disk).await.unwrap();
    let all = Changed::Unknown("all".to_owned());
    ledger.advance(ChangeMark("m1".to_owned()), &all).await.unwrap();
    let dense = (0..16384).map(|block| (BlockIndex(block), BlockHash([1; 16]))).collect();
    let touched = vec![(0, ChunkBits::default())];
    let commit = LedgerCommit { hashes: dense, touched, ..LedgerCommit::default() };
    fixture.store.commit(disk, commit).await.unwrap();
    for round in 0..70 {
        let hashes = vec![(BlockIndex(round * 200), BlockHash([2; 16]))];
        fixture.store.commit(disk, LedgerCommit { hashes, ..LedgerCommit::default() }).await.unwrap();
    }
    let db = Connection::open(fixture.store.file()).unwrap();
    db.execute("INSERT INTO verify_cursors VALUES (?, 'x', NULL, 'y', 0)", [disk.0]).unwrap();
    db.execute("INSERT INTO latencies VALUES (?, 1, 5)", [disk.0]).unwrap();
}

async fn end(fixture: &Fixture, id: MigrationId, state: State) {
    fixture.store.save_state(id, MigrationUpdate::to(state, at(50))).await.unwrap();
}

#[tokio::test]
async fn what_is_given_up_loses_its_ledger_and_keeps_its_evidence() {
    let fixture = Fixture::new();
    let [one, two] = [new_migration("one"), new_migration("two")];
    let ids = [one.id, two.id];
    let mut disks = Vec::new();
    for new in [one, two] {
        let id = new.id;
        fixture.store.create_migration(new).await.unwrap();
        let row = fixture.store.save_disks(id, vec![new_disk("vda", 1 << 30, true)]).await.unwrap().remove(0);
        fixture.store.begin_pass(id, PassKind::Full, at(1), Vec::new()).await.unwrap();
        fill(&fixture, row.id).await;
        assert_eq!(filled(&fixture, row.id).len(), LEDGER.len());
        disks.push(row.id);
    }
    let refused = fixture.store.forget_ledgers(ids[0]).await.unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::NotFound, "{refused}");
    end(&fixture, ids[0], State::Cancelled).await;
    end(&fixture, ids[1], State::Done).await;
    assert_eq!(fixture.store.with_needless_ledgers().await.unwrap(), [ids[0]]);
    // Interrupted after a while, as by a crash.
    let some = fixture.store.forget_ledgers(ids[0]);
    tokio::time::timeout(std::time::Duration::ZERO, some).await.ok();
    let fixture = fixture.reopen().await;
    fixture.store.forget_ledgers(ids[0]).await.unwrap();
    assert!(fixture.store.with_needless_ledgers().await.unwrap().is_empty());
    assert!(filled(&fixture, disks[0]).is_empty(), "{:?}", filled(&fixture, disks[0]));
    assert_eq!(filled(&fixture, disks[1]).len(), LEDGER.len(), "one that was moved keeps its proof");
    assert!(fixture.store.integrity().await.unwrap().is_empty());
    assert_eq!(fixture.store.passes(ids[0]).await.unwrap().len(), 1);
    assert_eq!(fixture.store.disks(ids[0]).await.unwrap().len(), 1);
    assert!(fixture.store.forget_ledgers(ids[1]).await.is_err());
}

#[tokio::test]
async fn a_disk_that_was_never_copied_loses_its_ledger_too() {
    let fixture = Fixture::new();
    let new = new_migration("one");
    let id = new.id;
    fixture.store.create_migration(new).await.unwrap();
    let row = fixture.store.save_disks(id, vec![new_disk("vda", 5 << 30, false)]).await.unwrap().remove(0);
    end(&fixture, id, State::Cancelled).await;
    assert_eq!(fixture.store.with_needless_ledgers().await.unwrap(), [id]);
    fixture.store.forget_ledgers(id).await.unwrap();
    assert!(filled(&fixture, row.id).is_empty());
    assert!(fixture.store.with_needless_ledgers().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_over_is_found_by_all_of_its_names() {
    let fixture = Fixture::new();
    let mut ids = Vec::new();
    for (name, state) in
        [("one", State::Done), ("one", State::Cancelled), ("two", State::Done), ("one", State::Synced)]
    {
        let mut new = new_migration(name);
        new.id = MigrationId::generate();
        ids.push(new.id);
        fixture.store.create_migration(new).await.unwrap();
        end(&fixture, ids[ids.len() - 1], state).await;
    }
    let store = &fixture.store;
    let like = async |key: &str| -> Vec<MigrationId> {
        let mut found: Vec<_> =
            store.finished_like(key).await.unwrap().into_iter().map(|one| one.id).collect();
        found.sort();
        found
    };
    assert_eq!(like("one").await, [ids[0], ids[1]]);
    let id = ids[2].to_string();
    for key in [id.as_str(), &id.to_ascii_uppercase(), &id[id.len() - 12..]] {
        assert_eq!(like(key).await, [ids[2]], "{key}");
    }
    assert!(like("%").await.is_empty() && like("").await.is_empty());
    assert!(like(&ids[3].to_string()).await.is_empty(), "it is not over");
    assert_eq!(store.open_migrations().await.unwrap().iter().map(|row| row.id).collect::<Vec<_>>(), [ids[3]]);
    assert_eq!(store.finished_migrations(None).await.unwrap().len(), 3);
    assert!(store.finished_migrations(Some("no such plan")).await.unwrap().is_empty());
    let counts = store.count_finished().await.unwrap();
    assert_eq!(
        counts.iter().map(|(_, state, count)| (*state, *count)).collect::<Vec<_>>(),
        [("cancelled", 1), ("done", 2)]
    );
    let row = store.migration(ids[2]).await.unwrap().unwrap();
    let by = async |plan: &str| store.moved_by(plan, &row.source, &row.vm.0).await.unwrap();
    assert_eq!((by(&row.plan).await, by("another").await), (Some(ids[2]), None));
}
