//! Readers that are told why they do not read.

use std::fs;

use warmd_vsphere::{
    Kind, Vsphere,
    reader::{Complaint, ReaderError, check},
    snapshot::Taken,
};

use crate::harness::{Replica, Rig, connect, open};

async fn taken(vsphere: &Vsphere) -> (Taken, String) {
    let vm = vsphere.find("web").await.unwrap();
    let replica = Replica::of(&vm);
    (vsphere.take(&replica.request(&vm, false)).await.unwrap(), replica.disks[0].0.clone())
}

/// The complaint of a reader that starts and does not read.
async fn complaint(vsphere: &Vsphere, taken: &Taken, uuid: &str) -> ReaderError {
    let reader = vsphere.reader(taken, uuid).await.unwrap();
    assert!(connect(&reader).is_err(), "it reads");
    let complaint = reader.complaint().await.expect("it says why");
    reader.close().await;
    complaint
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugins_words_become_errors_with_a_remedy() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let (snapshot, uuid) = taken(&vsphere).await;
    // The session goes on, and the password has changed: the reader logs in on its own.
    let mut settings = rig.settings();
    settings.password_file = rig.path("password");
    fs::copy(rig.place("password_file"), &settings.password_file).unwrap();
    let other = open(settings.clone());
    other.about().await.unwrap();
    fs::write(&settings.password_file, "wrong\n").unwrap();
    let wrong = complaint(&other, &snapshot, &uuid).await;
    assert_eq!(wrong.complaint, Complaint::Login, "{wrong}");

    let mut gone = snapshot.clone();
    gone.disks[0].disk.backing.file = "[LocalDS_0] web/nothing.vmdk".to_owned();
    let gone = complaint(&vsphere, &gone, &uuid).await;
    assert_eq!(gone.complaint, Complaint::File, "{gone}");
    vsphere.release(&snapshot).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_room_for_another_disk_says_so() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let (snapshot, uuid) = taken(&vsphere).await;
    let settings = std::path::Path::new(rig.place("libdir")).join("standin.conf");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, format!("{text}connections=1\n")).unwrap();
    let first = vsphere.reader(&snapshot, &uuid).await.unwrap();
    let open = connect(&first).expect("the first one reads");
    let second = complaint(&vsphere, &snapshot, &uuid).await;
    assert_eq!(second.complaint, Complaint::NfcLimit, "{second}");
    assert!(second.remedy().contains("disks_per_host"));
    drop(open);
    first.close().await;
    vsphere.release(&snapshot).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_installed_is_said_before_anything_is_read() {
    let rig = Rig::start(&[]);
    let good = rig.settings().reader;
    let told = check(&good).await.unwrap();
    assert!(told.contains("VDDK 8") && told.contains("nbdkit"), "{told}");
    fs::create_dir_all(rig.path("empty/lib64")).unwrap();
    for (change, wanted) in [
        (
            warmd_vsphere::settings::ReaderSettings { libdir: Some(rig.path("empty")), ..good.clone() },
            Complaint::Library,
        ),
        (
            warmd_vsphere::settings::ReaderSettings {
                plugin: Some("no-such-plugin".to_owned()),
                ..good.clone()
            },
            Complaint::PluginMissing,
        ),
        (
            warmd_vsphere::settings::ReaderSettings { nbdkit: rig.path("no-nbdkit"), ..good.clone() },
            Complaint::NoProgram,
        ),
    ] {
        let error = check(&change).await.unwrap_err();
        assert_eq!(error.complaint, wanted, "{error}");
        let mut settings = rig.settings();
        settings.reader = change;
        let vsphere = open(settings);
        let (snapshot, uuid) = taken(&vsphere).await;
        match vsphere.reader(&snapshot, &uuid).await {
            Ok(reader) => assert!(connect(&reader).is_err(), "{wanted:?}"),
            Err(error) => assert_eq!(error.kind, Kind::Refused, "{error}"),
        }
        vsphere.release(&snapshot).await.unwrap();
    }
    assert_eq!(rig.snapshots(), 0);
}
