//! The API's server: its socket, its standard services, its bounds, its end.

mod api_common;

use std::{fs, os::unix::fs::PermissionsExt};

use api_common::{
    cases,
    fake_control::FakeControl,
    served::{DEADLINE, Served, until},
};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use warmd_api::{ApiError, Bound, Listen, TcpListen, TlsFiles};
use warmd_proto::{
    KIND_TRAILER, MAX_REQUEST,
    v1::{
        MigrationsCutoverRequest, MigrationsPauseRequest, MigrationsWatchRequest, PlansApplyRequest,
        PlansValidateRequest, SourcesCheckRequest, WatchKind, migrations_client::MigrationsClient,
        plans_client::PlansClient, sources_client::SourcesClient,
    },
};

async fn served() -> Served {
    Served::start(FakeControl::new([cases::synced(1, "web-1"), cases::syncing(2, "web-2")])).await
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_goes_with_the_daemon() {
    let served = served().await;
    let mode = |path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(served.socket.clone()), 0o600);
    assert_eq!(mode(served.socket.parent().unwrap().to_owned()), 0o700);
    let socket = served.socket.clone();
    let (_dir, _) = served.stop().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("run")).unwrap();
    let path = dir.path().join("run/warmd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "std leaves the file behind, as a killed daemon does");

    let served = Served::start_in(dir, FakeControl::new([])).await;
    let second = Bound::bind(Listen::unix(path.clone())).await;
    assert!(matches!(second, Err(ApiError::InUse { .. })), "{second:?}");
    HealthClient::new(served.channel().await).check(HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn directory_that_the_group_cannot_enter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let private = dir.path().join("run");
    fs::create_dir(&private).unwrap();
    let listen = |group: &str| {
        let mut listen = Listen::unix(private.join("warmd.sock"));
        listen.socket.group = Some(group.to_owned());
        Bound::bind(listen)
    };
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let error = listen("nogroup").await.unwrap_err().to_string();
    assert!(error.contains("cannot enter it (mode 0700)") && error.contains("0711"), "{error}");
    let error = listen("no-such-group").await.unwrap_err().to_string();
    assert!(error.contains("no group \"no-such-group\""), "{error}");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o711)).unwrap();
    let bound = listen("nogroup").await.unwrap();
    let meta = fs::symlink_metadata(private.join("warmd.sock")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o660);
    drop(bound);
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    fs::write(&path, "data").unwrap();
    let bound = Bound::bind(Listen::unix(path.clone())).await;
    assert!(matches!(bound, Err(ApiError::NotASocket { .. })), "{bound:?}");
    assert_eq!(fs::read_to_string(path).unwrap(), "data");
}

#[tokio::test]
async fn a_socket_of_a_successor_is_left_to_him() {
    let served = served().await;
    fs::remove_file(&served.socket).unwrap();
    let successor = std::os::unix::net::UnixListener::bind(&served.socket).unwrap();
    let socket = served.socket.clone();
    let (_dir, _) = served.stop().await;
    assert!(socket.exists());
    drop(successor);
}

#[tokio::test]
async fn a_path_that_is_too_long_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x".repeat(150));
    let error = Bound::bind(Listen::unix(path)).await.unwrap_err();
    assert!(matches!(error, ApiError::Io { .. }), "{error}");
}

