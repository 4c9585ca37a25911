//! The verification of one disk, with its findings kept while it runs.
//!
//! Rule: a mismatch is kept when it is found, for every end of the verification: another one may never check
//! those blocks. Progress is kept from time to time, and never past a mismatch.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;
use warmd_cbt::{
    disk::ReadDisk,
    units::{Extent, Offset},
    verify::{VerifyError, VerifyJob, VerifyOutcome, VerifyProgress, compare, readback},
};

/// The interval at which progress is kept.
const KEEP_EVERY: Duration = Duration::from_secs(5);

/// Keeps what a verification of one disk finds.
#[async_trait]
pub trait VerifyKeeper: Send + Sync {
    type Error: From<VerifyError> + Send;

    /// Blocks that differ, and those of them whose change the source had not reported. An error ends the
    /// verification.
    async fn found(&self, wrong: Vec<Extent>, unreported: Vec<Extent>) -> Result<(), Self::Error>;

    /// All blocks before this byte were checked, and are equal.
    async fn reached(&self, at: Offset) -> Result<(), Self::Error>;

    /// Progress was not kept; only a little of the work is repeated for it.
    fn not_kept(&self, error: Self::Error);
}

/// Compares the target with the manifest, and with the source if one is given.
pub async fn verify_disk<K: VerifyKeeper>(
    job: VerifyJob,
    target: Arc<dyn ReadDisk>,
    source: Option<Arc<dyn ReadDisk>>,
    keeper: &K,
) -> Result<VerifyOutcome, K::Error> {
    let (progress, size) = (Arc::clone(&job.progress), job.ledger.size());
    let take = |progress: &VerifyProgress| (progress.take_unreported(), progress.take_wrong(size));
    let checking = async {
        match source {
            None => readback(job, target).await,
            Some(source) => compare(job, source, target).await,
        }
    };
    tokio::pin!(checking);
    let result = loop {
        tokio::select! {
            biased;
            result = &mut checking => break result,
            () = progress.found() => {
                let (unreported, wrong) = take(&progress);
                keeper.found(wrong, unreported).await?;
                continue;
            }
            () = tokio::time::sleep(KEEP_EVERY) => {}
        }
        if let Err(error) = keeper.reached(Offset(progress.checked_to.load(Relaxed))).await {
            keeper.not_kept(error);
        }
    };
    let (unreported, wrong) = take(&progress);
    keeper.found(wrong, unreported).await?;
    keeper.reached(Offset(progress.checked_to.load(Relaxed))).await?;
    Ok(result?)
}
