//! A client's connection, with the caller who was identified when it was made.
//!
//! Rule: it ends with the client's certificate, also if it was opened before, and soon if the client does not
//! begin to speak HTTP/2: the server's own pings come only after that.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use warmd_core::model::access::Caller;

/// How long the client may take to begin, and the bytes with which HTTP/2 begins (RFC 9113, 3.4).
const BEGIN: Duration = Duration::from_secs(10);
const PREFACE: usize = 24;

/// The bytes of a connection.
pub(super) enum Stream {
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that counts against the bounds of the API until it is dropped.
pub(super) struct Connection {
    stream: Stream,
    caller: Arc<Caller>,
    /// The end of the client's certificate.
    expiry: Option<Pin<Box<Sleep>>>,
    /// The deadline of the preface, and how much of the preface is missing.
    beginning: Option<(Pin<Box<Sleep>>, usize)>,
    /// Releases its slots when dropped.
    _counted: Box<dyn Send + Sync>,
}

impl Connection {
    /// `valid_for` is the rest of the certificate's life; `counted` is dropped with the connection.
    pub(super) fn new(
        stream: Stream,
        caller: Arc<Caller>,
        valid_for: Option<Duration>,
        counted: Box<dyn Send + Sync>,
    ) -> Self {
        let expiry = valid_for.map(|valid_for| Box::pin(sleep(valid_for)));
        let beginning = Some((Box::pin(sleep(BEGIN)), PREFACE));
        Self { stream, caller, expiry, beginning, _counted: counted }
    }

    /// Why nothing more is read, if so.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if let Some(expiry) = &mut self.expiry
            && expiry.as_mut().poll(context).is_ready()
        {
            let why = "the client's certificate expired while it was connected";
            return Poll::Ready(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let Some((late, _)) = &mut self.beginning else { return Poll::Pending };
        ready!(late.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client did not begin to speak HTTP/2"))
    }

    fn count(&mut self, bytes: usize) {
        self.beginning = self
            .beginning
            .take()
            .and_then(|(late, missing)| Some((late, missing.checked_sub(bytes)?)))
            .filter(|(_, missing)| *missing > 0);
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Caller>;

    fn connect_info(&self) -> Arc<Caller> {
        Arc::clone(&self.caller)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(end) = self.poll_end(context) {
            return Poll::Ready(Err(end));
        }
        let before = buffer.filled().len();
        let read = match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        self.count(buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::{Instant, timeout},
    };
    use warmd_core::model::access::Identity;

    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let caller = Caller { name: "test".to_owned(), identity: Identity::Owner };
        (Connection::new(Stream::Unix(ours), Arc::new(caller), None, Box::new(())), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_does_not_begin_is_left() {
        for said in [0, PREFACE - 1] {
            let (mut connection, mut client) = pair();
            client.write_all(&vec![b'P'; said]).await.unwrap();
            let begun = Instant::now();
            let error = connection.read_exact(&mut [0; PREFACE]).await.unwrap_err();
            assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, BEGIN), "{said}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_began_may_be_silent() {
        let (mut connection, mut client) = pair();
        for half in [PREFACE / 2, PREFACE - PREFACE / 2] {
            client.write_all(&vec![b'P'; half]).await.unwrap();
            connection.read_exact(&mut vec![0; half]).await.unwrap();
        }
        assert!(timeout(10 * BEGIN, connection.read_u8()).await.is_err(), "its end came");
    }
}
