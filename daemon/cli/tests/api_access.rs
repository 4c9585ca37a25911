//! Roles: which caller may use which call of the API, over TCP with certificates on both sides.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod api_common;

use std::{collections::BTreeSet, io, net::SocketAddr, sync::Arc, time::Duration};

use api_common::{
    cases,
    certs::Ca,
    fake_control::FakeControl,
    raw::{RawCodec, encoded},
    served::DEADLINE,
};
use hyper_util::rt::TokioIo;
use prost_types::FileDescriptorSet;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use warmd_api::{Bound, Listen, TcpListen, TlsFiles};
use warmd_core::{
    control::Control as _,
    model::access::{Role, Subject},
};
use warmd_proto::v1::{self, migrations_client::MigrationsClient, plans_client::PlansClient};

/// A daemon that is all fake, on TCP.
struct Remote {
    _dir: TempDir,
    ca: Ca,
    address: SocketAddr,
    control: FakeControl,
    shutdown: CancellationToken,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Remote {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(dir.path(), "ours").unwrap();
        ca.sign("warmd").unwrap();
        let control = FakeControl::new([cases::synced(1, "web-1"), cases::syncing(2, "web-2")]);
        let tls = TlsFiles {
            certificate: ca.file("warmd"),
            key: ca.key("warmd"),
            client_ca: ca.file("ca"),
            client_crl: None,
        };
        let tcp = Some(TcpListen { address: "127.0.0.1:0".parse().unwrap(), tls });
        let listen = Listen { tcp, ..Listen::unix(dir.path().join("run/warmd.sock")) };
        let bound = Bound::bind(listen).await.unwrap();
        let address = bound.tcp_address().unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn(bound.serve(Arc::new(control.clone()), shutdown.clone()));
        Self { _dir: dir, ca, address, control, shutdown }
    }

    async fn grant(&self, name: &str, role: Role, plans: &[&str]) {
        let plans = plans.iter().map(|plan| (*plan).to_owned()).collect();
        self.control.grant(Subject::Certificate(name.to_owned()), role, plans, "test").await.unwrap();
    }

    /// A connection with the certificate of that name, which is signed if it is new.
    async fn channel(&self, name: &str) -> Channel {
        if !self.ca.file(name).exists() {
            self.ca.sign(name).unwrap();
        }
        let pem = |path| CertificateDer::from_pem_file(path).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(pem(self.ca.file("ca"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.ca.key(name)).unwrap();
        let mut settings =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(vec![pem(self.ca.file(name))], key)
                .unwrap();
        settings.alpn_protocols = vec![b"h2".to_vec()];
        let (connector, address) = (TlsConnector::from(Arc::new(settings)), self.address);
        let connect = tower::service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let host = ServerName::try_from("localhost").map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(host, stream).await?))
            }
        });
        Endpoint::from_static("http://warmd").connect_with_connector(connect).await.unwrap()
    }
}

/// Which roles may use a call, and a message that asks for something that the fake daemon can do.
struct Allowed {
    call: &'static str,
    roles: &'static [Role],
    message: Vec<u8>,
}

const VIEW: &[Role] = &[Role::Viewer, Role::Operator, Role::Planner, Role::Admin];
const OPERATE: &[Role] = &[Role::Operator, Role::Admin];
const PLAN: &[Role] = &[Role::Planner, Role::Admin];
const ADMINISTER: &[Role] = &[Role::Admin];

const PLAN_FILE: &str = "name = \"web\"\nsource = \"old\"\ntarget = \"new\"\nvms = [\"web-1\"]\n";