#[tokio::test]
async fn tcp_with_files_that_are_no_certificates_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.pem");
    std::fs::write(&bad, "no certificate").unwrap();
    for (certificate, told) in [(dir.path().join("none.pem"), "none.pem"), (bad, "bad.pem")] {
        let tls = TlsFiles { certificate, key: "k".into(), client_ca: "a".into(), client_crl: None };
        let tcp = Some(TcpListen { address: "127.0.0.1:0".parse().unwrap(), tls });
        let listen = Listen { tcp, ..Listen::unix(dir.path().join("s")) };
        let error = Bound::bind(listen).await.unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
        assert!(!dir.path().join("s").exists(), "a socket stays behind");
    }
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let served = served().await;
    let mut health = HealthClient::new(served.channel().await);
    for service in ["", "warmd.v1.Sources", "warmd.v1.Targets", "warmd.v1.Plans", "warmd.v1.Migrations"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }

    let mut reflection = ServerReflectionClient::new(served.channel().await);
    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let questions = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("warmd.v1.Migrations.Watch".to_owned())),
    ];
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter(questions)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.next().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["grpc.health.v1.Health", "warmd.v1.Migrations", "warmd.v1.Sources"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
    let Some(MessageResponse::FileDescriptorResponse(file)) =
        answers.next().await.unwrap().unwrap().message_response
    else {
        panic!("no descriptor");
    };
    assert!(!file.file_descriptor_proto.is_empty());
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused() {
    let served = served().await;
    let toml = "#".repeat(MAX_REQUEST + 1);
    let status =
        PlansClient::new(served.channel().await).validate(PlansValidateRequest { toml }).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
}

#[tokio::test]
async fn a_wrong_plan_is_refused_with_line_and_column() {
    let served = served().await;
    let mut plans = PlansClient::new(served.channel().await);
    let toml = "name = \"x\"\nsource = \"old\"\n  bogus = 1\n".to_owned();
    let status = plans.validate(PlansValidateRequest { toml: toml.clone() }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("TOML parse error at line 3, column 3\n"), "{}", status.message());
    let applied = plans.apply(PlansApplyRequest { toml, dry_run: false }).await.unwrap_err();
    assert_eq!(applied.message(), status.message());
}

#[tokio::test]
async fn refusals_carry_code_kind_and_reason() {
    let served = served().await;
    let mut sources = SourcesClient::new(served.channel().await);
    let check = |name: &str| SourcesCheckRequest { name: name.to_owned() };
    let kind =
        |status: &tonic::Status| status.metadata().get(KIND_TRAILER).unwrap().to_str().unwrap().to_owned();

    let status = sources.check(check("nowhere")).await.unwrap_err();
    assert_eq!((status.code(), kind(&status).as_str()), (Code::NotFound, "not-found"));
    assert_eq!(status.message(), "no source \"nowhere\"; there are: old, far");

    let status = sources.check(check("far")).await.unwrap_err();
    assert_eq!((status.code(), kind(&status).as_str()), (Code::Unavailable, "unavailable"));

    let mut migrations = MigrationsClient::new(served.channel().await);
    let abort = MigrationsCutoverRequest { migration: "web-1".to_owned(), abort: true, ..Default::default() };
    let status = migrations.cutover(abort).await.unwrap_err();
    assert_eq!((status.code(), kind(&status).as_str()), (Code::FailedPrecondition, "refused"));
    assert_eq!(status.message(), "abort-cutover is refused while the migration is synced: no cutover runs");

    // A time that cannot be parsed, and two words at once.
    let cutover = MigrationsCutoverRequest { migration: "web-1".to_owned(), ..Default::default() };
    for (request, wanted) in [
        (MigrationsCutoverRequest { at: "soon".to_owned(), ..cutover.clone() }, "\"soon\" is not a time"),
        (MigrationsCutoverRequest { hold: true, abort: true, ..cutover.clone() }, "give one of"),
        (MigrationsCutoverRequest { hold: true, force: true, ..cutover.clone() }, "leave force out"),
    ] {
        let status = migrations.cutover(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(wanted), "{status}");
    }

    let both =
        MigrationsWatchRequest { migration: "web-1".to_owned(), plan: "web".to_owned(), until_final: false };
    assert_eq!(migrations.watch(both).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn the_journal_is_told_who_asked() {
    let served = served().await;
    let mut migrations = MigrationsClient::new(served.channel().await);
    migrations.pause(MigrationsPauseRequest { migration: "web-1".to_owned() }).await.unwrap();
    let asked = served.control.asked();
    let uid = rustix::process::getuid().as_raw();
    let own = format!("operator uid={uid} pid={}", std::process::id());
    assert_eq!(asked.first().map(|(_, _, by)| by.as_str()), Some(own.as_str()));
}

fn watch(migration: &str, until_final: bool) -> MigrationsWatchRequest {
    MigrationsWatchRequest { migration: migration.to_owned(), plan: String::new(), until_final }
}

#[tokio::test]
async fn a_watch_tells_the_present_then_changes_then_ends() {
    let served = served().await;
    let mut migrations = MigrationsClient::new(served.channel().await);
    let mut stream = migrations.watch(watch("web-1", true)).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.kind(), WatchKind::Current);

    // Another one's change is none of this watcher's business.
    served.control.change(cases::synced(2, "web-2"));
    let mut done = cases::synced(1, "web-1");
    done.state = warmd_core::model::state::State::Done;
    served.control.change(done);
    let change = stream.message().await.unwrap().unwrap();
    assert_eq!(change.kind(), WatchKind::Change);
    assert_eq!(change.migration.unwrap().vm_name, "web-1");
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_watcher_that_lags_gets_the_present_state() {
    let served = served().await;
    let mut migrations = MigrationsClient::new(served.channel().await);
    let mut stream = migrations.watch(watch("web-1", false)).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().kind(), WatchKind::Current);

    // Nothing is read meanwhile: the stream's window fills, then the daemon's few places for changes.
    let mut last = cases::syncing(1, "web-1");
    for step in 0..2000 {
        last.warnings = vec![format!("{step} {}", "x".repeat(4096))];
        served.control.change(last.clone());
        if step % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut told = 0;
    let mut again = 0;
    loop {
        let message = timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
        told += 1;
        again += u32::from(message.kind() == WatchKind::Current);
        if message.migration.is_some_and(|migration| migration.warnings == last.warnings) {
            break;
        }
    }
    assert!(again > 0, "the present state came again");
    assert!(told < 2000, "not every change can have been kept: {told}");
}

#[tokio::test]
async fn a_shutdown_ends_open_streams() {
    let served = served().await;
    let mut migrations = MigrationsClient::new(served.channel().await);
    let mut stream = migrations.watch(watch("", false)).await.unwrap().into_inner();
    for _ in 0..2 {
        assert_eq!(stream.message().await.unwrap().unwrap().kind(), WatchKind::Current);
    }
    let (_dir, control) = served.stop().await;
    // The end of the stream, or of the connection: whichever came first.
    assert!(!matches!(timeout(DEADLINE, stream.message()).await.unwrap(), Ok(Some(_))));
    until("the watcher is gone", || control.watchers() == 0).await;
}
