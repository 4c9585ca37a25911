//! Logins, sessions that end, servers that do not answer.

use std::{fs, time::Duration};

use serde_json::json;
use warmd_vsphere::{Kind, Settings, VsphereError, client::Patience};

use crate::harness::{Replica, Rig, open};

async fn refused(settings: Settings) -> VsphereError {
    let error = open(settings).about().await.map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Refused, "{error}");
    error
}

fn logins(rig: &Rig) -> u64 {
    rig.calls("Login")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_tried_once() {
    let rig = Rig::start(&[]);
    let mut settings = rig.settings();
    settings.password_file = rig.path("wrong");
    fs::write(&settings.password_file, "wrong-password\n").unwrap();
    let vsphere = open(settings.clone());
    for _ in 0..5 {
        let error = vsphere.about().await.map(drop).unwrap_err();
        assert_eq!(error.kind, Kind::Refused, "{error}");
        assert!(!error.to_string().contains("wrong-password"), "{error}");
    }
    assert_eq!(logins(&rig), 1, "vCenter locks an account after a few");
    // A corrected file is tried at once.
    fs::copy(rig.place("password_file"), &settings.password_file).unwrap();
    vsphere.about().await.unwrap();
    assert!(!format!("{vsphere:?}").contains(&fs::read_to_string(rig.place("password_file")).unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_trusted_or_not_known_is_told_why() {
    let rig = Rig::start(&[]);
    let mut settings = rig.settings();
    settings.user = "administrator".to_owned();
    let error = refused(settings).await;
    assert!(error.to_string().contains("domain"), "{error}");
    let mut settings = rig.settings();
    settings.thumbprint = Some("00".repeat(20));
    let error = refused(settings).await;
    assert!(error.to_string().contains(rig.place("thumbprint_sha1")), "{error}");
    let mut settings = rig.settings();
    settings.thumbprint = Some(rig.place("thumbprint_sha1").to_owned());
    open(settings).about().await.unwrap();
    let mut settings = rig.settings();
    settings.password_file = rig.path("gone");
    refused(settings).await;
    assert_eq!(logins(&rig), 2, "who is not trusted gets no password");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_of_another_ca_is_refused_with_its_thumbprint() {
    let rig = Rig::start(&[]);
    let other = Rig::start(&[]);
    let mut settings = rig.settings();
    settings.thumbprint = None;
    settings.ca_file = Some(other.place("certificate").into());
    let error = refused(settings.clone()).await;
    assert!(error.to_string().contains(rig.place("thumbprint_sha1")), "{error}");
    assert_eq!(logins(&rig), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_in_the_middle_is_begun_again() {
    let rig = Rig::start(&["-max-areas", "2", "-span", "524288"]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    let mut replica = Replica::of(&vm);
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    replica.draw(&vsphere, &taken).await;
    rig.order("expire", &json!({}));
    vsphere.release(&taken).await.unwrap();
    rig.write(0, 0, 1_000_000, 61);
    rig.order("expire", &json!({}));
    let taken = vsphere.take(&replica.request(&vm, false)).await.unwrap();
    // In the middle of the pages of one answer.
    rig.order("fail", &json!({"method": "QueryChangedDiskAreas", "fault": "NotAuthenticated", "skip": 3}));
    let (_, reasons) = replica.draw(&vsphere, &taken).await;
    assert!(reasons.is_empty(), "{reasons:?}");
    replica.check(&rig);
    vsphere.release(&taken).await.unwrap();
    assert!(logins(&rig) >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_for_a_moment_is_waited_for() {
    let rig = Rig::start(&[]);
    let vsphere = rig.open();
    let vm = vsphere.find("web").await.unwrap();
    rig.order("unavailable", &json!({"seconds": 2.0}));
    assert_eq!(vsphere.vm(&vm.of.id).await.unwrap().name, "web");
    rig.order("restart", &json!({"seconds": 2.0}));
    assert_eq!(vsphere.vms().await.unwrap().len(), 1);
    // Lost connections, too: what only reads is asked again.
    rig.order("fail", &json!({"method": "RetrievePropertiesEx", "drop": true, "times": 2}));
    vsphere.vm(&vm.of.id).await.unwrap();
    let patience = Patience { exchange: Duration::from_secs(1), whole: Duration::from_secs(1) };
    let hasty = warmd_vsphere::Vsphere::with_patience(rig.settings(), patience).unwrap();
    rig.order("unavailable", &json!({"seconds": 5.0}));
    let error = hasty.about().await.map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable, "{error}");
}
