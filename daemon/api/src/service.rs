//! The server: its listener, its services, and its end.

use std::{fmt, sync::Arc, time::Duration};

use futures::{Stream, stream};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;
use warmd_core::control::Control;
use warmd_proto::{
    MAX_REQUEST,
    v1::{
        limits_server::LimitsServer, migrations_server::MigrationsServer, plans_server::PlansServer,
        sources_server::SourcesServer, targets_server::TargetsServer,
    },
};

use super::{
    ApiError, Listen,
    listen::{OwnSocket, bind_unix},
};

/// How long calls in progress may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// How often a silent connection is asked whether it lives, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(20);

/// Streams that one connection may have open.
const MAX_STREAMS: u32 = 128;

/// The parts that all services share.
#[derive(Clone)]
pub(super) struct ApiServer {
    pub(super) control: Arc<dyn Control>,
    pub(super) shutdown: CancellationToken,
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
}

impl Bound {
    /// Listens. Clients can connect from here on, and wait for their answers until [`Bound::serve`].
    pub async fn bind(listen: Listen) -> Result<Self, ApiError> {
        match listen {
            Listen::Unix(path) => {
                let (listener, socket) = bind_unix(&path).await?;
                Ok(Self { listener, socket })
            }
            Listen::Tcp { address, tls: None } => Err(ApiError::Unsafe {
                address,
                reason: "a TCP address needs TLS with certificates on both sides; any client that reaches it could \
                         move VMs. Use a Unix socket, and SSH to reach it from afar"
                    .to_owned(),
            }),
            Listen::Tcp { address, tls: Some(_) } => Err(ApiError::Unsafe {
                address,
                reason: "this version of warmd does not speak TLS yet. Use a Unix socket, and SSH to reach \
                         it from afar (`ssh -L`)"
                    .to_owned(),
            }),
        }
    }

    /// Serves until `shutdown`; then open streams end, calls in progress get a few seconds, and the socket is
    /// removed.
    pub async fn serve(self, control: Arc<dyn Control>, shutdown: CancellationToken) -> Result<(), ApiError> {
        let Self { listener, socket } = self;
        let api = ApiServer { control, shutdown: shutdown.clone() };

        let (health, health_server) = tonic_health::server::health_reporter();
        mark_serving(&health).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(warmd_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;

        let serving = Server::builder()
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_ANSWER))
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(health_server)
            .add_service(reflection)
            .add_service(SourcesServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
            .add_service(TargetsServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
            .add_service(PlansServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
            .add_service(LimitsServer::new(api.clone()).max_decoding_message_size(MAX_REQUEST))
            .add_service(MigrationsServer::new(api).max_decoding_message_size(MAX_REQUEST))
            .serve_with_incoming_shutdown(incoming(listener), shutdown.clone().cancelled_owned());

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
}

/// Connections as they come. An accept that fails (no file descriptors left) is tried again, not at once.
fn incoming(listener: UnixListener) -> impl Stream<Item = std::io::Result<UnixStream>> {
    stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), listener)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the API");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    })
}
