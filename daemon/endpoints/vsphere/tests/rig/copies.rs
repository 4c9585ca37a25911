//! A full copy and deltas, byte by byte, through the real plugin.

use std::time::Duration;

use serde_json::json;
use warmd_vsphere::{
    inventory::Power,
    power::{Shutdown, Stopped},
};

use crate::harness::{Replica, Rig, SIZES, owner};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_copy_and_two_deltas_are_equal_to_the_disks() {
    // Small pages, and answers of a part of the disk: most describe nothing.
    let rig = Rig::start(&["-max-areas", "3", "-span", "1048576"]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    assert!(!vm.tracking_enabled);
    let mut replica = Replica::of(&vm);

    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    assert!(taken.switched_tracking_on && taken.warnings.is_empty(), "{:?}", taken.warnings);
    assert!(taken.disks.iter().all(|disk| disk.mark.change_id.is_some()));
    assert_eq!(rig.snapshots(), 1);
    // The guest goes on while it is read: the snapshot is of its moment.
    let (first, second) = (rig.truth(0), rig.truth(1));
    rig.write(0, 5 << 20, 200_000, 21);
    rig.write(1, 0, 100, 22);
    let (bytes, reasons) = replica.draw(&vsphere, &taken).await;
    assert_eq!((bytes, reasons.len()), (SIZES.iter().sum(), 2));
    assert!(replica.disks[0].1 == first && replica.disks[1].1 == second, "not the snapshot's moment");
    vsphere.release(&taken).await.unwrap();
    assert_eq!(rig.snapshots(), 0);

    for number in 0..20_u64 {
        rig.write(0, number * 700_001, 90_000, number);
    }
    rig.write(1, SIZES[1] - 100, 100, 23);
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    assert!(!taken.switched_tracking_on && taken.made_in.is_some());
    let (bytes, reasons) = replica.draw(&vsphere, &taken).await;
    assert!(reasons.is_empty() && bytes < SIZES.iter().sum::<u64>() / 2, "{bytes} {reasons:?}");
    replica.check(&rig);
    vsphere.release(&taken).await.unwrap();

    rig.write(0, 8 << 20, 300_000, 31);
    let how = Shutdown { graceful: Duration::from_secs(20), force: false };
    assert_eq!(vsphere.shut_down(&vm.of, how).await.unwrap(), Stopped::Gracefully);
    assert_eq!(vsphere.power(&vm.of).await.unwrap(), Power::Off);
    let taken = vsphere.take(&replica.request(&vm, true)).await.unwrap();
    let (bytes, reasons) = replica.draw(&vsphere, &taken).await;
    assert!(reasons.is_empty() && bytes > 0 && bytes < 2 << 20, "{bytes} {reasons:?}");
    replica.check(&rig);
    vsphere.is_unchanged(&taken).await.unwrap();
    vsphere.release(&taken).await.unwrap();

    let known = rig.machine();
    assert_eq!((rig.snapshots(), known["most_snapshots"].as_u64()), (0, Some(1)));
    let state = rig.state();
    assert_eq!(state["overlaps"].as_u64(), Some(0));
    assert_eq!(state["refused"], json!([]), "requests that a real server would not take");
    assert!(!rig.run_dir().exists() || std::fs::read_dir(rig.run_dir()).unwrap().count() == 0);
    vsphere.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_that_ran_after_its_final_snapshot_is_not_done() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let mut replica = Replica::of(&vm);
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    replica.draw(&vsphere, &taken).await;
    vsphere.release(&taken).await.unwrap();
    let how = Shutdown { graceful: Duration::from_secs(20), force: false };
    vsphere.shut_down(&vm.of, how).await.unwrap();
    let taken = vsphere.take(&replica.request(&vm, true)).await.unwrap();
    vsphere.is_unchanged(&taken).await.unwrap();
    // Started by others, and shut down again: each look at its power finds it off.
    rig.order("power", &json!({"machine": "web", "do": "on"}));
    rig.write(1, 1 << 20, 10, 71);
    vsphere.shut_down(&vm.of, how).await.unwrap();
    let error = vsphere.is_unchanged(&taken).await.unwrap_err();
    assert_eq!(error.kind, warmd_vsphere::Kind::Refused, "{error}");
    vsphere.release(&taken).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_read_directly_has_ids_of_its_own() {
    let rig = Rig::start(&["-host-doors"]);
    let mut settings = direct(&rig, "DC0_C0_H0", "DC0_C0_H0");
    let vsphere = crate::harness::open(settings.clone());
    let vm = vsphere.find("web").await.unwrap();
    let mut replica = Replica::of(&vm);
    for _ in 0..2 {
        let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
        replica.draw(&vsphere, &taken).await;
        replica.check(&rig);
        vsphere.release(&taken).await.unwrap();
        rig.write(0, 2 << 20, 100_000, 81);
    }
    settings.hosts[0].thumbprint = "00".repeat(20);
    let wrong = crate::harness::open(settings);
    let taken = wrong.take(&replica.request(&vm, false)).await.unwrap();
    let error = wrong.reader(&taken, &replica.disks[0].0).await.map(drop).unwrap_err();
    assert_eq!(error.kind, warmd_vsphere::Kind::Refused, "{error}");
    assert!(error.to_string().contains("DC0_C0_H0"), "{error}");
    wrong.release(&taken).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn single_esxi_host_is_a_source_too() {
    let rig = Rig::start(&["-esxi"]);
    let vsphere = rig.open();
    assert!(!vsphere.about().await.unwrap().is_vcenter);
    let vm = vsphere.find("web").await.unwrap();
    assert!(vm.host.is_some() && vm.cluster.is_none(), "{vm:?}");
    let mut replica = Replica::of(&vm);
    for pass in 0..2 {
        let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
        let (_, reasons) = replica.draw(&vsphere, &taken).await;
        assert_eq!(reasons.len(), if pass == 0 { 2 } else { 0 }, "{reasons:?}");
        replica.check(&rig);
        vsphere.release(&taken).await.unwrap();
        rig.write(0, 3 << 20, 100_000, 91);
    }
    vsphere.hold_off(&vm.of, &owner(), "rack-2", false).await.unwrap();
    let how = Shutdown { graceful: Duration::from_secs(20), force: true };
    assert_eq!(vsphere.shut_down(&vm.of, how).await.unwrap(), Stopped::Gracefully);
    assert_eq!(rig.state()["refused"], json!([]), "requests that a real server would not take");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_off_and_not_tracked_is_copied_whole() {
    let rig = Rig::start(&[]);
    let mut settings = rig.settings();
    settings.enable_change_tracking = false;
    let vsphere = crate::harness::open(settings);
    let vm = vsphere.find("web").await.unwrap();
    rig.order("power", &json!({"machine": "web", "do": "off"}));
    let mut replica = Replica::of(&vm);
    for _ in 0..2 {
        let taken = vsphere.take(&replica.request(&vm, true)).await.unwrap();
        let (_, reasons) = replica.draw(&vsphere, &taken).await;
        assert_eq!(reasons.len(), 2, "an untracked disk is compared whole, each time");
        vsphere.release(&taken).await.unwrap();
        replica.check(&rig);
    }
    assert_eq!(rig.machine()["tracking_wanted"].as_bool(), Some(false));
    assert_eq!(vsphere.end_snapshots(&vm.of, &owner()).await.unwrap().count, 0);
}

/// Settings by which this host is asked as `name`.
fn direct(rig: &Rig, name: &str, host: &str) -> warmd_vsphere::Settings {
    let host = rig.host(host);
    let text = |key: &str| host[key].as_str().unwrap_or_else(|| panic!("{key}: {host}")).to_owned();
    let mut settings = rig.settings();
    settings.hosts = vec![warmd_vsphere::settings::EsxiHost {
        name: name.to_owned(),
        address: Some(text("address")),
        user: text("user"),
        password_file: text("password_file").into(),
        thumbprint: text("thumbprint_sha256"),
    }];
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_lacks_the_vm_for_now_says_nothing_of_the_vm() {
    let rig = Rig::start(&["-host-doors"]);
    // As right after a vMotion: the VM is not where it was.
    let vsphere = crate::harness::open(direct(&rig, "DC0_C0_H0", "DC0_C0_H1"));
    let vm = vsphere.find("web").await.unwrap();
    let replica = Replica::of(&vm);
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    let calls = |name: &str| rig.calls(name);
    let (logins, logouts) = (calls("Login"), calls("Logout"));
    let error = vsphere.reader(&taken, &replica.disks[0].0).await.map(drop).unwrap_err();
    assert_eq!(error.kind, warmd_vsphere::Kind::Blocked, "{error}");
    assert_eq!((calls("Login"), calls("Logout")), (logins + 1, logouts + 1), "a session is left on the host");

    let here = crate::harness::open(direct(&rig, "DC0_C0_H0", "DC0_C0_H0"));
    let reader = here.reader(&taken, &replica.disks[0].0).await.unwrap();
    reader.close().await;
    // The host is behind vCenter, and does not show the snapshot.
    let mut other = taken.clone();
    other.owner = warmd_vsphere::Owner::new("0190f3a4-0000-7000-8000-000000000002");
    let error = here.reader(&other, &replica.disks[0].0).await.map(drop).unwrap_err();
    assert_eq!(error.kind, warmd_vsphere::Kind::Blocked, "{error}");
    vsphere.release(&taken).await.unwrap();
}
