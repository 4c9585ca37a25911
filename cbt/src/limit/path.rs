//! A path through limits, and the grant after a turn.
//!
//! Rule: a caller that stops waiting, or does not use what was granted, returns all of it. Without limits on
//! the path no lock is taken.

use std::{fmt, sync::Arc};

use tokio::sync::oneshot;

use super::{node::Node, queue::Shared};

/// A disk's part in the limits, for one kind of its operations. Clones share one turn. Unlimited by default.
#[derive(Clone, Default)]
pub struct Limits(Option<Arc<LimitPath>>);

/// The flows from the outermost to its own, and the limits at which it counts.
#[derive(Debug)]
pub(super) struct LimitPath {
    shared: Arc<Shared>,
    pub(super) keys: Box<[u64]>,
    pub(super) counted: Box<[Arc<Node>]>,
    /// Those of all keys but the last, which is its own.
    pub(super) nodes: Box<[Arc<Node>]>,
}

impl Limits {
    pub(super) fn new(shared: &Arc<Shared>, way: impl Iterator<Item = (Arc<Node>, bool)>) -> Self {
        let mut keys = Vec::new();
        let (mut counted, mut nodes) = (Vec::new(), Vec::new());
        for (node, counts) in way {
            keys.push(node.id);
            if counts {
                counted.push(Arc::clone(&node));
            }
            nodes.push(node);
        }
        keys.push(shared.id());
        shared.open(&keys);
        Self(Some(Arc::new(LimitPath {
            shared: Arc::clone(shared),
            keys: keys.into(),
            counted: counted.into(),
            nodes: nodes.into(),
        })))
    }

    /// Waits until one request of so many bytes may go; a request of no bytes waits for no rate. The permit
    /// must be kept while the request is in flight. Dropping the wait loses nothing.
    pub async fn take(&self, bytes: u64) -> Permit {
        let Some(mut held) = self.turn(bytes, true).await else { return Permit { _held: None } };
        held.used(bytes);
        Permit { _held: Some(held) }
    }

    /// Waits until so many bytes may go, for requests that will be made later, each with [`Limits::take`] of
    /// no bytes. Dropping the wait, or the reservation, loses nothing.
    pub async fn budget(&self, bytes: u64) -> Reservation {
        Reservation(self.turn(bytes, false).await)
    }

    async fn turn(&self, bytes: u64, slot: bool) -> Option<Grant> {
        let way = self.0.as_ref()?;
        if !way.counted.iter().any(|node| node.is_limited()) {
            return Some(Grant::free(Arc::clone(way), bytes, slot));
        }
        let (granted, grant) = oneshot::channel();
        let mut waiting = Waiting { id: way.shared.wait(way, bytes, slot, granted), way, grant };
        // Cannot fail: the sender is in the queue until it has sent.
        (&mut waiting.grant).await.ok()
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = self.0.iter().flat_map(|way| &way.counted).map(|node| node.limit());
        f.debug_list().entries(counted).finish()
    }
}

impl Drop for LimitPath {
    fn drop(&mut self) {
        self.shared.close(&self.keys);
    }
}

/// A waiter. A grant that arrives while it stops waiting is dropped with `grant`, and so returned.
struct Waiting<'a> {
    way: &'a LimitPath,
    id: u64,
    grant: oneshot::Receiver<Grant>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // False once the grant was taken out, the ordinary case.
        if !self.grant.is_terminated() {
            self.way.shared.leave(self.way, self.id);
        }
    }
}

/// One request in flight, at every limit of its path.
#[derive(Debug)]
#[must_use = "the request counts as in flight only while its permit is held"]
pub struct Permit {
    _held: Option<Grant>,
}

/// Bytes that may go.
#[derive(Debug)]
#[must_use = "bytes that are not spent are given back"]
pub struct Reservation(Option<Grant>);

impl Reservation {
    /// Uses so many of the bytes; the others are returned.
    pub fn spend(mut self, bytes: u64) {
        if let Some(held) = &mut self.0 {
            held.used(bytes);
        }
    }
}

/// The granted values, to be returned: unused bytes, and a slot.
#[derive(Debug)]
pub(super) struct Grant {
    way: Arc<LimitPath>,
    unused: u64,
    slot: bool,
    /// When it was paid for, in nanoseconds since the rate limiter began; `None` if it was not.
    paid: Option<u64>,
}

impl Grant {
    /// Entered and paid for already.
    pub(super) fn paid(way: Arc<LimitPath>, bytes: u64, slot: bool, at: u64) -> Self {
        Self { way, unused: bytes, slot, paid: Some(at) }
    }

    fn free(way: Arc<LimitPath>, bytes: u64, slot: bool) -> Self {
        if slot {
            way.counted.iter().for_each(|node| node.enter());
        }
        Self { way, unused: bytes, slot, paid: None }
    }

    fn used(&mut self, bytes: u64) {
        self.unused = self.unused.saturating_sub(bytes);
        if bytes > 0 && !self.way.counted.is_empty() {
            let now = self.way.shared.now();
            self.way.counted.iter().for_each(|node| node.count(now, bytes));
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let (way, shared) = (&self.way, &self.way.shared);
        if self.slot {
            way.counted.iter().for_each(|node| node.leave());
        }
        match self.paid.filter(|_| self.unused > 0) {
            Some(at) => shared.refund(way, self.unused, at),
            None if self.slot && way.counted.iter().any(|node| node.limits_requests()) => shared.freed(),
            None => {}
        }
    }
}
