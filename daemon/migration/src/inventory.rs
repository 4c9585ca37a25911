//! What sources have: looked at now and then, and kept, so that lists and new plans need not wait for hundreds of VMs.
//!
//! Rule: it only informs. What is planned is judged by the source itself, and every answer says from when it is.

use std::{sync::Arc, time::Duration};

use warmd_core::control::ControlError;
use warmd_core::{clock, model::machine::Inventory};

use super::manager::{Manager, internal};

/// How often each source is looked at.
pub const EVERY: Duration = Duration::from_mins(5);

impl Manager {
    /// What a source has: as kept, if that is fresh enough and no refresh is wanted.
    pub(super) async fn inventory(&self, source: &str, refresh: bool) -> Result<Inventory, ControlError> {
        self.source(source)?;
        let kept = self.store.inventory(source).await.map_err(internal)?;
        let is_fresh = |kept: &Inventory| {
            let age = (clock::now() - kept.seen).to_std();
            // One from the future is of a clock that was wrong.
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

    /// Asks the source, and keeps what it says.
    async fn look(&self, source: &str) -> Result<Inventory, ControlError> {
        let seen = clock::now();
        let vms = self.source(source)?.vms().await?;
        if let Err(error) = self.store.put_inventory(source, vms.clone(), seen).await {
            tracing::warn!(source, %error, "the inventory is not kept");
        }
        Ok(Inventory { vms, seen, stale: None })
    }

    /// Looks at every source now and then, until the daemon ends.
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
