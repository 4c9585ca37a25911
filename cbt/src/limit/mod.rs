//! Limits of bytes a second and of requests in flight, enforced together for disk, migration, endpoint and
//! the whole daemon.
//!
//! Rule: a request goes only when every limit on its way lets it, and then pays all of them at once, so that none is
//! spent on what still waits for another. Who waits is served fairly at each level of the way, by bytes: however many
//! requests a disk has, it has one turn, and so has a migration with however many disks.
//!
//! ```text
//! all ─┬─ source a ─┬─ migration 1 ─┬─ disk: reads
//!      │            │               └─ disk: reads     turns are taken at each fork;
//!      │            └─ migration 2 ─── disk: reads     a way may pass a limit without counting there
//!      └─ target b ─── migration 1 ─┬─ disk: writes
//!                                   └─ disk: writes
//! ```
//!
//! A rate is exact over time and not over each moment: a request goes when what went before is paid for, whatever its
//! own size, and its bytes are paid for afterwards. Over any ten seconds that is the rate, give or take one request and
//! what was saved up in an idle moment ([`BURST`] of it at most).

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

/// How much of its rate an idle limit saves up. Enough for a timer or a thread that comes late, too little to be seen
/// in a mean over ten seconds.
pub const BURST: Duration = Duration::from_millis(200);

/// What is allowed; nothing set is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Bytes a second.
    pub rate: Option<NonZeroU64>,
    /// Requests in flight.
    pub requests: Option<NonZeroU32>,
}

/// What goes through a limit now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LimitLoad {
    /// Bytes a second, over the last five seconds.
    pub rate: f64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests that wait, for this limit or for another on their way.
    pub waiting: u64,
}

/// Keeps the limits of one daemon together: users of one limit must have it from the same rate limiter.
#[derive(Clone, Debug)]
pub struct RateLimiter(Arc<Shared>);

impl RateLimiter {
    /// One without any limits yet.
    pub fn new() -> Self {
        Self(Arc::new(Shared::new()))
    }

    /// A new limit.
    pub fn limiter(&self, limit: Limit) -> Limiter {
        let limiter = Limiter { node: Arc::new(Node::new(self.0.id())), shared: Arc::clone(&self.0) };
        limiter.set(limit);
        limiter
    }

    /// A way through limits, the outermost first, each with whether requests on this way count there or only take
    /// their turn. Clones share one turn.
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

/// One limit. Clones are handles on the same.
#[derive(Clone, Debug)]
pub struct Limiter {
    node: Arc<Node>,
    shared: Arc<Shared>,
}

impl Limiter {
    /// What is allowed now.
    pub fn limit(&self) -> Limit {
        self.node.limit()
    }

    /// Allows something else from now on, also to who waits already. What is owed at the old rate is paid at the new.
    pub fn set(&self, limit: Limit) {
        self.shared.set(&self.node, limit);
    }

    /// Lets what goes through it have `weight` times as much as others beside it where they share, from now on; 1 at
    /// first.
    pub fn set_weight(&self, weight: u32) {
        self.node.set_weight(weight);
    }

    /// What goes through it now.
    pub fn load(&self) -> LimitLoad {
        self.node.load(self.shared.now())
    }
}

/// What the work on one disk takes from, by what it does. Unlimited by default.
#[derive(Clone, Debug, Default)]
pub struct DiskShares {
    /// Reads of the source.
    pub reads: Limits,
    /// Writes to the target.
    pub writes: Limits,
    /// Reads of the target, to verify it.
    pub readbacks: Limits,
}
