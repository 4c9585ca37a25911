//! Thinning, backups and checks of the state.

use std::time::Duration;

use rusqlite::Connection;
use warmd_cbt::mark::ChangeMark;
use warmd_core::model::view::PassKind;
use warmd_store::{FILE_NAME, NewDiskPass, Retention, Store, back_up, look_over};

use super::{Fixture, at, disk, event, migration, telemetry::telemetry};

fn count(raw: &Connection, what: &str) -> i64 {
    raw.query_row(&format!("SELECT {what}"), [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn many_passes_become_sums_and_old_lines_go() {
    let fixture = Fixture::new();
    let (id, vda) = disk(&fixture.store, "web", 1 << 30, false).await;
    for number in 0..600_i64 {
        let new = NewDiskPass {
            disk: vda,
            pending: 1,
            changed: 5,
            extents: 1,
            unknown: None,
            mark: ChangeMark("cp".to_owned()),
        };
        let kind = if number == 0 { PassKind::Full } else { PassKind::Delta };
        let pass = fixture.store.begin_pass(id, kind, at(number * 60), vec![new]).await.unwrap();
        fixture.store.save_telemetry(pass.id, None, vec![(pass.disks[0].1, telemetry(1))]).await.unwrap();
        fixture.store.end_pass(pass.id, at(number * 60 + 1), None).await.unwrap();
        fixture.store.append_events(vec![event(Some(id), "a step")]).await.unwrap();
    }
    let raw = Connection::open(fixture.store.file()).unwrap();
    let rows = || {
        ["passes", "disk_passes", "stages", "waits", "events"]
            .map(|table| count(&raw, &format!("count(*) FROM {table}")))
    };
    let (before, pages) = (rows(), count(&raw, "page_count FROM pragma_page_count"));
    let keep = Retention {
        keep_passes: 50,
        keep_stages: 10,
        keep_journal: Duration::from_mins(1),
        ..Retention::default()
    };
    let later = at(365 * 86_400);
    assert!(fixture.store.thin(&keep, later).await.unwrap() > 5, "in steps");
    let after = rows();
    let left = count(&raw, "page_count FROM pragma_page_count");
    println!("rows {before:?} → {after:?}, pages {pages} → {left}");
    assert_eq!(after[..2], [51, 51], "the first, and the last fifty");
    assert!(after[2] <= before[2] / 50 && after[3] <= before[3] / 50, "{before:?} {after:?}");
    assert!(left * 2 < pages, "the file shrinks: {pages} {left}");
    let sums = "sum(passes) || ' ' || sum(changed) FROM pass_hours";
    let sums: String = raw.query_row(&format!("SELECT {sums}"), [], |row| row.get(0)).unwrap();
    assert_eq!(sums, format!("{} {}", 600 - 51, (600 - 51) * 5));
    assert_eq!(fixture.store.thin(&keep, later).await.unwrap(), 0, "nothing is left to do");
    assert_eq!(fixture.store.last_pass(id).await.unwrap().unwrap().view.number, 600);
    // The journal refuses changes as before.
    fixture.store.append_events(vec![event(Some(id), "a step")]).await.unwrap();
    assert!(raw.execute("DELETE FROM events", []).unwrap_err().to_string().contains("append-only"));
    assert_eq!(fixture.store.integrity().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_copy_of_a_live_state_is_whole_and_garbage_is_found() {
    let fixture = Fixture::new();
    migration(&fixture.store, "web").await;
    let other = tempfile::tempdir().unwrap();
    let to = other.path().join(FILE_NAME);
    back_up(fixture.dir.path(), &to).unwrap();
    assert!(back_up(fixture.dir.path(), &to).is_err(), "it is not written over");
    migration(&fixture.store, "mail").await;
    let copy = Store::open(other.path()).unwrap();
    assert_eq!(copy.migrations().await.unwrap().len(), 1);
    assert_eq!(look_over(fixture.dir.path()).unwrap(), Vec::<String>::new());
    let raw = Connection::open(fixture.store.file()).unwrap();
    raw.execute("UPDATE migrations SET state = 'garbage' WHERE vm_name = 'web'", []).unwrap();
    let found = look_over(fixture.dir.path()).unwrap();
    assert!(found.len() == 1 && found[0].contains("web"), "{found:?}");
}

#[tokio::test]
async fn a_report_of_many_passes_has_the_last_and_the_sums_of_all() {
    let fixture = Fixture::new();
    let (id, _) = disk(&fixture.store, "web", 1 << 30, false).await;
    let raw = Connection::open(fixture.store.file()).unwrap();
    raw.execute_batch(&format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO passes (migration, number, kind, started, ended)
         SELECT '{id}', i, 'delta', i * 60000000, i * 60000000 + 1 FROM n;
         INSERT INTO disk_passes (pass, disk, pending, changed, extents, mark, read)
         SELECT passes.id, (SELECT id FROM disks), 1, 3, 1, 'm', 2 FROM passes"
    ))
    .unwrap();
    let both = |passes: &[warmd_store::PassRow], sums: &[warmd_core::model::report::PassSums]| {
        (passes.len(), passes[0].view.number, sums[0].passes, sums[0].changed, sums[0].read)
    };
    let (passes, sums) = fixture.store.last_passes(id, 1000).await.unwrap();
    assert_eq!(both(&passes, &sums), (1000, 19_001, 19_000, 57_000, 38_000));
    fixture.store.thin(&Retention { keep_passes: 2000, ..Retention::default() }, at(0)).await.unwrap();
    let (passes, sums) = fixture.store.last_passes(id, 1000).await.unwrap();
    assert_eq!(both(&passes, &sums), (1000, 19_001, 19_000, 57_000, 38_000), "thinned or not");
}
