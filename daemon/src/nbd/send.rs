//! Writes requests to a connection: header and data in one system call where the system takes them whole.

use std::{
    io::{self, IoSlice},
    ops::Range,
    sync::Arc,
};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use warmd_cbt::buffer::Buffer;

use super::{
    error::{NbdCause, NbdError},
    in_flight::InFlight,
    wire::{self, Command, REQUEST_LEN},
};

/// A request on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) cookie: u64,
    pub(super) header: [u8; REQUEST_LEN],
    pub(super) data: Option<(Arc<Buffer>, Range<usize>)>,
}

/// The most requests without data that one system call sends.
const BATCH: usize = 64;

/// Sends requests until nobody can make any more, then takes leave; gives the reason if the connection breaks first.
pub(super) async fn run<W: AsyncWrite + Unpin>(
    output: &mut W,
    queue: &mut mpsc::Receiver<Outgoing>,
    table: &InFlight,
) -> Result<(), NbdError> {
    let sent = |result: io::Result<()>| {
        result.map_err(|error| NbdError::of(NbdCause::io("sending a request", error)))
    };
    let mut headers = Vec::with_capacity(BATCH * REQUEST_LEN);
    while let Some(mut outgoing) = queue.recv().await {
        headers.clear();
        headers.extend(outgoing.header);
        while outgoing.data.is_none() && headers.len() < BATCH * REQUEST_LEN {
            let Ok(next) = queue.try_recv() else { break };
            headers.extend(next.header);
            outgoing = next;
        }
        match &outgoing.data {
            Some((buffer, range)) => sent(write_both(output, &headers, &buffer[range.clone()]).await)?,
            None => sent(output.write_all(&headers).await)?,
        }
        sent(output.flush().await)?;
        table.sent(outgoing.cookie);
    }
    sent(output.write_all(&wire::request_header(Command::Disconnect, 0, 0, 0, 0)).await)?;
    sent(output.shutdown().await)
}

async fn write_both<W: AsyncWrite + Unpin>(output: &mut W, first: &[u8], second: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(first), IoSlice::new(second)];
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let written = output.write_vectored(left).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}
