//! Writes requests to a connection: header and data in one system call where the system accepts them whole.

use std::{io, ops::Range, sync::Arc};

use tokio::{io::AsyncWriteExt, sync::mpsc};

use super::{
    error::{NbdCause, NbdError},
    in_flight::InFlight,
    output::Output,
    payload::Payload,
    wire::{self, NbdCommand, REQUEST_LEN},
};

/// A request that is to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) cookie: u64,
    pub(super) header: [u8; REQUEST_LEN],
    pub(super) data: Option<(Arc<Payload>, Range<usize>)>,
}

/// The most requests without data that one system call sends.
const BATCH: usize = 64;

/// Sends requests until all senders are dropped, then says goodbye; gives the reason if the connection breaks
/// first.
pub(super) async fn run(
    output: &mut Output,
    queue: &mut mpsc::Receiver<Outgoing>,
    table: &InFlight,
) -> Result<(), NbdError> {
    let sent = |result: io::Result<()>| {
        result.map_err(|error| NbdError::of(NbdCause::io("sending a request", error)))
    };
    let mut headers = Vec::with_capacity(BATCH * REQUEST_LEN);
    let mut cookies = Vec::with_capacity(BATCH);
    while let Some(mut outgoing) = queue.recv().await {
        headers.clear();
        headers.extend(outgoing.header);
        cookies.clear();
        cookies.push(outgoing.cookie);
        while outgoing.data.is_none() && headers.len() < BATCH * REQUEST_LEN {
            let Ok(next) = queue.try_recv() else { break };
            headers.extend(next.header);
            cookies.push(next.cookie);
            outgoing = next;
        }
        table.going(&cookies);
        match &outgoing.data {
            Some((payload, range)) => sent(output.send(&headers, payload, range.clone()).await)?,
            None => sent(output.write_all(&headers).await)?,
        }
        sent(output.flush().await)?;
        table.sent(&cookies);
    }
    sent(output.write_all(&wire::request_header(NbdCommand::Disconnect, 0, 0, 0, 0)).await)?;
    sent(output.shutdown().await)
}
