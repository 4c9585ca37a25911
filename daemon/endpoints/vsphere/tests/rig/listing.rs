//! Lists and descriptions.

use std::time::Instant;

use serde_json::json;
use warmd_vsphere::{
    Kind,
    inventory::{Connection, Power, Tools},
};

use crate::harness::{Rig, SIZES};

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_listed_and_described() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let about = vsphere.about().await.unwrap();
    assert!(about.is_vcenter, "{about:?}");
    let vms = vsphere.vms().await.unwrap();
    assert_eq!(vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["web"]);
    let vm = vsphere.find("web").await.unwrap();
    let known = rig.machine();
    assert_eq!(vm.of.id, known["id"].as_str().unwrap());
    assert_eq!((vm.power, &vm.connection), (Some(Power::On), &Some(Connection::Connected)));
    assert_eq!(vm.uuid.as_deref(), known["uuid"].as_str());
    assert_eq!(vm.host.as_deref(), Some("DC0_C0_H0"));
    assert_eq!((vm.tools, vm.template), (Tools::Running, false));
    assert!(vm.cluster.is_some() && vm.path().ends_with("/web") && vm.path().len() > 5, "{}", vm.path());
    assert_eq!(vm.disks.iter().map(|disk| disk.capacity.0).collect::<Vec<_>>(), SIZES);
    for (disk, known) in vm.disks.iter().zip(known["disks"].as_array().unwrap()) {
        assert_eq!(disk.uuid, known["uuid"].as_str().map(str::to_lowercase));
        assert!(!disk.controller.bus.is_empty() && disk.backing.datastore.is_some(), "{disk:?}");
        assert_eq!(warmd_vsphere::tracking::obstacle(disk), None);
    }
    assert!(
        !vm.nics.is_empty() && !vm.nics[0].mac.is_empty() && !vm.nics[0].network.is_empty(),
        "{:?}",
        vm.nics
    );
    assert!(vm.cpus.is_some() && vm.memory_mib.is_some() && vm.snapshots.is_empty());
    // By the UUID that outlives a reference.
    let uuid = vm.instance_uuid.clone().unwrap();
    assert_eq!(vsphere.locate(&uuid).await.unwrap(), vm.of);
    let gone = vsphere.locate("00000000-0000-0000-0000-000000000000").await.unwrap_err();
    assert_eq!(gone.kind, Kind::NotFound);
    vsphere.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_reach_the_list_and_a_lost_session_begins_it_anew() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let name = async || vsphere.vms().await.unwrap().into_iter().map(|vm| vm.name).collect::<Vec<_>>();
    assert_eq!(name().await, ["web"]);
    rig.order("rename", &json!({"machine": "web", "name": "web-2"}));
    assert_eq!(name().await, ["web-2"]);
    rig.order("move", &json!({"machine": "web-2", "host": "DC0_C0_H2"}));
    assert_eq!(vsphere.vms().await.unwrap()[0].host.as_deref(), Some("DC0_C0_H2"));
    rig.order("snapshot", &json!({"machine": "web-2", "name": "by hand"}));
    assert_eq!(vsphere.vms().await.unwrap()[0].snapshots[0].name, "by hand");
    rig.order("expire", &json!({}));
    assert_eq!(name().await, ["web-2"]);
    rig.order("unregister", &json!({"machine": "web-2"}));
    assert!(name().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_are_listed_from_memory() {
    let rig = Rig::start(&["-plain", "5000"]);
    let vsphere = rig.open();
    let begun = Instant::now();
    assert_eq!(vsphere.vms().await.unwrap().len(), 5001);
    let first = begun.elapsed();
    let begun = Instant::now();
    assert_eq!(vsphere.vms().await.unwrap().len(), 5001);
    let again = begun.elapsed();
    println!("5,001 VMs: first {first:?}, then {again:?}");
    assert!(again.as_secs() < 5, "a list from memory took {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_server_is_found_with_a_remedy() {
    use warmd_vsphere::doctor::DoctorSeverity;
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let about_vm = |findings: &[warmd_vsphere::doctor::DoctorFinding]| {
        findings
            .iter()
            .find(|finding| finding.what.contains(&vm.of.id))
            .cloned()
            .expect("privileges were looked at")
    };
    let findings = vsphere.doctor(std::slice::from_ref(&vm.of)).await;
    assert_eq!(about_vm(&findings).severity, DoctorSeverity::Good, "{findings:#?}");
    assert!(findings.iter().any(|finding| finding.what.contains("VDDK")), "{findings:#?}");
    let privilege = "VirtualMachine.State.RemoveSnapshot";
    rig.order("deny", &json!({"privilege": privilege, "object": vm.of.id, "on": true}));
    let finding = about_vm(&vsphere.doctor(std::slice::from_ref(&vm.of)).await);
    assert!(finding.severity == DoctorSeverity::Error && finding.what.contains(privilege), "{finding}");
    rig.order("clock", &json!({"seconds": 600.0}));
    let findings = vsphere.doctor(&[]).await;
    let clock =
        findings.iter().find(|finding| finding.what.contains("clock")).expect("the clock was looked at");
    assert_eq!(clock.severity, DoctorSeverity::Warning, "{clock}");
    // A server that is not there is findings too.
    let mut settings = rig.settings();
    settings.url = "https://127.0.0.1:1".to_owned();
    settings.reader.libdir = Some(rig.path("nothing"));
    let patience = warmd_vsphere::client::Patience {
        exchange: std::time::Duration::from_secs(2),
        whole: std::time::Duration::from_secs(2),
    };
    let nowhere = warmd_vsphere::Vsphere::with_patience(settings, patience).unwrap();
    let findings = nowhere.doctor(&[]).await;
    let errors = findings.iter().filter(|finding| finding.severity == DoctorSeverity::Error);
    assert_eq!(errors.filter(|finding| !finding.remedy.is_empty()).count(), 2, "{findings:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_too_old_is_refused() {
    let rig = Rig::start(&["-release", "6.0.0"]);
    let error = rig.open().about().await.map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Refused, "{error}");
    assert!(error.to_string().contains("6.5"), "{error}");
    let new = Rig::start(&["-release", "9.0.0"]);
    let vsphere = new.open();
    assert_eq!(vsphere.about().await.unwrap().release(), Some((9, 0)));
    assert_eq!(vsphere.vms().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uuid_that_two_vms_have_names_neither() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.raw");
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let rig = Rig::start(&["-machine", &format!("copy={}", file.display())]);
    let vsphere = rig.open();
    let uuid = vsphere.find("web").await.unwrap().instance_uuid.unwrap();
    rig.order("twin", &json!({"machine": "copy", "name": "web"}));
    let error = vsphere.locate(&uuid).await.unwrap_err();
    assert_eq!(error.kind, Kind::Refused, "{error}");
    assert!(error.to_string().contains("several VMs"), "{error}");
}
