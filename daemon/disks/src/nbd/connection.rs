//! One connection in its transmission phase: a task that sends, receives and watches the deadlines.
//!
//! Rule: the task ends for one reason, and every request in flight learns of it. Dropping the handle says
//! goodbye to the server; answers to requests without a waiting caller are dropped.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::AsyncRead,
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tracing::Instrument as _;
use warmd_cbt::buffer::Buffer;

use super::{
    call::{Call, CallReply, Data, Failed},
    coverage::Coverage,
    dial::SocketReader,
    drain::drain,
    durability::Durability,
    error::{NbdCause, NbdError},
    handshake::Export,
    in_flight::{Afterwards, Entry, InFlight},
    late_changes::LateChanges,
    output::Output,
    payload::Payload,
    receive::Receiver,
    reply::Violation,
    send::{self, Outgoing},
    wire,
};

/// A handle on a connection.
#[derive(Debug)]
pub(super) struct NbdConnection {
    export: Export,
    table: Arc<InFlight>,
    permits: Arc<Semaphore>,
    queue: mpsc::Sender<Outgoing>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl NbdConnection {
    /// Takes a connection after its handshake; `in_flight` requests at the most, each with `timeout`.
    pub(super) fn start(
        (input, output, export): (SocketReader, Output, Export),
        in_flight: usize,
        timeout: Duration,
        durability: &Arc<Durability>,
        late_changes: &Arc<LateChanges>,
    ) -> Self {
        let table = Arc::new(InFlight::new(timeout, Arc::clone(durability), Arc::clone(late_changes)));
        let permits = Arc::new(Semaphore::new(in_flight.max(1)));
        let (queue, outgoing) = mpsc::channel(in_flight.max(1));
        let contexts = export.contexts.iter().map(|(id, _)| *id).collect();
        let receiver = Receiver::new(input, Arc::clone(&table), export.structured, contexts);
        let ending = Ending {
            table: Arc::clone(&table),
            permits: Arc::clone(&permits),
            durability: Arc::clone(durability),
        };
        let task = tokio::spawn(transmit(receiver, output, outgoing, ending, timeout).in_current_span());
        Self { export, table, permits, queue, task: Mutex::new(Some(task)) }
    }

    /// The result of its handshake.
    pub(super) fn export(&self) -> &Export {
        &self.export
    }

    /// Requests that it accepts without waiting; none once it has ended.
    pub(super) fn room(&self) -> usize {
        if self.is_open() { self.permits.available_permits() } else { 0 }
    }

    /// Whether it accepts requests.
    pub(super) fn is_open(&self) -> bool {
        !self.permits.is_closed()
    }

    /// Makes one request and waits for its answer, however long others before it take.
    pub(super) async fn call(&self, call: Call) -> Result<CallReply, Failed> {
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
            let error = NbdError::of(NbdCause::Closed("it has ended")).at(call.at());
            return Err(Failed { error, call: Some(call) });
        };
        let (at, expect) = (call.at(), call.expect());
        let Call { command, flags, offset, length, data } = call;
        let (target, source) = match data {
            Data::None => (None, None),
            Data::Into(buffer, range) => (Some((buffer, range)), None),
            Data::From(payload, range) => (None, Some((payload, range))),
        };
        let place = target.as_ref().map(|(_, range)| range.clone());
        let (done, outcome) = oneshot::channel();
        let coverage = Coverage::new(offset, u64::from(length));
        let status = Vec::new();
        let permit = Some(permit);
        let entry = Entry { at, expect, target, coverage, status, error: None, done, permit };
        if let Some(cookie) = self.table.register(entry, source.is_some()) {
            let header = wire::request_header(command, flags, cookie, offset, length);
            // If the task has ended, the table fails the entry; and it has room for one request per permit.
            let _ = self.queue.try_send(Outgoing { cookie, header, data: source.clone() });
        }
        let (error, buffer) = match outcome.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(failed)) => failed,
            Err(_) => (NbdError::of(NbdCause::Closed("its task died")).at(at), None),
        };
        let data = match (place, source) {
            (Some(place), _) => buffer.map(|buffer| Data::Into(buffer, place)),
            (None, Some((payload, range))) => {
                payload.stray();
                Some(Data::From(payload, range))
            }
            (None, None) => Some(Data::None),
        };
        Err(Failed { error, call: data.map(|data| Call { command, flags, offset, length, data }) })
    }

    /// The task, once, to wait for its end.
    pub(super) fn take_task(&self) -> Option<JoinHandle<()>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Returns the data of an acknowledged write. A server cannot have received data that is still being sent.
pub(super) fn reclaim(data: Arc<Payload>) -> Result<Buffer, NbdError> {
    let payload = Arc::try_unwrap(data).ok();
    payload.and_then(Payload::acknowledged).ok_or_else(|| NbdError::of(Violation::EarlyAck))
}

async fn transmit<R: AsyncRead + Unpin + Send + 'static>(
    mut receiver: Receiver<R>,
    mut output: Output,
    mut outgoing: mpsc::Receiver<Outgoing>,
    ending: Ending,
    timeout: Duration,
) {
    // Further replies can be read only if reading did not fail.
    let (reason, is_readable) = tokio::select! {
        biased;
        error = receiver.run() => (Some(error), false),
        sent = send::run(&mut output, &mut outgoing, &ending.table) => (sent.err(), true),
        error = watch(&ending.table, timeout) => (Some(error), true),
    };
    receiver.abandon();
    // A caller that repeats its write elsewhere must be the only owner of the data.
    drop(outgoing);
    let afterwards = match reason {
        Some(error) => {
            tracing::debug!(%error, "NBD connection ended");
            ending.broken(&error)
        }
        None => ending.closed(),
    };
    let Some((open, debt)) = afterwards else { return };
    if let Some(rest) = receiver.into_rest().filter(|_| is_readable) {
        let hearing = async move {
            drain(rest, open, debt).await;
            // Its end is the connection's, as far as the server sees.
            drop(output);
        };
        tokio::spawn(hearing.in_current_span());
    }
}

/// Waits until a request is overdue.
async fn watch(table: &InFlight, timeout: Duration) -> NbdError {
    loop {
        match table.next_deadline() {
            Some(deadline) if deadline <= Instant::now() => {
                return NbdError::of(NbdCause::Closed("another request on it was not answered in time"));
            }
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            // Whatever is registered from now on is due later than this.
            None => tokio::time::sleep(timeout).await,
        }
    }
}

/// Reports the connection's end to all callers, even if its task dies.
struct Ending {
    table: Arc<InFlight>,
    permits: Arc<Semaphore>,
    durability: Arc<Durability>,
}

impl Ending {
    /// The order matters: no caller may make a request elsewhere and flush before the loss is known.
    fn broken(&self, error: &NbdError) -> Option<Afterwards> {
        self.durability.connection_lost();
        self.permits.close();
        self.table.close(error)
    }

    fn closed(&self) -> Option<Afterwards> {
        self.permits.close();
        self.table.close(&NbdError::of(NbdCause::Closed("it was closed")))
    }
}

impl Drop for Ending {
    /// Without effect after `broken` or `closed`; only if the task died, a loss is reported once too often.
    fn drop(&mut self) {
        if !self.permits.is_closed() {
            self.broken(&NbdError::of(NbdCause::Closed("its task died")));
        }
    }
}
