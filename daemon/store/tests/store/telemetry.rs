//! The stages of passes, and files of a warmd that did not measure them.

use rusqlite::Connection;
use warmd_cbt::{
    mark::ChangeMark,
    store::{LedgerStore, StoreErrorKind},
    telemetry::{LatencyFigures, Stage, StageView, Telemetry, Wait, WaitView},
};
use warmd_core::model::{outcome::PassFailure, state::State, view::PassKind};
use warmd_store::{FILE_NAME, MigrationUpdate, NewDiskPass, Store};

use super::{Fixture, at, disk};

pub(super) fn telemetry(scale: u64) -> Telemetry {
    let stage = |stage: Stage| {
        let seconds = (stage as u64 * scale) as f64 / 64.0;
        StageView {
            stage,
            bytes: scale << 20,
            requests: scale,
            in_flight: 0,
            in_flight_max: 64,
            busy: seconds * 8.0,
            latency: LatencyFigures { p50: 0.000_016, p90: seconds, p99: seconds * 2.0, max: seconds * 4.0 },
            cpu: seconds / 2.0,
            stalled: seconds / 4.0,
        }
    };
    let wait = |wait: Wait| WaitView { wait, count: scale, time: 0.125 };
    Telemetry {
        elapsed: scale as f64 * 1.5,
        stages: Stage::ALL.map(stage).to_vec(),
        waits: Wait::ALL.map(wait).to_vec(),
    }
}

fn new(disk: warmd_cbt::store::DiskId) -> NewDiskPass {
    let mark = ChangeMark("cp1".to_owned());
    NewDiskPass { disk, pending: 1, changed: 1, extents: 1, unknown: None, mark }
}

#[tokio::test]
async fn the_last_picture_of_each_pass_is_kept() {
    let fixture = Fixture::new();
    let (id, vda) = disk(&fixture.store, "web", 1 << 30, false).await;
    let first = fixture.store.begin_pass(id, PassKind::Full, at(1), vec![new(vda)]).await.unwrap();
    assert_eq!((first.view.cpu, &first.view.disks[0].telemetry), (None, &None));
    let second = fixture.store.begin_pass(id, PassKind::Delta, at(9), vec![new(vda)]).await.unwrap();
    for scale in [1, 2, 3] {
        let disks = vec![(first.disks[0].1, telemetry(scale))];
        fixture.store.save_telemetry(first.id, Some(scale as f64), disks).await.unwrap();
    }
    fixture.store.save_telemetry(second.id, None, vec![(second.disks[0].1, telemetry(7))]).await.unwrap();

    let fixture = fixture.reopen().await;
    let passes = fixture.store.passes(id).await.unwrap();
    assert_eq!((passes[0].view.cpu, passes[1].view.cpu), (Some(3.0), None));
    assert_eq!(passes[0].view.disks[0].telemetry, Some(telemetry(3)));
    assert_eq!(passes[1].view.disks[0].telemetry, Some(telemetry(7)));
    assert_eq!(fixture.store.last_pass(id).await.unwrap().unwrap(), passes[1]);
}

#[tokio::test]
async fn a_pass_that_was_cut_gets_an_end_when_it_was_last_seen() {
    let fixture = Fixture::new();
    let (id, vda) = disk(&fixture.store, "web", 1 << 30, false).await;
    let (other, vdb) = disk(&fixture.store, "db", 1 << 30, false).await;
    let whole = fixture.store.begin_pass(id, PassKind::Full, at(1), vec![new(vda)]).await.unwrap();
    fixture.store.end_pass(whole.id, at(2), None).await.unwrap();
    let seen = fixture.store.begin_pass(id, PassKind::Delta, at(10), vec![new(vda)]).await.unwrap();
    fixture.store.save_telemetry(seen.id, None, vec![(seen.disks[0].1, telemetry(4))]).await.unwrap();
    fixture.store.begin_pass(id, PassKind::Delta, at(20), vec![new(vda)]).await.unwrap();
    fixture.store.begin_pass(other, PassKind::Full, at(30), vec![new(vdb)]).await.unwrap();
    fixture.store.save_state(other, MigrationUpdate::to(State::Cancelled, at(31))).await.unwrap();
    for _ in 0..2 {
        fixture.store.end_cut_passes().await.unwrap();
    }
    let passes = fixture.store.passes(id).await.unwrap();
    let ends: Vec<_> = passes.iter().map(|pass| (pass.view.ended, pass.view.error.clone())).collect();
    let cut = Some(PassFailure::CutOff);
    assert_eq!(ends, [(Some(at(2)), None), (Some(at(16)), cut.clone()), (Some(at(20)), cut)]);
    assert_eq!(passes[1].view.disks[0].telemetry, Some(telemetry(4)));
    assert_eq!(fixture.store.last_pass(other).await.unwrap().unwrap().view.ended, None, "it is over");
}

