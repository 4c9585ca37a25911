//! Connections to a daemon on another host: TLS 1.3, with a certificate on both sides.
//!
//! Rule: a connection counts once the daemon has accepted the client's certificate, and a refusal says which
//! of the two certificates is the reason, and its file.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, sync::Arc, time::Duration};

use rustix::fs::Mode;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{io::AsyncBufReadExt as _, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    address::TlsAddress,
    failure::{CliFailure, Exit},
};

/// How long each step of a connection may take.
const STEP: Duration = Duration::from_secs(10);

/// The protocol of gRPC.
const HTTP_2: &[u8] = b"h2";

/// The largest file of certificates or a key, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A connection whose certificates both sides accepted.
pub(super) type Accepted = TlsStream<TcpStream>;

/// Connects to the daemon, and waits for its first bytes: it sends none to a client that it refuses.
pub(super) async fn connect(to: &TlsAddress) -> Result<Accepted, CliFailure> {
    let (settings, name) = (settings(to)?, server_name(to)?);
    let address = &to.address;
    let unreachable = |why: String| {
        CliFailure::new(
            Exit::Unreachable,
            format!(
                "cannot reach the daemon at {address}: {why}. Is the address right, and has its configuration `[listen] tcp`?"
            ),
        )
    };
    let late = |what: &str| unreachable(format!("{what} took longer than {} s", STEP.as_secs()));
    let stream = timeout(STEP, TcpStream::connect(address)).await.map_err(|_| late("the connection"))?;
    let stream = stream.map_err(|error| unreachable(error.to_string()))?;
    stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
    let greeted = timeout(STEP, TlsConnector::from(settings).connect(name, stream)).await;
    let mut stream = greeted
        .map_err(|_| late("the TLS handshake"))?
        .map_err(|error| CliFailure::new(Exit::Unreachable, refusal(to, &error)))?;
    let first = timeout(STEP, stream.fill_buf()).await.map_err(|_| late("the daemon's answer"))?;
    match first {
        Ok([]) => Err(CliFailure::new(Exit::Unreachable, closed(to))),
        Ok(_) => Ok(stream),
        Err(error) => Err(CliFailure::new(Exit::Unreachable, refusal(to, &error))),
    }
}

/// The daemon gives no reason for what is not about TLS.
fn closed(to: &TlsAddress) -> String {
    format!(
        "the daemon at {} closed the connection: its log says why (the common name of {}, or too many connections)",
        to.address,
        to.cert.display()
    )
}

/// Whether the files can be used: they are read.
pub(super) fn check(to: &TlsAddress) -> Result<(), CliFailure> {
    settings(to)?;
    server_name(to).map(drop)
}

fn settings(to: &TlsAddress) -> Result<Arc<ClientConfig>, CliFailure> {
    let mut roots = RootCertStore::empty();
    for root in certificates(&to.ca)? {
        roots.add(root).map_err(|error| unusable(&to.ca, &error))?;
    }
    let chain = certificates(&to.cert)?;
    judge_key(&to.key)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&to.key)?).map_err(|error| unusable(&to.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut settings = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, key))
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                let why = format!("the key is not that of {}", to.cert.display());
                unusable(&to.key, &why)
            }
            error => unusable(&to.cert, &error),
        })?;
    settings.alpn_protocols = vec![HTTP_2.to_vec()];
    Ok(Arc::new(settings))
}

/// The name that the daemon's certificate must have.
fn server_name(to: &TlsAddress) -> Result<ServerName<'static>, CliFailure> {
    let host = to.address.rsplit_once(':').map_or(to.address.as_str(), |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let name = to.server_name.as_deref().unwrap_or(host);
    ServerName::try_from(name.to_owned()).map_err(|_| {
        let why =
            format!("`{}` is no name of a host: give the right one with --server-name", name.escape_debug());
        CliFailure::new(Exit::Usage, why)
    })
}

/// Which certificate was refused, by which side, and what to do.
fn refusal(to: &TlsAddress, error: &io::Error) -> String {
    let (address, cert) = (&to.address, to.cert.display());
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(wrong)) => {
            let what = match wrong {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    format!("is not signed by the CA in {}: use the CA of that daemon", to.ca.display())
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "has expired: it must be renewed on the daemon's host".to_owned()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "is not valid yet: compare the clocks of the two hosts".to_owned()
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "is for another name: add the context with --server-name, if that is the right daemon"
                        .to_owned()
                }
                _ => "cannot be used".to_owned(),
            };
            format!("the certificate of the daemon at {address} {what} ({error})")
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            let what = match alert {
                AlertDescription::CertificateExpired => {
                    "it has expired, or is not valid yet: issue a new one"
                }
                AlertDescription::CertificateRevoked => "it is revoked: issue a new one",
                AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                    "it is not signed by a CA that the daemon trusts (`client_ca` in its `[listen.tls]`)"
                }
                _ => "its log says why",
            };
            format!("the daemon at {address} refused the certificate {cert}: {what} ({error})")
        }
        _ if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            closed(to)
        }
        _ => format!(
            "cannot reach the daemon at {address}: {error}. Does it serve TLS there (`[listen] tcp`)?"
        ),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CliFailure> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let found = found.map_err(|error| unusable(path, &error))?;
    if found.is_empty() {
        return Err(unusable(path, &"there is no `CERTIFICATE` in it (PEM)"));
    }
    Ok(found)
}

/// A key that other users can read is not this user's alone.
fn judge_key(path: &Path) -> Result<(), CliFailure> {
    let mode = fs::metadata(path).map_err(|error| unusable(path, &error))?.mode();
    if !Mode::from_raw_mode(mode).intersects(Mode::RWXO) {
        return Ok(());
    }
    let shown = path.display();
    let why =
        format!("every user of this host may open the key (mode {:04o}): chmod o= {shown}", mode & 0o7777);
    Err(unusable(path, &why))
}

fn read(path: &Path) -> Result<Vec<u8>, CliFailure> {
    let size = fs::metadata(path).map_err(|error| unusable(path, &error))?.len();
    if size > MAX_FILE {
        let why = format!("it has {size} bytes, and certificates have less than {MAX_FILE}");
        return Err(unusable(path, &why));
    }
    fs::read(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> CliFailure {
    CliFailure::new(Exit::Usage, format!("cannot use {}: {why}", path.display()))
}
