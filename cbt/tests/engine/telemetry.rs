//! A pass reports its work and its waits correctly. The clock is paused: only what a disk is set
//! to take takes time.

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use warmd_cbt::{
    buffer::BufferPool,
    ledger::Ledger,
    limit::DiskShares,
    manifest::BlockHash,
    mark::{ChangeMark, Changed},
    stop::StopSignal,
    store::{DiskId, LedgerCommit, LedgerStore, StoreError, StoredLedger},
    telemetry::{PassMeter, Stage, Telemetry, Wait},
    transfer::{PassJob, PassProgress, TransferSettings, run_pass},
    units::{BLOCK, Length},
};
use warmd_cbt_testing::{DiskEvent, DiskFault, Faults, MemoryDisk, MemoryStore, SlowDisk};

const DISK: DiskId = DiskId(1);
const BLOCKS: u64 = 64;
const SIZE: Length = Length(BLOCKS * BLOCK);
const SLOW: Duration = Duration::from_millis(10);

/// A store whose commits take `commit`.
struct SlowStore {
    store: MemoryStore,
    commit: Duration,
}

#[async_trait]
impl LedgerStore for SlowStore {
    async fn load(&self, disk: DiskId) -> Result<StoredLedger, StoreError> {
        self.store.load(disk).await
    }

    async fn commit(&self, disk: DiskId, commit: LedgerCommit) -> Result<(), StoreError> {
        if commit.anchor.is_none() && !self.commit.is_zero() {
            tokio::time::sleep(self.commit).await;
        }
        self.store.commit(disk, commit).await
    }

    async fn hashes(&self, disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError> {
        self.store.hashes(disk, spans).await
    }
}

struct Bench {
    faults: Faults,
    source: SlowDisk<MemoryDisk>,
    target: SlowDisk<MemoryDisk>,
    commit: Duration,
    pool: BufferPool,
    settings: TransferSettings,
}

impl Bench {
    /// 64 blocks of data for an unknown target, in pieces of one block, four at a time.
    fn new() -> Self {
        let faults = Faults::default();
        let source = MemoryDisk::new("source", SIZE, faults.clone(), 1);
        (0..BLOCKS).for_each(|block| source.set_fill(block, block + 1));
        let target = MemoryDisk::new("target", SIZE, faults.clone(), 2);
        Self {
            faults,
            source: SlowDisk { in_flight: Some(4), ..SlowDisk::new(source) },
            target: SlowDisk { in_flight: Some(4), ..SlowDisk::new(target) },
            commit: Duration::ZERO,
            pool: BufferPool::new(16, BLOCK as usize),
            settings: TransferSettings { buffers: 16, zero_request: BLOCK, ..TransferSettings::default() },
        }
    }

    async fn run(self) -> Telemetry {
        let meter = self.start().await;
        assert_eq!(Stage::ALL.map(|stage| meter.meter().stage(stage).in_flight()), [0; 9]);
        let telemetry = meter.meter().view();
        let stalled: f64 = telemetry.stages.iter().map(|stage| stage.stalled).sum();
        assert!(stalled <= telemetry.elapsed + 1e-6, "waited longer than it ran: {telemetry:#?}");
        telemetry
    }

    async fn start(self) -> Arc<PassProgress> {
        let job = self.job().await;
        let progress = Arc::clone(&job.progress);
        // A wait longer than this never ends.
        tokio::time::timeout(Duration::from_hours(1), run_pass(job)).await.unwrap().ok();
        progress
    }

