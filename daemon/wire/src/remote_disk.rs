//! A disk that lies at another mover, as a disk of the engine.
//!
//! Rule: a read succeeds only with bytes that match the digests that were computed where the disk lies. A
//! request of a lost connection is repeated on another, a bounded number of times and within its deadline.
//! Rates and requests are limited by the engine, as for every disk.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};
use warmd_cbt::{
    buffer::Buffer,
    disk::{Allocation, DiskError, DiskLimits, Operation, ReadDisk},
    units::{Extent, Length, Offset},
};

use super::{
    connection::Destination,
    connection_pool::ConnectionPool,
    error::WireError,
    flow::{Flow, FlowView},
    in_flight::{Question, Reply, Unanswered},
    message::{DIGEST_BLOCKS, Digest, Hello, MAX_DIGESTS, OLDEST, VERSION, Welcome},
};

/// Times that a request is sent.
const ATTEMPTS: u32 = 4;
/// The least that is asked for when the allocation is: a round trip for each small range would cost more
/// than the data.
const ALLOCATION: Length = Length(1 << 30);
/// Requests for digests at the same time: one is hashed while another is read.
const DIGESTS: usize = 4;

/// Where a disk lies, and what lets this mover read it.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Host and port of the mover that serves it.
    pub address: String,
    /// The settings for that mover: [`TlsIdentity::client`](super::TlsIdentity::client).
    pub tls: Arc<ClientConfig>,
    pub export: String,
    pub secret: [u8; 32],
    pub connections: usize,
    /// For TCP, TLS and the greeting together.
    pub connect_timeout: Duration,
    /// For each request, with all its attempts.
    pub request_timeout: Duration,
}

impl RemoteOptions {
    /// The usual ones for this export.
    pub fn new(address: impl Into<String>, tls: Arc<ClientConfig>, export: &str, secret: [u8; 32]) -> Self {
        Self {
            address: address.into(),
            tls,
            export: export.to_owned(),
            secret,
            connections: 4,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
        }
    }
}

impl std::fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteOptions")
            .field("address", &self.address)
            .field("export", &self.export)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

/// An open export of another mover.
#[derive(Debug)]
pub struct RemoteDisk {
    options: RemoteOptions,
    pool: ConnectionPool,
    welcome: Welcome,
    flow: Flow,
    /// The last answer about allocation. A snapshot does not change.
    allocation: Mutex<Vec<Allocation>>,
}

impl RemoteDisk {
    /// Opens the export: all connections at once, and waits for the first.
    ///
    /// # Errors
    /// [`Refused`](warmd_cbt::disk::ErrorKind::Refused) where the peer, or this side, refuses for good;
    /// `Connection` or `Timeout` where the peer cannot be reached.
    pub async fn open(options: RemoteOptions) -> Result<Self, DiskError> {
        let hello =
            Hello { versions: (OLDEST, VERSION), export: options.export.clone(), secret: options.secret };
        let to = Destination {
            address: options.address.clone(),
            tls: Arc::clone(&options.tls),
            hello,
            patience: options.connect_timeout,
        };
        let opened = ConnectionPool::open(to, options.connections.max(1)).await;
        let (pool, first) = opened.map_err(|error| failed(&options, Operation::Open, None, error))?;
        let welcome = first.welcome;
        Ok(Self { options, pool, welcome, flow: Flow::new(), allocation: Mutex::default() })
    }

    /// Says goodbye to the peer. Dropped without, its connections end at once.
    pub async fn close(self) {
        self.pool.close().await;
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.pool.live()
    }

    /// What was found about the link.
    pub fn flow(&self) -> FlowView {
        self.flow.view()
    }

    /// The digest of each `block` bytes of `extent`, computed where the disk lies: its BLAKE3, or
    /// [`ZERO_DIGEST`](super::ZERO_DIGEST) for zeroes. The last block may be shorter.
    ///
    /// # Errors
    /// Also if `block` is outside [`DIGEST_BLOCKS`](super::DIGEST_BLOCKS).
    pub async fn digests(&self, extent: Extent, block: u32) -> Result<Vec<Digest>, DiskError> {
        let failed = |error| failed(&self.options, Operation::Read, Some(extent), error);
        if !DIGEST_BLOCKS.contains(&block) {
            let error = std::io::Error::from(std::io::ErrorKind::InvalidInput);
            return Err(failed(WireError::Io("the size of blocks for digests", Arc::new(error))));
        }
        let step = u64::from(block) * MAX_DIGESTS as u64;
        let mut pieces = Vec::new();
        let mut at = extent.start();
        while let Some(piece) = Extent::between(at, extent.end().min(at + Length(step))) {
            at = piece.end();
            pieces.push(piece);
        }
        let asked = stream::iter(pieces).map(|piece| async move {
            match self.ask(Question::Digests { extent: piece, block }).await? {
                Reply::Digests(digests) => Ok(digests),
                Reply::Data(_) | Reply::Allocation(_) => Err(WireError::Closed),
            }
        });
        asked.buffered(DIGESTS).try_concat().await.map_err(failed)
    }

