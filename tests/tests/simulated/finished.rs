//! Finished migrations: not in the daemon's memory, and loaded for each request.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use warmd_core::{
    control::{Control, ControlErrorKind},
    model::{
        plan::VerifyMode,
        request::{Request, RequestOutcome},
        state::State,
    },
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld};

const BLOCK: u64 = 64 * 1024;
const DISKS: [(&str, u64); 2] = [("vda", 40 * BLOCK), ("vdb", 10 * BLOCK + 512)];

async fn seeded() -> Rig {
    let world = SimulatedWorld::new(&DISKS);
    world.guest_writes("vda", 3 * BLOCK, &vec![3; 90_000]);
    let rig = Rig::start(world).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig
}

/// Waits until no migration is in memory.
async fn nobody_at_work(rig: &Rig) {
    let begun = Instant::now();
    while !format!("{:?}", rig.manager).contains("migrations: 0") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", rig.manager);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Number of the ledgers' rows in the state.
fn ledger_rows(rig: &Rig) -> i64 {
    let count =
        "SELECT (SELECT count(*) FROM chunks) + (SELECT count(*) FROM pages) + (SELECT count(*) FROM manifest_log)
                 + (SELECT count(*) FROM unverified_readback) + (SELECT count(*) FROM disks WHERE anchor IS NOT NULL)";
    Connection::open(rig.state_file()).unwrap().query_row(count, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn what_is_done_is_out_of_memory_and_answers_all_the_same() {
    let mut rig = seeded().await;
    let done = rig.cutover().await;
    assert_eq!(done.state, State::Done);
    for restarted in [false, true] {
        if restarted {
            rig.restart().await;
        }
        nobody_at_work(&rig).await;
        let id = done.id.to_string();
        for key in [id.as_str(), &id[id.len() - 8..], "guest"] {
            assert_eq!(rig.manager.migration(key).await.unwrap().id, done.id, "{key}");
        }
        let view = rig.view().await;
        assert_eq!((view.state, view.disks.len()), (State::Done, 2));
        assert!(
            view.disks.iter().all(|disk| disk.pending == 0)
                && view.cutover.is_some_and(|it| it.ended.is_some())
        );
        assert_eq!(rig.manager.migrations(None).await.unwrap().len(), 1);
        assert_eq!(rig.manager.migrations(Some("plan")).await.unwrap().len(), 1);
        assert!(rig.manager.migrations(Some("other")).await.unwrap().is_empty());
        assert_eq!(rig.manager.report(done.id).await.unwrap().state, State::Done);
        assert_eq!(rig.request(Request::cutover()).await, RequestOutcome::NoChange);
        assert!(matches!(rig.request(Request::Sync).await, RequestOutcome::Refused(_)));
        let applied = rig.manager.apply_plan(Rig::plan(VerifyMode::Readback), "test").await.unwrap();
        assert_eq!((applied.kept, applied.started.len()), (vec![done.id], 0));
        let limit = rig.manager.limits(Some(&format!("migration/{id}"))).await.unwrap_err();
        assert_eq!(limit.kind, ControlErrorKind::Refused, "{limit}");
        let metrics = rig.metrics.render(&(rig.manager.present())().await).unwrap();
        assert!(metrics.contains("warmd_migrations{plan=\"plan\",state=\"done\"} 1"), "{metrics}");
    }
}

/// Many requests at once, while its driver starts and ends: each gets an answer, and there is never more than
/// one driver.
#[tokio::test]
async fn requests_to_a_finished_migration_are_always_answered() {
    let rig = seeded().await;
    let id = rig.cutover().await.id;
    for round in 0..4 {
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let manager = Arc::clone(&rig.manager);
            asked.spawn(async move { manager.request(id, Request::cutover(), "test").await.unwrap() });
        }
        for outcome in asked.join_all().await {
            assert_eq!(outcome, RequestOutcome::NoChange);
        }
        // About as long as a driver stays.
        tokio::time::sleep(Duration::from_millis(985 + 10 * round)).await;
    }
    nobody_at_work(&rig).await;
}

#[tokio::test]
async fn what_is_given_up_leaves_its_report_and_no_ledger() {
    let mut rig = seeded().await;
    let id = rig.view().await.id;
    assert!(ledger_rows(&rig) > 0);
    rig.ask(Request::Cancel).await;
    rig.until("given up", |view| view.state == State::Cancelled).await;
    nobody_at_work(&rig).await;
    assert_eq!(ledger_rows(&rig), 0);
    let report = rig.manager.report(id).await.unwrap();
    assert_eq!((report.passes.len(), report.disks.len()), (1, 2));
    assert!(report.disks.iter().all(|disk| disk.manifest_root.is_none() && disk.pending == disk.size));
    assert!(report.journal.iter().any(|line| line.text.contains("cancelled")));
    let view = rig.view().await;
    assert!(view.disks.iter().all(|disk| disk.pending == disk.size));
    // A new migration of the same VM and plan runs independently.
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    let kept = ledger_rows(&rig);
    assert!(kept > 0);
    rig.restart().await;
    assert_eq!(ledger_rows(&rig), kept);
    assert_eq!(rig.manager.migrations(None).await.unwrap().len(), 2);
    let new = rig.view().await.id;
    assert_ne!(new, id, "one that is under way goes before those that are over");
    rig.ask(Request::cutover()).await;
    let begun = Instant::now();
    while rig.manager.migration(&new.to_string()).await.unwrap().state != State::Done {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is {}", rig.journal().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.world.assert_moved();
    // Of two finished migrations the name means the one that moved the VM.
    assert_eq!(rig.view().await.id, new);
    assert_eq!(rig.manager.migration(&id.to_string()).await.unwrap().state, State::Cancelled);
}

/// If the daemon stops in the middle, its next start deletes the rest.
#[tokio::test]
async fn ledgers_that_an_earlier_daemon_left_go_with_the_next_start() {
    let mut rig = seeded().await;
    rig.world.faults.set("target.discard-disks", InjectedFault::Refused);
    rig.ask(Request::Cancel).await;
    rig.until("being given up", |view| view.state == State::Cancelling).await;
    assert!(ledger_rows(&rig) > 0);
    let file = rig.state_file();
    rig.restart_after(|_| {
        let db = Connection::open(&file).unwrap();
        let over = "UPDATE migrations SET state_name = 'cancelled', state = replace(state, 'cancelling', 'cancelled')";
        assert_eq!(db.execute(over, []).unwrap(), 1);
    })
    .await;
    let begun = Instant::now();
    while ledger_rows(&rig) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{} rows are left", ledger_rows(&rig));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rig.view().await.state, State::Cancelled);
}
