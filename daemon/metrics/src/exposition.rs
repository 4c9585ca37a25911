//! The metrics' names, and their values as OpenMetrics text.
//!
//! Rule: names by Prometheus's conventions: `warmd_`, base units, `_total` for counters (which the encoder
//! appends).

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder},
    metrics::{MetricType, exemplar::Exemplar},
};
use warmd_cbt::telemetry::Stage;
use warmd_core::{
    metrics_view::{CurrentFigures, OverdueView, SloView, WindowView},
    model::{quota::QuotaView, view::MigrationView},
    process,
};

use super::{
    buckets::{Buckets, latencies},
    quotas,
    registry::{DiskName, MetricsSnapshot, TransferTotals},
    windows,
};

/// Name and value of each label.
pub(super) type Labels = Vec<(&'static str, String)>;
/// One figure of several.
type TransferFigure = fn(&TransferTotals) -> u64;

/// The contents of one scrape.
#[derive(Debug)]
pub(super) struct Exposition {
    passes: MetricsSnapshot,
    at: DateTime<Utc>,
    /// Those that are not done or cancelled.
    views: Vec<MigrationView>,
    states: BTreeMap<(String, &'static str), u64>,
    sources_run: Vec<(String, u64)>,
    quotas: Vec<QuotaView>,
    windows: (Vec<WindowView>, Vec<SloView>),
    overdue: Vec<OverdueView>,
    commits: Buckets,
}

impl Exposition {
    pub(super) fn new(passes: MetricsSnapshot, now: &CurrentFigures) -> Self {
        let mut states = BTreeMap::new();
        for (plan, state, count) in &now.finished {
            *states.entry((plan.clone(), *state)).or_default() += count;
        }
        for view in now.views.iter().filter(|view| !view.state.is_final()) {
            *states.entry((view.plan.clone(), view.state.name())).or_default() += 1;
        }
        let views = now.views.iter().filter(|view| !view.state.is_final()).cloned().collect();
        let (quotas, commits) = (now.quotas.clone(), latencies(&now.commits));
        let windows = (now.windows.clone(), now.promises.clone());
        let (sources_run, overdue) = (now.sources_run.clone(), now.overdue.clone());
        Self { passes, at: now.at, views, states, sources_run, quotas, windows, overdue, commits }
    }

    fn of_passes(&self, to: &mut Sink) -> fmt::Result {
        let passes = self.passes.passes.iter().map(|((plan, kind, outcome), count)| {
            let (kind, outcome) = ((*kind).to_owned(), (*outcome).to_owned());
            (vec![("plan", plan.clone()), ("kind", kind), ("outcome", outcome)], *count)
        });
        to.counter("warmd_passes", "Passes that have ended.", passes)?;
        let spans = self.passes.spans.iter();
        to.histogram(
            "warmd_pass_duration_seconds",
            "How long ended passes that got a snapshot took, from asking for it on.",
            spans.map(|(kind, spans)| (vec![("kind", (*kind).to_owned())], spans.buckets())),
        )?;
        let bytes: [(&str, &str, TransferFigure); 7] = [
            ("warmd_read_bytes", "Bytes read from sources.", |moved| moved.read),
            ("warmd_written_bytes", "Bytes written to targets as data.", |moved| moved.written),
            ("warmd_zeroed_bytes", "Bytes zeroed on targets.", |moved| moved.zeroed),
            ("warmd_skipped_bytes", "Bytes found right on targets and left alone.", |moved| moved.skipped),
            ("warmd_drained_bytes", "Bytes copied durably: flushed and committed.", |moved| moved.drained),
            (
                "warmd_audited_bytes",
                "Bytes that sources called unchanged, read to see if that is true.",
                |moved| moved.audited,
            ),
            (
                "warmd_unreported_bytes",
                "Bytes that sources called unchanged, and that had changed.",
                |moved| moved.unreported,
            ),
        ];
        for (name, help, of) in bytes {
            to.counter(
                name,
                help,
                self.passes.moved.iter().map(|(disk, moved)| (disk_labels(disk), of(moved))),
            )?;
        }
        let in_flight = self.passes.in_flight.iter().flat_map(|(disk, stages)| {
            let labels = move |stage: &Stage| [disk_labels(disk), stage_label(*stage)].concat();
            stages.iter().map(move |(stage, count)| (labels(stage), *count as f64))
        });
        to.gauge("warmd_requests_in_flight", "Requests in flight of passes that run.", in_flight)?;
        let latency = self.passes.latencies.iter();
        to.histogram(
            "warmd_request_duration_seconds",
            "How long requests took, by stage of the pass.",
            latency.map(|(stage, counts)| (stage_label(*stage), latencies(counts))),
        )?;
        let stalled = Stage::ALL.into_iter().zip(self.passes.stalled);
        to.counter(
            "warmd_stall_seconds",
            "Time that passes waited, by the stage that they waited for.",
            stalled.map(|(stage, seconds)| (stage_label(stage), seconds)),
        )
    }

    fn of_migrations(&self, to: &mut Sink) -> fmt::Result {
        let states = self.states.iter().map(|((plan, state), count)| {
            (vec![("plan", plan.clone()), ("state", (*state).to_owned())], *count as f64)
        });
        to.gauge("warmd_migrations", "Migrations, by state.", states)?;
        // A zero is exported too: an alert cannot distinguish a missing value from a daemon that does not
        // measure.
        let mut run: BTreeMap<_, _> = self.views.iter().map(|view| (view.plan.clone(), 0)).collect();
        run.extend(self.sources_run.iter().cloned());
        to.gauge(
            "warmd_source_running_after_cutover",
            "Source VMs that were last seen running after their target VM was started.",
            run.into_iter().map(|(plan, count)| (vec![("plan", plan)], count as f64)),
        )?;
        let mut pending: BTreeMap<DiskName, u64> = BTreeMap::new();
        let mut faults: BTreeMap<DiskName, bool> = BTreeMap::new();
        let mut forecasts: BTreeMap<[String; 2], f64> = BTreeMap::new();
        let mut worst: BTreeMap<[String; 2], f64> = BTreeMap::new();
        let mut ages: BTreeMap<[String; 2], f64> = BTreeMap::new();
        let mut against: BTreeMap<[String; 2], f64> = BTreeMap::new();
        for view in &self.views {
            let name = [view.plan.clone(), view.vm_name.clone()];
            for disk in &view.disks {
                let [plan, vm] = name.clone();
                let name = [plan, vm, disk.key.0.clone()];
                *faults.entry(name.clone()).or_default() |= disk.tracking_fault.is_some();
                *pending.entry(name).or_default() += disk.pending;
            }
            if let Some(forecast) = view.downtime_forecast {
                raise(&mut forecasts, name.clone(), forecast);
            }
            if let Some(forecast) = &view.forecast {
                raise(&mut worst, name.clone(), forecast.downtime.high);
                raise(&mut against, name.clone(), f64::from(u8::from(!forecast.against.is_empty())));
            }
            if let Some(held) = self.passes.held.get(&view.id) {
                raise(&mut ages, name, (self.at - held).as_seconds_f64().max(0.0));
            }
        }
        to.gauge(
            "warmd_tracking_fault",
            "1 if a source was found not to report all changes of a disk.",
            faults.iter().map(|(disk, is_fault)| (disk_labels(disk), f64::from(u8::from(*is_fault)))),
        )?;
        to.gauge(
            "warmd_pending_bytes",
            "Bytes in which a target may differ from the last snapshot.",
            pending.iter().map(|(disk, bytes)| (disk_labels(disk), *bytes as f64)),
        )?;
        to.gauge(
            "warmd_downtime_forecast_seconds",
            "How long the VM would be down if cut over now.",
            forecasts.into_iter().map(|(vm, seconds)| (vm_labels(vm), seconds)),
        )?;
        to.gauge(
            "warmd_downtime_forecast_high_seconds",
            "What the downtime does not exceed in nineteen of twenty times.",
            worst.into_iter().map(|(vm, seconds)| (vm_labels(vm), seconds)),
        )?;
        to.gauge(
            "warmd_cutover_refused",
            "1 if the forecast speaks against a cutover: the plan's downtime, or the window, would not be kept.",
            against.into_iter().map(|(vm, is_against)| (vm_labels(vm), is_against)),
        )?;
        to.gauge(
            "warmd_open_snapshot_age_seconds",
            "Age of the snapshot that a pass holds open on the source.",
            self.passes
                .open
                .iter()
                .map(|(vm, began)| (vm_labels(vm.clone()), (self.at - *began).as_seconds_f64().max(0.0))),
        )?;
        to.gauge(
            "warmd_snapshot_age_seconds",
            "Age of the newest snapshot that the target holds whole.",
            ages.into_iter().map(|(vm, seconds)| (vm_labels(vm), seconds)),
        )
    }

    fn of_the_daemon(&self, to: &mut Sink) -> fmt::Result {
        to.histogram(
            "warmd_store_commit_duration_seconds",
            "How long durable commits of the state took.",
            [(Labels::new(), self.commits.clone())],
        )?;
        to.info("warmd_build", "Which warmd it is.", &[("version", env!("CARGO_PKG_VERSION"))])?;
        let hanging = warmd_threads::hanging()
            .into_iter()
            .map(|(device, calls)| (vec![("device", device.display().to_string())], calls as f64));
        to.gauge(
            "warmd_hanging_calls",
            "Calls that were abandoned and have not ended, by the file system that does not answer them.",
            hanging,
        )?;
        let own = |value: f64| [(Labels::new(), value)];
        to.counter(
            "warmd_buffers_written_off",
            "Buffers of calls that were abandoned before they ended.",
            own(warmd_threads::buffers_written_off() as f64),
        )?;
        to.counter(
            "process_cpu_seconds",
            "CPU time of the process, user and system.",
            own(process::cpu_seconds()),
        )?;
        if let Some(bytes) = process::resident_bytes() {
            to.gauge("process_resident_memory_bytes", "Memory of the process in RAM.", own(bytes as f64))?;
        }
        if let Some(count) = process::open_fds() {
            to.gauge("process_open_fds", "Open file descriptors.", own(count as f64))?;
        }
        Ok(())
    }
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut to = Sink(encoder);
        self.of_passes(&mut to)?;
        self.of_migrations(&mut to)?;
        quotas::encode(&self.quotas, &mut to)?;
        windows::encode(&self.windows.0, &self.windows.1, &mut to)?;
        windows::encode_overdue(&self.overdue, &mut to)?;
        self.of_the_daemon(&mut to)
    }
}

/// Writes families; one without samples is left out.
pub(super) struct Sink<'a>(DescriptorEncoder<'a>);

