//! The telemetry of a running pass, for the view and the store.
//!
//! Rule: for information only. A failure to save it is logged and stops nothing.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tracing::Instrument as _;
use warmd_cbt::{
    store::{DiskId, StoreError},
    transfer::LatencyBaseline,
};
use warmd_core::{
    model::id::DiskKey,
    pass::{DiskFigures, LiveFigures, PassEvent, PassObserver},
    process,
};
use warmd_store::Store;

use super::{context::Context, status_publisher::StatusPublisher};

/// The interval at which the view is updated.
const SHOWN: Duration = Duration::from_secs(1);
/// Pictures per saved picture: the most that a crash loses, in units of [`SHOWN`].
const STORED: u64 = 5;

/// Shows and saves the telemetry of one pass every few seconds while it drains, and at its end.
#[derive(Debug)]
pub(super) struct PassTelemetry {
    shared: Arc<Shared>,
    keeper: Mutex<Option<TelemetrySaver>>,
}

struct Shared {
    store: Store,
    live: Arc<StatusPublisher>,
    pass: i64,
    disks: Vec<MeasuredDisk>,
    figures: OnceLock<Arc<dyn LiveFigures>>,
    /// CPU seconds of the process when draining began.
    cpu_before: OnceLock<f64>,
}

/// One disk of the pass.
#[derive(Debug)]
pub(super) struct MeasuredDisk {
    pub(super) key: DiskKey,
    pub(super) disk: DiskId,
    /// Its row in the store.
    pub(super) record: i64,
    /// The latency baseline, if the pass learns it.
    pub(super) baseline: Option<Arc<Mutex<LatencyBaseline>>>,
}

/// A pass at one moment.
struct TelemetrySnapshot {
    /// CPU seconds of the process since the pass began.
    cpu: f64,
    disks: Vec<(i64, DiskFigures)>,
}

impl PassTelemetry {
    pub(super) fn new(context: &Context, pass: i64, disks: Vec<MeasuredDisk>) -> Self {
        let (store, live) = (context.store.clone(), Arc::clone(&context.live));
        let (figures, cpu_before) = (OnceLock::new(), OnceLock::new());
        let shared = Arc::new(Shared { store, live, pass, disks, figures, cpu_before });
        Self { shared, keeper: Mutex::default() }
    }

    fn set_keeper(&self, keeper: Option<TelemetrySaver>) {
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = keeper;
    }
}

#[async_trait]
impl PassObserver for PassTelemetry {
    async fn observe(&self, event: &PassEvent) -> Result<(), StoreError> {
        match event {
            PassEvent::Draining => {
                self.shared.cpu_before.get_or_init(process::cpu_seconds);
                self.set_keeper(Some(TelemetrySaver::start(Arc::clone(&self.shared))));
            }
            PassEvent::Measured => {
                self.set_keeper(None);
                let picture = self.shared.picture();
                self.shared.show(&picture);
                self.shared.store(picture).await;
            }
            _ => {}
        }
        Ok(())
    }

    fn follow(&self, figures: &Arc<dyn LiveFigures>) {
        self.shared.figures.get_or_init(|| Arc::clone(figures));
    }
}

impl Shared {
    fn picture(&self) -> TelemetrySnapshot {
        let figures = self.figures.get().map(|figures| figures.figures()).unwrap_or_default();
        let record = |key: &DiskKey| Some(self.disks.iter().find(|disk| disk.key == *key)?.record);
        let cpu = self.cpu_before.get().map_or(0.0, |before| process::cpu_seconds() - before);
        TelemetrySnapshot {
            cpu,
            disks: figures.into_iter().filter_map(|disk| Some((record(&disk.key)?, disk))).collect(),
        }
    }

    /// The watchers are notified with the progress.
    fn show(&self, picture: &TelemetrySnapshot) {
        self.live.edit(|view| {
            let Some(pass) = &mut view.pass else { return };
            pass.cpu = Some(picture.cpu);
            for (_, seen) in &picture.disks {
                if let Some(disk) = pass.disks.iter_mut().find(|disk| disk.key == seen.key) {
                    disk.telemetry = Some(seen.telemetry.clone());
                    disk.figures = seen.sums();
                }
            }
        });
    }

    async fn store(&self, picture: TelemetrySnapshot) {
        let disks = picture.disks.into_iter().map(|(record, disk)| (record, disk.telemetry)).collect();
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

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("pass", &self.pass).finish_non_exhaustive()
    }
}

/// Shows and saves the telemetry until it is dropped.
#[derive(Debug)]
struct TelemetrySaver(tokio::task::JoinHandle<()>);

impl TelemetrySaver {
    fn start(shared: Arc<Shared>) -> Self {
        let keeping = async move {
            let mut ticks = tokio::time::interval(SHOWN);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for tick in 0_u64.. {
                ticks.tick().await;
                let picture = shared.picture();
                shared.show(&picture);
                if tick % STORED == STORED - 1 {
                    shared.store(picture).await;
                }
            }
        };
        Self(tokio::spawn(keeping.in_current_span()))
    }
}

impl Drop for TelemetrySaver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
