//! The observers of a pass, one for each kind of reader.
//!
//! Rule: the order matters at the end of a pass: counted first, then recorded, then shown.

use async_trait::async_trait;
use warmd_cbt::store::StoreError;
use warmd_core::pass::{Observers, PassEvent, PassObserver};
use warmd_store::Store;

use super::{PassDisk, live::LivePass, tell_strain};
use crate::{context::Context, telemetry::PassTelemetry};

/// The observers of a recorded pass: `account` counts it.
pub(super) fn of<'a>(
    context: &'a Context,
    account: Box<dyn PassObserver>,
    pass: i64,
    disks: &[PassDisk],
) -> Observers<'a> {
    let mut observers = Observers::default();
    observers.add_boxed(account);
    observers.add(PassRecord { store: context.store.clone(), pass });
    observers.add(LivePass::new(context, disks));
    observers.add(PassTelemetry::new(context, pass, disks.iter().filter_map(PassDisk::measured).collect()));
    observers.add(PassJournal(context));
    observers
}

/// Records the end of the pass in the state.
struct PassRecord {
    store: Store,
    pass: i64,
}

#[async_trait]
impl PassObserver for PassRecord {
    async fn observe(&self, event: &PassEvent) -> Result<(), StoreError> {
        match event {
            PassEvent::Ended { at, outcome } => self.store.end_pass(self.pass, *at, outcome.error()).await,
            _ => Ok(()),
        }
    }
}

/// Writes to the journal what an operator should know.
struct PassJournal<'a>(&'a Context);

#[async_trait]
impl PassObserver for PassJournal<'_> {
    async fn observe(&self, event: &PassEvent) -> Result<(), StoreError> {
        if let PassEvent::HeldBack { disk, millis } = event {
            tell_strain(self.0, disk, *millis).await;
        }
        Ok(())
    }
}
