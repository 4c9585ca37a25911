//! The requests that a connection owes answers to, by the cookie that names them on the wire.
//!
//! Rule: an entry leaves in one of two ways, answered or failed with the whole table, and its caller gets the
//! result either way. A caller that went away leaves its entry behind: the answer is still read, into the
//! entry's own buffer.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};
use warmd_cbt::buffer::Buffer;

use super::{
    call::{CallReply, ContextRuns},
    coverage::Coverage,
    drain::Unanswered,
    durability::Durability,
    errno::Errno,
    error::{NbdCause, NbdError, RequestAt},
    late_changes::{LateChanges, OwedAnswers},
    reply::{Expect, Violation},
};

/// How a request ended: an answer, or an error and the read's buffer for another attempt.
pub(super) type CallOutcome = Result<CallReply, (NbdError, Option<Buffer>)>;

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) at: RequestAt,
    pub(super) expect: Expect,
    /// Where a read's bytes go.
    pub(super) target: Option<(Buffer, Range<usize>)>,
    pub(super) coverage: Coverage,
    pub(super) status: Vec<ContextRuns>,
    /// The first error that the server reported in a chunk.
    pub(super) error: Option<(Errno, String)>,
    pub(super) done: oneshot::Sender<CallOutcome>,
    /// Given back when the answer is complete, also when no caller waits.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// All requests in flight of one connection.
#[derive(Debug)]
pub(super) struct InFlight {
    inner: Mutex<Inner>,
    timeout: Duration,
    durability: Arc<Durability>,
    /// The export's changes beyond the connection.
    late_changes: Arc<LateChanges>,
}

/// Changes that a server may still make for an ended connection: the requests by their cookies, and the
/// changes.
pub(super) type Afterwards = (BTreeMap<u64, Unanswered>, OwedAnswers);

#[derive(Debug, Default)]
struct Inner {
    slots: Vec<Slot>,
    /// Why no more requests are accepted.
    closed: Option<NbdError>,
}

#[derive(Debug)]
struct Slot {
    /// Distinguishes this use of the slot from earlier ones, so that a late or doubled reply fits none.
    generation: u32,
    state: State,
    deadline: Instant,
    /// Whether it was sent completely, its data included.
    sent: bool,
    out: SendState,
}

/// How far the sending of a request to the server has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SendState {
    Queued,
    /// A part of it may have been sent.
    Going,
    Gone,
}

#[derive(Debug)]
enum State {
    Free,
    Waiting(Box<Entry>),
    /// Its answer is being read.
    InHand,
}

impl InFlight {
    /// An empty table, whose requests must be answered within `timeout`.
    pub(super) fn new(
        timeout: Duration,
        durability: Arc<Durability>,
        late_changes: Arc<LateChanges>,
    ) -> Self {
        Self { inner: Mutex::default(), timeout, durability, late_changes }
    }

    /// Adds a request and returns its cookie; if the connection has ended, fails it instead. One that carries
    /// data is not sent before [`InFlight::sent`] says so.
    pub(super) fn register(&self, entry: Entry, carries_data: bool) -> Option<u64> {
        let mut inner = self.inner();
        if let Some(error) = &inner.closed {
            let error = error.clone();
            drop(inner);
            entry.fail(error);
            return None;
        }
        let deadline = Instant::now() + self.timeout;
        let state = State::Waiting(Box::new(entry));
        let free = inner.slots.iter().position(|slot| matches!(slot.state, State::Free));
        let index = free.unwrap_or_else(|| {
            let (state, out) = (State::Free, SendState::Queued);
            inner.slots.push(Slot { generation: 0, state, deadline, sent: false, out });
            inner.slots.len() - 1
        });
        let slot = &mut inner.slots[index];
        let generation = slot.generation.wrapping_add(1);
        *slot = Slot { generation, state, deadline, sent: !carries_data, out: SendState::Queued };
        Some(slot.cookie(index))
    }

    /// These requests are being sent.
    pub(super) fn going(&self, cookies: &[u64]) {
        let mut inner = self.inner();
        for cookie in cookies {
            if let Some(slot) = slot_of(&mut inner.slots, *cookie) {
                slot.out = SendState::Going;
            }
        }
    }

    /// These requests were sent, with their data.
    pub(super) fn sent(&self, cookies: &[u64]) {
        let mut inner = self.inner();
        for cookie in cookies {
            if let Some(slot) = slot_of(&mut inner.slots, *cookie) {
                (slot.sent, slot.out) = (true, SendState::Gone);
            }
        }
    }