/// The rights of the whole API, call by call.
fn table() -> Vec<Allowed> {
    let vm = || "web-1".to_owned();
    let row = |call, roles, message| Allowed { call, roles, message };
    vec![
        row("Sources/List", VIEW, encoded(&v1::SourcesListRequest {})),
        row("Sources/Check", VIEW, encoded(&v1::SourcesCheckRequest { name: "old".into() })),
        row(
            "Sources/ListVms",
            VIEW,
            encoded(&v1::SourcesListVmsRequest { name: "old".into(), refresh: false }),
        ),
        row("Targets/List", VIEW, encoded(&v1::TargetsListRequest {})),
        row("Targets/Check", VIEW, encoded(&v1::TargetsCheckRequest { name: "new".into() })),
        row("Plans/Apply", PLAN, encoded(&v1::PlansApplyRequest { toml: PLAN_FILE.into(), dry_run: false })),
        row("Plans/Get", VIEW, encoded(&v1::PlansGetRequest { name: "web".into() })),
        row("Plans/List", VIEW, encoded(&v1::PlansListRequest {})),
        row("Plans/Delete", PLAN, encoded(&v1::PlansDeleteRequest { name: "web".into() })),
        row("Plans/Validate", PLAN, encoded(&v1::PlansValidateRequest { toml: PLAN_FILE.into() })),
        row(
            "Plans/Cutover",
            OPERATE,
            encoded(&v1::PlansCutoverRequest { name: "web".into(), ..Default::default() }),
        ),
        row(
            "Plans/Explain",
            VIEW,
            encoded(&v1::PlansExplainRequest { toml: PLAN_FILE.into(), ..Default::default() }),
        ),
        row("Migrations/List", VIEW, encoded(&v1::MigrationsListRequest::default())),
        row("Migrations/Get", VIEW, encoded(&v1::MigrationsGetRequest { migration: vm() })),
        row("Migrations/Watch", VIEW, encoded(&v1::MigrationsWatchRequest::default())),
        row("Migrations/Sync", OPERATE, encoded(&v1::MigrationsSyncRequest { migration: vm() })),
        row("Migrations/Pause", OPERATE, encoded(&v1::MigrationsPauseRequest { migration: vm() })),
        row("Migrations/Resume", OPERATE, encoded(&v1::MigrationsResumeRequest { migration: vm() })),
        row(
            "Migrations/Cutover",
            OPERATE,
            encoded(&v1::MigrationsCutoverRequest { migration: vm(), ..Default::default() }),
        ),
        row(
            "Migrations/Rollback",
            OPERATE,
            encoded(&v1::MigrationsRollbackRequest { migration: vm(), accept_loss: true }),
        ),
        row("Migrations/Cancel", PLAN, encoded(&v1::MigrationsCancelRequest { migration: vm() })),
        row(
            "Migrations/Verify",
            OPERATE,
            encoded(&v1::MigrationsVerifyRequest { migration: vm(), ..Default::default() }),
        ),
        row("Migrations/Report", VIEW, encoded(&v1::MigrationsReportRequest { migration: vm() })),
        row("Migrations/ReportKey", VIEW, encoded(&v1::MigrationsReportKeyRequest {})),
        row("Migrations/Events", VIEW, encoded(&v1::MigrationsEventsRequest::default())),
        row("Limits/Get", VIEW, encoded(&v1::LimitsGetRequest::default())),
        row("Limits/Set", OPERATE, encoded(&limit_of("global"))),
        row("Limits/Quotas", VIEW, encoded(&v1::LimitsQuotasRequest::default())),
        row("Access/List", ADMINISTER, encoded(&v1::AccessListRequest {})),
        row(
            "Access/Grant",
            ADMINISTER,
            encoded(&v1::AccessGrantRequest {
                subject: "cert:new".into(),
                role: "viewer".into(),
                plans: Vec::new(),
            }),
        ),
        row("Access/Revoke", ADMINISTER, encoded(&v1::AccessRevokeRequest { subject: "cert:new".into() })),
    ]
}

fn limit_of(scope: &str) -> v1::LimitsSetRequest {
    let change = v1::limits_set_request::Change::Reset(v1::LimitReset {});
    v1::LimitsSetRequest { scope: scope.into(), change: Some(change) }
}

/// The first answer to a call; a stream's first message counts.
async fn ask(channel: &Channel, call: &str, message: &[u8]) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/warmd.v1.{call}")).unwrap();
    let asked = client.server_streaming(Request::new(message.to_vec()), path, RawCodec);
    let mut answers = timeout(DEADLINE, asked).await.expect("an answer")?.into_inner();
    timeout(DEADLINE, answers.next()).await.expect("a message").transpose().map(drop)
}

#[test]
fn each_call_of_the_api_has_its_roles() {
    use prost_types::FileDescriptorProto;
    let contracts = <FileDescriptorSet as prost::Message>::decode(warmd_proto::DESCRIPTORS).unwrap();
    let ours = |file: &&FileDescriptorProto| file.package() == "warmd.v1";
    let calls: BTreeSet<_> = contracts
        .file
        .iter()
        .filter(ours)
        .flat_map(|file| &file.service)
        .flat_map(|service| service.method.iter().map(|call| format!("{}/{}", service.name(), call.name())))
        .collect();
    let table = table();
    let listed: BTreeSet<_> = table.iter().map(|row| row.call.to_owned()).collect();
    assert!(calls.len() > 30, "{calls:?}");
    assert_eq!(calls, listed, "say in `table` which roles may use the new call");
    assert_eq!(listed.len(), table.len(), "a call stands twice in `table`");
}

