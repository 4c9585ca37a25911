//! Reads replies off a connection: data goes from the socket straight into the caller's buffer.
//!
//! Rule: every number in a reply is checked by `reply` before it is used. The first violation ends the
//! connection: after nonsense from a server, the start of the next reply is unknown.

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use super::{
    call::{CallReply, ContextRuns},
    errno::Errno,
    error::{NbdCause, NbdError},
    in_flight::{Entry, InFlight},
    reply::{self, ChunkContent, Expect, HEAD_LEN, Head, Violation},
};

/// Enough for many short replies at once; larger reads go past it into their buffer.
pub(super) const READ_AHEAD: usize = 4096;

/// The reading half of a connection.
#[derive(Debug)]
pub(super) struct Receiver<R> {
    input: BufReader<R>,
    table: Arc<InFlight>,
    structured: bool,
    /// The numbers of the meta contexts that were granted.
    contexts: Vec<u32>,
    /// The entry whose reply is being read. Kept here so that it is not lost when reading is aborted.
    in_hand: Option<(u64, Box<Entry>)>,
    /// Whether the next byte is the first one of a reply.
    is_between: bool,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    pub(super) fn new(
        input: BufReader<R>,
        table: Arc<InFlight>,
        structured: bool,
        contexts: Vec<u32>,
    ) -> Self {
        Self { input, table, structured, contexts, in_hand: None, is_between: true }
    }

    /// Reads replies until the connection ends; gives the reason.
    pub(super) async fn run(&mut self) -> NbdError {
        loop {
            if let Err(error) = self.reply().await {
                return error;
            }
        }
    }

    /// The rest of the server's bytes, if they begin with a reply.
    pub(super) fn into_rest(self) -> Option<BufReader<R>> {
        self.is_between.then_some(self.input)
    }

    /// Returns the current entry to the table, to fail with the others.
    pub(super) fn abandon(&mut self) {
        if let Some((cookie, entry)) = self.in_hand.take() {
            self.table.put_back(cookie, entry);
        }
    }

    async fn reply(&mut self) -> Result<(), NbdError> {
        let waited = self.input.fill_buf().await;
        waited.map_err(|error| NbdError::of(NbdCause::io("reading a reply", error)))?;
        self.is_between = false;
        let mut bytes = [0; HEAD_LEN];
        self.fill(&mut bytes).await?;
        match reply::head(&bytes).map_err(NbdError::of)? {
            Head::Simple { errno, cookie } => self.simple(errno, cookie).await?,
            Head::Chunk { .. } if !self.structured => return Err(NbdError::of(Violation::NotNegotiated)),
            Head::Chunk { done, kind, cookie } => {
                let length = self.number().await?;
                self.chunk(done, kind, cookie, length).await?;
            }
        }
        self.is_between = true;
        Ok(())
    }

    async fn simple(&mut self, errno: Errno, cookie: u64) -> Result<(), NbdError> {
        let entry = self.take(cookie)?;
        let needs_chunks = match entry.expect {
            Expect::Nothing => false,
            Expect::Data => self.structured,
            Expect::Status => true,
        };
        if errno.0 != 0 {
            return self.finish(Err(served(errno, String::new())));
        }
        if needs_chunks {
            return Err(NbdError::of(Violation::SimpleReply));
        }
        if let Some((buffer, range)) = self.in_hand.as_mut().and_then(|(_, entry)| entry.target.as_mut()) {
            read_into(&mut self.input, &mut buffer[range.clone()]).await?;
        }
        self.finish(Ok(()))
    }

    async fn chunk(&mut self, done: bool, kind: u16, cookie: u64, length: u32) -> Result<(), NbdError> {
        let entry = self.take(cookie)?;
        let asked = u32::try_from(entry.at.length).unwrap_or(u32::MAX);
        match reply::body(done, kind, length, entry.expect, asked).map_err(NbdError::of)? {
            ChunkContent::Nothing => {}
            ChunkContent::Data { length } => self.data(length).await?,
            ChunkContent::Hole => self.hole().await?,
            ChunkContent::Status { descriptors } => self.status(descriptors).await?,
            ChunkContent::Error { length } => self.error(length).await?,
        }
        if !done {
            self.abandon();
            return Ok(());
        }
        let Some((_, entry)) = &mut self.in_hand else { return Ok(()) };
        if let Some((errno, message)) = entry.error.take() {
            return self.finish(Err(served(errno, message)));
        }
        entry.check_complete().map_err(NbdError::of)?;
        self.finish(Ok(()))
    }

    async fn data(&mut self, length: u32) -> Result<(), NbdError> {
        let offset = self.long_number().await?;
        let Some((_, entry)) = &mut self.in_hand else { return Ok(()) };
        read_into(&mut self.input, entry.place(offset, length)?).await
    }

    async fn hole(&mut self) -> Result<(), NbdError> {
        let offset = self.long_number().await?;
        let length = self.number().await?;
        let Some((_, entry)) = &mut self.in_hand else { return Ok(()) };
        if length == 0 {
            return Err(NbdError::of(Violation::OutsideRequest { offset, length: 0 }));
        }
        entry.place(offset, length)?.fill(0);
        Ok(())
    }

