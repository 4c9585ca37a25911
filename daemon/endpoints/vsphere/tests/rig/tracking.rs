//! What makes tracking unknown, and what refuses a snapshot.

use serde_json::{Value, json};
use warmd_vsphere::{Kind, Vsphere, inventory::Vm};

use crate::harness::{Replica, Rig};

async fn copied() -> (Rig, Vsphere, Vm, Replica) {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let mut replica = Replica::of(&vm);
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    replica.draw(&vsphere, &taken).await;
    vsphere.release(&taken).await.unwrap();
    (rig, vsphere, vm, replica)
}

/// Takes a snapshot, copies by it, and answers why what was unknown.
async fn pass(rig: &Rig, vsphere: &Vsphere, vm: &Vm, replica: &mut Replica) -> Vec<String> {
    let taken = vsphere.take(&replica.request(vm, false)).await.unwrap();
    let (_, reasons) = replica.draw(vsphere, &taken).await;
    replica.check(rig);
    vsphere.release(&taken).await.unwrap();
    reasons
}

fn all_say(reasons: &[String], count: usize, word: &str) {
    assert_eq!(reasons.len(), count, "{reasons:?}");
    assert!(reasons.iter().all(|why| why.contains(word)), "{word}: {reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_and_a_grown_disk_are_unknown_and_then_tracked_again() {
    let (rig, vsphere, vm, mut replica) = copied().await;
    rig.write(0, 1 << 20, 5, 41);
    rig.order("tracking", &json!({"machine": "web", "do": "reset"}));
    all_say(&pass(&rig, &vsphere, &vm, &mut replica).await, 2, "reset");
    rig.write(1, 1 << 20, 5, 42);
    assert!(pass(&rig, &vsphere, &vm, &mut replica).await.is_empty());

    let size = 8_u64 << 20;
    rig.order("disk", &json!({"machine": "web", "disk": 1, "do": "grow", "size": size}));
    replica.disks[1].1.resize(size as usize, 0xee);
    rig.write(1, size - 10, 10, 43);
    all_say(&pass(&rig, &vsphere, &vm, &mut replica).await, 1, "capacity");

    rig.order("power", &json!({"machine": "web", "do": "crash"}));
    rig.order("power", &json!({"machine": "web", "do": "on"}));
    rig.write(0, 3 << 20, 5, 44);
    let reasons = pass(&rig, &vsphere, &vm, &mut replica).await;
    assert!(reasons.iter().all(|why| why.contains("reset")), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tracking_file_faults_are_unknown_and_others_are_errors() {
    let (rig, vsphere, vm, mut replica) = copied().await;
    rig.order("fail", &json!({"method": "QueryChangedDiskAreas", "fault": "FileFault"}));
    all_say(&pass(&rig, &vsphere, &vm, &mut replica).await, 1, "tracking file");
    rig.order(
        "fail",
        &json!({"method": "QueryChangedDiskAreas", "fault": "InvalidArgument", "fields": {"InvalidProperty": "changeId"}}),
    );
    all_say(&pass(&rig, &vsphere, &vm, &mut replica).await, 1, "change id");
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    let (uuid, _, mark) = &replica.disks[0];
    rig.order("fail", &json!({"method": "QueryChangedDiskAreas", "fault": "SystemError"}));
    let error = vsphere.changed(&taken, uuid, mark.as_ref()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Failed, "{error}");
    vsphere.changed(&taken, uuid, mark.as_ref()).await.unwrap();
    vsphere.release(&taken).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_or_removed_disk_is_not_taken_for_the_old_one() {
    let (rig, vsphere, vm, replica) = copied().await;
    let other = rig.path("other.raw");
    std::fs::File::create(&other).unwrap().set_len(crate::harness::SIZES[1]).unwrap();
    rig.order("disk", &json!({"machine": "web", "disk": 1, "do": "replace", "spec": {"file": other}}));
    let error = vsphere.take(&replica.request(&vm, false)).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    assert!(error.to_string().contains(&replica.disks[1].0), "{error}");
    assert_eq!(rig.snapshots(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_tracking_is_refused_and_leaves_nothing() {
    let (rig, vsphere, vm, replica) = copied().await;
    let refused = async |order: (&str, Value), kind: Kind, word: &str| {
        let answer = rig.order(order.0, &order.1);
        let error = vsphere.take(&replica.request(&vm, false)).await.map(drop).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
        answer
    };
    let others =
        refused(("snapshot", json!({"machine": "web", "name": "Backup"})), Kind::Blocked, "Backup").await;
    assert_eq!(rig.snapshots(), 1, "the snapshot of others stays, and ours does not");
    rig.order("remove", &json!({"machine": "web", "snapshot": others["snapshot"]}));
    refused(("consolidation", json!({"machine": "web", "on": true})), Kind::Blocked, "onsolidat").await;
    rig.order("consolidation", &json!({"machine": "web", "on": false}));
    for (way, word) in [("independent", "independent"), ("shared", "multi-writer"), ("rdm", "physical")] {
        let order = json!({"machine": "web", "disk": 1, "do": way});
        refused(("disk", order), Kind::Refused, word).await;
        rig.order("disk", &json!({"machine": "web", "disk": 1, "do": "plain"}));
    }
    assert_eq!(rig.snapshots(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tracking_is_not_switched_on_with_snapshots_there() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    rig.order("snapshot", &json!({"machine": "web", "name": "old"}));
    let replica = Replica::of(&vm);
    let error = vsphere.take(&replica.request(&vm, false)).await.map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Blocked, "{error}");
    assert_eq!(rig.machine()["tracking_wanted"].as_bool(), Some(false));
    assert_eq!(rig.snapshots(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_between_hosts_and_a_new_name_change_nothing() {
    let (rig, vsphere, vm, mut replica) = copied().await;
    rig.order("move", &json!({"machine": "web", "host": "DC0_C0_H1"}));
    rig.order("rename", &json!({"machine": "web", "name": "other name"}));
    rig.order("rename", &json!({"machine": "other name", "name": "web"}));
    rig.write(0, 9 << 20, 70_000, 51);
    let reasons = pass(&rig, &vsphere, &vm, &mut replica).await;
    assert!(reasons.iter().all(|why| why.contains("reset")), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tracking_that_others_switched_on_is_brought_into_effect() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let mut replica = Replica::of(&vm);
    // The setting alone: nothing has stunned the VM.
    vsphere.set_tracking(&vm.of, true).await.unwrap();
    let made = || rig.machine()["snapshots_made"].as_u64().unwrap();
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    assert_eq!((made(), rig.snapshots()), (2, 1), "one to stun it, one to read");
    assert!(!taken.switched_tracking_on && taken.warnings.is_empty(), "{:?}", taken.warnings);
    replica.draw(&vsphere, &taken).await;
    vsphere.release(&taken).await.unwrap();
    rig.write(0, 1 << 20, 5, 81);
    assert!(pass(&rig, &vsphere, &vm, &mut replica).await.is_empty());
    assert_eq!(made(), 3, "it is stunned once");
    assert_eq!(vsphere.restore_tracking(&vm.of, &crate::harness::owner()).await.ok(), Some(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn tracking_whose_switch_got_no_answer_is_brought_into_effect() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let mut replica = Replica::of(&vm);
    rig.order("fail", &json!({"method": "ReconfigVM_Task", "drop": true, "after": true}));
    let error = vsphere.take(&replica.request(&vm, false)).await.map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable, "{error}");
    let made = || rig.machine()["snapshots_made"].as_u64().unwrap();
    assert_eq!((made(), rig.machine()["tracking_wanted"].as_bool()), (0, Some(true)));
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    assert_eq!(made(), 2, "one to stun it, one to read");
    replica.draw(&vsphere, &taken).await;
    vsphere.release(&taken).await.unwrap();
    // The note went with the setting.
    assert!(vsphere.restore_tracking(&vm.of, &crate::harness::owner()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_without_its_privileges_makes_no_snapshot() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let replica = Replica::of(&vm);
    for privilege in ["VirtualMachine.Config.ChangeTracking", "VirtualMachine.Config.DiskLease"] {
        rig.order("deny", &json!({"privilege": privilege, "object": vm.of.id, "on": true}));
        let error = vsphere.take(&replica.request(&vm, false)).await.map(drop).unwrap_err();
        assert_eq!(error.kind, Kind::Refused, "{error}");
        assert!(error.to_string().contains("lacks") && error.to_string().contains(privilege), "{error}");
        rig.order("deny", &json!({"privilege": privilege, "object": vm.of.id, "on": false}));
        assert_eq!(rig.machine()["snapshots_made"].as_u64(), Some(0), "{privilege}");
    }
}
