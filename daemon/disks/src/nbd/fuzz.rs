//! Drives the parsers over bytes in memory, without a socket: for the fuzz target and the property tests.
//!
//! Rule: what runs here is what runs in production; only the other side is a slice of bytes.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    io::{BufReader, sink},
    sync::oneshot,
};
use warmd_cbt::buffer::Buffer;

use super::{
    call::{Call, CallReply, Data},
    coverage::Coverage,
    error::NbdError,
    handshake::{Export, Handshake},
    in_flight::{CallOutcome, Entry, InFlight},
    receive::{READ_AHEAD, Receiver},
    wire::{NbdCommand, request},
};

/// Where the requests of [`replies`] begin on their disk.
pub const OFFSET: u64 = 1 << 20;
/// Bytes in each of its requests.
pub const LENGTH: u32 = 4096;
/// Its meta contexts.
pub const CONTEXTS: [u32; 2] = [1, 2];
/// The cookies of its requests, in order: two reads, a write, a block status.
pub const COOKIES: [u64; 4] = [1 << 32, 1 << 32 | 1, 1 << 32 | 2, 1 << 32 | 3];

/// How a run of [`replies`] ended.
#[derive(Debug)]
pub struct Replayed {
    /// Why the connection ended.
    pub reason: NbdError,
    /// For each request in order of [`COOKIES`]: whether it was answered well; `None` if it was not answered.
    pub outcomes: Vec<Option<Result<(), NbdError>>>,
    /// The data of the reads.
    pub data: Vec<Vec<u8>>,
}

/// Feeds `bytes` to a connection as the server's replies to two reads, a write and a block status in flight.
pub fn replies(bytes: &[u8], structured: bool) -> Replayed {
    let table = Arc::new(InFlight::new(Duration::from_secs(30), Arc::default(), Arc::default()));
    let commands = [NbdCommand::Read, NbdCommand::Read, NbdCommand::Write, NbdCommand::BlockStatus];
    let waiting: Vec<oneshot::Receiver<CallOutcome>> = commands
        .into_iter()
        .map(|command| {
            let (entry, outcome) = entry(command);
            table.register(entry, false);
            outcome
        })
        .collect();
    let input = BufReader::with_capacity(READ_AHEAD, bytes);
    let mut receiver = Receiver::new(input, Arc::clone(&table), structured, CONTEXTS.to_vec());
    let reason = run_to_end(receiver.run());
    receiver.abandon();

    let mut data = Vec::new();
    let outcomes = waiting
        .into_iter()
        .map(|mut outcome| {
            outcome.try_recv().ok().map(|outcome| match outcome {
                Ok(CallReply::Data(buffer)) => {
                    data.push(buffer.to_vec());
                    Ok(())
                }
                Ok(CallReply::Done | CallReply::Status(_)) => Ok(()),
                Err((error, _)) => Err(error),
            })
        })
        .collect();
    table.close(&reason);
    Replayed { reason, outcomes, data }
}

/// Feeds `bytes` to a handshake as all bytes that the server sends.
pub fn handshake(bytes: &[u8]) -> Result<Export, NbdError> {
    let (mut input, mut output) = (bytes, sink());
    let contexts = ["base:allocation".to_owned(), "qemu:dirty-bitmap:b".to_owned()];
    run_to_end(async { Handshake::begin(&mut input, &mut output).await?.open("disk", &contexts).await })
}

/// Feeds `bytes` to a request for the list of exports.
pub fn list(bytes: &[u8]) -> Result<usize, NbdError> {
    let (mut input, mut output) = (bytes, sink());
    run_to_end(async { Ok(Handshake::begin(&mut input, &mut output).await?.list().await?.len()) })
}

fn entry(command: NbdCommand) -> (Entry, oneshot::Receiver<CallOutcome>) {
    let mut call = Call::plain(command, request::FUA, OFFSET, LENGTH);
    if command == NbdCommand::Read {
        let mut buffer = Buffer::unpooled(LENGTH as usize);
        // As a pool's buffer: full of old bytes that must not stay.
        buffer.fill(0xa5);
        call.data = Data::Into(buffer, 0..LENGTH as usize);
    }
    let (done, outcome) = oneshot::channel();
    let (at, expect) = (call.at(), call.expect());
    let target = match call.data {
        Data::Into(buffer, range) => Some((buffer, range)),
        Data::None | Data::From(..) => None,
    };
    let coverage = Coverage::new(OFFSET, u64::from(LENGTH));
    let entry = Entry { at, expect, target, coverage, status: Vec::new(), error: None, done, permit: None };
    (entry, outcome)
}

/// Bytes in memory are always ready; a runtime's quota, of which there is none here, is all that could
/// interrupt.
fn run_to_end<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        if let Some(result) = work.as_mut().now_or_never() {
            return result;
        }
    }
}
