//! Disks that take turns, on a clock of their own.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};
use warmd_cbt::limit::{Limit, Limiter, Limits, RateLimiter};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn rate(bytes: u64) -> Limit {
    Limit { rate: NonZeroU64::new(bytes), requests: None }
}

pub(crate) fn requests(count: u32) -> Limit {
    Limit { rate: None, requests: NonZeroU32::new(count) }
}

/// A global limit, a source below it, and migrations below that.
pub(crate) struct LimitWorld {
    pub(crate) rate_limiter: RateLimiter,
    pub(crate) global: Limiter,
    pub(crate) source: Limiter,
}

impl LimitWorld {
    pub(crate) fn new() -> Self {
        let rate_limiter = RateLimiter::new();
        let (global, source) =
            (rate_limiter.limiter(Limit::default()), rate_limiter.limiter(Limit::default()));
        Self { rate_limiter, global, source }
    }

    pub(crate) fn limiter(&self) -> Limiter {
        self.rate_limiter.limiter(Limit::default())
    }

    /// A disk of a migration.
    pub(crate) fn disk(&self, migration: &Limiter) -> (Limiter, Limits) {
        let disk = self.limiter();
        let way = [(&self.global, true), (&self.source, true), (migration, true), (&disk, true)];
        (disk.clone(), self.rate_limiter.limits(way))
    }

    /// A disk of a migration of its own.
    pub(crate) fn alone(&self) -> Limits {
        self.disk(&self.limiter()).1
    }
}

/// A load of many requests at once, until dropped.
pub(crate) struct SimulatedLoad {
    pub(crate) bytes: Arc<AtomicU64>,
    pub(crate) most: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl SimulatedLoad {
    /// `depth` requests of `size` bytes at once, each of which takes `latency`.
    pub(crate) fn start(limits: &Limits, depth: usize, size: u64, latency: Duration) -> Self {
        let [bytes, in_flight, most] = [(); 3].map(|()| Arc::new(AtomicU64::new(0)));
        let tasks = (0..depth).map(|_| {
            let limits = limits.clone();
            let (bytes, in_flight, most) = (Arc::clone(&bytes), Arc::clone(&in_flight), Arc::clone(&most));
            tokio::spawn(async move {
                loop {
                    let _permit = limits.take(size).await;
                    bytes.fetch_add(size, Relaxed);
                    most.fetch_max(in_flight.fetch_add(1, Relaxed) + 1, Relaxed);
                    tokio::time::sleep(latency).await;
                    in_flight.fetch_sub(1, Relaxed);
                }
            })
        });
        Self { tasks: tasks.collect(), bytes, most }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

impl Drop for SimulatedLoad {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Bytes of each load during the next `time`.
pub(crate) async fn during(time: Duration, loads: &[SimulatedLoad]) -> Vec<u64> {
    let before: Vec<_> = loads.iter().map(SimulatedLoad::bytes).collect();
    tokio::time::sleep(time).await;
    loads.iter().zip(before).map(|(load, before)| load.bytes() - before).collect()
}

/// Fails unless `seen` is within `percent` of `wanted`, or within `slack` of it.
pub(crate) fn assert_near(what: &str, seen: u64, wanted: u64, percent: u64, slack: u64) {
    let off = seen.abs_diff(wanted);
    assert!(off <= (wanted * percent / 100).max(slack), "{what}: {seen} instead of {wanted}");
}

/// How long it takes on this clock.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    (work.await, begun.elapsed())
}
