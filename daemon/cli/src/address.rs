//! Where the daemon is: a Unix socket of this host, or an address with TLS.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The way to a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum DaemonAddress {
    Socket(SocketAddress),
    Tls(TlsAddress),
}

/// A Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SocketAddress {
    pub(super) socket: PathBuf,
}

/// A daemon on another host, with certificates on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsAddress {
    /// `HOST:PORT`.
    pub(super) address: String,
    /// PEM files: the CA of the daemon's certificate, this client's certificate and its key.
    pub(super) ca: PathBuf,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    /// The name in the daemon's certificate, where it is not the host of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) server_name: Option<String>,
}

impl DaemonAddress {
    /// A daemon of this host.
    pub(super) fn socket(path: impl Into<PathBuf>) -> Self {
        Self::Socket(SocketAddress { socket: path.into() })
    }
}

impl fmt::Display for DaemonAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(it) => write!(f, "{}", it.socket.display()),
            Self::Tls(it) => f.write_str(&it.address),
        }
    }
}
