//! Limits of bytes a second and of requests in flight, enforced together for disk, migration, endpoint and
//! the whole daemon.
//!
//! Rule: a request goes only when every limit on its path allows it, and then pays all of them at once, so
//! that none is spent on a request that still waits for another. Waiters are served fairly at each level of
//! the path, by bytes: with any number of requests a disk has one turn, and so has a migration with any
//! number of disks.
//!
//! ```text
//! all ─┬─ source a ─┬─ migration 1 ─┬─ disk: reads
//!      │            │               └─ disk: reads     turns are taken at each fork;
//!      │            └─ migration 2 ─── disk: reads     a path may pass a limit without counting there
//!      └─ target b ─── migration 1 ─┬─ disk: writes
//!                                   └─ disk: writes
//! ```
//!
//! A rate is exact over time and not at each moment: a request goes when the earlier ones are paid for,
//! whatever its own size, and its bytes are paid for afterwards. Over any ten seconds that is the rate, give
//! or take one request and the credit of an idle moment ([`BURST`] of it at most).

mod meter;
mod node;
mod pace;
mod path;
mod queue;
mod wfq;

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

pub use self::path::{Limits, Permit, Reservation};
use self::{node::Node, queue::Shared};

/// The credit that an idle limit saves up, as a part of its rate. Enough for a timer or a thread that comes
/// late, too little to be seen in a mean over ten seconds.
pub const BURST: Duration = Duration::from_millis(200);

/// The allowed values; absent is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Bytes a second.
    pub rate: Option<NonZeroU64>,
    /// Requests in flight.
    pub requests: Option<NonZeroU32>,
}

/// The present traffic of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LimitLoad {
    /// Bytes a second, over the last five seconds.
    pub rate: f64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests that wait, for this limit or for another on their path.
    pub waiting: u64,
}

/// Keeps the limits of one daemon together: users of one limit must have it from the same rate limiter.
#[derive(Clone, Debug)]
pub struct RateLimiter(Arc<Shared>);

impl RateLimiter {
    /// A rate limiter without limits.
    pub fn new() -> Self {
        Self(Arc::new(Shared::new()))
    }

    /// A new limit.
    pub fn limiter(&self, limit: Limit) -> Limiter {
        let limiter = Limiter { node: Arc::new(Node::new(self.0.id())), shared: Arc::clone(&self.0) };
        limiter.set(limit);
        limiter
    }

    /// A path through limits, the outermost first, each with whether requests on this path count there or
    /// only take their turn. Clones share one turn.
    pub fn limits<'a>(&self, way: impl IntoIterator<Item = (&'a Limiter, bool)>) -> Limits {
        let way = way.into_iter().map(|(limiter, counts)| (Arc::clone(&limiter.node), counts));
        Limits::new(&self.0, way)
    }
}

impl Default for RateLimiter {
    fn default() -> Self {
        Self::new()
    }
}

/// One limit. Clones are handles on it.
#[derive(Clone, Debug)]
pub struct Limiter {
    node: Arc<Node>,
    shared: Arc<Shared>,
}

impl Limiter {
    /// The allowed values now.
    pub fn limit(&self) -> Limit {
        self.node.limit()
    }

    /// Changes the allowed values, also for waiting requests. A debt at the old rate is paid at the new one.
    pub fn set(&self, limit: Limit) {
        self.shared.set(&self.node, limit);
    }

    /// Gives its traffic `weight` times the share of its siblings, from now on; 1 at first.
    pub fn set_weight(&self, weight: u32) {
        self.node.set_weight(weight);
    }

    /// Its present traffic.
    pub fn load(&self) -> LimitLoad {
        self.node.load(self.shared.now())
    }
}

/// The limits of the work on one disk, by operation. Unlimited by default.
#[derive(Clone, Debug, Default)]
pub struct DiskShares {
    /// Reads of the source.
    pub reads: Limits,
    /// Writes to the target.
    pub writes: Limits,
    /// Reads of the target, to verify it.
    pub readbacks: Limits,
}
