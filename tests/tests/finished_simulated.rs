//! Migrations that are over: out of the daemon's memory, and there whenever somebody asks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what is wrong by failing")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use warmd_daemon::{
    migration::control::{Control, ControlErrorKind},
    model::{
        plan::VerifyMode,
        request::{Request, Verdict},
        state::State,
    },
};
use warmd_tests::simulated::{Rig, World};

const BLOCK: u64 = 64 * 1024;
const DISKS: [(&str, u64); 2] = [("vda", 40 * BLOCK), ("vdb", 10 * BLOCK + 512)];

async fn seeded() -> Rig {
    let world = World::new(&DISKS);
    world.guest_writes("vda", 3 * BLOCK, &vec![3; 90_000]);
    let rig = Rig::start(world).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig
}

/// Waits until nothing of any migration is in memory.
async fn nobody_at_work(rig: &Rig) {
    let begun = Instant::now();
    while !format!("{:?}", rig.manager).contains("migrations: 0") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", rig.manager);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
        assert_eq!(rig.request(Request::Cutover).await, Verdict::AlreadySo);
        assert!(matches!(rig.request(Request::Sync).await, Verdict::Refused(_)));
        let applied = rig.manager.apply_plan(Rig::plan(VerifyMode::Readback), "test").await.unwrap();
        assert_eq!((applied.kept, applied.started.len()), (vec![done.id], 0));
        let limit = rig.manager.limits(Some(&format!("migration/{id}"))).await.unwrap_err();
        assert_eq!(limit.kind, ControlErrorKind::Refused, "{limit}");
        let metrics = rig.metrics.render(&(rig.manager.present())().await).unwrap();
        assert!(metrics.contains("warmd_migrations{plan=\"plan\",state=\"done\"} 1"), "{metrics}");
    }
}

/// Many at once, while its owner comes and goes: each gets an answer, and there is never more than one owner.
#[tokio::test]
async fn requests_of_a_finished_migration_are_answered_however_they_come() {
    let rig = seeded().await;
    let id = rig.cutover().await.id;
    for round in 0..4 {
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let manager = Arc::clone(&rig.manager);
            asked.spawn(async move { manager.request(id, Request::Cutover, "test").await.unwrap() });
        }
        for verdict in asked.join_all().await {
            assert_eq!(verdict, Verdict::AlreadySo);
        }
        // About as long as an owner stays.
        tokio::time::sleep(Duration::from_millis(985 + 10 * round)).await;
    }
    nobody_at_work(&rig).await;
}
