//! The pass in the live view of its migration.
//!
//! Rule: for display only. The figures come from the pass, pending bytes from the ledgers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use warmd_cbt::{ledger::Ledger, store::StoreError};
use warmd_core::{
    model::{id::DiskKey, outcome::PassFailure, view::PassView},
    pass::{DiskAudit, LiveFigures, PassEvent, PassObserver},
};

use super::PassDisk;
use crate::{
    context::Context,
    status_publisher::{Follower, StatusPublisher},
};

/// Shows one pass.
pub(super) struct LivePass {
    live: Arc<StatusPublisher>,
    ledgers: Vec<(DiskKey, Arc<Ledger>)>,
    shown: Mutex<ShownPass>,
}

#[derive(Default)]
struct ShownPass {
    /// Once the pass has begun.
    pass: Option<PassView>,
    figures: Option<Arc<dyn LiveFigures>>,
    follower: Option<Follower>,
}

impl LivePass {
    pub(super) fn new(context: &Context, disks: &[PassDisk]) -> Self {
        let ledgers = disks.iter().map(|disk| (disk.row.key.clone(), Arc::clone(&disk.ledger)));
        Self { live: Arc::clone(&context.live), ledgers: ledgers.collect(), shown: Mutex::default() }
    }

    fn shown(&self) -> MutexGuard<'_, ShownPass> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, pass: &PassView) {
        self.shown().pass = Some(pass.clone());
        self.live.update(|live| {
            // The reason for waiting is gone.
            live.waiting = None;
            live.pass = Some(pass.clone());
        });
    }

    fn audited(&self, audits: &[DiskAudit]) {
        let disks = {
            let mut shown = self.shown();
            let Some(pass) = &mut shown.pass else { return };
            for audited in audits {
                if let Some(disk) = pass.disks.iter_mut().find(|disk| disk.key == audited.key) {
                    disk.audit.clone_from(&audited.audit);
                    disk.pending = audited.pending;
                }
            }
            pass.disks.clone()
        };
        self.live.update(|live| {
            if let Some(pass) = &mut live.pass {
                pass.disks = disks;
            }
        });
    }

    fn open(&self, totals: &[(DiskKey, u64)]) {
        let mut shown = self.shown();
        if let Some(figures) = &shown.figures {
            let (live, figures) = (Arc::clone(&self.live), Arc::clone(figures));
            shown.follower = Some(Follower::start(live, totals.to_vec(), figures));
        }
    }

    fn end(&self, ended: chrono::DateTime<chrono::Utc>, error: Option<String>) {
        let mut shown = self.shown();
        shown.follower = None;
        let figures = shown.figures.as_ref().map(|figures| figures.figures()).unwrap_or_default();
        let Some(mut pass) = shown.pass.take() else { return };
        for figures in figures {
            if let Some(disk) = pass.disks.iter_mut().find(|disk| disk.key == figures.key) {
                disk.figures = figures.sums();
                disk.telemetry = Some(figures.telemetry);
            }
        }
        (pass.ended, pass.error) = (Some(ended), error.map(PassFailure::Error));
        self.live.update(|live| {
            pass.cpu = live.pass.as_ref().and_then(|pass| pass.cpu);
            for (key, ledger) in &self.ledgers {
                if let Some(view) = live.disks.iter_mut().find(|view| view.key == *key) {
                    view.pending = ledger.pending_bytes().0;
                    (view.pass_total, view.pass_drained, view.rate, view.eta) = (0, 0, 0.0, None);
                }
            }
            live.pass = Some(pass);
        });
    }
}

#[async_trait]
impl PassObserver for LivePass {
    async fn observe(&self, event: &PassEvent) -> Result<(), StoreError> {
        match event {
            PassEvent::Began(pass) => self.begin(pass),
            PassEvent::Audited(audits) => self.audited(audits),
            PassEvent::Opened(totals) => self.open(totals),
            PassEvent::Drained => self.shown().follower = None,
            PassEvent::Ended { at, outcome } => self.end(*at, outcome.error()),
            PassEvent::Draining
            | PassEvent::Change(_)
            | PassEvent::Progress(_)
            | PassEvent::HeldBack { .. }
            | PassEvent::Measured => {}
        }
        Ok(())
    }

    fn follow(&self, figures: &Arc<dyn LiveFigures>) {
        self.shown().figures = Some(Arc::clone(figures));
    }
}
