//! The connection to the daemon.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};
use warmd_proto::v1::{
    MigrationsPauseRequest, MigrationsPauseResponse, MigrationsResumeRequest, MigrationsResumeResponse,
    access_client::AccessClient, limits_client::LimitsClient, migrations_client::MigrationsClient,
    plans_client::PlansClient, sources_client::SourcesClient, targets_client::TargetsClient,
};

use super::{
    address::{DaemonAddress, SocketAddress, TlsAddress},
    failure::{CliFailure, Exit, root_cause},
    tls,
};

const CONNECT: Duration = Duration::from_secs(5);

/// How long one answer may take. Sources and targets have shorter deadlines of their own.
const ANSWER: Duration = Duration::from_mins(3);

/// The largest answer, in bytes: a report with its whole journal.
const MAX_ANSWER: usize = 256 << 20;

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to the daemon.
    pub(super) async fn connect(daemon: &DaemonAddress) -> Result<Self, CliFailure> {
        let channel = match daemon {
            DaemonAddress::Socket(SocketAddress { socket }) => to_socket(socket).await?,
            DaemonAddress::Tls(to) => to_address(to).await?,
        };
        Ok(Self { channel })
    }

    pub(super) fn sources(&self) -> SourcesClient<Channel> {
        SourcesClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn targets(&self) -> TargetsClient<Channel> {
        TargetsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn plans(&self) -> PlansClient<Channel> {
        PlansClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn limits(&self) -> LimitsClient<Channel> {
        LimitsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn access(&self) -> AccessClient<Channel> {
        AccessClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) fn migrations(&self) -> MigrationsClient<Channel> {
        MigrationsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    pub(super) async fn pause(&self, migration: String) -> Result<MigrationsPauseResponse, CliFailure> {
        let request = asked(MigrationsPauseRequest { migration });
        Ok(self.migrations().pause(request).await?.into_inner())
    }

    pub(super) async fn resume(&self, migration: String) -> Result<MigrationsResumeResponse, CliFailure> {
        let request = asked(MigrationsResumeRequest { migration });
        Ok(self.migrations().resume(request).await?.into_inner())
    }
}

/// A request with the deadline that every answer has.
pub(super) fn asked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER);
    request
}

async fn to_socket(socket: &Path) -> Result<Channel, CliFailure> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| open(path.clone()));
    let endpoint = Endpoint::from_static("http://warmd").connect_timeout(CONNECT);
    endpoint.connect_with_connector(connector).await.map_err(|error| unreachable(socket, &error))
}

/// The first connection is made here, for the sake of its errors; the channel makes later ones as it needs
/// them.
async fn to_address(to: &TlsAddress) -> Result<Channel, CliFailure> {
    let first = Arc::new(Mutex::new(Some(tls::connect(to).await?)));
    let to = to.clone();
    let shown = to.address.clone();
    let connector = tower::service_fn(move |_| {
        let (first, to) = (Arc::clone(&first), to.clone());
        async move {
            let made = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let stream = match made {
                Some(stream) => stream,
                None => tls::connect(&to).await.map_err(io::Error::other)?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://warmd").connect_with_connector(connector).await.map_err(|error| {
        let text = root_cause(&error);
        CliFailure::new(Exit::Unreachable, format!("cannot reach the daemon at {shown}: {text}"))
    })
}

async fn open(path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

/// The kind of the deepest cause that is one of the system.
fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.filter_map(|error| error.downcast_ref::<io::Error>()).last().map(io::Error::kind)
}

fn unreachable(socket: &Path, error: &(dyn Error + 'static)) -> CliFailure {
    let (kind, text) = (io_kind(error), root_cause(error));
    let path = socket.display();
    let message = match kind {
        Some(io::ErrorKind::NotFound) => format!(
            "no daemon: there is no socket {path}. Start `warmd serve`, or name its socket with --socket or WARMD_SOCKET"
        ),
        Some(io::ErrorKind::ConnectionRefused) => {
            format!(
                "no daemon: no process listens on {path} any more. Start `warmd serve`, and see its log for why it ended"
            )
        }
        Some(io::ErrorKind::PermissionDenied) => {
            format!(
                "not allowed to open {path}: run warmctl as the user that warmd runs as (try sudo), or as a member of the group in its configuration (`[listen] group`)"
            )
        }
        _ => format!("cannot reach the daemon on {path}: {text}"),
    };
    CliFailure::new(Exit::Unreachable, message)
}