    /// Whether a server can have all of a request.
    pub(super) fn is_sent(&self, cookie: u64) -> bool {
        slot_of(&mut self.inner().slots, cookie).is_none_or(|slot| slot.sent)
    }

    /// Takes the entry of `cookie` out, to read its answer; it comes back by [`InFlight::put_back`] or ends
    /// by [`InFlight::finish`].
    pub(super) fn take(&self, cookie: u64) -> Result<Box<Entry>, Violation> {
        let mut inner = self.inner();
        let taken = slot_of(&mut inner.slots, cookie).and_then(|slot| match &slot.state {
            State::Waiting(_) => match std::mem::replace(&mut slot.state, State::InHand) {
                State::Waiting(entry) => Some(entry),
                State::Free | State::InHand => None,
            },
            State::Free | State::InHand => None,
        });
        taken.ok_or(Violation::UnknownCookie(cookie))
    }

    /// Puts an entry back whose answer is not complete.
    pub(super) fn put_back(&self, cookie: u64, entry: Box<Entry>) {
        if let Some(slot) = slot_of(&mut self.inner().slots, cookie) {
            slot.state = State::Waiting(entry);
        }
    }

    /// Ends the request of an entry that was taken out.
    pub(super) fn finish(&self, cookie: u64, entry: Entry, outcome: Result<CallReply, NbdError>) {
        let mut inner = self.inner();
        if let Some(slot) = slot_of(&mut inner.slots, cookie) {
            slot.state = State::Free;
        }
        drop(inner);
        match outcome {
            Ok(answer) => {
                if entry.at.command.changes() {
                    self.durability.written();
                }
                entry.succeed(answer);
            }
            Err(error) => entry.fail(error),
        }
    }

    /// When the next request is overdue.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let inner = self.inner();
        inner.slots.iter().filter(|slot| !matches!(slot.state, State::Free)).map(|slot| slot.deadline).min()
    }

    /// Accepts no more requests and fails all waiting ones, overdue ones with a timeout; returns the changes
    /// that the server may still make. A second call does nothing.
    pub(super) fn close(&self, error: &NbdError) -> Option<Afterwards> {
        let now = Instant::now();
        let mut inner = self.inner();
        if inner.closed.is_some() {
            return None;
        }
        inner.closed = Some(error.clone());
        let slots = std::mem::take(&mut inner.slots);
        drop(inner);
        // Before their callers get the error, and may write newer data there.
        let afterwards = self.afterwards(&slots);
        for slot in slots {
            if let State::Waiting(entry) = slot.state {
                let overdue = slot.deadline <= now;
                entry.fail(if overdue { self.timed_out() } else { error.clone() });
            }
        }
        afterwards
    }

    /// None if there is no change that the server can have whole.
    fn afterwards(&self, slots: &[Slot]) -> Option<Afterwards> {
        let (mut open, mut changes) = (BTreeMap::new(), Vec::new());
        for (index, slot) in slots.iter().enumerate() {
            let State::Waiting(entry) = &slot.state else { continue };
            if slot.out == SendState::Queued {
                continue;
            }
            // Of a request whose data is not all sent the server never gets the rest.
            let owed = (entry.at.command.changes() && slot.sent).then(|| {
                changes.push((entry.at.offset, entry.at.length));
                changes.len() - 1
            });
            let (expect, length, is_due) = (entry.expect, entry.at.length, slot.out == SendState::Gone);
            open.insert(slot.cookie(index), Unanswered { expect, length, owed, is_due });
        }
        (!changes.is_empty()).then(|| (open, self.late_changes.owe(changes.into_iter())))
    }

    fn timed_out(&self) -> NbdError {
        NbdError::of(NbdCause::Timeout { waiting: "waiting for the server's reply", after: self.timeout })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn cookie(&self, index: usize) -> u64 {
        u64::from(self.generation) << 32 | index as u64
    }
}

impl Entry {
    fn succeed(self, answer: CallReply) {
        drop(self.permit);
        // The caller is gone.
        let _ = self.done.send(Ok(answer));
    }

    fn fail(self, error: NbdError) {
        drop(self.permit);
        let error = error.at(self.at);
        let _ = self.done.send(Err((error, self.target.map(|(buffer, _)| buffer))));
    }
}

fn slot_of(slots: &mut [Slot], cookie: u64) -> Option<&mut Slot> {
    let slot = slots.get_mut((cookie & u64::from(u32::MAX)) as usize)?;
    (u64::from(slot.generation) == cookie >> 32).then_some(slot)
}