impl Sink<'_> {
    fn counter<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        self.family((name, help, MetricType::Counter), samples, |mut sample, value: V| {
            sample.encode_counter(&value, None::<&Exemplar<Labels, f64>>)
        })
    }

    pub(super) fn gauge<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        self.family((name, help, MetricType::Gauge), samples, |mut sample, value: V| {
            sample.encode_gauge(&value)
        })
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, Buckets)>,
    ) -> fmt::Result {
        self.family((name, help, MetricType::Histogram), samples, |mut sample, value: Buckets| {
            sample.encode_histogram::<Labels>(value.sum, value.count, &value.bounds, None)
        })
    }

    fn family<V>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        samples: impl IntoIterator<Item = (Labels, V)>,
        write: impl Fn(MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        samples.try_for_each(|(labels, value)| write(family.encode_family(&labels)?, value))
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str); 1]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }
}

fn disk_labels(disk: &DiskName) -> Labels {
    let [plan, vm, disk] = disk.clone();
    vec![("plan", plan), ("vm", vm), ("disk", disk)]
}

fn vm_labels([plan, vm]: [String; 2]) -> Labels {
    vec![("plan", plan), ("vm", vm)]
}

fn stage_label(stage: Stage) -> Labels {
    vec![("stage", stage.name().to_owned())]
}

/// Two VMs of one name share a series; the larger value is the important one.
fn raise(values: &mut BTreeMap<[String; 2], f64>, name: [String; 2], value: f64) {
    let kept = values.entry(name).or_insert(value);
    *kept = kept.max(value);
}
