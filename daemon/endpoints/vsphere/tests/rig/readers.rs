//! Readers that are told why they do not read.

use std::{fs, time::Duration};

use tokio::time::timeout;
use warmd_cbt::{buffer::Buffer, units::Offset};
use warmd_core::{
    model::id::{DiskKey, MigrationId, VmId},
    sources::{Snapshot, SnapshotRequest, Source as _, SourceErrorKind},
};
use warmd_vsphere::{
    Kind, Settings, Vsphere,
    reader::{Complaint, ReaderError, check},
    snapshot::Taken,
    source::VsphereSource,
};

use crate::harness::{Replica, Rig, connect, open};

/// A read whose child is replaced.
const RENEWED: Duration = Duration::from_secs(40);

/// Replaces the settings of the library's stand-in by those of the rig and `more`: for new connections.
fn set_up_library(rig: &Rig, more: &str) {
    let path = std::path::Path::new(rig.place("libdir")).join("standin.conf");
    let text = fs::read_to_string(&path).unwrap();
    let own = text.lines().filter(|line| !line.starts_with("bad_sector=")).collect::<Vec<_>>().join("\n");
    fs::write(&path, format!("{own}\n{more}")).unwrap();
}

/// A snapshot of the source, and its first disk.
async fn snapshot_of(rig: &Rig, settings: Settings) -> (Box<dyn Snapshot>, DiskKey) {
    let vm = rig.open().find("web").await.unwrap();
    let disks = Replica::of(&vm).disks.iter().map(|(uuid, ..)| (DiskKey(uuid.clone()), None)).collect();
    let source = VsphereSource::over(open(settings));
    let vm = VmId(vm.instance_uuid.unwrap());
    let request = SnapshotRequest { owner: MigrationId::generate(), vm, disks, is_final: false };
    let snapshot = source.snapshot(&request).await.unwrap();
    let key = snapshot.disks()[0].key.clone();
    (snapshot, key)
}

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

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_fail_go_on_with_another_child() {
    let rig = Rig::start(&[]);
    set_up_library(&rig, "bad_sector=8\n");
    let (snapshot, key) = snapshot_of(&rig, rig.settings()).await;
    let disk = snapshot.open(&key).await.unwrap();
    disk.read(Offset(0), Buffer::unpooled(4096)).await.unwrap();
    // What a new connection finds is in order.
    set_up_library(&rig, "");
    let reads = (0..4).map(|_| disk.read(Offset(0), Buffer::unpooled(65536)));
    let reads = timeout(RENEWED, futures::future::join_all(reads)).await.unwrap();
    let file = rig.machine()["disks"][0]["file"].as_str().unwrap().to_owned();
    let content = fs::read(file).unwrap();
    for read in reads {
        assert!(read.unwrap()[..] == content[..65536], "wrong bytes");
    }
    assert!(snapshot.ended_early().is_none());
    drop(disk);
    snapshot.release().await.unwrap();
    assert_eq!(rig.snapshots(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stays_broken_is_told_and_the_rest_is_read() {
    let rig = Rig::start(&[]);
    set_up_library(&rig, "bad_sector=8\n");
    let (snapshot, key) = snapshot_of(&rig, rig.settings()).await;
    let disk = snapshot.open(&key).await.unwrap();
    let error = timeout(RENEWED, disk.read(Offset(0), Buffer::unpooled(65536))).await.unwrap().unwrap_err();
    assert_eq!(error.kind, warmd_cbt::disk::ErrorKind::Media, "{error}");
    disk.read(Offset(1 << 20), Buffer::unpooled(65536)).await.unwrap();
    drop(disk);
    snapshot.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_changed_while_reading_ends_the_pass_at_once() {
    let rig = Rig::start(&[]);
    set_up_library(&rig, "bad_sector=8\n");
    let mut settings = rig.settings();
    settings.password_file = rig.path("password");
    fs::copy(rig.place("password_file"), &settings.password_file).unwrap();
    let (snapshot, key) = snapshot_of(&rig, settings.clone()).await;
    let disk = snapshot.open(&key).await.unwrap();
    fs::write(&settings.password_file, "wrong\n").unwrap();
    let read = timeout(RENEWED, disk.read(Offset(0), Buffer::unpooled(65536))).await;
    read.expect("it does not go on trying").unwrap_err();
    let why = snapshot.ended_early().expect("the source says why");
    assert_eq!(why.kind, SourceErrorKind::Refused, "{why}");
    assert!(why.to_string().contains("incorrect user name or password"), "{why}");
    drop(disk);
    snapshot.release().await.unwrap();
    assert_eq!(rig.snapshots(), 0);
}
