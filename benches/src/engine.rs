//! warmd's side: the engine over real disks and the real store, combined as in the daemon.
//!
//! Rule: only public calls of the engine, the volume, the NBD client and the store are used, all of them in
//! this file.

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use chrono::Utc;
use futures::future::{join_all, try_join_all};
use serde::{Deserialize, Serialize};
use warmd_cbt::{
    batch::Batch,
    buffer::BufferPool,
    disk::WriteDisk,
    extents::ExtentSet,
    ledger::Ledger,
    limit::DiskShares,
    manifest::BlockHash,
    mark::{ChangeMark, Changed},
    stop::StopSignal,
    store::{DiskId, LedgerCommit, LedgerStore, PassFigures, StoreError, StoredLedger},
    transfer::{PassJob, PassProgress, TransferSettings, run_pass},
    units::{Extent, Length},
    verify::{self, VerifyJob, VerifyPart, VerifyProgress},
};
use warmd_core::model::{
    id::{DiskKey, MigrationId, VmId},
    machine::{CpuTopology, Firmware, Machine},
    state::State,
};
use warmd_disks::{
    nbd::{NbdDisk, NbdOptions, NbdUri},
    volume::{FileDisk, VolumeOptions},
};
use warmd_store::{Created, NewDisk, NewMigration, Store};

/// The options for tuning; the defaults are the daemon's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Knobs {
    pub transfer: TransferSettings,
    /// NBD connections to each disk of a source; `None` leaves the client's own default.
    pub connections: Option<usize>,
    /// Whether file sources are also read past the page cache.
    pub direct_source: bool,
    /// Whether the figures of each stage are printed on standard error.
    pub telemetry: bool,
}

/// The figures of a run of the engine; bytes over all disks.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    #[serde(flatten)]
    pub figures: PassFigures,
    /// From opening the state and the disks to the last commit, in seconds.
    pub pass_s: f64,
    /// Spent waiting for the store's commits, in seconds: the mean of all disks.
    pub commit_s: f64,
    /// Requests to sources in flight: the maximum, and the mean during the pass.
    pub in_flight_peak: u64,
    pub in_flight_mean: f64,
}

/// Creates a state with one new disk for each size, all blocks pending.
pub async fn init(state: &Path, sizes: &[u64], reads_zero: bool) -> Result<()> {
    let store = Store::open(state)?;
    let machine = Machine {
        id: VmId("bench".to_owned()),
        name: "bench".to_owned(),
        uuid: String::new(),
        firmware: Firmware::Bios,
        machine_type: "q35".to_owned(),
        architecture: "x86_64".to_owned(),
        cpu: CpuTopology { sockets: 1, cores: 1, threads: 1 },
        memory: Length(0),
        disks: Vec::new(),
        nics: Vec::new(),
        hardware: None,
        host: None,
    };
    let new = NewMigration {
        id: MigrationId::generate(),
        plan: "bench".to_owned(),
        source: "bench".to_owned(),
        target: "bench".to_owned(),
        vm: machine.id.clone(),
        vm_name: machine.name.clone(),
        target_name: machine.name.clone(),
        machine,
        state: State::Defined,
        created: Utc::now(),
        warnings: Vec::new(),
        events: Vec::new(),
    };
    let (Created::New(row) | Created::Exists(row)) = store.create_migration(new).await?;
    let disks = sizes.iter().enumerate().map(|(number, size)| NewDisk {
        key: DiskKey(format!("d{number}")),
        size: Length(*size),
        location: format!("d{number}"),
        requested_location: None,
        reads_zero,
    });
    store.save_disks(row.id, disks.collect()).await?;
    Ok(store.close().await?)
}

/// Advances every ledger, by the extents in `changed` or by the whole disk, and drains it.
pub async fn pass(
    state: &Path,
    pairs: &[(String, String)],
    changed: Option<Vec<Extent>>,
    knobs: Knobs,
) -> Result<Done> {
    let begun = Instant::now();
    let opened = Opened::open(state, pairs, knobs).await?;
    let changed = match (changed, opened.ledgers.first()) {
        (Some(extents), Some(each)) => Changed::Known(ExtentSet::of(each.size(), extents)),
        _ => Changed::Unknown("no earlier mark".to_owned()),
    };
    let mark = ChangeMark(Utc::now().to_rfc3339());
    try_join_all(opened.ledgers.iter().map(|ledger| ledger.advance(mark.clone(), &changed))).await?;
    let mut done = opened.drain(knobs, None).await?;
    done.pass_s = begun.elapsed().as_secs_f64();
    opened.close().await?;
    Ok(done)
}

/// The store in a state directory.
pub fn store(state: &Path) -> Result<Store> {
    Ok(Store::open(state)?)
}