    async fn ask(&self, mut question: Question) -> Result<Reply, WireError> {
        let patience = self.options.request_timeout;
        let deadline = Instant::now() + patience;
        let late = || WireError::Late("an answer of the peer", patience);
        let bytes = match &question {
            Question::Read { extent, .. } => extent.len().0,
            Question::Allocation(_) | Question::Digests { .. } => 0,
        };
        let ticket = timeout_at(deadline, self.flow.enter(bytes)).await.map_err(|_| late())?;
        if let Question::Read { pack, .. } = &mut question {
            *pack = self.flow.is_packing();
        }
        let mut attempt = 1;
        loop {
            let connection = self.pool.get(deadline).await?;
            match connection.ask(question, deadline, patience).await {
                Ok(reply) => {
                    if bytes > 0 {
                        ticket.delivered();
                    }
                    return Ok(reply);
                }
                Err(unanswered) => {
                    let Unanswered { error, question: again } = *unanswered;
                    let again = again.filter(|_| attempt < ATTEMPTS && may_repeat(&error));
                    let Some(again) = again else { return Err(error) };
                    tracing::debug!(extent = %again.extent(), %error, attempt, "a request to a mover is repeated");
                    (question, attempt) = (again, attempt + 1);
                }
            }
        }
    }
}

/// Whether what ended the connection was not the request's own doing.
fn may_repeat(error: &WireError) -> bool {
    error.is_transient() && !matches!(error, WireError::Ended)
}

fn failed(
    options: &RemoteOptions,
    operation: Operation,
    extent: Option<Extent>,
    error: WireError,
) -> DiskError {
    let disk = format!("export {} of the mover at {}", options.export, options.address);
    DiskError::new(error.kind(), operation, disk, extent, error)
}

#[async_trait]
impl ReadDisk for RemoteDisk {
    fn size(&self) -> Length {
        self.welcome.size
    }

    fn limits(&self) -> DiskLimits {
        DiskLimits {
            max_request: self.welcome.max_read as usize,
            in_flight: self.welcome.in_flight as usize * self.pool.count(),
        }
    }

    async fn read(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, DiskError> {
        let extent = Extent::new(at, Length(buffer.len() as u64));
        let failed = |error| failed(&self.options, Operation::Read, extent, error);
        let Some(extent) = extent else { return Ok(buffer) };
        if !extent.within(self.size()) {
            let error = std::io::Error::from(std::io::ErrorKind::InvalidInput);
            return Err(failed(WireError::Io("a read past the end of the disk", Arc::new(error))));
        }
        let mut next = extent.start();
        let most = Length(u64::from(self.welcome.max_read));
        while let Some(piece) = Extent::between(next, extent.end().min(next + most)) {
            next = piece.end();
            let from = (piece.start().0 - at.0) as usize;
            let place = from..from + piece.len().0 as usize;
            let question = Question::Read { extent: piece, buffer, place, pack: false };
            match self.ask(question).await.map_err(failed)? {
                Reply::Data(filled) => buffer = filled,
                Reply::Allocation(_) | Reply::Digests(_) => return Err(failed(WireError::Closed)),
            }
        }
        Ok(buffer)
    }

    /// Asks for more than `extent`, and answers the next questions from that.
    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        if let Some(known) = self.known(extent) {
            return Ok(known);
        }
        let failed = |error| failed(&self.options, Operation::Allocation, Some(extent), error);
        let wide = Length(extent.len().0.max(ALLOCATION.0));
        let end = (extent.start() + wide).min(Offset(self.size().0)).max(extent.end());
        let wide = Extent::between(extent.start(), end).unwrap_or(extent);
        match self.ask(Question::Allocation(wide)).await.map_err(failed)? {
            Reply::Allocation(runs) => {
                *self.allocation.lock().unwrap_or_else(PoisonError::into_inner) = runs;
                Ok(self.known(extent).unwrap_or(vec![Allocation { extent, zero: false }]))
            }
            Reply::Data(_) | Reply::Digests(_) => Err(failed(WireError::Closed)),
        }
    }
}

impl RemoteDisk {
    /// What the last answer says about the beginning of `extent`.
    fn known(&self, extent: Extent) -> Option<Vec<Allocation>> {
        let runs = self.allocation.lock().unwrap_or_else(PoisonError::into_inner);
        let within =
            |run: &Allocation| Some(Allocation { extent: run.extent.intersect(&extent)?, zero: run.zero });
        let known: Vec<_> = runs.iter().filter_map(within).collect();
        known.first().is_some_and(|run| run.extent.start() == extent.start()).then_some(known)
    }
}
