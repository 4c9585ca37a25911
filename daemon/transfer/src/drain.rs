//! Drains the disks of a pass, all at the same time.
//!
//! Rule: when it returns, no request of the pass is in flight. If one disk fails, the others still finish:
//! what they drain counts.

use std::sync::{Arc, Mutex};

use futures::future::join_all;
use warmd_cbt::{
    buffer::BufferPool,
    disk::{ReadDisk, WriteDisk},
    ledger::Ledger,
    limit::{DiskShares, Limit, RateLimiter},
    stop::StopSignal,
    transfer::{LatencyBaseline, PassError, PassJob, PassProgress, run_pass},
};
use warmd_core::{
    model::id::DiskKey,
    pass::{PassEvent, PassObserver, PassOrder, PassResult, RateCeiling},
};

/// One disk of an order, opened.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "disks are trait objects")]
pub struct OpenDisk {
    pub key: DiskKey,
    /// The pass in the state that its figures belong to.
    pub record: Option<i64>,
    pub ledger: Arc<Ledger>,
    /// The snapshot that the ledger's anchor names.
    pub source: Arc<dyn ReadDisk>,
    pub target: Arc<dyn WriteDisk>,
    pub limits: DiskShares,
    pub baseline: Arc<Mutex<LatencyBaseline>>,
    pub progress: Arc<PassProgress>,
}

/// The end of a drain that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainEnd {
    /// Nothing is pending any more.
    Drained,
    /// Stopped on request; what it had drained stays drained.
    Stopped,
}

/// Copies what is pending on each disk.
pub async fn drain(
    order: &PassOrder,
    disks: Vec<OpenDisk>,
    pool: &BufferPool,
    observer: &dyn PassObserver,
    stop: &StopSignal,
) -> Result<DrainEnd, PassError> {
    let totals = disks.iter().map(|disk| (disk.key.clone(), disk.ledger.pending_bytes().0));
    observer.observe(&PassEvent::Opened(totals.collect())).await?;
    let mut settings = order.settings;
    settings.buffers = settings.buffers.min(pool.fair(disks.len()));
    let meters = disks.iter().map(|disk| (disk.key.clone(), Arc::clone(&disk.progress))).collect::<Vec<_>>();
    let passes = disks.into_iter().map(|disk| {
        run_pass(PassJob {
            ledger: disk.ledger,
            source: disk.source,
            target: disk.target,
            pool: pool.clone(),
            settings,
            pass: disk.record,
            progress: disk.progress,
            limits: disk.limits,
            baseline: disk.baseline,
            stop: stop.clone(),
        })
    });
    let results = join_all(passes).await;
    observer.observe(&PassEvent::Drained).await?;
    for (disk, progress) in meters {
        let millis = progress.view().held_back;
        if millis > 0 {
            observer.observe(&PassEvent::HeldBack { disk, millis }).await?;
        }
    }
    let mut end = DrainEnd::Drained;
    for result in results {
        if !result?.finished {
            end = DrainEnd::Stopped;
        }
    }
    Ok(end)
}

/// The shares of a pass outside the daemon: its reads and its writes keep to the lowest ceiling.
pub fn shares_within(ceilings: &[RateCeiling]) -> DiskShares {
    let Some(rate) = ceilings.iter().map(|ceiling| ceiling.bytes_per_second).min() else {
        return DiskShares::default();
    };
    let all = RateLimiter::new();
    let limits = || {
        let limiter = all.limiter(Limit { rate: Some(rate), ..Limit::default() });
        all.limits([(&limiter, true)])
    };
    DiskShares { reads: limits(), writes: limits(), readbacks: limits() }
}

/// The outcome as a message.
pub fn outcome(result: &Result<DrainEnd, PassError>) -> PassResult {
    match result {
        Ok(DrainEnd::Drained) => PassResult::Drained,
        Ok(DrainEnd::Stopped) => PassResult::Stopped,
        Err(error) => PassResult::Failed(error.into()),
    }
}
