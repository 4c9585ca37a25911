//! What passes did: those that run are read when a client asks, those that ended are added up.
//!
//! Rule: a counter never goes back. An ended pass moves from one part to the other under the same lock; and
//! how waiting is split over stages, which the engine computes again each time, stays at the highest value
//! ever shown.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use warmd_cbt::telemetry::{HistogramCounts, Stage};
use warmd_core::{
    clock,
    metrics_view::CurrentFigures,
    model::{id::MigrationId, view::PassView},
    pass::{DiskFigures, LiveFigures, PassLabels},
};

use super::{buckets::Spans, kind_name};

/// A disk's labels: plan, VM, disk.
pub(super) type DiskName = [String; 3];
/// Plan and VM.
pub(super) type VmName = [String; 2];
/// Seconds, for each stage.
pub(super) type Stalls = [f64; Stage::ALL.len()];

/// Bytes of one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TransferTotals {
    pub(super) read: u64,
    pub(super) written: u64,
    pub(super) zeroed: u64,
    pub(super) skipped: u64,
    pub(super) drained: u64,
    pub(super) audited: u64,
    pub(super) unreported: u64,
}

/// The outcome of a pass after which the target holds its snapshot.
pub(super) const DRAINED: &str = "drained";

/// How long the figures of a finished migration are shown, so that the last of them are scraped; and no
/// longer, or every VM that was ever moved would be shown for the process's life.
const KEPT: TimeDelta = TimeDelta::hours(1);

/// The figures of passes.
#[derive(Clone, Debug, Default)]
pub(super) struct MetricsSnapshot {
    pub(super) moved: BTreeMap<DiskName, TransferTotals>,
    pub(super) in_flight: BTreeMap<DiskName, Vec<(Stage, u64)>>,
    pub(super) latencies: Vec<(Stage, HistogramCounts)>,
    pub(super) stalled: Stalls,
    /// By plan, kind and outcome.
    pub(super) passes: BTreeMap<(String, &'static str, &'static str), u64>,
    pub(super) spans: BTreeMap<&'static str, Spans>,
    /// When the newest snapshot was begun that the target holds whole.
    pub(super) held: BTreeMap<MigrationId, DateTime<Utc>>,
    /// When passes began that hold a snapshot open.
    pub(super) open: BTreeMap<VmName, DateTime<Utc>>,
}

#[derive(Default)]
pub(super) struct PassRegistry {
    next: u64,
    live: BTreeMap<u64, LivePass>,
    ended: MetricsSnapshot,
    /// The migration that copied a VM of that name last.
    last: BTreeMap<VmName, MigrationId>,
    /// Finished migrations, and when they finished.
    finished: VecDeque<(DateTime<Utc>, MigrationId, VmName)>,
}

struct LivePass {
    name: PassLabels,
    started: DateTime<Utc>,
    /// Once the pass has disks.
    figures: Option<Arc<dyn LiveFigures>>,
    /// By disk.
    stalled: BTreeMap<String, Stalls>,
}

impl PassRegistry {
    pub(super) fn begin(&mut self, name: PassLabels, started: DateTime<Utc>) -> u64 {
        self.next += 1;
        self.last.insert([name.plan.clone(), name.vm.clone()], name.migration);
        let pass = LivePass { started, figures: None, stalled: BTreeMap::new(), name };
        self.live.insert(self.next, pass);
        self.next
    }

    /// Does nothing if it has ended, or has no disks.
    pub(super) fn watch(&mut self, number: u64, figures: Arc<dyn LiveFigures>) {
        if let Some(pass) = self.live.get_mut(&number).filter(|_| !figures.progress().is_empty()) {
            pass.figures = Some(figures);
        }
    }

    /// Does nothing if it has ended.
    pub(super) fn end(&mut self, number: u64, outcome: &'static str) {
        let Some(mut pass) = self.live.remove(&number) else { return };
        pass.add_to(&mut self.ended);
        let kind = kind_name(pass.name.kind);
        *self.ended.passes.entry((pass.name.plan, kind, outcome)).or_default() += 1;
        // One that got no snapshot does not count for the length of passes.
        if pass.figures.is_some() {
            // A clock that was set back meanwhile makes it zero.
            let took = (clock::now() - pass.started).as_seconds_f64().max(0.0);
            self.ended.spans.entry(kind).or_default().add(took);
        }
        if outcome == DRAINED {
            self.ended.held.insert(pass.name.migration, pass.started);
        }
    }

