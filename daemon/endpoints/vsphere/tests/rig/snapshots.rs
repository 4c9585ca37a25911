//! Snapshots that fail, are lost, or are left over.

use std::time::Duration;

use serde_json::json;
use warmd_vsphere::{
    Kind,
    snapshot::Taken,
    vim::tasks::{self, AtDeadline},
};

use crate::harness::{Replica, Rig, owner};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_leaves_nothing() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let replica = Replica::of(&vm);
    let request = replica.request(&vm, false);
    let taken = vsphere.take(&request).await.unwrap();
    vsphere.release(&taken).await.unwrap();
    for (what, kind) in [
        (json!({"method": "CreateSnapshot_Task", "fault": "NoDiskSpace"}), Kind::Blocked),
        (json!({"method": "CreateSnapshot_Task", "fault": "FileFault"}), Kind::Failed),
        // It was made, and the task fails all the same.
        (json!({"method": "CreateSnapshot_Task", "fault": "FileFault", "after": true}), Kind::Failed),
    ] {
        rig.order("fail", &what);
        let error = vsphere.take(&request).await.map(drop).unwrap_err();
        assert_eq!(error.kind, kind, "{what}: {error}");
        assert_eq!(rig.snapshots(), 0, "{what}");
    }
    let taken = vsphere.take(&request).await.unwrap();
    rig.order("fail", &json!({"method": "RemoveSnapshot_Task", "fault": "FileFault"}));
    vsphere.release(&taken).await.unwrap_err();
    assert_eq!(vsphere.end_snapshots(&vm.of, &owner()).await.unwrap().count, 1);
    assert_eq!(rig.snapshots(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_looked_for() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let replica = Replica::of(&vm);
    let request = replica.request(&vm, false);
    vsphere.release(&vsphere.take(&request).await.unwrap()).await.unwrap();
    let made = rig.machine()["snapshots_made"].as_u64().unwrap();
    rig.order("fail", &json!({"method": "CreateSnapshot_Task", "drop": true, "after": true}));
    let taken = vsphere.take(&request).await.unwrap();
    assert_eq!(rig.machine()["snapshots_made"].as_u64(), Some(made + 1), "it was made twice");
    rig.order("fail", &json!({"method": "RemoveSnapshot_Task", "drop": true, "after": true}));
    vsphere.release(&taken).await.unwrap();
    assert_eq!(rig.snapshots(), 0);
    // Lost before it took effect: there is none, and that is an error that says so.
    rig.order("fail", &json!({"method": "CreateSnapshot_Task", "drop": true}));
    let result = vsphere.take(&request).await;
    assert!(matches!(&result, Err(error) if error.kind == Kind::Unreachable), "{:?}", result.err());
    assert_eq!(rig.snapshots(), 0);
    assert_eq!(rig.machine()["most_snapshots"].as_u64(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_daemon_left_is_removed_first() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let replica = Replica::of(&vm);
    let request = replica.request(&vm, false);
    let left = vsphere.take(&request).await.unwrap();
    // Another daemon, with a session of its own.
    let next = rig.open();
    let taken = next.take(&request).await.unwrap();
    assert_ne!(taken.of, left.of);
    assert_eq!((rig.snapshots(), rig.machine()["most_snapshots"].as_u64()), (1, Some(1)));
    // A snapshot that only has the name is people's.
    next.release(&taken).await.unwrap();
    rig.order(
        "snapshot",
        &json!({"machine": "web", "name": owner().snapshot_name(), "description": "a copy"}),
    );
    let error = next.take(&request).await.map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Blocked, "{error}");
    assert_eq!(next.end_snapshots(&vm.of, &owner()).await.unwrap().count, 0);
    assert_eq!(rig.snapshots(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_others_are_waited_for_and_named() {
    let rig = Rig::start(&[]);
    let mut settings = rig.settings();
    settings.task_seconds = 1;
    let hasty = crate::harness::open(settings);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let replica = Replica::of(&vm);
    let request = replica.request(&vm, false);
    vsphere.release(&vsphere.take(&request).await.unwrap()).await.unwrap();
    rig.order("limits", &json!({"task_times": {"ReconfigVM_Task": 4.0}}));
    let slow = tokio::spawn({
        let (vsphere, vm) = (vsphere.clone(), vm.of.clone());
        async move { vsphere.set_tracking(&vm, true).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let error = hasty.take(&request).await.map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Blocked, "{error}");
    assert!(error.to_string().contains("reconfig"), "{error}");
    let taken = vsphere.take(&request).await.unwrap();
    assert!(slow.is_finished());
    vsphere.release(&taken).await.unwrap();
    assert_eq!(rig.snapshots(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_a_removal_left_apart_are_consolidated() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let replica = Replica::of(&vm);
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    // The removal succeeds, and says that redo logs are left.
    rig.order("consolidation", &json!({"machine": "web", "on": true}));
    let calls = || rig.calls("ConsolidateVMDisks_Task");
    assert_eq!(calls(), 0);
    vsphere.release(&taken).await.unwrap();
    assert_eq!(calls(), 1);
    assert!(!vsphere.vm(&vm.of.id).await.unwrap().consolidation_needed);
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    vsphere.release(&taken).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_be_brought_to_rest_is_copied_without() {
    let rig = Rig::start(&[]);
    let mut settings = rig.settings();
    settings.quiesce = warmd_vsphere::settings::Quiesce::Try;
    settings.enable_change_tracking = false;
    let vsphere = crate::harness::open(settings);
    let vm = vsphere.find("web").await.unwrap();
    let replica = Replica::of(&vm);
    rig.order("fail", &json!({"method": "CreateSnapshot_Task", "fault": "ApplicationQuiesceFault"}));
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    assert!(!taken.quiesced && taken.warnings.len() == 1, "{:?}", taken.warnings);
    vsphere.release(&taken).await.unwrap();
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    assert!(taken.quiesced && taken.warnings.is_empty(), "{:?}", taken.warnings);
    vsphere.release(&taken).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_snapshot_of_ours_goes_and_the_answered_one_is_read() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let mut replica = Replica::of(&vm);
    vsphere.release(&vsphere.take(&replica.request(&vm, false)).await.unwrap()).await.unwrap();
    for drops in [false, true] {
        rig.order("fail", &json!({"method": "CreateSnapshot_Task", "twice": true}));
        if drops {
            rig.order("fail", &json!({"method": "CreateSnapshot_Task", "drop": true, "after": true}));
        }
        rig.write(0, 1 << 20, 100_000, 71);
        let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
        let left: Vec<_> =
            vsphere.vm(&vm.of.id).await.unwrap().snapshots.into_iter().map(|node| node.of).collect();
        assert_eq!(left, std::slice::from_ref(&taken.of), "drops: {drops}");
        replica.draw(&vsphere, &taken).await;
        replica.check(&rig);
        vsphere.release(&taken).await.unwrap();
        assert_eq!(rig.snapshots(), 0);
    }
    assert_eq!(rig.state()["overlaps"].as_u64().unwrap_or_default(), 0);
}

/// Ends the migration's snapshot as a daemon does that is killed before the consolidation.
async fn removed_and_killed(rig: &Rig, vsphere: &warmd_vsphere::Vsphere, taken: &Taken) {
    let task = warmd_vsphere::vim::vm::remove_snapshot(vsphere.client(), &taken.of).await.unwrap();
    let within = Duration::from_secs(20);
    tasks::wait(vsphere.client(), &task, within, AtDeadline::Leave).await.unwrap();
    rig.order("consolidation", &json!({"machine": "web", "on": true}));
}

#[tokio::test(flavor = "multi_thread")]
async fn redo_logs_of_a_removal_before_a_crash_are_consolidated() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let mut replica = Replica::of(&vm);
    let calls = || rig.calls("ConsolidateVMDisks_Task");
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    replica.draw(&vsphere, &taken).await;
    removed_and_killed(&rig, &vsphere, &taken).await;
    // The next daemon's first look: the server's tasks say who removed a snapshot.
    rig.open().end_snapshots(&vm.of, &owner()).await.unwrap();
    assert_eq!(calls(), 1);

    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    replica.draw(&vsphere, &taken).await;
    removed_and_killed(&rig, &vsphere, &taken).await;
    // Its next pass: vCenter has forgotten its tasks, and the anchors say that no other snapshot came since.
    rig.order("restart", &json!({"seconds": 0.1}));
    let next = rig.open();
    let taken = next.take(&replica.request(&vm, false)).await.unwrap();
    assert_eq!(calls(), 2);
    assert!(taken.warnings.is_empty(), "{:?}", taken.warnings);
    next.release(&taken).await.unwrap();
    assert!(!next.vm(&vm.of.id).await.unwrap().consolidation_needed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consolidation_that_failed_is_tried_again_at_the_next_pass() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    // Not copied: there are no anchors.
    let replica = Replica::of(&vm);
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    rig.order("consolidation", &json!({"machine": "web", "on": true}));
    rig.order("fail", &json!({"method": "ConsolidateVMDisks_Task", "fault": "NoDiskSpace"}));
    let error = vsphere.release(&taken).await.unwrap_err();
    assert_eq!(error.kind, Kind::Blocked, "{error}");
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    vsphere.release(&taken).await.unwrap();
    assert!(!vsphere.vm(&vm.of.id).await.unwrap().consolidation_needed);
}
