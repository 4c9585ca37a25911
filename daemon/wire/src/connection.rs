//! One connection of a reader to a server.
//!
//! Rule: a connection that ended, for whatever reason, answers all its requests with that reason.

use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::TcpStream,
    sync::{Semaphore, mpsc},
    time::{Instant, interval, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use warmd_cbt::units::Length;

use super::{
    bytes::Malformed,
    error::WireError,
    in_flight::{InFlight, Outcome, Question, Registered, Unanswered},
    link::{self, Heard, Incoming, PING, Socket},
    message::{Hello, MAX_MESSAGE, MAX_READ, Message, Welcome},
};

/// How long a request may take to be sent. The server always reads.
const SENDING: Duration = Duration::from_secs(10);
/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

type Tls = TlsStream<Socket>;

/// Where a server is, and how it is greeted.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    pub(super) address: String,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) hello: Hello,
    pub(super) patience: Duration,
}

/// The requests' side of a connection; [`Running`] is the other.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) welcome: Welcome,
    places: Arc<Semaphore>,
    requests: mpsc::Sender<Vec<u8>>,
    in_flight: InFlight,
}

/// What must run for a connection to work.
#[derive(Debug)]
pub(super) struct Running {
    connection: Arc<Connection>,
    heard: Arc<Heard>,
    incoming: Incoming<ReadHalf<Tls>>,
    output: WriteHalf<Tls>,
    waiting: mpsc::Receiver<Vec<u8>>,
}

/// Dials and greets, within the destination's patience.
pub(super) async fn open(to: &Destination) -> Result<(Arc<Connection>, Running), WireError> {
    let opened = timeout(to.patience, greet(to)).await;
    opened.unwrap_or(Err(WireError::Late("connecting to the peer", to.patience)))
}

async fn greet(to: &Destination) -> Result<(Arc<Connection>, Running), WireError> {
    let dialled = TcpStream::connect(to.address.as_str()).await;
    let stream = dialled.map_err(|error| WireError::io("connecting to the peer", error))?;
    link::prepare(&stream).map_err(|error| WireError::io("setting up the socket", error))?;
    let heard = Heard::new();
    let socket = Socket { stream, heard: Arc::clone(&heard) };
    // The mover's name in the certificate counts, not this one, which only must be something.
    let name = ServerName::try_from("mover.invalid").map_err(|_| WireError::NoMover)?;
    let stream = TlsConnector::from(Arc::clone(&to.tls)).connect(name, socket).await;
    let (input, mut output) =
        tokio::io::split(stream.map_err(|error| WireError::io("the TLS handshake", error))?);
    let mut hello = Vec::new();
    Message::Hello(to.hello.clone()).encode(&mut hello);
    let greeted = link::write(&mut output, &[&hello]).await;
    greeted.map_err(|error| WireError::io("greeting the peer", error))?;
    let mut incoming = Incoming::new(input, MAX_MESSAGE);
    // In TLS 1.3 a client learns only now that its certificate was refused.
    let welcome = match incoming.next().await? {
        Message::Welcome(welcome) => welcome,
        Message::Refused { reason, text } => return Err(WireError::Refused(reason, text)),
        _ => return Err(Malformed("the greeting is answered by something else").into()),
    };
    let (low, high) = to.hello.versions;
    let is_right = (low..=high).contains(&welcome.version)
        && (4096..=MAX_READ).contains(&(welcome.max_read as usize))
        && (1..=4096).contains(&welcome.in_flight)
        && welcome.size <= Length(warmd_cbt::units::MAX_DISK);
    if !is_right {
        return Err(Malformed("the welcome has bounds that make no sense").into());
    }
    let (requests, waiting) = mpsc::channel(welcome.in_flight as usize);
    let places = Arc::new(Semaphore::new(welcome.in_flight as usize));
    let connection = Arc::new(Connection { welcome, places, requests, in_flight: InFlight::default() });
    let running = Running { connection: Arc::clone(&connection), heard, incoming, output, waiting };
    Ok((connection, running))
}

impl Connection {
    /// Requests that could be sent at once.
    pub(super) fn room(&self) -> usize {
        self.places.available_permits()
    }

    /// Why it ended, once it has.
    pub(super) fn ended(&self) -> Option<WireError> {
        self.in_flight.ended()
    }

    /// Asks, and waits for the answer until `deadline`.
    pub(super) async fn ask(&self, question: Question, deadline: Instant, patience: Duration) -> Outcome {
        let late = || WireError::Late("an answer of the peer", patience);
        let place = match timeout_at(deadline, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(Unanswered::new(WireError::Closed, Some(question))),
            Err(_) => return Err(Unanswered::new(late(), Some(question))),
        };
        let Registered { id, bytes, outcome } = self.in_flight.register(question, place)?;
        let _leaving = Leaving { in_flight: &self.in_flight, id };
        let answered = async {
            // Else the connection has ended, and says so to the request.
            let _ = self.requests.send(bytes).await;
            outcome.await
        };
        match timeout_at(deadline, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Unanswered::new(WireError::Closed, None)),
            Err(_) => Err(Unanswered::new(late(), None)),
        }
    }
}

/// Gives a request up when its caller leaves; a request that was answered is not there any more.
struct Leaving<'a> {
    in_flight: &'a InFlight,
    id: u64,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.in_flight.abandon(self.id);
    }
}

/// Ends a connection's requests with it, also when its task is aborted.
struct Ending(Arc<Connection>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.in_flight.end(&WireError::Ended);
        self.0.places.close();
    }
}

impl Running {
    /// Carries messages until the connection ends, and returns why. When `stop` ends, it says goodbye.
    pub(super) async fn run(self, stop: impl Future<Output = ()>) -> WireError {
        let Self { connection, heard, mut incoming, mut output, mut waiting } = self;
        let ending = Ending(Arc::clone(&connection));
        let receiving = async {
            loop {
                let message = incoming.next().await?;
                connection.in_flight.take(message)?;
            }
        };
        let sending = async {
            let mut pings = interval(PING);
            loop {
                let mut bytes = Vec::new();
                tokio::select! {
                    Some(request) = waiting.recv() => bytes.extend(request),
                    _ = pings.tick() => Message::Ping.encode(&mut bytes),
                }
                while let Ok(request) = waiting.try_recv() {
                    bytes.extend(request);
                }
                send(&mut output, &bytes, SENDING).await?;
            }
        };
        let end: Result<std::convert::Infallible, WireError> = tokio::select! {
            end = receiving => end,
            end = sending => end,
            error = heard.lost() => Err(error),
            () = stop => Err(WireError::Ended),
        };
        let Err(error) = end;
        connection.in_flight.end(&error);
        if matches!(error, WireError::Ended) {
            let mut bytes = Vec::new();
            Message::Bye.encode(&mut bytes);
            let goodbye = async {
                send(&mut output, &bytes, GOODBYE).await?;
                output.shutdown().await.map_err(|error| WireError::io("closing the connection", error))
            };
            if let Ok(Err(error)) = timeout(GOODBYE, goodbye).await {
                tracing::debug!(%error, "a mover's connection ended without a goodbye");
            }
        }
        drop(ending);
        error
    }
}

async fn send(output: &mut WriteHalf<Tls>, bytes: &[u8], patience: Duration) -> Result<(), WireError> {
    link::send(output, "sending a request", &[bytes], patience).await
}