    async fn job(self) -> PassJob {
        let store = MemoryStore::new(self.faults, 3);
        store.create(DISK, SIZE, &Ledger::initial_rows(SIZE, false));
        let store = Arc::new(SlowStore { store, commit: self.commit });
        let ledger = Arc::new(Ledger::load(store, DISK).await.unwrap());
        let first = Changed::Unknown("first".into());
        ledger.advance(ChangeMark("mark".into()), &first).await.unwrap();
        PassJob {
            ledger,
            source: Arc::new(self.source),
            target: Arc::new(self.target),
            pool: self.pool,
            settings: self.settings,
            pass: Some(1),
            progress: Arc::default(),
            limits: DiskShares::default(),
            baseline: Arc::default(),
            stop: StopSignal::new(),
        }
    }
}

/// Checks that `stage` is named, for at least the given share of the time.
#[track_caller]
fn named(telemetry: &Telemetry, stage: Stage, least: f64) {
    let found = telemetry.bottleneck();
    let right = found.is_some_and(|found| found.stage == stage && found.share >= least);
    assert!(right, "not {stage} but {found:?}: {telemetry:#?}");
}

fn milliseconds(seconds: f64) -> f64 {
    seconds * 1000.0
}

#[tokio::test(start_paused = true)]
async fn a_slow_source() {
    let mut bench = Bench::new();
    bench.source.read = SLOW;
    let telemetry = bench.run().await;
    named(&telemetry, Stage::Read, 0.95);
    let words = telemetry.bottleneck().unwrap().to_string();
    assert_eq!(words, "the source is the bottleneck: the pass waited 100 % of its time for reads");
    let read = telemetry.stage(Stage::Read).unwrap();
    assert_eq!((read.bytes, read.requests, read.in_flight, read.in_flight_max), (SIZE.0, 64, 0, 4));
    // 64 reads, four at a time; a timer of tokio's may be a millisecond late.
    assert!((160.0..=180.0).contains(&milliseconds(telemetry.elapsed)), "{telemetry:#?}");
    assert!((640.0..=720.0).contains(&milliseconds(read.busy)), "{read:#?}");
    let latency = [read.latency.p50, read.latency.p90, read.latency.p99, read.latency.max];
    assert!(latency.iter().all(|time| (9.0..=12.0).contains(&milliseconds(*time))), "{read:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_source_that_holds_all_buffers() {
    let mut bench = Bench::new();
    bench.source.read = SLOW;
    bench.settings.buffers = 2;
    let telemetry = bench.run().await;
    named(&telemetry, Stage::Read, 0.95);
    assert!(telemetry.waits.iter().any(|wait| wait.wait == Wait::Buffer), "{telemetry:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_target() {
    let mut bench = Bench::new();
    bench.target.write = SLOW;
    bench.source.read = SLOW / 10;
    let telemetry = bench.run().await;
    named(&telemetry, Stage::Write, 0.7);
    let write = telemetry.stage(Stage::Write).unwrap();
    assert_eq!((write.bytes, write.requests, write.in_flight_max), (SIZE.0, 64, 4));
    assert!(telemetry.waits.iter().any(|wait| wait.wait == Wait::WriteSlot), "{telemetry:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_target_that_zeroes_slowly() {
    let mut bench = Bench::new();
    (4..BLOCKS).for_each(|block| bench.source.disk.set_fill(block, 0));
    bench.target.zero = SLOW;
    let telemetry = bench.run().await;
    named(&telemetry, Stage::Zero, 0.95);
    assert_eq!(telemetry.stage(Stage::Zero).unwrap().bytes, SIZE.0 - 4 * BLOCK);
}

#[tokio::test(start_paused = true)]
async fn slow_flushes_between_batches() {
    let mut bench = Bench::new();
    bench.target.flush = SLOW;
    bench.source.read = SLOW / 10;
    bench.settings.batch_bytes = 4 * BLOCK;
    let telemetry = bench.run().await;
    named(&telemetry, Stage::Flush, 0.7);
    assert!(telemetry.waits.iter().any(|wait| wait.wait == Wait::Room), "{telemetry:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_store() {
    let mut bench = Bench::new();
    bench.commit = SLOW;
    bench.target.flush = SLOW / 10;
    bench.settings.batch_bytes = 4 * BLOCK;
    named(&bench.run().await, Stage::Commit, 0.7);
}

#[tokio::test(start_paused = true)]
async fn little_room_is_blamed_on_the_source_that_fills_it_slowly() {
    let mut bench = Bench::new();
    bench.source.read = SLOW;
    bench.source.in_flight = None;
    bench.settings.batch_bytes = BLOCK;
    let telemetry = bench.run().await;
    named(&telemetry, Stage::Read, 0.7);
    assert!(telemetry.waits.iter().any(|wait| wait.wait == Wait::Room), "{telemetry:#?}");
}

#[tokio::test(start_paused = true)]
async fn slow_block_status() {
    let mut bench = Bench::new();
    bench.source.allocation = SLOW;
    bench.settings.window = 4 * BLOCK;
    let telemetry = bench.run().await;
    named(&telemetry, Stage::Plan, 0.9);
    let plan = telemetry.stage(Stage::Plan).unwrap();
    assert_eq!(plan.bytes, SIZE.0);
    assert!(plan.in_flight_max == 1 && plan.requests > 1, "{plan:#?}");
}

#[tokio::test(start_paused = true)]
async fn buffers_that_other_work_holds() {
    let bench = Bench::new();
    let held = futures::future::join_all((0..16).map(|_| bench.pool.take(1))).await;
    tokio::spawn(async move {
        tokio::time::sleep(SLOW).await;
        drop(held);
    });
    named(&bench.run().await, Stage::Memory, 0.9);
}

#[tokio::test(start_paused = true)]
async fn pass_of_one_batch_waits_for_its_last_pieces_and_flush() {
    let mut bench = Bench::new();
    bench.target.flush = SLOW;
    let flushed = bench.run().await;
    named(&flushed, Stage::Flush, 0.9);
    assert!(flushed.waits.iter().any(|wait| wait.wait == Wait::LastBatch), "{flushed:#?}");
    let mut bench = Bench::new();
    bench.source.in_flight = None;
    bench.settings.buffers = 64;
    bench.pool = BufferPool::new(64, BLOCK as usize);
    bench.source.read = SLOW;
    let read = bench.run().await;
    named(&read, Stage::Read, 0.9);
    assert!(read.waits.iter().any(|wait| wait.wait == Wait::LastPieces), "{read:#?}");
}

#[tokio::test(start_paused = true)]
async fn when_nothing_takes_time_nothing_is_named() {
    let telemetry = Bench::new().run().await;
    assert_eq!(telemetry.bottleneck(), None, "{telemetry:#?}");
    let stages: Vec<_> = telemetry.stages.iter().map(|stage| stage.stage).collect();
    let passed = [Stage::Plan, Stage::Read, Stage::Digest, Stage::Write, Stage::Flush, Stage::Commit];
    assert_eq!(stages, passed);
    for stage in &telemetry.stages {
        assert_eq!(stage.bytes, SIZE.0, "{stage:#?}");
    }
    assert_eq!(PassMeter::default().view(), Telemetry::default());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_failed_is_neither_counted_nor_in_flight() {
    let bench = Bench::new();
    bench.faults.add(DiskEvent::Read, 10, DiskFault::Fail);
    let progress = bench.start().await;
    let telemetry = progress.meter().view();
    let read = telemetry.stage(Stage::Read).unwrap();
    assert_eq!(read.in_flight, 0);
    assert!(read.requests < BLOCKS && read.bytes == read.requests * BLOCK, "{read:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_hang_is_named_while_it_lasts() {
    let mut bench = Bench::new();
    bench.target.flush = Duration::from_mins(50);
    bench.settings.batch_bytes = 4 * BLOCK;
    let job = bench.job().await;
    let progress = Arc::clone(&job.progress);
    let running = tokio::spawn(run_pass(job));
    tokio::time::sleep(Duration::from_mins(5)).await;
    named(&progress.meter().view(), Stage::Flush, 0.9);
    running.abort();
}
