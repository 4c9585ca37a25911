//! How many snapshots of one vCenter are made or removed at a time.
//!
//! Rule: only a snapshot of a VM that runs waits for its turn. With the VM off nothing waits, and a removal
//! neither: a redo log grows meanwhile. Both count.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use warmd_core::sources::{SourceError, SourceErrorKind};

/// The turns of one vCenter; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    free: Arc<Semaphore>,
    most: usize,
}

/// Given back by being dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _held: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new(most: usize) -> Self {
        // A semaphore has a bound of its own.
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(most)), most }
    }

    /// Waits for a turn.
    pub(super) async fn wait(
        &self,
        within: Duration,
        context: impl Fn() -> String,
    ) -> Result<Turn, SourceError> {
        match timeout(within, Arc::clone(&self.free).acquire_owned()).await {
            Ok(Ok(held)) => Ok(Turn { _held: Some(held) }),
            // Nothing closes it.
            Ok(Err(closed)) => Err(SourceError::new(SourceErrorKind::Failed, context(), closed)),
            Err(_) => {
                let why = format!(
                    "{} other snapshots of this vCenter are made or removed (`capacity.snapshots_at_once`); trying again",
                    self.most
                );
                Err(SourceError::new(SourceErrorKind::Blocked, context(), why))
            }
        }
    }

    /// Takes a turn if there is one, and goes on without it if there is none.
    pub(super) fn at_once(&self) -> Turn {
        Turn { _held: Arc::clone(&self.free).try_acquire_owned().ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_waits_for_its_turn_and_a_removal_does_not() {
        let turns = Turns::new(2);
        let context = || "VM x".to_owned();
        let first = turns.wait(SHORT, context).await.unwrap();
        let removal = turns.at_once();
        let error = turns.wait(SHORT, context).await.unwrap_err();
        assert_eq!(error.kind, SourceErrorKind::Blocked, "{error}");
        assert!(error.to_string().contains("snapshots_at_once"), "{error}");
        drop(turns.at_once());
        drop(removal);
        let second = turns.wait(SHORT, context).await.unwrap();
        drop((first, second));
        turns.wait(SHORT, context).await.unwrap();
    }
}
