//! A state with garbage in some rows over simulated endpoints: readable migrations continue.

use warmd_cbt::units::BLOCK;
use warmd_core::{
    control::{Control, ControlErrorKind},
    model::{plan::VerifyMode, request::Request, state::State},
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld};

/// Seeds, puts garbage into the state, and starts again.
async fn with_garbage(sql: &str) -> Rig {
    let world = SimulatedWorld::new(&[("vda", 40 * BLOCK)]);
    world.guest_writes("vda", 3 * BLOCK, &vec![7; 5 * BLOCK as usize]);
    let mut rig = Rig::start(world).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    let file = rig.state_file();
    rig.stop().await;
    rusqlite::Connection::open(file).unwrap().execute_batch(sql).unwrap();
    rig.go_on().await;
    rig
}

#[tokio::test]
async fn an_unreadable_migration_is_shown_refused_and_left_alone() {
    let rig = with_garbage("UPDATE migrations SET state = 'garbage'").await;
    let view = rig.view().await;
    assert!(
        matches!(&view.state, State::Failed { reason, resumable: false, .. }
        if reason.contains("unreadable") && reason.contains("table migrations")),
        "{:?}",
        view.state
    );
    assert_eq!(rig.manager.migrations(None).await.unwrap().len(), 1);
    for request in [Request::Cancel, Request::Sync, Request::cutover()] {
        let error = rig.manager.request(view.id, request, "test").await.unwrap_err();
        assert_eq!(error.kind, ControlErrorKind::Refused);
        assert!(error.message.contains("unreadable"), "{error}");
    }
    let error = rig.manager.delete_plan("plan", "test").await.unwrap_err();
    assert!(error.message.contains("unreadable"), "{error}");
    // No second migration of the VM.
    let applied = rig.manager.apply_plan(Rig::plan(VerifyMode::Readback), "test").await.unwrap();
    assert_eq!((applied.started.len(), applied.kept), (0, vec![view.id]));
    assert!(rig.journal().await.contains("unreadable"));
}

#[tokio::test]
async fn unreadable_plan_is_applied_again_and_migrations_continue() {
    let rig = with_garbage("UPDATE plans SET body = 'garbage'").await;
    let view = rig.view().await;
    assert!(
        matches!(&view.state, State::Failed { reason, .. } if reason.contains("plan")),
        "{:?}",
        view.state
    );
    assert!(rig.manager.plans().await.unwrap().is_empty());
    rig.manager_applies(Rig::plan(VerifyMode::Readback)).await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
}

#[tokio::test]
async fn what_could_not_be_read_for_now_is_read_again_and_goes_on() {
    let world = SimulatedWorld::new(&[("vda", 40 * BLOCK)]);
    world.guest_writes("vda", 3 * BLOCK, &vec![7; 5 * BLOCK as usize]);
    let mut rig = Rig::start(world).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig.stop().await;
    // At the start, and once more.
    rig.world.faults.set("store.read reading the disks of migration", InjectedFault::Passing(2));
    rig.go_on().await;
    let view = rig.view().await;
    let waiting = view.waiting.expect("it is tried again");
    assert!(waiting.reason.contains("reading the disks") && waiting.tries == 1, "{waiting:?}");
    assert!(waiting.next_try.unwrap() > waiting.since, "{waiting:?}");
    assert!(
        matches!(&view.state, State::Failed { reason, resumable: false, .. } if reason.contains("for now"))
    );
    let error = rig.manager.request(view.id, Request::Sync, "test").await.unwrap_err();
    assert_eq!(error.kind, ControlErrorKind::Refused);
    // A plan that is applied meanwhile also reads it: it still has one driver.
    let applied = rig.manager.apply_plan(Rig::plan(VerifyMode::Readback), "test").await.unwrap();
    assert_eq!((applied.started.len(), applied.kept), (0, vec![view.id]));
    rig.until("it is read", |view| view.state == State::Synced && view.waiting.is_none()).await;
    assert_eq!(rig.manager.migrations(None).await.unwrap().len(), 1);
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
}

#[tokio::test]
async fn what_is_not_read_again_and_again_is_tried_until_it_is() {
    let mut rig = Rig::start(SimulatedWorld::new(&[("vda", 40 * BLOCK)])).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig.stop().await;
    rig.world.faults.set("store.read reading the disks of migration", InjectedFault::Passing(2));
    rig.go_on().await;
    rig.until("a further try", |view| view.waiting.as_ref().is_some_and(|waiting| waiting.tries == 2)).await;
    rig.until("it is read", |view| view.state == State::Synced && view.waiting.is_none()).await;
    // Its driver is there before the journal says so.
    let begun = std::time::Instant::now();
    while !rig.journal().await.contains("can be read again") {
        assert!(begun.elapsed().as_secs() < 10, "{}", rig.journal().await);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
