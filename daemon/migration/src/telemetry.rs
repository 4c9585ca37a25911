//! The telemetry of a running pass, for the view and the store.
//!
//! Rule: for information only. A failure to save it is logged and stops nothing.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tracing::Instrument as _;
use warmd_cbt::{
    store::{DiskId, PassFigures},
    telemetry::Telemetry,
    transfer::{LatencyBaseline, PassProgress},
};
use warmd_core::{model::id::DiskKey, process};
use warmd_store::Store;

use super::{context::Context, status_publisher::StatusPublisher};

/// The interval at which the view is updated.
const SHOWN: Duration = Duration::from_secs(1);
/// Pictures per saved picture: the most that a crash loses, in units of [`SHOWN`].
const STORED: u64 = 5;

/// A pass whose telemetry is saved.
#[derive(Debug)]
pub struct PassTelemetry {
    store: Store,
    live: Arc<StatusPublisher>,
    pass: i64,
    cpu_before: f64,
    disks: Vec<MeasuredDisk>,
}

/// One disk of the pass.
#[derive(Debug)]
pub struct MeasuredDisk {
    pub key: DiskKey,
    pub disk: DiskId,
    /// Its row in the store.
    pub record: i64,
    pub progress: Arc<PassProgress>,
    /// The latency baseline, if the pass learns it.
    pub baseline: Option<Arc<Mutex<LatencyBaseline>>>,
}

/// A pass at one moment.
struct Picture {
    /// CPU seconds of the process since the pass began.
    cpu: f64,
    disks: Vec<DiskPicture>,
}

struct DiskPicture {
    key: DiskKey,
    record: i64,
    telemetry: Telemetry,
    figures: PassFigures,
}

/// The figures of a pass on a disk so far.
pub fn figures(progress: &PassProgress) -> PassFigures {
    let done = progress.view();
    PassFigures {
        read: done.read,
        written: done.written,
        zeroed: done.zeroed,
        skipped: done.skipped,
        drained: done.drained,
        ..PassFigures::default()
    }
}

impl PassTelemetry {
    /// The telemetry of a pass that begins now.
    pub fn new(context: &Context, pass: i64, disks: Vec<MeasuredDisk>) -> Self {
        let (store, live) = (context.store.clone(), Arc::clone(&context.live));
        Self { store, live, pass, cpu_before: process::cpu_seconds(), disks }
    }

    /// Shows and saves it every few seconds until the returned value is dropped.
    pub fn keep(self: &Arc<Self>) -> Keeper {
        let telemetry = Arc::clone(self);
        let keeping = async move {
            let mut ticks = tokio::time::interval(SHOWN);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for tick in 0_u64.. {
                ticks.tick().await;
                let picture = telemetry.picture();
                telemetry.show(&picture);
                if tick % STORED == STORED - 1 {
                    telemetry.store(picture).await;
                }
            }
        };
        Keeper(tokio::spawn(keeping.in_current_span()))
    }

    /// Shows and saves the last picture.
    pub async fn finish(&self) {
        let picture = self.picture();
        self.show(&picture);
        self.store(picture).await;
    }

    fn picture(&self) -> Picture {
        let disks = self.disks.iter();
        Picture {
            cpu: process::cpu_seconds() - self.cpu_before,
            disks: disks
                .map(|disk| DiskPicture {
                    key: disk.key.clone(),
                    record: disk.record,
                    telemetry: disk.progress.meter().view(),
                    figures: figures(&disk.progress),
                })
                .collect(),
        }
    }

    /// The watchers are notified with the progress.
    fn show(&self, picture: &Picture) {
        self.live.edit(|view| {
            let Some(pass) = &mut view.pass else { return };
            pass.cpu = Some(picture.cpu);
            for seen in &picture.disks {
                if let Some(disk) = pass.disks.iter_mut().find(|disk| disk.key == seen.key) {
                    disk.telemetry = Some(seen.telemetry.clone());
                    disk.figures = seen.figures;
                }
            }
        });
    }

    async fn store(&self, picture: Picture) {
        let disks = picture.disks.into_iter().map(|disk| (disk.record, disk.telemetry)).collect();
        if let Err(error) = self.store.save_telemetry(self.pass, Some(picture.cpu), disks).await {
            tracing::warn!(pass = self.pass, %error, "telemetry not stored");
        }
        for MeasuredDisk { disk, baseline, .. } in &self.disks {
            let Some(baseline) = baseline else { continue };
            let baseline = baseline.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Err(error) = self.store.save_baseline(*disk, &baseline).await {
                tracing::warn!(pass = self.pass, %error, "the source's latencies not stored");
            }
        }
    }
}

/// Saves the telemetry until it is dropped.
#[derive(Debug)]
pub struct Keeper(tokio::task::JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}
