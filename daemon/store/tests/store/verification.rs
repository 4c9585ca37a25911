//! What verifications and audits save.

use std::sync::Arc;

use warmd_cbt::{
    extents::ExtentSet,
    ledger::Ledger,
    mark::{ChangeMark, Changed},
    units::{BLOCK, Extent, Length, Offset},
};
use warmd_core::model::{
    plan::VerifyMode,
    verify::VerifyScope,
    view::{AuditView, PassKind, VerifyResult},
};
use warmd_store::{DiskRow, NewDiskPass, VerifyCursor};

use super::{Fixture, at, migration, new_disk};

const GIB: u64 = 1 << 30;

fn blocks(first: u64, count: u64) -> Extent {
    Extent::new(Offset(first * BLOCK), Length(count * BLOCK)).unwrap()
}

fn set(extents: &[Extent]) -> ExtentSet {
    ExtentSet::of(Length(3 * GIB), extents.iter().copied())
}

fn result() -> VerifyResult {
    VerifyResult {
        mode: VerifyMode::Readback,
        at: at(1),
        disks: Vec::new(),
        scope: VerifyScope::Changed,
        seed: None,
        miss_probabilities: Vec::new(),
    }
}

async fn disks(fixture: &Fixture) -> Vec<DiskRow> {
    let id = migration(&fixture.store, "web").await;
    let new = vec![new_disk("vda", 3 * GIB, true), new_disk("vdb", 3 * GIB, true)];
    fixture.store.save_disks(id, new).await.unwrap()
}

async fn advance(ledger: &Ledger, mark: &str, changed: &[Extent]) {
    ledger.advance(ChangeMark(mark.to_owned()), &Changed::Known(set(changed))).await.unwrap();
}

async fn drain(ledger: &Ledger, extents: &[Extent]) {
    let mut batch = warmd_cbt::batch::Batch::default();
    for extent in extents {
        batch.add(*extent, [], warmd_cbt::store::PassFigures::default());
    }
    ledger.drain(batch, None).await.unwrap();
}

