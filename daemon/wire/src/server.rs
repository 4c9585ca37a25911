//! The side of the source's mover: serves exports to the movers that an order named.
//!
//! Rule: a peer without a certificate of a mover and the secret of an export learns nothing and changes
//! nothing. A connection has bounded requests and bytes in memory, and hurts no other.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    io::{ReadHalf, WriteHalf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use warmd_cbt::{
    buffer::BufferPool,
    disk::{ErrorKind, ReadDisk},
    units::Extent,
};

use super::{
    answer::{self, Outgoing},
    bytes::Malformed,
    error::WireError,
    export::Exports,
    link::{self, Heard, Incoming, Socket},
    message::{MAX_READ, Message, OLDEST, RefusalReason, VERSION, Welcome},
    tls,
};

/// How long TLS and the first message may take together.
const GREETING: Duration = Duration::from_secs(10);
/// How long one message may take to be sent: a peer that reads nothing for so long is stuck.
const SENDING: Duration = Duration::from_secs(30);
/// Requests in flight on a connection.
const IN_FLIGHT: u32 = 64;
/// Bytes of reads in memory for a connection.
const IN_MEMORY: usize = 16 << 20;
/// Bytes of the largest message of a reader.
const MAX_REQUEST: usize = 1024;
/// A pause after a failed accept, which would fail again at once.
const PAUSE: Duration = Duration::from_millis(100);

type Tls = TlsStream<Socket>;

/// The bounds of a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The buffers for all connections; each holds one read.
    pub pool: BufferPool,
    /// Connections at the same time, of all readers.
    pub connections: usize,
}

/// Serves what `exports` holds, until it is dropped; then its connections end.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, exports: Exports, options: ServerOptions) {
    let places = Arc::new(Semaphore::new(options.connections));
    let mut connections = JoinSet::new();
    loop {
        let (stream, address) = tokio::select! {
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the mover's data port");
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%address, most = options.connections, "too many connections to the mover's data port");
            continue;
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&tls));
        let (exports, pool) = (exports.clone(), options.pool.clone());
        connections.spawn(async move {
            let _place = place;
            let greeted = timeout(GREETING, greet(stream, address, &acceptor, &exports, &pool)).await;
            match greeted.unwrap_or(Err(WireError::Late("the greeting", GREETING))) {
                Ok(connection) => connection.run(pool).await,
                Err(error) => {
                    tracing::warn!(%address, %error, "a connection to the mover's data port was refused");
                }
            }
        });
    }
}

/// A connection that may read an export.
struct ServedConnection {
    peer: String,
    export: String,
    disk: Arc<dyn ReadDisk>,
    ended: watch::Receiver<()>,
    welcome: Welcome,
    heard: Arc<Heard>,
    incoming: Incoming<ReadHalf<Tls>>,
    output: WriteHalf<Tls>,
}

async fn greet(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: &TlsAcceptor,
    exports: &Exports,
    pool: &BufferPool,
) -> Result<ServedConnection, WireError> {
    link::prepare(&stream).map_err(|error| WireError::io("setting up the socket", error))?;
    let heard = Heard::new();
    let socket = Socket { stream, heard: Arc::clone(&heard) };
    let stream = acceptor.accept(socket).await.map_err(|error| WireError::io("the TLS handshake", error))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = certificate.and_then(tls::mover_of);
    let (input, mut output) = tokio::io::split(stream);
    let mut incoming = Incoming::new(input, MAX_REQUEST);
    let Message::Hello(hello) = incoming.next().await? else {
        return Err(Malformed("the first message is no hello").into());
    };
    let refuse = |reason, text: &str| Message::Refused { reason, text: text.to_owned() };
    let Some(peer) = peer else {
        let text = "the certificate is no mover's";
        send(&mut output, &Outgoing::of(&refuse(RefusalReason::Export, text))).await?;
        return Err(WireError::NoMover);
    };
    let version = hello.versions.1.min(VERSION);
    if version < hello.versions.0.max(OLDEST) {
        let (low, high) = hello.versions;
        let text = format!("it speaks versions {OLDEST} to {VERSION} and not {low} to {high}");
        send(&mut output, &Outgoing::of(&refuse(RefusalReason::Version, &text))).await?;
        return Err(WireError::Refused(RefusalReason::Version, format!("{peer} at {address}: {text}")));
    }
    let (disk, ended) = match exports.find(&hello, &peer) {
        Ok(found) => found,
        Err(why) => {
            let text = "it has no such export for this mover and secret";
            send(&mut output, &Outgoing::of(&refuse(RefusalReason::Export, text))).await?;
            let why = format!("{peer} asked for export {}: {why}", hello.export.escape_debug());
            return Err(WireError::Refused(RefusalReason::Export, why));
        }
    };
    let max_read = disk.limits().max_request.min(pool.capacity()).min(MAX_READ) as u32;
    let welcome = Welcome { version, size: disk.size(), max_read, in_flight: IN_FLIGHT };
    send(&mut output, &Outgoing::of(&Message::Welcome(welcome))).await?;
    Ok(ServedConnection { peer, export: hello.export, disk, ended, welcome, heard, incoming, output })
}

