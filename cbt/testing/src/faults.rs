//! Random numbers from a seed, and faults at chosen moments.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A small generator (SplitMix64): the same seed gives the same numbers everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw().checked_rem(end).unwrap_or(0)
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// A moment at which a fault may strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskEvent {
    Read,
    Allocation,
    Write,
    Flush,
    Load,
    Hashes,
    Commit,
}

/// The faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// The call fails.
    Fail,
    /// The process dies in the call: it and all later ones fail, and no call in flight has an effect, until
    /// [`Faults::revive`].
    Crash,
}

/// The faults of one world of disks and stores. Clones are handles on the same.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    rules: Vec<(DiskEvent, u64, DiskFault)>,
    seen: HashMap<DiskEvent, u64>,
    dead: bool,
    /// The number of the process's life.
    life: u64,
}

impl Faults {
    /// Lets `fault` strike the `nth` next `event`, counted from 0.
    pub fn add(&self, event: DiskEvent, nth: u64, fault: DiskFault) {
        let mut state = self.state();
        let at = state.seen.get(&event).copied().unwrap_or(0) + nth;
        state.rules.push((event, at, fault));
    }

    /// Forgets all faults that have not struck.
    pub fn clear(&self) {
        self.state().rules.clear();
    }

    /// Whether the process is dead.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Kills the process between two calls.
    pub fn crash(&self) {
        self.state().die();
    }

    /// Starts the process again.
    pub fn revive(&self) {
        self.state().dead = false;
    }

    /// How often `event` has happened.
    pub fn seen(&self, event: DiskEvent) -> u64 {
        self.state().seen.get(&event).copied().unwrap_or(0)
    }

    /// Counts an event: the life that it happens in, and its fault.
    pub(super) fn strike(&self, event: DiskEvent) -> (u64, Option<DiskFault>) {
        let mut state = self.state();
        if state.dead {
            return (state.life, Some(DiskFault::Crash));
        }
        let seen = state.seen.entry(event).or_default();
        let now = *seen;
        *seen += 1;
        let struck = state.rules.iter().position(|(on, nth, _)| (*on, *nth) == (event, now));
        let fault = struck.map(|rule| state.rules.swap_remove(rule).2);
        let life = state.life;
        if fault == Some(DiskFault::Crash) {
            state.die();
        }
        (life, fault)
    }

    /// Whether the process that began a call in `life` still runs.
    pub(super) fn lives(&self, life: u64) -> bool {
        let state = self.state();
        !state.dead && state.life == life
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn die(&mut self) {
        self.dead = true;
        self.life += 1;
        self.rules.clear();
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("rules", &self.state().rules).finish_non_exhaustive()
    }
}