    pub(super) fn audited(&mut self, name: DiskName, checked: u64, mismatched: u64) {
        let moved = self.ended.moved.entry(name).or_default();
        moved.audited += checked;
        moved.unreported += mismatched;
    }

    pub(super) fn picture(&mut self, now: &CurrentFigures) -> MetricsSnapshot {
        for view in now.views.iter().filter(|view| !view.state.is_final()) {
            if let Some(pass) = view.pass.as_ref().filter(|pass| has_drained(pass)) {
                self.ended.held.insert(view.id, pass.started);
            }
        }
        self.forget(now.at);
        let mut picture = self.ended.clone();
        for pass in self.live.values().filter(|pass| pass.figures.is_some()) {
            let began = picture.open.entry([pass.name.plan.clone(), pass.name.vm.clone()]);
            let oldest = began.or_insert(pass.started);
            *oldest = pass.started.min(*oldest);
        }
        for pass in self.live.values_mut() {
            for disk in pass.add_to(&mut picture) {
                picture.in_flight.insert(pass.name_of(&disk), disk.in_flight);
            }
        }
        picture
    }
}

impl PassRegistry {
    /// A migration is finished.
    pub(super) fn finished(&mut self, id: MigrationId, vm: VmName, at: DateTime<Utc>) {
        self.finished.push_back((at, id, vm));
        // Also where no client ever scrapes.
        self.forget(at);
    }

    /// A finished migration is resumed, and keeps its counters.
    pub(super) fn again(&mut self, id: MigrationId) {
        self.finished.retain(|(_, of, _)| *of != id);
    }

    /// Forgets the disks and open snapshots of migrations that finished long ago. A VM of the same name that
    /// another migration has copied since keeps its counters.
    fn forget(&mut self, now: DateTime<Utc>) {
        while self.finished.front().is_some_and(|(at, ..)| now - *at > KEPT) {
            let Some((_, id, vm)) = self.finished.pop_front() else { return };
            self.ended.held.remove(&id);
            if self.last.get(&vm).is_none_or(|last| *last == id) {
                self.last.remove(&vm);
                self.ended.moved.retain(|[plan, name, _], _| vm != [plan.as_str(), name.as_str()]);
            }
        }
    }
}

impl LivePass {
    /// The labels of a disk.
    fn name_of(&self, disk: &DiskFigures) -> DiskName {
        [self.name.plan.clone(), self.name.vm.clone(), disk.key.0.clone()]
    }

    /// Adds the present figures of its disks, and returns them.
    fn add_to(&mut self, picture: &mut MetricsSnapshot) -> Vec<DiskFigures> {
        let disks = self.figures.as_ref().map(|figures| figures.figures()).unwrap_or_default();
        for disk in &disks {
            let moved = picture.moved.entry(self.name_of(disk)).or_default();
            moved.read += disk.progress.read;
            moved.written += disk.progress.written;
            moved.zeroed += disk.progress.zeroed;
            moved.skipped += disk.progress.skipped;
            moved.drained += disk.progress.drained;
            if picture.latencies.is_empty() {
                let stages = Stage::ALL.into_iter().filter(|stage| stage.has_requests());
                picture.latencies = stages.map(|stage| (stage, HistogramCounts::default())).collect();
            }
            for (stage, counts) in &mut picture.latencies {
                if let Some((_, own)) = disk.latencies.iter().find(|(own, _)| own == stage) {
                    *counts += own;
                }
            }
            let stalled = self.stalled.entry(disk.key.0.clone()).or_default();
            for stage in &disk.telemetry.stages {
                let highest = &mut stalled[stage.stage as usize];
                *highest = highest.max(stage.stalled);
            }
            for (all, own) in picture.stalled.iter_mut().zip(*stalled) {
                *all += own;
            }
        }
        disks
    }
}

fn has_drained(pass: &PassView) -> bool {
    pass.ended.is_some() && pass.error.is_none()
}
