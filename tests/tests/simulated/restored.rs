//! The daemon's state restored from an older copy over simulated endpoints: if this state does not know of a
//! cutover, both sides are left alone until an operator decides which VM counts.

use std::path::Path;

use warmd_cbt::units::BLOCK;
use warmd_core::{
    control::Control,
    model::{
        plan::VerifyMode,
        request::{Request, RequestOutcome},
        state::{ResumePoint, State},
        verify::VerifyOrder,
        view::MigrationView,
    },
    targets::LastWriter,
};
use warmd_tests::simulated::{InjectedFault, Rig, SimulatedWorld};

const SIZE: u64 = 40 * BLOCK;

fn world() -> SimulatedWorld {
    let world = SimulatedWorld::new(&[("vda", SIZE)]);
    world.guest_writes("vda", 3 * BLOCK, &vec![7; 5 * BLOCK as usize]);
    world
}

/// All files of the state, as an operator copies them while no daemon runs.
fn copied(file: &Path) -> tempfile::TempDir {
    let kept = tempfile::TempDir::new().unwrap();
    for entry in file.parent().unwrap().read_dir().unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, kept.path().join(path.file_name().unwrap())).unwrap();
    }
    kept
}

fn put_back(file: &Path, kept: &Path) {
    for entry in file.parent().unwrap().read_dir().unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for entry in kept.read_dir().unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, file.parent().unwrap().join(path.file_name().unwrap())).unwrap();
    }
}

fn is_stale(view: &MigrationView) -> bool {
    matches!(view.state, State::Failed { resumable: true, from: ResumePoint::StaleState, .. })
}

/// Moves the VM, lets it write on the target, stops it there, and restores the state from before the cutover.
async fn moved_and_put_back() -> Rig {
    let mut rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    let file = rig.state_file();
    rig.stop().await;
    let kept = copied(&file);
    rig.go_on().await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.stop().await;
    rig.world.with(|truth| {
        assert!(truth.target_runs && !truth.source_runs);
        truth.target_runs = false;
        truth.target_disks.get_mut("vda").unwrap().corrupt(4 * BLOCK as usize + 5, &[0xee; 3000]);
        truth.calls.clear();
    });
    put_back(&file, kept.path());
    rig.go_on().await;
    assert_eq!(rig.view().await.state, State::Synced);
    rig
}

/// Nothing was copied, started, stopped or removed.
fn assert_left_alone(rig: &Rig) {
    rig.world.with(|truth| {
        assert!(truth.violations.is_empty(), "{:?}", truth.violations);
        assert!(truth.target_exists && !truth.source_runs && !truth.target_runs, "{truth:?}");
        assert_eq!(truth.target_disks["vda"].durable()[4 * BLOCK as usize + 5], 0xee, "it was copied over");
        assert!(!truth.snapshot_open);
    });
}

#[tokio::test]
async fn the_next_pass_asks_which_vm_counts_and_leaves_both_alone() {
    for request in [Request::Sync, Request::cutover()] {
        let rig = moved_and_put_back().await;
        rig.ask(request).await;
        let view = rig.until("the question", is_stale).await;
        assert_left_alone(&rig);
        let State::Failed { reason, .. } = &view.state else { unreachable!() };
        assert!(reason.contains("does not know of") && reason.contains("`cancel`"), "{reason}");
        assert!(reason.contains("`rollback`") && reason.contains("put back from an older copy"), "{reason}");
        for refused in [Request::Sync, Request::cutover(), Request::verify()] {
            assert!(matches!(rig.request(refused.clone()).await, RequestOutcome::Refused(_)), "{refused:?}");
        }
        // The daemon checks again, and finds the same.
        rig.ask(Request::Resume).await;
        rig.until("the same again", is_stale).await;
        assert_left_alone(&rig);
    }
}