/// Marks every disk as completely copied without copying: for cases that only need a ledger of that size.
pub async fn settle(state: &Path) -> Result<()> {
    let (sqlite, _, ledgers) = open_ledgers(state).await?;
    for ledger in ledgers {
        let mut batch = Batch::default();
        batch.add(Extent::whole(ledger.size()).context("an empty disk")?, [], PassFigures::default());
        ledger.advance(ChangeMark("0".to_owned()), &Changed::Known(ExtentSet::new(ledger.size()))).await?;
        ledger.drain(batch, None).await?;
    }
    Ok(sqlite.close().await?)
}

/// Advances the ledger of one huge disk by many extents, then drains it up to about `stop_after` bytes. Also
/// returns how long the advance took, in seconds.
pub async fn huge(
    state: &Path,
    pairs: &[(String, String)],
    changed: impl IntoIterator<Item = Extent>,
    stop_after: u64,
    knobs: Knobs,
) -> Result<(Done, f64)> {
    let opened = Opened::open(state, pairs, knobs).await?;
    let begun = Instant::now();
    let ledger = opened.ledgers.first().context("no disk")?;
    let changed = Changed::Known(ExtentSet::of(ledger.size(), changed));
    ledger.advance(ChangeMark("1".to_owned()), &changed).await?;
    let advance_s = begun.elapsed().as_secs_f64();
    drop(changed);
    let before = opened.store.waited_s();
    let mut done = opened.drain(knobs, Some(stop_after)).await?;
    done.commit_s -= before;
    opened.close().await?;
    Ok((done, advance_s))
}

/// Verifies every disk: by reading the target, or, with `compare`, both sides. A difference is an error.
pub async fn verify(state: &Path, pairs: &[(String, String)], compare: bool, knobs: Knobs) -> Result<Done> {
    let begun = Instant::now();
    let opened = Opened::open(state, pairs, knobs).await?;
    let pool = BufferPool::new(knobs.transfer.buffers, knobs.transfer.chunk);
    let mut checked = 0;
    for (ledger, (source, target)) in opened.ledgers.iter().zip(&opened.disks) {
        let job = VerifyJob {
            ledger: Arc::clone(ledger),
            part: VerifyPart::default(),
            pool: pool.clone(),
            chunk: knobs.transfer.chunk,
            in_flight: knobs.transfer.reads_in_flight,
            read_latency_factor: knobs.transfer.read_latency_factor,
            baseline: Arc::default(),
            trust_holes: true,
            round: 0,
            progress: Arc::new(VerifyProgress::default()),
            limits: DiskShares::default(),
            stop: StopSignal::new(),
        };
        let outcome = if compare {
            verify::compare(job, source.clone(), target.clone()).await?
        } else {
            verify::readback(job, target.clone()).await?
        };
        ensure!(outcome.is_equal(), "{} bytes of a target differ", outcome.mismatched_bytes);
        let (seen, size) = (outcome.checked, ledger.size());
        ensure!(seen == size && size.0 > 0, "{seen} of {size} bytes were checked");
        checked += outcome.checked.0;
    }
    let figures = PassFigures { drained: checked, ..PassFigures::default() };
    let done = Done { figures, pass_s: begun.elapsed().as_secs_f64(), ..Done::default() };
    opened.close().await?;
    Ok(done)
}

/// The state and the disks of a run.
struct Opened {
    sqlite: Store,
    store: Arc<Timed>,
    ledgers: Vec<Arc<Ledger>>,
    disks: Vec<(Arc<dyn WriteDisk>, Arc<dyn WriteDisk>)>,
}

/// The state, its clocked store, and the ledger of each disk, in order.
async fn open_ledgers(state: &Path) -> Result<(Store, Arc<Timed>, Vec<Arc<Ledger>>)> {
    let sqlite = Store::open(state)?;
    let store = Arc::new(Timed { inner: sqlite.clone(), waited: AtomicU64::new(0) });
    let migration = sqlite.migrations().await?.into_iter().next().context("the state has no migration")?;
    let mut ledgers = Vec::new();
    for row in sqlite.disks(migration.id).await? {
        ledgers.push(Arc::new(Ledger::load(Arc::clone(&store) as Arc<dyn LedgerStore>, row.id).await?));
    }
    Ok((sqlite, store, ledgers))
}

impl Opened {
    async fn open(state: &Path, pairs: &[(String, String)], knobs: Knobs) -> Result<Self> {
        let (sqlite, store, ledgers) = open_ledgers(state).await?;
        ensure!(ledgers.len() == pairs.len(), "{} disks in the state, {} pairs", ledgers.len(), pairs.len());
        let mut disks = Vec::new();
        for (ledger, (from, to)) in ledgers.iter().zip(pairs) {
            let source = open_disk(from, ledger.size(), Role::Source, knobs).await;
            let target = open_disk(to, ledger.size(), Role::Target, knobs).await;
            disks.push((source.with_context(|| from.clone())?, target.with_context(|| to.clone())?));
        }
        Ok(Self { sqlite, store, ledgers, disks })
    }