#[tokio::test]
async fn a_pass_that_is_not_there_and_rows_that_cannot_be_are_errors() {
    let fixture = Fixture::new();
    let (id, vda) = disk(&fixture.store, "web", 1 << 30, false).await;
    let pass = fixture.store.begin_pass(id, PassKind::Full, at(1), vec![new(vda)]).await.unwrap();
    let row = pass.disks[0].1;
    for (pass, row) in [(pass.id + 1, row), (pass.id, row + 1)] {
        let error = fixture.store.save_telemetry(pass, None, vec![(row, telemetry(1))]).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
    }
    fixture.store.save_telemetry(pass.id, None, vec![(row, telemetry(1))]).await.unwrap();
    for (sql, named) in [
        ("UPDATE waits SET wait = 'nobody' WHERE wait = 'room'", "table waits"),
        ("UPDATE stages SET stage = 'somewhere' WHERE stage = 'read'", "table stages"),
        ("UPDATE stages SET p99 = -1", "table stages"),
        ("UPDATE disk_passes SET elapsed = -1", "table disk_passes"),
    ] {
        let raw = Connection::open(fixture.store.file()).unwrap();
        raw.execute_batch(sql).unwrap();
        let error = fixture.store.passes(id).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Corrupt, "{sql}: {error}");
        assert!(error.to_string().contains(named), "{sql}: {error}");
    }
}

/// A database as version 1 made it, with a migration that has two passes behind it. Never edit it.
const VERSION_1: &str = "
    INSERT INTO migrations (id, plan, source, target, vm, vm_name, target_name, machine, state_name, state, since,
                            created, warnings)
    VALUES ('01999999-0000-7000-8000-000000000001', 'p', 's', 't', 'vm', 'web', 'web2',
            '{\"v\":1,\"is\":{\"id\":\"vm\",\"name\":\"web\",\"uuid\":\"u\",\"firmware\":\"bios\",\"machine_type\":\"q35\",\"architecture\":\"x86_64\",\"cpu\":{\"sockets\":1,\"cores\":2,\"threads\":1},\"memory\":4096,\"disks\":[],\"nics\":[]}}',
            'synced', '{\"v\":1,\"is\":{\"name\":\"synced\"}}', 1790000000000000, 1790000000000000,
            '{\"v\":1,\"is\":[]}');
    INSERT INTO disks (id, migration, key, size, location, place, reads_zero, anchor)
    VALUES (1, '01999999-0000-7000-8000-000000000001', 'vda', 131072, '/pool/vda', NULL, 1, 'cp2');
    INSERT INTO passes (id, migration, number, kind, started, ended, error) VALUES
        (1, '01999999-0000-7000-8000-000000000001', 1, 'full', 1790000000000000, 1790000001000000, NULL),
        (2, '01999999-0000-7000-8000-000000000001', 2, 'delta', 1790000002000000, 1790000003000000, 'lost');
    INSERT INTO disk_passes (id, pass, disk, pending, changed, extents, unknown, mark, read) VALUES
        (1, 1, 1, 131072, 131072, 1, 'first', 'cp1', 131072), (2, 2, 1, 65536, 65536, 1, NULL, 'cp2', 65536);
    PRAGMA application_id = 2003987812; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;";

#[tokio::test]
async fn a_file_of_version_1_goes_up_with_all_that_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let raw = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    raw.execute_batch(include_str!("../../src/schema_v1.sql")).unwrap();
    raw.execute_batch(VERSION_1).unwrap();
    drop(raw);

    let store = Store::open(dir.path()).unwrap();
    let rows = store.migrations().await.unwrap();
    assert_eq!((rows.len(), rows[0].vm_name.as_str()), (1, "web"));
    let passes = store.passes(rows[0].id).await.unwrap();
    let read: Vec<_> = passes.iter().map(|pass| pass.view.disks[0].figures.read).collect();
    assert_eq!((passes.len(), read), (2, vec![131_072, 65_536]));
    assert_eq!(passes[1].view.error, Some(PassFailure::Error("lost".to_owned())));
    assert!(passes.iter().all(|pass| pass.view.cpu.is_none() && pass.view.disks[0].telemetry.is_none()));
    let disks = store.disks(rows[0].id).await.unwrap();
    assert_eq!(store.load(disks[0].id).await.unwrap().anchor, Some(ChangeMark("cp2".to_owned())));

    let pass = store.begin_pass(rows[0].id, PassKind::Delta, at(1), vec![new(disks[0].id)]).await.unwrap();
    assert_eq!(pass.view.number, 3);
    store.save_telemetry(pass.id, Some(0.5), vec![(pass.disks[0].1, telemetry(2))]).await.unwrap();
    let last = store.last_pass(rows[0].id).await.unwrap().unwrap();
    assert_eq!((last.view.cpu, &last.view.disks[0].telemetry), (Some(0.5), &Some(telemetry(2))));
    assert_eq!(store.integrity().await.unwrap(), Vec::<String>::new());
}