    async fn status(&mut self, descriptors: u32) -> Result<(), NbdError> {
        let id = self.number().await?;
        let told = self.in_hand.iter().any(|(_, entry)| entry.status.iter().any(|context| context.id == id));
        if told || !self.contexts.contains(&id) {
            return Err(NbdError::of(Violation::StatusContext(id)));
        }
        let Some((_, entry)) = &mut self.in_hand else { return Ok(()) };
        let mut rest = u32::try_from(entry.at.length).unwrap_or(u32::MAX);
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let mut has_overrun = false;
        for number in 1..=descriptors {
            let mut descriptor = [0; 8];
            read_into(&mut self.input, &mut descriptor).await?;
            let word = u64::from_be_bytes(descriptor);
            let (length, flags) = ((word >> 32) as u32, word as u32);
            // The last descriptor may reach further than the request, also when all of it lies there (so
            // nbdkit's filter cacheextents). Nothing follows one that did.
            let is_last = number == descriptors;
            if length == 0 || has_overrun || (rest == 0 && !is_last) {
                return Err(NbdError::of(Violation::StatusExtent));
            }
            has_overrun = length > rest;
            // Only the requested range counts.
            let length = length.min(rest);
            if length == 0 {
                continue;
            }
            rest -= length;
            match runs.last_mut() {
                Some((run, same)) if *same == flags => *run += length,
                _ => runs.push((length, flags)),
            }
        }
        entry.status.push(ContextRuns { id, runs });
        Ok(())
    }

    async fn error(&mut self, length: u32) -> Result<(), NbdError> {
        let mut body = vec![0; length as usize];
        self.fill(&mut body).await?;
        let error = reply::error_body(&body).map_err(NbdError::of)?;
        if let Some((_, entry)) = &mut self.in_hand {
            entry.error.get_or_insert(error);
        }
        Ok(())
    }

    fn take(&mut self, cookie: u64) -> Result<&Entry, NbdError> {
        let entry = self.table.take(cookie).map_err(NbdError::of)?;
        let (_, entry) = self.in_hand.insert((cookie, entry));
        Ok(entry)
    }

    /// Ends the current request. A server that says it is shutting down ends the connection with it.
    fn finish(&mut self, outcome: Result<(), NbdError>) -> Result<(), NbdError> {
        let early = self.in_hand.as_ref().is_some_and(|(cookie, _)| !self.table.is_sent(*cookie));
        if early && outcome.is_ok() {
            return Err(NbdError::of(Violation::EarlyAck));
        }
        let Some((cookie, mut entry)) = self.in_hand.take() else { return Ok(()) };
        let ends = outcome.as_ref().err().filter(|error| error.errno() == Some(Errno::ESHUTDOWN)).cloned();
        let outcome = outcome.map(|()| match entry.expect {
            Expect::Nothing => CallReply::Done,
            Expect::Data => {
                entry.target.take().map_or(CallReply::Done, |(buffer, _)| CallReply::Data(buffer))
            }
            Expect::Status => CallReply::Status(std::mem::take(&mut entry.status)),
        });
        self.table.finish(cookie, *entry, outcome);
        ends.map_or(Ok(()), Err)
    }

    async fn number(&mut self) -> Result<u32, NbdError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes).await?;
        Ok(u32::from_be_bytes(bytes))
    }

    async fn long_number(&mut self) -> Result<u64, NbdError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes).await?;
        Ok(u64::from_be_bytes(bytes))
    }

    async fn fill(&mut self, bytes: &mut [u8]) -> Result<(), NbdError> {
        read_into(&mut self.input, bytes).await
    }
}

impl Entry {
    /// The bytes of the caller's buffer where a chunk goes.
    fn place(&mut self, offset: u64, length: u32) -> Result<&mut [u8], NbdError> {
        let outside = Violation::OutsideRequest { offset, length: u64::from(length) };
        let place = self.coverage.add(offset, length).map_err(NbdError::of)?;
        self.target
            .as_mut()
            .and_then(|(buffer, range)| buffer.get_mut(range.clone())?.get_mut(place))
            .ok_or_else(|| NbdError::of(outside))
    }

    /// Fails unless a reply that claims to be complete is complete.
    fn check_complete(&self) -> Result<(), Violation> {
        match self.expect {
            Expect::Data => self.coverage.check_complete(),
            Expect::Status if self.status.is_empty() => Err(Violation::StatusMissing),
            Expect::Nothing | Expect::Status => Ok(()),
        }
    }
}

async fn read_into<R: AsyncRead + Unpin>(input: &mut R, bytes: &mut [u8]) -> Result<(), NbdError> {
    let read = input.read_exact(bytes).await;
    read.map(|_| ()).map_err(|error| NbdError::of(NbdCause::io("reading a reply", error)))
}

fn served(errno: Errno, message: String) -> NbdError {
    NbdError::of(NbdCause::Server { errno, message })
}