async fn send(output: &mut WriteHalf<Tls>, message: &Outgoing) -> Result<(), WireError> {
    link::send(output, "sending a message", &[&message.head, message.body()], SENDING).await
}

impl ServedConnection {
    async fn run(self, pool: BufferPool) {
        let Self { peer, export, disk, mut ended, welcome, heard, incoming, mut output } = self;
        tracing::debug!(peer, export, "a mover reads an export");
        // Requests in flight are bounded, so what waits here is, too; their bytes are by `IN_MEMORY`.
        let (replies, mut waiting) = mpsc::channel::<Outgoing>(IN_FLIGHT as usize);
        let requests = Requests {
            disk,
            pool,
            welcome,
            memory: Arc::new(Semaphore::new(IN_MEMORY)),
            places: Arc::new(Semaphore::new(IN_FLIGHT as usize)),
            replies,
        };
        let sending = async {
            while let Some(message) = waiting.recv().await {
                send(&mut output, &message).await?;
            }
            Ok(())
        };
        let end = tokio::select! {
            end = requests.take(incoming) => end,
            end = sending => end,
            error = heard.lost() => Err(error),
            _ = ended.changed() => Ok(()),
        };
        match end {
            Ok(()) => tracing::debug!(peer, export, "a mover's connection ended"),
            Err(error) => tracing::warn!(peer, export, %error, "a mover's connection was lost"),
        }
    }
}

struct Requests {
    disk: Arc<dyn ReadDisk>,
    pool: BufferPool,
    welcome: Welcome,
    memory: Arc<Semaphore>,
    places: Arc<Semaphore>,
    replies: mpsc::Sender<Outgoing>,
}

impl Requests {
    /// Takes requests until the peer says goodbye. It never waits for an answer: pings are answered at any
    /// time.
    async fn take(self, mut incoming: Incoming<ReadHalf<Tls>>) -> Result<(), WireError> {
        let this = Arc::new(self);
        let mut running = JoinSet::new();
        loop {
            let message = incoming.next().await?;
            while running.try_join_next().is_some() {}
            let extent = match &message {
                Message::Ping => {
                    // A queue that is full is an answer as well: bytes are being sent.
                    let _ = this.replies.try_send(Outgoing::of(&Message::Pong));
                    continue;
                }
                Message::Bye => return Ok(()),
                Message::Read { extent, .. }
                | Message::AskAllocation { extent, .. }
                | Message::AskDigests { extent, .. } => *extent,
                _ => return Err(Malformed("the message is none of a reader").into()),
            };
            if !extent.within(this.welcome.size) {
                return Err(Malformed("a request reaches past the end of the disk").into());
            }
            let place = Arc::clone(&this.places).try_acquire_owned();
            let place =
                place.map_err(|_| Malformed("there are more requests in flight than were allowed"))?;
            let this = Arc::clone(&this);
            match message {
                Message::Read { id, extent, pack } => {
                    if extent.len().0 > u64::from(this.welcome.max_read) {
                        return Err(Malformed("a read is longer than was allowed").into());
                    }
                    running.spawn(async move {
                        let reply = this.read(id, extent, pack).await;
                        this.reply(reply, place).await;
                    });
                }
                Message::AskAllocation { id, extent } => {
                    running.spawn(async move {
                        let reply = answer::allocation(&*this.disk, id, extent).await;
                        this.reply(vec![reply], place).await;
                    });
                }
                Message::AskDigests { id, extent, block } => {
                    running.spawn(async move {
                        let max_read = this.welcome.max_read;
                        let reply =
                            answer::digests(&*this.disk, &this.pool, max_read, (id, extent, block)).await;
                        this.reply(vec![reply], place).await;
                    });
                }
                _ => {}
            }
        }
    }

    async fn read(&self, id: u64, extent: Extent, pack: bool) -> Vec<Outgoing> {
        let bytes = extent.len().0 as u32;
        match Arc::clone(&self.memory).acquire_many_owned(bytes).await {
            Ok(permit) => answer::read(&*self.disk, &self.pool, permit, (id, extent, pack)).await,
            Err(error) => vec![Outgoing::failed(id, ErrorKind::Connection, error.to_string())],
        }
    }

    /// Queues the reply. The place is free before its last message is sent: a reader that has it may ask
    /// again.
    async fn reply(&self, reply: Vec<Outgoing>, place: OwnedSemaphorePermit) {
        let mut place = Some(place);
        let count = reply.len();
        for (number, message) in reply.into_iter().enumerate() {
            if number + 1 == count {
                place.take();
            }
            // Else the connection has ended.
            let _ = self.replies.send(message).await;
        }
    }
}
