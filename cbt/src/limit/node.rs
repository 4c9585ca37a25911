//! One limit: its values, its traffic, and when it is open again.
//!
//! Rule: `open` and `since` change only under the rate limiter's lock; everything else may be read by any
//! thread. Slots and the limits on them are ordered strictly, so that a returned slot and a new waiter cannot
//! miss each other.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};

use super::{Limit, LimitLoad, meter::Meter, pace};

#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) id: u64,
    /// 0: no limit.
    rate: AtomicU64,
    /// 0: no limit.
    requests: AtomicU32,
    in_flight: AtomicU64,
    waiting: AtomicU64,
    /// Its weight among its siblings; 0 is 1.
    weight: AtomicU32,
    meter: Meter,
    open: AtomicU64,
    /// When it last began to have a rate; earlier requests were not paid for.
    since: AtomicU64,
}

/// Whether a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    Now,
    /// Not before this moment.
    At(u64),
    /// Not before a request in flight has ended, or a limit was changed.
    Full,
}

impl Node {
    pub(super) fn new(id: u64) -> Self {
        Self { id, ..Self::default() }
    }

    fn rate(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.rate.load(SeqCst))
    }

    pub(super) fn limit(&self) -> Limit {
        Limit { rate: self.rate(), requests: NonZeroU32::new(self.requests.load(SeqCst)) }
    }

    pub(super) fn weight(&self) -> u64 {
        u64::from(self.weight.load(Relaxed).max(1))
    }

    pub(super) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Relaxed);
    }

    pub(super) fn limits_requests(&self) -> bool {
        self.requests.load(SeqCst) != 0
    }

    pub(super) fn is_limited(&self) -> bool {
        self.limits_requests() || self.rate().is_some()
    }

    pub(super) fn set(&self, limit: Limit, now: u64) {
        let before = self.rate();
        self.open.store(pace::changed(self.open.load(Relaxed), now, before, limit.rate), Relaxed);
        if before.is_none() {
            self.since.store(now, Relaxed);
        }
        self.rate.store(limit.rate.map_or(0, NonZeroU64::get), SeqCst);
        self.requests.store(limit.requests.map_or(0, NonZeroU32::get), SeqCst);
    }

    pub(super) fn ready(&self, bytes: u64, slot: bool, now: u64) -> SlotState {
        let requests = u64::from(self.requests.load(SeqCst));
        if slot && requests != 0 && self.in_flight.load(SeqCst) >= requests {
            return SlotState::Full;
        }
        match self.open.load(Relaxed) {
            open if bytes > 0 && open > now && self.rate().is_some() => SlotState::At(open),
            _ => SlotState::Now,
        }
    }

    pub(super) fn pay(&self, bytes: u64, now: u64) {
        if let Some(rate) = self.rate() {
            self.open.store(pace::after(self.open.load(Relaxed), now, bytes, rate), Relaxed);
        }
    }

    /// Refunds what was paid at the moment `at`.
    pub(super) fn refund(&self, bytes: u64, at: u64) {
        if let Some(rate) = self.rate()
            && at >= self.since.load(Relaxed)
        {
            self.open.store(pace::back(self.open.load(Relaxed), bytes, rate), Relaxed);
        }
    }

    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, SeqCst);
    }

    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, SeqCst);
    }

    pub(super) fn begin_wait(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    pub(super) fn end_wait(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    pub(super) fn count(&self, now: u64, bytes: u64) {
        self.meter.add(now, bytes);
    }

    pub(super) fn load(&self, now: u64) -> LimitLoad {
        LimitLoad {
            rate: self.meter.rate(now),
            in_flight: self.in_flight.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
        }
    }
}