/// It takes a snapshot and copies a delta, but is not a step of the state machine.
#[tokio::test]
async fn a_comparison_copies_over_nothing_either() {
    let rig = moved_and_put_back().await;
    let id = rig.view().await.id;
    let order = VerifyOrder { mode: VerifyMode::Compare, ..VerifyOrder::default() };
    assert_eq!(rig.manager.verify(id, order, "test").await.unwrap(), RequestOutcome::Accepted);
    let view = rig
        .until("the comparison's end", |view| {
            view.verification.as_ref().is_some_and(|verification| verification.error.is_some())
        })
        .await;
    let error = view.verification.unwrap().error.unwrap();
    assert!(error.contains("does not know of"), "{error}");
    assert_left_alone(&rig);
    rig.ask(Request::Sync).await;
    rig.until("the question", is_stale).await;
    assert_left_alone(&rig);
}

#[tokio::test]
async fn if_the_target_vm_counts_it_is_left_with_its_disks() {
    let mut rig = moved_and_put_back().await;
    rig.ask(Request::Sync).await;
    rig.until("the question", is_stale).await;
    rig.restart().await;
    assert!(is_stale(&rig.view().await));
    rig.ask(Request::Cancel).await;
    rig.until("the end", |view| view.state == State::Cancelled).await;
    assert_left_alone(&rig);
    rig.world.with(|truth| assert!(truth.marks.is_empty(), "left on the source: {:?}", truth.marks.keys()));
    let journal = rig.journal().await;
    assert!(journal.contains("it and its disks are left as they are"), "{journal}");
}

/// The same for a migration that is cancelled before the daemon looked.
#[tokio::test]
async fn giving_it_up_unseen_leaves_the_target_vm_with_its_disks() {
    let rig = moved_and_put_back().await;
    rig.ask(Request::Cancel).await;
    rig.until("the end", |view| view.state == State::Cancelled).await;
    assert_left_alone(&rig);
}

#[tokio::test]
async fn if_the_source_counts_it_is_gone_back_to_and_moved_again() {
    let mut rig = moved_and_put_back().await;
    rig.ask(Request::Sync).await;
    rig.until("the question", is_stale).await;
    rig.world.faults.set("target.discard", InjectedFault::Passing(2));
    rig.ask(Request::Rollback).await;
    rig.restart().await;
    rig.until("rest", |view| view.state == State::Paused { from: ResumePoint::Synced }).await;
    rig.world.with(|truth| {
        assert!(!truth.target_exists && !truth.target_runs, "{truth:?}");
        // This state does not know whether the VM ran before that cutover.
        assert!(!truth.source_runs);
        truth.source_runs = true;
    });
    rig.world.guest_writes("vda", 9 * BLOCK, &[9; 100]);
    rig.ask(Request::Resume).await;
    rig.until("synced", |view| view.state == State::Synced).await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.world.assert_moved();
}

/// A copy from the middle of a cutover would undo it, and an undo removes the target VM and starts the
/// source.
#[tokio::test]
async fn an_undo_by_a_state_from_before_the_start_is_not_begun() {
    let mut rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    let file = rig.state_file();
    rig.world.faults.set("target.create", InjectedFault::Passing(u32::MAX));
    rig.ask(Request::cutover()).await;
    rig.until("the VM's making", |view| {
        view.cutover
            .as_ref()
            .is_some_and(|cutover| cutover.phases.iter().any(|at| at.phase.to_string() == "create-vm"))
    })
    .await;
    rig.stop().await;
    let kept = copied(&file);
    rig.world.faults.clear();
    rig.go_on().await;
    let ended = rig.until("the end of it", |view| matches!(view.state, State::Done | State::Synced)).await;
    if ended.state == State::Synced {
        assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    }
    rig.stop().await;
    rig.world.with(|truth| {
        truth.target_runs = false;
        truth.target_disks.get_mut("vda").unwrap().corrupt(4 * BLOCK as usize + 5, &[0xee; 3000]);
    });
    put_back(&file, kept.path());
    rig.go_on().await;
    rig.until("the question", is_stale).await;
    assert_left_alone(&rig);
}

