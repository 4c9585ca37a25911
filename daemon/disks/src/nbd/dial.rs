//! Reaches a server and shakes hands with it, each within its deadline.

use std::{io, time::Duration};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, BufReader},
    net::{TcpStream, UnixStream},
};

use super::{
    address::NbdAddress,
    error::{NbdCause, NbdError},
    handshake::{Export, Handshake},
    option_reply::ListedExport,
    options::NbdOptions,
    output::Output,
    receive::READ_AHEAD,
};

/// How long a peer is silent before a keepalive is sent, and between keepalives.
const PROBE: Duration = Duration::from_secs(20);
/// Unanswered keepalives after which a peer counts as gone.
const PROBES: u32 = 3;
/// Milliseconds after which a peer counts as gone in both cases: silent, and all keepalives unanswered.
const GONE_MS: u32 = 80_000;

/// The reading half of a socket of any kind.
pub(super) type SocketReader = BufReader<Box<dyn AsyncRead + Send + Unpin>>;

/// Opens the export that `options` name.
pub(super) async fn open(options: &NbdOptions) -> Result<(SocketReader, Output, Export), NbdError> {
    let (mut input, mut output) = connect(&options.address, options.connect_timeout).await?;
    let shaken = within("shaking hands", options.handshake_timeout, async {
        let handshake = Handshake::begin(&mut input, &mut output).await?;
        handshake.open(&options.export, &options.contexts).await
    });
    let export = shaken.await?;
    tracing::debug!(
        address = %options.address,
        export = options.export,
        size = export.size,
        flags = export.flags.0,
        structured = export.structured,
        contexts = ?export.contexts,
        "NBD export opened"
    );
    Ok((input, output, export))
}

/// The exports of a server at `address`; `timeout` applies to reaching it and to its answer, each.
///
/// # Errors
/// If it cannot be reached, breaks the protocol, or refuses to list them.
pub async fn list_exports(address: &NbdAddress, timeout: Duration) -> Result<Vec<ListedExport>, NbdError> {
    let (mut input, mut output) = connect(address, timeout).await?;
    within("listing the exports", timeout, async {
        Handshake::begin(&mut input, &mut output).await?.list().await
    })
    .await
}

async fn connect(address: &NbdAddress, timeout: Duration) -> Result<(SocketReader, Output), NbdError> {
    let connecting = async {
        let (input, output): (Box<dyn AsyncRead + Send + Unpin>, _) = match address {
            NbdAddress::Unix(path) => {
                let (input, output) = UnixStream::connect(path).await?.into_split();
                (Box::new(input), Output::unix(output))
            }
            NbdAddress::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                let (input, output) = stream.into_split();
                (Box::new(input), Output::Tcp(output))
            }
        };
        Ok((BufReader::with_capacity(READ_AHEAD, input), output))
    };
    within("connecting", timeout, async {
        connecting.await.map_err(|error| NbdError::of(NbdCause::io("connecting", error)))
    })
    .await
}

/// Ends connections to a host that is gone, also those that only wait for an answer: Linux sends
/// no keepalive while sent data is not acknowledged, so that case has its own, equal deadline.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE)?;
    sockopt::set_tcp_keepintvl(stream, PROBE)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(sockopt::set_tcp_user_timeout(stream, GONE_MS)?)
}

async fn within<T>(
    waiting: &'static str,
    after: Duration,
    work: impl Future<Output = Result<T, NbdError>>,
) -> Result<T, NbdError> {
    tokio::time::timeout(after, work)
        .await
        .unwrap_or_else(|_| Err(NbdError::of(NbdCause::Timeout { waiting, after })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lost_peer_is_noticed_with_and_without_unacked_data() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        keep_alive(&stream).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        let silent = sockopt::tcp_keepidle(&stream).unwrap()
            + sockopt::tcp_keepintvl(&stream).unwrap() * sockopt::tcp_keepcnt(&stream).unwrap();
        let unacknowledged = Duration::from_millis(sockopt::tcp_user_timeout(&stream).unwrap().into());
        assert_eq!((silent, unacknowledged), (Duration::from_secs(80), Duration::from_secs(80)));
    }
}
