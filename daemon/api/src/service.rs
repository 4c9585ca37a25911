//! The server: its listener, its services, and its end.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use futures::stream;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tonic::{Extensions, transport::Server};
use tonic_health::server::HealthReporter;
use warmd_core::{
    control::Control,
    guarded::Guarded,
    model::access::{self, Caller},
};
use warmd_proto::{
    MAX_REQUEST,
    v1::{
        access_server::AccessServer, limits_server::LimitsServer, migrations_server::MigrationsServer,
        plans_server::PlansServer, sources_server::SourcesServer, targets_server::TargetsServer,
    },
};

use super::{
    ApiError, Listen, TcpListen,
    accept::{self, Bounds},
    door::Door,
    listen::{OwnSocket, bind_unix},
    tls::Identity,
};

/// How long calls in progress may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// How often a silent connection is asked whether it lives, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(20);

/// Accepted connections that wait for the server.
const BACKLOG: usize = 16;

/// Streams that one connection may have open. Each can hold a request of [`MAX_REQUEST`] before the right to
/// that request is asked.
const MAX_STREAMS: u32 = 32;

/// The parts that all services share.
#[derive(Clone)]
pub(super) struct ApiServer {
    /// For [`ApiServer::control`] alone: no service uses the port but as its caller may.
    all: Arc<dyn Control>,
    pub(super) shutdown: CancellationToken,
}

impl ApiServer {
    /// The port, as the caller of this request may use it. A connection without a caller may do nothing.
    pub(super) fn control(&self, extensions: &Extensions) -> Guarded {
        let unknown = || {
            Arc::new(Caller {
                name: "unknown".to_owned(),
                identity: access::Identity::User { name: "unknown".to_owned(), groups: Vec::new() },
            })
        };
        let caller = extensions.get::<Arc<Caller>>().map_or_else(unknown, Arc::clone);
        Guarded::new(Arc::clone(&self.all), caller)
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// An API that already listens, and answers once it is served.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    socket: OwnSocket,
    tcp: Option<(TcpListener, Arc<Identity>)>,
}

impl Bound {
    /// Listens. Clients can connect from here on, and wait for their answers until [`Bound::serve`].
    pub async fn bind(listen: Listen) -> Result<Self, ApiError> {
        let tcp = match listen.tcp {
            Some(TcpListen { address, tls }) => {
                let identity = Arc::new(Identity::load(tls)?);
                let bound = TcpListener::bind(address).await;
                let doing = format!("listen on {address}");
                Some((bound.map_err(|cause| ApiError::Io { doing, cause })?, identity))
            }
            None => None,
        };
        let (listener, socket) = bind_unix(&listen.socket).await?;
        Ok(Self { listener, socket, tcp })
    }

    /// The TCP address on which it listens, with the port that the system chose for port 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.0.local_addr().ok()
    }

    /// Serves until `shutdown`; then open streams end, calls in progress get a few seconds, and the socket is
    /// removed.
    pub async fn serve(self, control: Arc<dyn Control>, shutdown: CancellationToken) -> Result<(), ApiError> {
        let Self { listener, socket, tcp } = self;
        let api = ApiServer { all: control, shutdown: shutdown.clone() };

        let (health, health_server) = tonic_health::server::health_reporter();
        mark_serving(&health).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(warmd_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;

        let (sender, accepted) = mpsc::channel(BACKLOG);
        if let Some((listener, identity)) = tcp {
            let (bounds, sender) = (Bounds::default(), sender.clone());
            tokio::spawn(accept::from_tcp(listener, identity, bounds, sender, shutdown.clone()));
        }
        tokio::spawn(accept::from_socket(listener, Bounds::default(), sender, shutdown.clone()));
        let accepted =
            stream::unfold(accepted, |mut accepted| async move { Some((accepted.recv().await?, accepted)) });

        let serving = Server::builder()
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_ANSWER))
            .max_concurrent_streams(MAX_STREAMS)
            .layer(Door(api.clone()))
            .add_service(health_server)
            .add_service(reflection)
            .add_service(SourcesServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
            .add_service(TargetsServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
            .add_service(PlansServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
            .add_service(LimitsServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
            .add_service(AccessServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
            .add_service(MigrationsServer::new(api).max_decoding_message_size(MAX_REQUEST))
            .serve_with_incoming_shutdown(accepted, shutdown.clone().cancelled_owned());

        let ended = tokio::select! {
            ended = serving => ended.map_err(ApiError::from),
            () = late(&shutdown) => {
                tracing::warn!("calls were still in progress at the end of the API's shutdown");
                Ok(())
            }
        };
        drop(socket);
        ended
    }
}

async fn late(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

async fn mark_serving(health: &HealthReporter) {
    health.set_serving::<SourcesServer<ApiServer>>().await;
    health.set_serving::<TargetsServer<ApiServer>>().await;
    health.set_serving::<PlansServer<ApiServer>>().await;
    health.set_serving::<MigrationsServer<ApiServer>>().await;
    health.set_serving::<LimitsServer<ApiServer>>().await;
    health.set_serving::<AccessServer<ApiServer>>().await;
}
