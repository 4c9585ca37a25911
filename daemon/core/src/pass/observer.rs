//! The observers of passes: metrics, the live view, the journal, the state.
//!
//! Rule: a pass knows none of them. Observers get each event in their order, one after another, and the pass
//! waits for them: what one of them writes is written before the pass goes on. An observer that only informs
//! never fails.

use std::{fmt::Debug, ops::Range, sync::Arc};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use warmd_cbt::{
    manifest::BlockHash,
    store::{DiskId, StoreError},
    transfer::{PassProgress, ProgressView},
};

use super::{
    event::{DiskFigures, LedgerChange, PassEvent},
    order::PassLabels,
};
use crate::model::id::{DiskKey, MigrationId};

/// Observes one pass. If it is dropped before [`PassEvent::Ended`], the pass was abandoned.
#[async_trait]
pub trait PassObserver: Send + Sync {
    /// Takes an event. An error ends the pass; only an observer that keeps the state gives one.
    async fn observe(&self, event: &PassEvent) -> Result<(), StoreError>;

    /// The figures of the pass can be read from now on, until its end.
    fn follow(&self, figures: &Arc<dyn LiveFigures>) {
        let _ = figures;
    }
}

/// The figures of a running pass, in the disks' order: of its meters, or as a mover sent them last.
pub trait LiveFigures: Send + Sync {
    /// The counters alone, which is cheap.
    fn progress(&self) -> Vec<(DiskKey, ProgressView)>;

    /// All figures.
    fn figures(&self) -> Vec<DiskFigures>;
}

/// Observes all passes and audits of the daemon.
pub trait TransferObserver: Send + Sync + Debug {
    /// A pass begins, before its snapshot is taken.
    fn begin_pass(&self, name: PassLabels, started: DateTime<Utc>) -> Box<dyn PassObserver>;

    /// So many bytes of a disk were compared with the manifest, and so many of them had changed without the
    /// source having reported it.
    fn audited(&self, plan: &str, vm: &str, disk: &DiskKey, checked: u64, unreported: u64);

    /// A migration is finished.
    fn finished(&self, id: MigrationId, plan: &str, vm: &str, at: DateTime<Utc>);

    /// A finished migration is resumed.
    fn again(&self, id: MigrationId);
}

/// The state as a mover sees it.
#[async_trait]
pub trait PassLedger: Send + Sync {
    /// Commits the change. A success is the acknowledgement: the change is durable. After an error it may be
    /// durable all the same, and the order is void.
    async fn commit(&self, change: LedgerChange) -> Result<(), StoreError>;

    /// The manifest's hashes of all blocks of `spans`, which are in order and apart; one for each.
    async fn hashes(&self, disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError>;
}

/// The meters of a pass in this process.
impl LiveFigures for Vec<(DiskKey, Arc<PassProgress>)> {
    fn progress(&self) -> Vec<(DiskKey, ProgressView)> {
        self.iter().map(|(key, progress)| (key.clone(), progress.view())).collect()
    }

    fn figures(&self) -> Vec<DiskFigures> {
        self.iter().map(|(key, progress)| DiskFigures::now(key, progress)).collect()
    }
}

/// Several observers of one pass; each event goes to the first one first.
#[derive(Default)]
pub struct Observers<'a>(Vec<Box<dyn PassObserver + 'a>>);

impl<'a> Observers<'a> {
    /// Adds one, which gets the events from now on.
    pub fn add(&mut self, observer: impl PassObserver + 'a) {
        self.0.push(Box::new(observer));
    }

    /// The same.
    pub fn add_boxed(&mut self, observer: Box<dyn PassObserver + 'a>) {
        self.0.push(observer);
    }
}

#[async_trait]
impl PassObserver for Observers<'_> {
    async fn observe(&self, event: &PassEvent) -> Result<(), StoreError> {
        for observer in &self.0 {
            observer.observe(event).await?;
        }
        Ok(())
    }

    fn follow(&self, figures: &Arc<dyn LiveFigures>) {
        self.0.iter().for_each(|observer| observer.follow(figures));
    }
}

impl Debug for Observers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Observers({})", self.0.len())
    }
}

/// An observer that ignores everything, for programs without metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

#[async_trait]
impl PassObserver for Unobserved {
    async fn observe(&self, _event: &PassEvent) -> Result<(), StoreError> {
        Ok(())
    }
}

impl TransferObserver for Unobserved {
    fn begin_pass(&self, _name: PassLabels, _started: DateTime<Utc>) -> Box<dyn PassObserver> {
        Box::new(Self)
    }

    fn audited(&self, _plan: &str, _vm: &str, _disk: &DiskKey, _checked: u64, _unreported: u64) {}

    fn finished(&self, _id: MigrationId, _plan: &str, _vm: &str, _at: DateTime<Utc>) {}

    fn again(&self, _id: MigrationId) {}
}