/// An unreadable note may be the target VM's.
#[tokio::test]
async fn an_unreadable_note_is_a_question_too() {
    let mut rig = Rig::start(world()).await;
    rig.seed(Rig::plan(VerifyMode::Readback)).await;
    rig.restart_after(|world| world.with(|truth| truth.noted = Some(LastWriter::Unknown))).await;
    rig.ask(Request::Sync).await;
    rig.until("the question", is_stale).await;
    rig.ask(Request::Rollback).await;
    rig.until("rest", |view| view.state == State::Paused { from: ResumePoint::Synced }).await;
    rig.ask(Request::Resume).await;
    rig.until("synced", |view| view.state == State::Synced).await;
    assert_eq!(rig.cutover().await.state, State::Done, "{}", rig.journal().await);
    rig.world.assert_moved();
}

/// A copy from between a pass's record and its audit's result trusts the source, and does not know what was
/// copied because of the audit: a block that is then changed back must not be skipped as one that the target
/// has.
#[tokio::test]
async fn state_from_before_a_tracking_fault_trusts_nothing() {
    let mut rig = Rig::start(world()).await;
    let mut plan = Rig::plan(VerifyMode::None);
    plan.verify.audit = Some(warmd_core::model::verify::Amount::Share(1_000_000));
    rig.seed(plan).await;
    let old = vec![7; BLOCK as usize];
    rig.world.changes_unreported("vda", 4 * BLOCK, &vec![8; BLOCK as usize]);
    let (file, reads) = (rig.state_file(), rig.world.faults.struck("source-disk.read"));
    // The state at the snapshot's first read: the pass is recorded, its audit has no result yet.
    rig.world.faults.set("source-disk.read", InjectedFault::Hang);
    rig.ask(Request::Sync).await;
    rig.until("the pass", |view| view.pass.as_ref().is_some_and(|pass| pass.number == 2)).await;
    rig.until("its first read", |_| rig.world.faults.struck("source-disk.read") > reads).await;
    let kept = copied(&file);
    rig.world.faults.clear();
    rig.until("the result", |view| view.disks[0].tracking_fault.is_some() && view.state == State::Synced)
        .await;
    rig.stop().await;
    rig.world.with(|truth| assert_eq!(truth.target_disks["vda"].durable()[4 * BLOCK as usize], 8));
    put_back(&file, kept.path());
    rig.world.guest_writes("vda", 4 * BLOCK, &old);
    rig.go_on().await;
    rig.until("synced", |view| view.state == State::Synced).await;
    rig.world.with(|truth| {
        assert!(truth.target_disks["vda"].durable() == truth.source_disks["vda"], "the block was left out");
    });
}

/// The same for a copy from before a comparison's finding, which no later pass has recorded yet.
#[tokio::test]
async fn a_state_from_before_a_comparisons_finding_trusts_nothing() {
    let mut rig = Rig::start(world()).await;
    let mut plan = Rig::plan(VerifyMode::None);
    plan.verify.audit = Some(warmd_core::model::verify::Amount::Share(0));
    rig.seed(plan).await;
    rig.world.changes_unreported("vda", 4 * BLOCK, &vec![8; BLOCK as usize]);
    let (file, reads) = (rig.state_file(), rig.world.faults.struck("source-disk.read"));
    rig.world.faults.set("source-disk.read", InjectedFault::Hang);
    let id = rig.view().await.id;
    let order = VerifyOrder { mode: VerifyMode::Compare, ..VerifyOrder::default() };
    assert_eq!(rig.manager.verify(id, order, "test").await.unwrap(), RequestOutcome::Accepted);
    rig.until("its first read", |_| rig.world.faults.struck("source-disk.read") > reads).await;
    let kept = copied(&file);
    rig.world.faults.clear();
    rig.until("the finding", |view| {
        let is_over = view.verification.as_ref().is_some_and(|verification| verification.ended.is_some());
        is_over && view.disks[0].tracking_fault.is_some()
    })
    .await;
    rig.stop().await;
    put_back(&file, kept.path());
    rig.go_on().await;
    rig.sync().await;
    rig.world.with(|truth| {
        assert!(truth.target_disks["vda"].durable() == truth.source_disks["vda"], "the source is believed");
    });
}
