//! Accepting clients, from the Unix socket and from TCP, within bounds.
//!
//! Rule: a client that is silent, slow or hostile occupies one slot for a limited time and does not delay
//! others: a handshake has a deadline, and there are bounds for handshakes, for connections, for those of
//! one client, and for the log's lines.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::CertificateError;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Connection, Stream},
    peer,
    refusals::Refusals,
    tls::Identity,
};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at the same time, and of one network: less than a thirtieth.
const HANDSHAKES: usize = 256;
const HANDSHAKES_EACH: usize = 8;
/// The bits of an IPv6 address that one customer or host gets as a rule: the rest can be chosen.
const NETWORK: u32 = 64;
/// Connections at the same time of one user of the socket, of one certificate, and of all clients of a
/// listener.
const EACH: usize = 64;
const EACH_CERTIFICATE: usize = 8;
const ALL: usize = 1024;
/// The pause after an accept that failed: no file descriptors are left, as a rule.
const PAUSE: Duration = Duration::from_millis(200);

/// Accepted connections, for the server.
pub(super) type Sender = mpsc::Sender<io::Result<Connection>>;

/// The bounds of one listener: clients of the TCP address use no slot of those of the socket.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    all: Arc<Semaphore>,
    clients: Counts,
    greeted: Counts,
    refusals: Arc<Refusals>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL)),
            clients: Counts::default(),
            greeted: Counts::default(),
            refusals: Arc::default(),
        }
    }
}

/// How many places each client has.
#[derive(Clone, Debug, Default)]
struct Counts(Arc<Mutex<BTreeMap<String, usize>>>);

impl Counts {
    /// A place for `client`; `None` if it has as many as `most`.
    fn place(&self, client: String, most: usize) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { counts: self.clone(), client })
    }
}

/// A place of a client, given back when dropped.
struct Place {
    counts: Counts,
    client: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

/// Accepts from the Unix socket until `shutdown`.
pub(super) async fn from_socket(
    listener: UnixListener,
    bounds: Bounds,
    sender: Sender,
    shutdown: CancellationToken,
) {
    loop {
        let Ok(whole) = Arc::clone(&bounds.all).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the API's socket");
                sleep(PAUSE).await;
                continue;
            }
        };
        let (bounds, sender, shutdown) = (bounds.clone(), sender.clone(), shutdown.clone());
        tokio::spawn(async move {
            let connection = tokio::select! {
                () = shutdown.cancelled() => return,
                connection = local(stream, &bounds, whole) => connection,
            };
            if let Some(connection) = connection {
                // The server is gone: so are its clients.
                drop(sender.send(Ok(connection)).await);
            }
        });
    }
}

async fn local(stream: UnixStream, bounds: &Bounds, whole: OwnedSemaphorePermit) -> Option<Connection> {
    let cred = match stream.peer_cred() {
        Ok(cred) => cred,
        Err(error) => {
            tracing::warn!(%error, "the kernel does not identify a client of the API's socket");
            return None;
        }
    };
    // root and warmd's own user are not kept from a daemon in trouble.
    let most = if peer::is_owner(cred) { ALL } else { EACH };
    let Some(place) = bounds.clients.place(format!("uid={}", cred.uid()), most) else {
        bounds.refusals.tell(
            format_args!("uid={}", cred.uid()),
            format_args!("the user has {most} connections already"),
        );
        return None;
    };
    // The names of users and groups may come from a directory server that is slow.
    let caller = match tokio::task::spawn_blocking(move || peer::of_socket(cred)).await {
        Ok(caller) => Arc::new(caller),
        Err(error) => {
            tracing::warn!(%error, "a client of the API's socket is not identified");
            return None;
        }
    };
    let counted = Box::new((place, whole));
    Some(Connection::new(Stream::Unix(stream), caller, None, counted))
}

/// Accepts from the TCP address until `shutdown`.
pub(super) async fn from_tcp(
    listener: TcpListener,
    identity: Arc<Identity>,
    bounds: Bounds,
    sender: Sender,
    shutdown: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(whole) = Arc::clone(&bounds.all).acquire_owned().await else { return };
        let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the API's address");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Some(place) = bounds.greeted.place(network(address.ip()), HANDSHAKES_EACH) else {
            let why = format_args!("its network has {HANDSHAKES_EACH} TLS handshakes open already");
            bounds.refusals.tell(address, why);
            continue;
        };
        let acceptor = TlsAcceptor::from(identity.current());
        let (bounds, sender, shutdown) = (bounds.clone(), sender.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _counted = (handshake, place);
            let greeted = timeout(HANDSHAKE, greet(stream, address, &acceptor, &bounds, whole));
            let greeted = tokio::select! {
                () = shutdown.cancelled() => return,
                greeted = greeted => greeted,
            };
            match greeted.unwrap_or_else(|_| Err("the TLS handshake took too long".to_owned())) {
                // The server is gone: so are its clients.
                Ok(connection) => drop(sender.send(Ok(connection)).await),
                Err(why) => bounds.refusals.tell(address, why),
            }
        });
    }
}

async fn greet(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: &TlsAcceptor,
    bounds: &Bounds,
    whole: OwnedSemaphorePermit,
) -> Result<Connection, String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream = acceptor.accept(stream).await.map_err(|error| refusal(&error))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.ok_or("there is no client certificate")?;
    let (caller, valid_for) = peer::of_certificate(certificate, address)?;
    let client = caller.identity.subject().map_or_else(|| caller.name.clone(), |subject| subject.to_string());
    let place = bounds.clients.place(client.clone(), EACH_CERTIFICATE);
    let place = place.ok_or_else(|| format!("{client} has {EACH_CERTIFICATE} connections already"))?;
    let stream = Stream::Tls(Box::new(stream));
    Ok(Connection::new(stream, Arc::new(caller), Some(valid_for), Box::new((place, whole))))
}

/// The network of an address, as the bounds count it.
fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let kept = u128::MAX << (Ipv6Addr::BITS - NETWORK);
            format!("{}/{NETWORK}", Ipv6Addr::from_bits(address.to_bits() & kept))
        }
    }
}

/// Why a handshake failed, and what to do where the client's certificate is the reason.
fn refusal(error: &io::Error) -> String {
    let certificate = match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(certificate)) => certificate,
        Some(rustls::Error::NoCertificatesPresented) => return "the client has no certificate".to_owned(),
        _ => return error.to_string(),
    };
    let what = match certificate {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the client's certificate has expired: issue a new one"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the client's certificate is not valid yet: compare the clocks of the two hosts"
        }
        CertificateError::Revoked => "the client's certificate is revoked (`client_crl`)",
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the client's certificate is not signed by a CA in `client_ca`"
        }
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
            "the list of revoked certificates (`client_crl`) is out of date: replace the file"
        }
        _ => "the client's certificate cannot be used",
    };
    format!("{what} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_one_host_can_choose_are_one_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:0:7::1"), of("2001:db8:0:7:ffff::2"));
        assert_ne!(of("2001:db8:0:7::1"), of("2001:db8:0:8::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