#[tokio::test]
async fn what_becomes_pending_again_is_touched_until_it_is_proven() {
    let fixture = Fixture::new();
    let rows = disks(&fixture).await;
    let (id, disk, other) = (rows[0].migration, rows[0].id, rows[1].id);
    let ledger = Ledger::load(Arc::new(fixture.store.clone()), disk).await.unwrap();
    advance(&ledger, "1", &[]).await;
    // Half of the full pass; then the changes in the other half still belong to the full pass.
    drain(&ledger, &[blocks(0, 20_000)]).await;
    advance(&ledger, "2", &[blocks(5, 1), blocks(30_000, 9)]).await;
    assert_eq!(fixture.store.unverified(disk, VerifyMode::Readback).await.unwrap(), set(&[blocks(5, 1)]));
    drain(&ledger, &[blocks(0, 3 * GIB / BLOCK)]).await;
    advance(&ledger, "3", &[blocks(16_383, 2)]).await;
    drain(&ledger, &[blocks(16_383, 2)]).await;
    ledger.distrust(&[blocks(40_000, 1)]).await.unwrap();
    ledger.claim(&[blocks(1, 1)]).await.unwrap();
    let all = set(&[blocks(5, 1), blocks(16_383, 2), blocks(40_000, 1)]);

    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store.unverified(disk, VerifyMode::Readback).await.unwrap(), all);
    assert!(fixture.store.unverified(other, VerifyMode::Readback).await.unwrap().is_empty());
    fixture.store.put_verify_result(id, &result()).await.unwrap();
    fixture.store.end_verification(id, "readback changed", &result(), vec![other]).await.unwrap();
    assert_eq!(fixture.store.unverified(disk, VerifyMode::Readback).await.unwrap(), all, "it was not proven");
    fixture.store.end_verification(id, "readback changed", &result(), vec![disk]).await.unwrap();
    assert!(fixture.store.unverified(disk, VerifyMode::Readback).await.unwrap().is_empty());
    // It never read the source: a compare is still needed.
    assert_eq!(fixture.store.unverified(disk, VerifyMode::Compare).await.unwrap(), all);
    let compared = VerifyResult { mode: VerifyMode::Compare, ..result() };
    fixture.store.end_verification(id, "compare changed", &compared, vec![disk]).await.unwrap();
    for mode in [VerifyMode::Readback, VerifyMode::Compare] {
        assert!(fixture.store.unverified(disk, mode).await.unwrap().is_empty(), "a comparison settles both");
    }
    assert_eq!(fixture.store.verify_results(id).await.unwrap().len(), 4);
    assert_eq!(fixture.store.integrity().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn when_the_source_cannot_say_everything_is_touched() {
    let fixture = Fixture::new();
    let disk = disks(&fixture).await[0].id;
    let ledger = Ledger::load(Arc::new(fixture.store.clone()), disk).await.unwrap();
    advance(&ledger, "1", &[]).await;
    drain(&ledger, &[blocks(0, 3 * GIB / BLOCK)]).await;
    ledger.advance(ChangeMark("2".to_owned()), &Changed::Unknown("lost".to_owned())).await.unwrap();
    assert_eq!(
        fixture.store.unverified(disk, VerifyMode::Readback).await.unwrap(),
        ExtentSet::full(Length(3 * GIB))
    );
}

#[tokio::test]
async fn verify_cursor_belongs_to_its_verification_and_ledger() {
    let fixture = Fixture::new();
    let rows = disks(&fixture).await;
    let id = rows[0].migration;
    let cursor = |disk: usize, what: &str, ledger: &str, checked_to| VerifyCursor {
        disk: rows[disk].id,
        what: what.to_owned(),
        seed: Some(7),
        ledger: ledger.to_owned(),
        checked_to: Offset(checked_to),
    };
    for one in
        [cursor(0, "a", "1", 5), cursor(0, "b", "1", 6), cursor(1, "a", "1", 7), cursor(0, "a", "1", 8)]
    {
        fixture.store.put_verify_cursor(one).await.unwrap();
    }
    let fixture = fixture.reopen().await;
    let found = fixture.store.verify_cursors(id, "a").await.unwrap();
    assert_eq!(found, [cursor(0, "a", "1", 8), cursor(1, "a", "1", 7)]);
    // One of a newer ledger leaves none of an older one behind.
    fixture.store.put_verify_cursor(cursor(0, "c", "2", 1)).await.unwrap();
    assert_eq!(fixture.store.verify_cursors(id, "a").await.unwrap(), [cursor(1, "a", "1", 7)]);
    assert_eq!(fixture.store.verify_cursors(id, "b").await.unwrap(), []);
    fixture.store.end_verification(id, "a", &result(), Vec::new()).await.unwrap();
    assert_eq!(fixture.store.verify_cursors(id, "a").await.unwrap(), []);
    assert_eq!(fixture.store.verify_cursors(id, "c").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_pass_that_begins_forgets_how_far_verifications_are() {
    let fixture = Fixture::new();
    let rows = disks(&fixture).await;
    let id = rows[0].migration;
    let cursor = VerifyCursor {
        disk: rows[0].id,
        what: "a".to_owned(),
        seed: Some(7),
        ledger: "1".to_owned(),
        checked_to: Offset(BLOCK),
    };
    fixture.store.put_verify_cursor(cursor).await.unwrap();
    assert_eq!(fixture.store.verify_cursors(id, "a").await.unwrap().len(), 1);
    fixture.store.begin_pass(id, PassKind::Delta, at(1), Vec::new()).await.unwrap();
    assert_eq!(fixture.store.verify_cursors(id, "a").await.unwrap(), []);
}

#[tokio::test]
async fn the_first_fault_of_change_tracking_stays_for_ever() {
    let fixture = Fixture::new();
    let rows = disks(&fixture).await;
    let (id, disk) = (rows[0].migration, rows[0].id);
    let new = NewDiskPass {
        disk,
        pending: 0,
        changed: 0,
        extents: 0,
        unknown: None,
        mark: ChangeMark("1".to_owned()),
    };
    let pass = fixture.store.begin_pass(id, PassKind::Delta, at(1), vec![new]).await.unwrap();
    let disk_pass = pass.disks[0].1;
    let found =
        AuditView { checked: 9, mismatched_bytes: 2, mismatches: vec![(1, 2)], ..AuditView::default() };
    let put = |next, fault: Option<&str>| {
        fixture.store.put_audit(disk, disk_pass, &found, Offset(next), fault.map(str::to_owned))
    };
    put(10, None).await.unwrap();
    assert_eq!(fixture.store.disks(id).await.unwrap()[0].tracking_fault, None);
    put(20, Some("it lied")).await.unwrap();
    put(30, Some("again")).await.unwrap();
    put(40, None).await.unwrap();
    assert!(!fixture.store.put_tracking_fault(disk, "a third one".to_owned()).await.unwrap());
    let fixture = fixture.reopen().await;
    let rows = fixture.store.disks(id).await.unwrap();
    assert_eq!((rows[0].tracking_fault.as_deref(), rows[0].audit_cursor), (Some("it lied"), Offset(40)));
    assert_eq!((rows[1].tracking_fault.as_deref(), rows[1].audit_cursor), (None, Offset(0)));
    assert_eq!(fixture.store.passes(id).await.unwrap()[0].view.disks[0].audit, Some(found));
    assert!(fixture.store.put_tracking_fault(rows[1].id, "compared".to_owned()).await.unwrap());
    assert_eq!(fixture.store.disks(id).await.unwrap()[1].tracking_fault.as_deref(), Some("compared"));
}