    /// Drains all ledgers at the same time, from one pool; to the end, or until about this many bytes are
    /// read.
    async fn drain(&self, knobs: Knobs, stop_after: Option<u64>) -> Result<Done> {
        let begun = Instant::now();
        let progress: Vec<_> = self.ledgers.iter().map(|_| Arc::new(PassProgress::default())).collect();
        let pool = BufferPool::new(knobs.transfer.buffers, knobs.transfer.chunk);
        let stop = StopSignal::new();
        let jobs = self.ledgers.iter().zip(&self.disks).zip(&progress);
        let passes = jobs.map(|((ledger, (source, target)), progress)| {
            run_pass(PassJob {
                ledger: Arc::clone(ledger),
                source: source.clone(),
                target: target.clone(),
                pool: pool.clone(),
                settings: knobs.transfer,
                pass: None,
                progress: Arc::clone(progress),
                limits: DiskShares::default(),
                baseline: Arc::default(),
                stop: stop.clone(),
            })
        });
        let seen = Arc::new(Watch::default());
        let watch = tokio::spawn(Arc::clone(&seen).run(progress.clone(), stop.clone(), stop_after));
        let outcomes = join_all(passes).await;
        watch.abort();
        let mut sum = PassFigures::default();
        for outcome in outcomes {
            let outcome = outcome?;
            ensure!(outcome.finished || stop_after.is_some(), "a pass stopped without a request");
            sum += outcome.figures;
        }
        if knobs.telemetry {
            for progress in &progress {
                eprintln!("{}", serde_json::to_string(&progress.meter().view())?);
            }
        }
        Ok(Done {
            figures: sum,
            pass_s: begun.elapsed().as_secs_f64(),
            commit_s: self.store.waited_s() / self.ledgers.len().max(1) as f64,
            in_flight_peak: seen.peak.load(Relaxed),
            in_flight_mean: seen.mean(),
        })
    }

    async fn close(self) -> Result<()> {
        drop(self.disks);
        Ok(self.sqlite.close().await?)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Source,
    Target,
}

async fn open_disk(place: &str, size: Length, role: Role, knobs: Knobs) -> Result<Arc<dyn WriteDisk>> {
    if place.contains("://") {
        let mut options = NbdOptions::from(place.parse::<NbdUri>()?);
        options.writable = role == Role::Target;
        if let (Role::Source, Some(connections)) = (role, knobs.connections) {
            options.connections = connections;
        }
        let disk = NbdDisk::open(options).await?;
        ensure!(disk.len() == size.0, "the export has {} bytes, the disk {size}", disk.len());
        return Ok(Arc::new(disk));
    }
    let direct = role == Role::Target || knobs.direct_source;
    let options = VolumeOptions { direct, ..VolumeOptions::default() };
    Ok(Arc::new(FileDisk::open(Path::new(place), size, options).await?))
}

/// Samples of the requests in flight during passes.
#[derive(Default)]
struct Watch {
    peak: AtomicU64,
    sum: AtomicU64,
    looks: AtomicU64,
}

impl Watch {
    /// Takes samples until aborted; stops the pass once this many bytes are read.
    async fn run(self: Arc<Self>, passes: Vec<Arc<PassProgress>>, stop: StopSignal, stop_after: Option<u64>) {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (mut in_flight, mut read) = (0, 0);
            for view in passes.iter().map(|pass| pass.view()) {
                in_flight += view.reads_in_flight;
                read += view.read;
            }
            self.peak.fetch_max(in_flight, Relaxed);
            self.sum.fetch_add(in_flight, Relaxed);
            self.looks.fetch_add(1, Relaxed);
            if stop_after.is_some_and(|most| read >= most) {
                stop.stop();
            }
        }
    }

    fn mean(&self) -> f64 {
        self.sum.load(Relaxed) as f64 / self.looks.load(Relaxed).max(1) as f64
    }
}

/// The store, and the time spent waiting for its commits.
struct Timed {
    inner: Store,
    /// Microseconds.
    waited: AtomicU64,
}

impl Timed {
    fn waited_s(&self) -> f64 {
        self.waited.load(Relaxed) as f64 / 1e6
    }
}

#[async_trait]
impl LedgerStore for Timed {
    async fn load(&self, disk: DiskId) -> Result<StoredLedger, StoreError> {
        self.inner.load(disk).await
    }

    async fn commit(&self, disk: DiskId, commit: LedgerCommit) -> Result<(), StoreError> {
        let begun = Instant::now();
        let done = self.inner.commit(disk, commit).await;
        self.waited.fetch_add(begun.elapsed().as_micros() as u64, Relaxed);
        done
    }

    async fn hashes(&self, disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError> {
        self.inner.hashes(disk, spans).await
    }
}
