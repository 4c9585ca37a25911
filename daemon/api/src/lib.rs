//! The control API `warmd.v1`: gRPC in front of [`Control`].
//!
//! Rule: it decides nothing. It turns messages into calls of [`Control`] and the answers into messages; which
//! request is allowed when is decided behind it. Incoming data is untrusted and bounded in size.
//!
//! It listens on a Unix socket that only its owner, or a group, may open, and on TCP with certificates on
//! both sides. What a caller may do is decided by `warmd_core::guarded`.
//!
//! Knows the port and the contract; not migrations at work, not the state, not endpoints.
#![forbid(unsafe_code)]

mod accept;
mod access;
mod connection;
mod convert;
mod door;
pub mod fuzz;
mod limits;
mod listen;
mod migrations;
mod peer;
mod plans;
mod refusals;
mod report_markdown;
mod service;
mod sources;
mod status;
mod targets;
mod tls;
mod watch;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tokio_util::sync::CancellationToken;
use warmd_core::control::Control;

pub use self::{report_markdown::markdown, service::Bound};

/// Where the API listens: always on a Unix socket, and on TCP if that is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub socket: UnixListen,
    pub tcp: Option<TcpListen>,
}

impl Listen {
    /// Reads the files of TLS, as serving would, and changes nothing.
    pub fn check(&self) -> Result<(), ApiError> {
        self.tcp.as_ref().map_or(Ok(()), |tcp| tls::Identity::load(tcp.tls.clone()).map(drop))
    }

    /// On a Unix socket of the daemon's own user.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { socket: UnixListen { path: path.into(), group: None }, tcp: None }
    }
}

/// A Unix socket; its directory is created with mode 0700 (0750 with a group) if it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixListen {
    pub path: PathBuf,
    /// The group whose members may open it (mode 0660); without one its owner alone may (mode 0600).
    pub group: Option<String>,
}

/// A TCP address, with certificates on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpListen {
    pub address: SocketAddr,
    pub tls: TlsFiles,
}

/// The PEM files of mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The daemon's certificate chain.
    pub certificate: PathBuf,
    /// The daemon's private key.
    pub key: PathBuf,
    /// The CA that signs the certificates of allowed clients.
    pub client_ca: PathBuf,
    /// The CAs' lists of certificates that are revoked.
    pub client_crl: Option<PathBuf>,
}

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Another process answers there.
    #[error(
        "another process answers on the socket {}: is warmd running already? Stop it, or give this one another socket",
        .path.display()
    )]
    InUse { path: PathBuf },
    /// The file at the path is no socket.
    #[error("{} is there and is no socket: remove it, or choose another path for the socket", .path.display())]
    NotASocket { path: PathBuf },
    /// The socket's group does not exist.
    #[error("there is no group {group:?} on this host: create it (groupadd), or correct `group` in [listen]")]
    NoGroup { group: String },
    /// A system call failed.
    #[error("cannot {doing}: {cause}")]
    Io {
        doing: String,
        #[source]
        cause: std::io::Error,
    },
    /// The gRPC server failed.
    #[error("the API's server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors compiled in are not what reflection expects.
    #[error("server reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Listens and serves until `shutdown`; then open streams end, calls in progress get a few seconds, and the
/// socket is removed. To know when it listens, use [`Bound::bind`] and [`Bound::serve`].
pub async fn serve(
    listen: Listen,
    control: Arc<dyn Control>,
    shutdown: CancellationToken,
) -> Result<(), ApiError> {
    Bound::bind(listen).await?.serve(control, shutdown).await
}
