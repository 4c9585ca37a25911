//! The order of turns: a tree of flows, in which at each fork the flow that had the least goes first.
//!
//! Rule: a flow that was idle, or that other limits delayed, has no claim for its unused share: it begins
//! at the present value of the others. So no flow starves, and none is paid for the past. A flow of
//! weight 3 is charged a third.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;

use super::{
    node::SlotState,
    path::{Grant, LimitPath},
};

/// The least charge of a turn, in bytes: requests without bytes take turns too.
const LEAST: u64 = 64 << 10;

/// A waiter.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) id: u64,
    pub(super) way: Arc<LimitPath>,
    pub(super) bytes: u64,
    pub(super) slot: bool,
    pub(super) granted: oneshot::Sender<Grant>,
}

impl Waiter {
    fn ready(&self, now: u64) -> SlotState {
        let mut latest = SlotState::Now;
        for node in &self.way.counted {
            match (node.ready(self.bytes, self.slot, now), latest) {
                (SlotState::Full, _) => return SlotState::Full,
                (SlotState::At(open), SlotState::At(other)) => latest = SlotState::At(open.max(other)),
                (SlotState::At(open), _) => latest = SlotState::At(open),
                (SlotState::Now, _) => {}
            }
        }
        latest
    }

    /// The charge of its turn at the fork of so many keys.
    fn turn(&self, depth: usize) -> u64 {
        self.bytes.max(LEAST) / self.way.nodes.get(depth).map_or(1, |node| node.weight())
    }
}

/// A fork, or at a path's end the requests that wait there.
#[derive(Debug, Default)]
pub(super) struct WfqNode {
    ways: usize,
    children: BTreeMap<u64, WfqNode>,
    /// Children with waiters: the charge of each, and its key.
    active: BTreeSet<(u64, u64)>,
    /// This flow's charge, at its parent.
    charged: u64,
    /// The charge of the child served last, the highest so far.
    virtual_time: u64,
    /// Requests that wait for no rate must not wait behind those that do.
    paid: VecDeque<Waiter>,
    unpaid: VecDeque<Waiter>,
}

impl WfqNode {
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_empty() && self.paid.is_empty() && self.unpaid.is_empty()
    }

    /// Makes room for the path of these keys.
    pub(super) fn open(&mut self, way: &[u64]) {
        self.ways += 1;
        if let [key, rest @ ..] = way {
            self.children.entry(*key).or_default().open(rest);
        }
    }

    /// Forgets a path without waiters.
    pub(super) fn close(&mut self, way: &[u64]) {
        self.ways -= 1;
        if let [key, rest @ ..] = way
            && let Some(child) = self.children.get_mut(key)
        {
            child.close(rest);
            if child.ways == 0 {
                self.children.remove(key);
            }
        }
    }

    pub(super) fn push(&mut self, way: &[u64], waiter: Waiter) {
        match way {
            [key, rest @ ..] => {
                let Some(child) = self.children.get_mut(key) else { return };
                if child.is_idle() {
                    self.active.insert((child.charged, *key));
                }
                child.push(rest, waiter);
            }
            [] if waiter.bytes == 0 => self.paid.push_back(waiter),
            [] => self.unpaid.push_back(waiter),
        }
    }

    /// Removes a waiter that stopped waiting; `None` if it is not there.
    pub(super) fn remove(&mut self, way: &[u64], id: u64) -> Option<Waiter> {
        if let [key, rest @ ..] = way {
            let child = self.children.get_mut(key)?;
            let removed = child.remove(rest, id)?;
            if child.is_idle() {
                self.active.remove(&(child.charged, *key));
            }
            return Some(removed);
        }
        [&mut self.paid, &mut self.unpaid].into_iter().find_map(|queue| {
            let at = queue.iter().position(|waiter| waiter.id == id)?;
            queue.remove(at)
        })
    }

    /// Takes out the next waiter that may go now. If there is none, `wake` is set no later than the time when
    /// there may be one. It is the fork at this depth of keys.
    pub(super) fn next(&mut self, now: u64, depth: usize, wake: &mut Option<u64>) -> Option<Waiter> {
        for queue in [&mut self.paid, &mut self.unpaid] {
            match queue.front().map(|waiter| waiter.ready(now)) {
                Some(SlotState::Now) => return queue.pop_front(),
                Some(SlotState::At(open)) => *wake = Some(wake.map_or(open, |wake| wake.min(open))),
                Some(SlotState::Full) | None => {}
            }
        }
        let children = &mut self.children;
        let (charged, key, waiter) = self.active.iter().find_map(|(charged, key)| {
            let waiter = children.get_mut(key)?.next(now, depth + 1, wake)?;
            Some((*charged, *key, waiter))
        })?;
        self.active.remove(&(charged, key));
        // Regardless of unused shares in the past, it has had no less than the others.
        self.virtual_time = self.virtual_time.max(charged);
        if let Some(child) = self.children.get_mut(&key) {
            child.charged = self.virtual_time + waiter.turn(depth);
            if !child.is_idle() {
                self.active.insert((child.charged, key));
            }
        }
        Some(waiter)
    }
}
