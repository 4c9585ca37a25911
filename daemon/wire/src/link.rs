//! One TCP connection between movers: its socket, its silence, and messages read from it.
//!
//! Rule: a lost peer is noticed within ten seconds, whether data is under way or not: by TCP
//! (unacknowledged data, keepalives) or because no byte came, as the reader pings and the server answers.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{bytes::Malformed, error::WireError, message::Message};

/// How often a reader pings.
pub(super) const PING: Duration = Duration::from_secs(3);
/// A peer that sent no byte for so long is lost.
pub(super) const SILENCE: Duration = Duration::from_secs(8);
/// How often the silence is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Milliseconds after which TCP ends a connection whose data is not acknowledged.
const UNACKNOWLEDGED_MS: u32 = 8_000;
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVES: u32 = 3;
/// Bytes read ahead for messages that are small.
const READ_AHEAD: usize = 64 << 10;

/// Sets what a connection between movers needs. The buffers are left to the kernel, which fits them to the
/// link.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVES)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?;
    // BBR keeps its rate where packets are lost. A kernel may lack it, or reserve it for privileged
    // processes.
    if let Err(error) = sockopt::set_tcp_congestion(stream, "bbr") {
        tracing::debug!(%error, "congestion control bbr is not available: the host's own is used");
    }
    Ok(())
}

/// Writes these parts one after the other.
pub(super) async fn write(output: &mut (impl AsyncWrite + Unpin), parts: &[&[u8]]) -> io::Result<()> {
    for part in parts {
        output.write_all(part).await?;
    }
    output.flush().await
}

/// The same, within `patience`; `doing` is for the error.
pub(super) async fn send(
    output: &mut (impl AsyncWrite + Unpin),
    doing: &'static str,
    parts: &[&[u8]],
    patience: Duration,
) -> Result<(), WireError> {
    let sent = timeout(patience, write(output, parts)).await;
    let sent = sent.map_err(|_| WireError::Late(doing, patience))?;
    sent.map_err(|error| WireError::io("sending to the peer", error))
}

/// When the peer was last heard.
#[derive(Debug)]
pub(super) struct Heard {
    begun: Instant,
    /// Milliseconds since `begun`.
    last: AtomicU64,
}

impl Heard {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), last: AtomicU64::new(0) })
    }

    fn now(&self) {
        self.last.store(self.begun.elapsed().as_millis() as u64, Relaxed);
    }

    /// Ends when the peer is silent for too long.
    pub(super) async fn lost(&self) -> WireError {
        loop {
            let silent = self.begun.elapsed().saturating_sub(Duration::from_millis(self.last.load(Relaxed)));
            if silent >= SILENCE {
                return WireError::Silent(SILENCE);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A socket that remembers when it received bytes. Bytes count, not messages: one may take long.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: TcpStream,
    pub(super) heard: Arc<Heard>,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.heard.now();
        }
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Reads messages, the last of which stays in memory until the next.
#[derive(Debug)]
pub(super) struct Incoming<R> {
    input: BufReader<R>,
    most: usize,
    message: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// For messages of at most `most` bytes.
    pub(super) fn new(input: R, most: usize) -> Self {
        Self { input: BufReader::with_capacity(READ_AHEAD, input), most, message: Vec::new() }
    }

    /// The next message.
    ///
    /// # Errors
    /// Also if the peer closed the connection, at whatever byte.
    pub(super) async fn next(&mut self) -> Result<Message<'_>, WireError> {
        let failed = |error| WireError::io("receiving from the peer", error);
        let length = self.input.read_u32().await.map_err(failed)? as usize;
        if length == 0 || length > self.most {
            return Err(Malformed("the length of a message is out of bounds").into());
        }
        self.message.resize(length, 0);
        self.input.read_exact(&mut self.message).await.map_err(failed)?;
        Ok(Message::decode(&self.message)?)
    }
}
