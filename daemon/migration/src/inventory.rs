//! Inventories of the sources: read periodically and cached, so that lists and new plans do not wait for
//! hundreds of VMs.
//!
//! Rule: for information only. Plans are checked against the source itself, and every answer has its time.

use std::{sync::Arc, time::Duration};

use warmd_core::{clock, control::ControlError, model::machine::Inventory};

use super::manager::{Manager, internal};

/// The interval at which each source is read.
pub const EVERY: Duration = Duration::from_mins(5);

impl Manager {
    /// A source's VMs: from the cache, if it is fresh enough and no refresh is requested.
    pub(super) async fn inventory(&self, source: &str, refresh: bool) -> Result<Inventory, ControlError> {
        self.source(source)?;
        let kept = self.store.inventory(source).await.map_err(internal)?;
        let is_fresh = |kept: &Inventory| {
            let age = (clock::now() - kept.seen).to_std();
            // An inventory from the future was recorded with a wrong clock.
            age.is_ok_and(|age| age < EVERY)
        };
        match kept {
            Some(kept) if !refresh && is_fresh(&kept) => Ok(kept),
            kept => match (self.look(source).await, kept) {
                (Ok(inventory), _) => Ok(inventory),
                (Err(error), Some(kept)) if !refresh => Ok(Inventory { stale: Some(error.message), ..kept }),
                (Err(error), _) => Err(error),
            },
        }
    }

    /// Reads the source, and caches the result.
    async fn look(&self, source: &str) -> Result<Inventory, ControlError> {
        let seen = clock::now();
        let vms = self.source(source)?.vms().await?;
        if let Err(error) = self.store.put_inventory(source, vms.clone(), seen).await {
            tracing::warn!(source, %error, "the inventory is not kept");
        }
        Ok(Inventory { vms, seen, stale: None })
    }

    /// Reads every source periodically, until the daemon ends.
    pub async fn poll_inventories(self: Arc<Self>) {
        loop {
            for source in self.endpoints.sources.keys() {
                tokio::select! {
                    () = self.shutdown.cancelled() => return,
                    looked = self.look(source) => {
                        if let Err(error) = looked {
                            tracing::info!(source, %error, "the inventory cannot be refreshed");
                        }
                    }
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }
}
