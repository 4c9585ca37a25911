//! The waiters, and the task that knows when the next of them may go.
//!
//! Rule: nothing is sent, spawned or dropped under the lock. What may let a waiter go (a changed limit, an
//! ended request, a refund, the clock) serves at once every waiter that can now go.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    Limit,
    node::Node,
    path::{Grant, LimitPath},
    wfq::{Waiter, WfqNode},
};

/// A later moment is checked again then: no wait reaches the end of the clock.
const FAR: Duration = Duration::from_hours(1);

/// What all limits of a rate limiter share.
pub(super) struct Shared {
    began: Instant,
    ids: AtomicU64,
    /// All waiters.
    waiting: AtomicU64,
    /// The next one may go earlier than the timekeeper knew.
    earlier: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    root: WfqNode,
    /// When the next one may go, if time alone decides.
    wake: Option<u64>,
    has_timekeeper: bool,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            ids: AtomicU64::new(1),
            waiting: AtomicU64::new(0),
            earlier: Arc::default(),
            state: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.ids.fetch_add(1, Relaxed)
    }

    /// Nanoseconds since the rate limiter began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, keys: &[u64]) {
        self.lock().root.open(keys);
    }

    pub(super) fn close(&self, keys: &[u64]) {
        self.lock().root.close(keys);
    }

    pub(super) fn set(&self, node: &Node, limit: Limit) {
        let state = self.lock();
        node.set(limit, self.now());
        self.serve(state);
    }

    /// Queues a request; every waiter that may go by now is served, perhaps this one. Gives its id.
    pub(super) fn wait(
        self: &Arc<Self>,
        way: &Arc<LimitPath>,
        bytes: u64,
        slot: bool,
        granted: oneshot::Sender<Grant>,
    ) -> u64 {
        let id = self.id();
        let waiter = Waiter { id, way: Arc::clone(way), bytes, slot, granted };
        way.counted.iter().for_each(|node| node.begin_wait());
        let mut state = self.lock();
        // Before slots are checked: a task that returns a slot checks this afterwards.
        self.waiting.fetch_add(1, SeqCst);
        state.root.push(&way.keys, waiter);
        let begins = !std::mem::replace(&mut state.has_timekeeper, true);
        self.serve(state);
        if begins {
            tokio::spawn(keep_time(Arc::downgrade(self), Arc::clone(&self.earlier)));
        }
        id
    }

    /// Removes a waiter that stopped waiting, if it is still there.
    pub(super) fn leave(&self, way: &LimitPath, id: u64) {
        let mut state = self.lock();
        let left = state.root.remove(&way.keys, id);
        if let Some(left) = left {
            self.waiting.fetch_sub(1, SeqCst);
            way.counted.iter().for_each(|node| node.end_wait());
            // It may have blocked others.
            self.serve(state);
            drop(left);
        }
    }

    /// A slot was returned.
    pub(super) fn freed(&self) {
        if self.waiting.load(SeqCst) > 0 {
            self.serve(self.lock());
        }
    }

    pub(super) fn refund(&self, way: &LimitPath, bytes: u64, at: u64) {
        let state = self.lock();
        way.counted.iter().for_each(|node| node.refund(bytes, at));
        self.serve(state);
    }

    fn serve(&self, mut state: MutexGuard<'_, State>) {
        if state.root.is_idle() {
            state.wake = None;
            return;
        }
        let now = self.now();
        let before = state.wake.take();
        let mut wake = None;
        let mut served = Vec::new();
        while let Some(waiter) = state.root.next(now, 0, &mut wake) {
            for node in &waiter.way.counted {
                node.end_wait();
                node.pay(waiter.bytes, now);
                if waiter.slot {
                    node.enter();
                }
            }
            self.waiting.fetch_sub(1, SeqCst);
            served.push(waiter);
        }
        state.wake = wake;
        drop(state);
        if wake.is_some_and(|wake| before.is_none_or(|before| wake < before)) {
            self.earlier.notify_one();
        }
        for Waiter { way, bytes, slot, granted, .. } in served {
            // Comes back, and is returned to its limits, if its waiter is gone.
            drop(granted.send(Grant::paid(way, bytes, slot, now)));
        }
    }
}

/// Serves every waiter that may go by the clock, until the rate limiter is dropped.
async fn keep_time(shared: Weak<Shared>, earlier: Arc<Notify>) {
    loop {
        let until = {
            let Some(shared) = shared.upgrade() else { return };
            shared.serve(shared.lock());
            let wake = shared.lock().wake;
            let until = wake.map(|wake| shared.began + Duration::from_nanos(wake));
            until.map(|until| until.min(Instant::now() + FAR))
        };
        match until {
            Some(until) => tokio::select! {
                biased;
                () = sleep_until(until) => {}
                () = earlier.notified() => {}
            },
            None => earlier.notified().await,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.earlier.notify_one();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}