#[tokio::test]
async fn call_is_allowed_to_its_roles_alone() {
    let remote = Remote::start().await;
    let mut callers = vec![(None, remote.channel("stranger").await)];
    for role in Role::ALL {
        remote.grant(role.name(), role, &[]).await;
        callers.push((Some(role), remote.channel(role.name()).await));
    }
    for row in table() {
        for (role, channel) in &callers {
            let (call, answer) = (row.call, ask(channel, row.call, &row.message).await);
            let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
            let shown = format!("{call} as {role:?}: {answer:?}");
            if role.is_some_and(|role| row.roles.contains(&role)) {
                // The state of the fake daemon may refuse it; what it is asked is right.
                let usual = [Code::Ok, Code::FailedPrecondition, Code::NotFound, Code::Unavailable];
                assert!(usual.contains(&code), "{shown}");
            } else {
                let refusal = answer.unwrap_err();
                assert_eq!(code, Code::PermissionDenied, "{shown}");
                let wanted = format!("the role {}", row.roles[0]);
                assert!(refusal.message().contains(&wanted), "{shown}");
            }
        }
    }
}

#[tokio::test]
async fn role_for_some_plans_shows_and_changes_these_alone() {
    let remote = Remote::start().await;
    let mut other = cases::synced(3, "db-1");
    other.plan = "db".to_owned();
    let other_id = other.id.to_string();
    remote.control.change(other.clone());
    remote.grant("web-team", Role::Operator, &["web*"]).await;
    let channel = remote.channel("web-team").await;

    let mut migrations = MigrationsClient::new(channel.clone());
    let seen = migrations.list(v1::MigrationsListRequest::default()).await.unwrap().into_inner().migrations;
    assert_eq!(seen.iter().map(|it| it.vm_name.as_str()).collect::<Vec<_>>(), ["web-1", "web-2"]);

    let theirs = [
        ("Migrations/Get", encoded(&v1::MigrationsGetRequest { migration: other_id.clone() })),
        ("Migrations/Pause", encoded(&v1::MigrationsPauseRequest { migration: "db-1".into() })),
        ("Migrations/Report", encoded(&v1::MigrationsReportRequest { migration: other_id.clone() })),
        (
            "Migrations/Watch",
            encoded(&v1::MigrationsWatchRequest { migration: other_id.clone(), ..Default::default() }),
        ),
        ("Migrations/List", encoded(&v1::MigrationsListRequest { plan: "db".into() })),
        ("Plans/Get", encoded(&v1::PlansGetRequest { name: "db".into() })),
        ("Plans/Cutover", encoded(&v1::PlansCutoverRequest { name: "db".into(), ..Default::default() })),
        ("Limits/Set", encoded(&limit_of(&format!("migration/{other_id}")))),
        // These are about all plans.
        ("Limits/Set", encoded(&limit_of("global"))),
        ("Limits/Get", encoded(&v1::LimitsGetRequest::default())),
        ("Migrations/Events", encoded(&v1::MigrationsEventsRequest::default())),
    ];
    for (call, message) in theirs {
        let refusal = ask(&channel, call, &message).await.unwrap_err();
        assert_eq!(refusal.code(), Code::PermissionDenied, "{call}: {refusal:?}");
        assert!(refusal.message().contains("web*"), "{call}: {refusal:?}");
    }
    ask(&channel, "Migrations/Pause", &encoded(&v1::MigrationsPauseRequest { migration: "web-1".into() }))
        .await
        .unwrap();

    // A change of another plan's migration does not reach the watcher, and does not end the stream.
    let watched = migrations.watch(v1::MigrationsWatchRequest::default()).await.unwrap();
    let mut watched = watched.into_inner();
    for _ in 0..2 {
        timeout(DEADLINE, watched.next()).await.unwrap().unwrap().unwrap();
    }
    remote.control.change(other);
    remote.control.change(cases::synced(1, "web-1"));
    let next = timeout(DEADLINE, watched.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(next.migration.unwrap().vm_name, "web-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_message_without_a_role_is_refused_by_the_role() {
    let remote = Remote::start().await;
    let toml = format!("{PLAN_FILE}# {}\n", "x".repeat(500_000));
    let message = encoded(&v1::PlansApplyRequest { toml, dry_run: false });
    let refused = ask(&remote.channel("stranger").await, "Plans/Apply", &message).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("cert:stranger"), "{refused}");
    remote.grant("stranger", Role::Planner, &[]).await;
    ask(&remote.channel("stranger").await, "Plans/Apply", &message).await.unwrap();
}

#[tokio::test]
async fn planner_adds_no_programs_and_keeps_those_of_an_admin() {
    let remote = Remote::start().await;
    remote.grant("paul", Role::Planner, &[]).await;
    remote.grant("root", Role::Admin, &[]).await;
    let (mut planner, mut admin) =
        (PlansClient::new(remote.channel("paul").await), PlansClient::new(remote.channel("root").await));
    let apply = |toml: String| v1::PlansApplyRequest { toml, dry_run: false };
    let hook = |program: &str| {
        format!(
            "{PLAN_FILE}[[hooks]]\nphase = \"stop-source\"\nwhen = \"before\"\ncommand = [\"{program}\"]\n"
        )
    };
    let service =
        format!("{PLAN_FILE}[[hooks]]\nphase = \"stop-source\"\nwhen = \"before\"\ngrpc = \"unix:/s\"\n");
    let conversion = format!("{PLAN_FILE}[conversion]\ncommand = [\"/bin/true\"]\n");
    let v2v = |setting: &str| format!("{PLAN_FILE}[conversion]\ntool = \"virt-v2v\"\n{setting}\n");
    let (script, key) = (v2v("first_boot = [\"/etc/shadow\"]"), v2v("keys = { all = \"/etc/shadow\" }"));
    for toml in [hook("/bin/true"), service, conversion, script, key] {
        let refusal = planner.apply(apply(toml.clone())).await.unwrap_err();
        assert_eq!(refusal.code(), Code::PermissionDenied, "{toml}: {refusal:?}");
        assert!(
            refusal.message().contains("on the daemon's host: cert:paul has the role planner"),
            "{refusal:?}"
        );
    }
    admin.apply(apply(hook("/bin/true"))).await.unwrap();
    planner.apply(apply(hook("/bin/true").replace("web-1", "web-2"))).await.unwrap();
    let refusal = planner.apply(apply(hook("/bin/false"))).await.unwrap_err();
    assert!(refusal.message().contains("the plan runs `/bin/false`"), "{refusal:?}");
}

#[tokio::test]
async fn watch_ends_when_the_role_is_revoked() {
    let remote = Remote::start().await;
    remote.grant("anna", Role::Viewer, &[]).await;
    let mut client = MigrationsClient::new(remote.channel("anna").await);
    let mut watched = client.watch(v1::MigrationsWatchRequest::default()).await.unwrap().into_inner();
    for _ in 0..2 {
        timeout(DEADLINE, watched.next()).await.unwrap().unwrap().unwrap();
    }
    remote.control.revoke(&Subject::Certificate("anna".to_owned()), "test").await.unwrap();
    remote.control.change(cases::synced(1, "web-1"));
    let end = timeout(DEADLINE, watched.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied, "{end:?}");
}

#[tokio::test]
async fn connection_ends_with_the_certificate() {
    let remote = Remote::start().await;
    remote.grant("short", Role::Viewer, &[]).await;
    // Certificates count in whole seconds.
    let end = std::time::SystemTime::now() + Duration::from_secs(4);
    remote.ca.sign_as("short", |params| params.not_after = end.into()).unwrap();
    let mut client = MigrationsClient::new(remote.channel("short").await);
    client.list(v1::MigrationsListRequest::default()).await.unwrap();
    let mut watched = client.watch(v1::MigrationsWatchRequest::default()).await.unwrap().into_inner();
    let ended = timeout(DEADLINE, async {
        loop {
            match watched.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        }
    });
    ended.await.expect("the stream ends with the certificate");
    assert!(std::time::SystemTime::now() + Duration::from_secs(2) > end, "it ended before its time");
    // A further call needs a new connection, which is refused.
    client.list(v1::MigrationsListRequest::default()).await.unwrap_err();
}
