//! Stopping, starting, holding off.

use std::time::{Duration, Instant};

use serde_json::json;
use warmd_vsphere::{
    Kind, Vsphere,
    client::Repeat,
    hold_off::held_off,
    inventory::{Power, Vm},
    power::{Shutdown, Stopped},
    soap::{MoRef, SoapRequest},
    vim::properties,
};

use crate::harness::{Replica, Rig, owner};

async fn started(more: &[&str]) -> (Rig, Vsphere, Vm) {
    let rig = Rig::start(more);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    (rig, vsphere, vm)
}

fn within(seconds: u64, force: bool) -> Shutdown {
    Shutdown { graceful: Duration::from_secs(seconds), force }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_asked_and_then_forced_only_if_that_is_allowed() {
    let (rig, vsphere, vm) = started(&[]).await;
    assert_eq!(vsphere.shut_down(&vm.of, within(20, false)).await.unwrap(), Stopped::Gracefully);
    assert_eq!(vsphere.shut_down(&vm.of, within(20, false)).await.unwrap(), Stopped::WasOff);
    vsphere.power_on(&vm.of).await.unwrap();
    vsphere.power_on(&vm.of).await.unwrap();
    rig.order("guest", &json!({"machine": "web", "do": "ignores_shutdown", "on": true}));
    let error = vsphere.shut_down(&vm.of, within(2, false)).await.unwrap_err();
    assert_eq!(error.kind, Kind::StillRunning, "{error}");
    assert_eq!(vsphere.power(&vm.of).await.unwrap(), Power::On);
    assert_eq!(vsphere.shut_down(&vm.of, within(1, true)).await.unwrap(), Stopped::Forced);
    vsphere.power_on(&vm.of).await.unwrap();
    rig.order("guest", &json!({"machine": "web", "do": "no_tools", "on": true}));
    let error = vsphere.shut_down(&vm.of, within(1, false)).await.unwrap_err();
    assert!(error.kind == Kind::StillRunning && error.to_string().contains("Tools"), "{error}");
    // The answer is lost, and it was done.
    rig.order("fail", &json!({"method": "PowerOffVM_Task", "drop": true, "after": true}));
    let begun = Instant::now();
    assert_eq!(vsphere.shut_down(&vm.of, within(0, true)).await.unwrap(), Stopped::Forced);
    assert!(begun.elapsed() < Duration::from_secs(20));
    rig.order("fail", &json!({"method": "PowerOnVM_Task", "drop": true, "after": true}));
    vsphere.power_on(&vm.of).await.unwrap();
    assert_eq!(vsphere.power(&vm.of).await.unwrap(), Power::On);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_snapshot_is_being_removed_is_started_after_that() {
    let (rig, vsphere, vm) = started(&[]).await;
    let taken = vsphere.take(&Replica::of(&vm).request(&vm, false)).await.unwrap();
    assert_eq!(vsphere.shut_down(&vm.of, within(20, true)).await.unwrap(), Stopped::Gracefully);
    // Longer than the attempts would last by themselves.
    rig.order("limits", &json!({"task_times": {"RemoveSnapshot_Task": 15.0}}));
    let removal = tokio::spawn({
        let vsphere = vsphere.clone();
        async move { vsphere.release(&taken).await.map(drop) }
    });
    let begun = Instant::now();
    while rig.calls("RemoveSnapshot_Task") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the removal never began");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A call is counted when it arrives; then its task begins.
    tokio::time::sleep(Duration::from_secs(1)).await;
    vsphere.power_on(&vm.of).await.unwrap();
    assert_eq!(vsphere.power(&vm.of).await.unwrap(), Power::On);
    removal.await.unwrap().unwrap();
    assert_eq!(rig.snapshots(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_gone_is_not_off() {
    let (rig, vsphere, vm) = started(&[]).await;
    rig.order("unregister", &json!({"machine": "web"}));
    let error = vsphere.power(&vm.of).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{error}");
    let error = vsphere.locate(vm.instance_uuid.as_deref().unwrap()).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privilege_that_is_missing_is_named() {
    let (rig, vsphere, vm) = started(&[]).await;
    let privilege = "VirtualMachine.Interact.PowerOff";
    rig.order("deny", &json!({"privilege": privilege, "object": vm.of.id, "on": true}));
    let error = vsphere.shut_down(&vm.of, within(0, true)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Refused, "{error}");
    assert!(error.to_string().contains(privilege), "{error}");
    assert_eq!(vsphere.power(&vm.of).await.unwrap(), Power::On);
}

/// Switches on that the VM's host starts VMs at all.
async fn host_starts_vms(vsphere: &Vsphere, vm: &Vm) {
    let moref = async |of: &MoRef, path: &str| {
        let found = properties::read_properties(vsphere.client(), of, &[path]).await.unwrap();
        found.moref(path).unwrap_or_else(|| panic!("{of} has no {path}"))
    };
    let host = moref(&vm.of, "runtime.host").await;
    let manager = moref(&host, "configManager.autoStartManager").await;
    let request = SoapRequest::new("ReconfigureAutostart", &manager, |arguments| {
        arguments.nest("spec", |spec| spec.nest("defaults", |defaults| defaults.text("enabled", true)))
    });
    vsphere.client().call(&request, Repeat::Safe).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn holding_off_takes_the_autostart_and_gives_it_back() {
    let (rig, vsphere, vm) = started(&["-ha", "-drs"]).await;
    let host = vm.host.clone().unwrap();
    let notes = warmd_vsphere::vim::vm::reconfigure(vsphere.client(), &vm.of, |spec| {
        spec.text("annotation", "the web server\nask Ann")
    });
    notes.await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let vm = vsphere.vm(&vm.of.id).await.unwrap();
    assert_eq!(vm.annotation, "the web server\nask Ann");
    // As an administrator sets it, of the host and of the VM.
    host_starts_vms(&vsphere, &vm).await;
    vsphere.let_go(&vm.of, &owner(), true).await.unwrap();
    rig.order("reboot", &json!({"host": host}));
    assert_eq!(vsphere.power(&vm.of).await.unwrap(), Power::On, "its host does not start it");
    let was = vsphere.starters(&vm.of, &owner()).await.unwrap();
    assert!(was.autostart, "{was:?}");
    assert!(
        was.named.iter().any(|text| text.contains("HA")) && was.named.iter().any(|text| text.contains("DRS"))
    );
    for _ in 0..2 {
        vsphere.hold_off(&vm.of, &owner(), "rack-2", was.autostart).await.unwrap();
    }
    let held = vsphere.vm(&vm.of.id).await.unwrap();
    assert!(held_off(&held).unwrap().contains("rack-2"), "{:?}", held.annotation);
    // A record that was lost finds what was.
    assert!(vsphere.starters(&vm.of, &owner()).await.unwrap().autostart);
    vsphere.shut_down(&vm.of, within(20, true)).await.unwrap();
    rig.order("reboot", &json!({"host": host}));
    assert_eq!(vsphere.power(&vm.of).await.unwrap(), Power::Off, "its host started it");
    vsphere.let_go(&vm.of, &owner(), false).await.unwrap();
    let free = vsphere.vm(&vm.of.id).await.unwrap();
    assert_eq!((held_off(&free), free.annotation.as_str()), (None, vm.annotation.as_str()));
    assert!(vsphere.starters(&vm.of, &owner()).await.unwrap().autostart);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untracked_vm_that_ran_after_its_final_snapshot_is_found() {
    let rig = Rig::start(&[]);
    let mut settings = rig.settings();
    settings.enable_change_tracking = false;
    let vsphere = crate::harness::open(settings);
    let vm = vsphere.find("web").await.unwrap();
    // A start before the final snapshot is none after it.
    vsphere.shut_down(&vm.of, within(20, false)).await.unwrap();
    vsphere.power_on(&vm.of).await.unwrap();
    vsphere.shut_down(&vm.of, within(20, false)).await.unwrap();
    let mut replica = crate::harness::Replica::of(&vm);
    let taken = vsphere.take(&replica.request(&vm, true)).await.unwrap();
    assert!(taken.disks.iter().all(|disk| disk.mark.change_id.is_none()), "it is tracked");
    replica.draw(&vsphere, &taken).await;
    vsphere.is_unchanged(&taken).await.unwrap();
    for what in ["on", "off"] {
        rig.order("power", &json!({"machine": "web", "do": what}));
    }
    let error = vsphere.is_unchanged(&taken).await.unwrap_err();
    assert_eq!(error.kind, Kind::Refused, "{error}");
    assert!(error.to_string().contains("was started"), "{error}");
    vsphere.release(&taken).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_suspended_meanwhile_is_not_cut_off() {
    let (rig, vsphere, vm) = started(&[]).await;
    // The first attempt fails, and in the pause before the second a person suspends the VM.
    rig.order("fail", &json!({"method": "PowerOffVM_Task", "fault": "TaskInProgress"}));
    let stopping = tokio::spawn({
        let (vsphere, of) = (vsphere.clone(), vm.of.clone());
        async move { vsphere.shut_down(&of, within(0, true)).await }
    });
    let begun = Instant::now();
    while rig.calls("PowerOffVM_Task") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "its power is not cut");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let suspend = SoapRequest::new("SuspendVM_Task", &vm.of, |arguments| arguments);
    vsphere.client().call(&suspend, Repeat::Once).await.unwrap();
    let error = stopping.await.unwrap().unwrap_err();
    assert_eq!(error.kind, Kind::Blocked, "{error}");
    assert!(error.to_string().contains("suspended"), "{error}");
    assert_eq!(vsphere.power(&vm.of).await.unwrap(), Power::Suspended);
}
