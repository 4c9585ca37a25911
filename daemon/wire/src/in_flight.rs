//! The requests of one connection that wait for their replies.
//!
//! Rule: a reply goes to its request or ends the connection; data reaches a buffer only after its digest
//! matched. A request whose caller left gives its buffer back, and its reply is discarded.

use std::{
    collections::HashMap,
    mem,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use warmd_cbt::{
    buffer::Buffer,
    disk::Allocation,
    units::{Extent, Offset},
};

use super::{
    bytes::Malformed,
    error::WireError,
    message::{Digest, Message},
    pack,
};

/// What is asked for.
#[derive(Debug)]
pub(super) enum Question {
    /// The bytes of `extent`, into `buffer[place]`.
    Read {
        extent: Extent,
        buffer: Buffer,
        place: Range<usize>,
        pack: bool,
    },
    Allocation(Extent),
    Digests {
        extent: Extent,
        block: u32,
    },
}

impl Question {
    pub(super) fn extent(&self) -> Extent {
        match self {
            Self::Read { extent, .. } | Self::Allocation(extent) | Self::Digests { extent, .. } => *extent,
        }
    }

    fn message(&self, id: u64) -> Message<'static> {
        match *self {
            Self::Read { extent, pack, .. } => Message::Read { id, extent, pack },
            Self::Allocation(extent) => Message::AskAllocation { id, extent },
            Self::Digests { extent, block } => Message::AskDigests { id, extent, block },
        }
    }
}

/// What came.
#[derive(Debug)]
pub(super) enum Reply {
    Data(Buffer),
    Allocation(Vec<Allocation>),
    Digests(Vec<Digest>),
}

/// A failure, with the question where another connection may answer it.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) error: WireError,
    pub(super) question: Option<Question>,
}

impl Unanswered {
    pub(super) fn new(error: WireError, question: Option<Question>) -> Box<Self> {
        Box::new(Self { error, question })
    }
}

pub(super) type Outcome = Result<Reply, Box<Unanswered>>;

/// A question that is registered.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) id: u64,
    /// The message to be sent.
    pub(super) bytes: Vec<u8>,
    pub(super) outcome: oneshot::Receiver<Outcome>,
}

#[derive(Debug)]
struct Entry {
    question: Question,
    /// Bytes of a read that came.
    filled: usize,
    /// `None` once its caller left: what still comes is discarded, in a buffer of no bytes.
    done: Option<oneshot::Sender<Outcome>>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    entries: HashMap<u64, Entry>,
    ended: Option<WireError>,
}

#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<State>);

impl InFlight {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a question.
    pub(super) fn register(
        &self,
        question: Question,
        place: OwnedSemaphorePermit,
    ) -> Result<Registered, Box<Unanswered>> {
        let mut state = self.state();
        if let Some(error) = &state.ended {
            return Err(Unanswered::new(error.clone(), Some(question)));
        }
        let id = state.next;
        state.next += 1;
        let mut bytes = Vec::new();
        question.message(id).encode(&mut bytes);
        let (done, outcome) = oneshot::channel();
        state.entries.insert(id, Entry { question, filled: 0, done: Some(done), _place: place });
        Ok(Registered { id, bytes, outcome })
    }

    /// The caller of this request left: its buffer goes back to the pool now.
    pub(super) fn abandon(&self, id: u64) {
        if let Some(entry) = self.state().entries.get_mut(&id) {
            entry.discard();
        }
    }

    /// Ends all requests; each may go to another connection.
    pub(super) fn end(&self, error: &WireError) {
        let entries = {
            let mut state = self.state();
            state.ended.get_or_insert_with(|| error.clone());
            mem::take(&mut state.entries)
        };
        for entry in entries.into_values() {
            entry.finish(|question| Err(Unanswered::new(error.clone(), Some(question))));
        }
    }

    /// Why the connection ended, once it has.
    pub(super) fn ended(&self) -> Option<WireError> {
        self.state().ended.clone()
    }

    /// Takes a reply in.
    ///
    /// # Errors
    /// If it fits no request: the connection cannot be used any more.
    pub(super) fn take(&self, message: Message<'_>) -> Result<(), WireError> {
        match message {
            Message::Data { id, digest, length, is_packed, bytes } => {
                self.part(id, length, |to, at| fill(to, at, bytes, is_packed, &digest))
            }
            Message::Zeroes { id, length } => self.part(id, length, |to, _| {
                to.fill(0);
                Ok(())
            }),
            Message::Allocated { id, runs } => {
                let entry = self.entry(id)?;
                let Question::Allocation(extent) = entry.question else { return entry.broken(misfit()) };
                let first = runs.first().is_some_and(|run| run.extent.start() == extent.start());
                if !first || runs.last().is_some_and(|run| run.extent.end() > extent.end()) {
                    return entry
                        .broken(Malformed("an answer about allocation does not fit its question").into());
                }
                entry.finish(|_| Ok(Reply::Allocation(runs)));
                Ok(())
            }
            Message::Digests { id, digests } => {
                let entry = self.entry(id)?;
                let Question::Digests { extent, block } = entry.question else {
                    return entry.broken(misfit());
                };
                if digests.len() as u64 != extent.len().0.div_ceil(u64::from(block)) {
                    return entry.broken(Malformed("there are more or fewer digests than blocks").into());
                }
                entry.finish(|_| Ok(Reply::Digests(digests)));
                Ok(())
            }
            Message::Failed { id, kind, text } => {
                self.entry(id)?.finish(|_| Err(Unanswered::new(WireError::Peer(kind, text), None)));
                Ok(())
            }
            Message::Pong => Ok(()),
            _ => Err(Malformed("the message is none of a server").into()),
        }
    }

    fn entry(&self, id: u64) -> Result<Entry, WireError> {
        self.state().entries.remove(&id).ok_or_else(misfit)
    }

    /// The next `length` bytes of a read, which `fill` puts in place. The table is not locked meanwhile.
    fn part(
        &self,
        id: u64,
        length: u32,
        fill: impl FnOnce(&mut [u8], Offset) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let mut entry = self.entry(id)?;
        let Question::Read { extent, buffer, place, .. } = &mut entry.question else {
            return entry.broken(misfit());
        };
        let (from, total) = (entry.filled, extent.len().0 as usize);
        let to = from + length as usize;
        if to > total {
            return entry.broken(Malformed("a read is answered with more bytes than it has").into());
        }
        if entry.done.as_ref().is_some_and(|done| !done.is_closed()) {
            let start = place.start;
            let at = Offset(extent.start().0 + from as u64);
            if let Err(error) = fill(&mut buffer[start + from..start + to], at) {
                // A peer that damages data is not asked again.
                return entry.broken(error);
            }
        } else {
            entry.discard();
        }
        entry.filled = to;
        if to < total {
            self.state().entries.insert(id, entry);
            return Ok(());
        }
        entry.finish(|question| match question {
            Question::Read { buffer, .. } => Ok(Reply::Data(buffer)),
            other => Err(Unanswered::new(misfit(), Some(other))),
        });
        Ok(())
    }
}

impl Entry {
    fn finish(self, outcome: impl FnOnce(Question) -> Outcome) {
        if let Some(done) = self.done {
            // Else the caller left just now.
            let _ = done.send(outcome(self.question));
        }
    }

    /// Fails with what ends the connection, too.
    fn broken(self, error: WireError) -> Result<(), WireError> {
        self.finish(|_| Err(Unanswered::new(error.clone(), None)));
        Err(error)
    }

    fn discard(&mut self) {
        self.done = None;
        if let Question::Read { buffer, .. } = &mut self.question {
            *buffer = Buffer::unpooled(0);
        }
    }
}

fn misfit() -> WireError {
    Malformed("a reply fits no request").into()
}

fn fill(to: &mut [u8], at: Offset, bytes: &[u8], is_packed: bool, digest: &Digest) -> Result<(), WireError> {
    if !is_packed {
        to.copy_from_slice(bytes);
    } else if !pack::unpack(bytes, to) {
        return Err(WireError::Digest(at.0));
    }
    if blake3::hash(to).as_bytes() == digest { Ok(()) } else { Err(WireError::Digest(at.0)) }
}
