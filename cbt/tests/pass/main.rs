//! Single passes and verifications, each showing one property.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by them")]

mod limits;

use std::{sync::Arc, time::Duration};

use warmd_cbt::{
    buffer::BufferPool,
    chunk::ChunkBits,
    disk::{ErrorKind, ReadDisk},
    extents::ExtentSet,
    ledger::Ledger,
    limit::DiskShares,
    mark::{ChangeMark, Changed},
    stop::StopSignal,
    store::{ChunkRow, DiskId, LedgerStore, StoreErrorKind},
    transfer::{DiskPassResult, PassError, PassJob, PassProgress, TransferSettings, run_pass},
    units::{BLOCK, Extent, Length, Offset},
    verify::{VerifyError, VerifyJob, VerifyPart, compare, readback},
};
use warmd_cbt_testing::{DiskEvent, DiskFault, Faults, MemoryDisk, MemoryStore, SlowDisk};

const DISK: DiskId = DiskId(1);
const BLOCKS: u64 = 64;
const SIZE: Length = Length(BLOCKS * BLOCK - 512);

struct Bench {
    faults: Faults,
    source: Arc<MemoryDisk>,
    target: Arc<MemoryDisk>,
    store: Arc<MemoryStore>,
    ledger: Arc<Ledger>,
    pool: BufferPool,
}

impl Bench {
    /// Every block of the source has data; all of it is pending.
    async fn new(reads_as_zeroes: bool) -> Self {
        let faults = Faults::default();
        let source = Arc::new(MemoryDisk::new("source", SIZE, faults.clone(), 1));
        let target = Arc::new(MemoryDisk::new("target", SIZE, faults.clone(), 2));
        for block in 0..BLOCKS {
            source.set_fill(block, block + 1);
        }
        let store = Arc::new(MemoryStore::new(faults.clone(), 3));
        store.create(DISK, SIZE, &Ledger::initial_rows(SIZE, reads_as_zeroes));
        let ledger = Arc::new(Ledger::load(store.clone(), DISK).await.unwrap());
        let pool = BufferPool::new(8, 4 * BLOCK as usize);
        let bench = Self { faults, source, target, store, ledger, pool };
        bench.advance(&Changed::Unknown("first".into())).await;
        bench
    }

    async fn advance(&self, changed: &Changed) {
        self.ledger.advance(ChangeMark("mark".into()), changed).await.unwrap();
    }

    fn job(&self) -> PassJob {
        PassJob {
            ledger: Arc::clone(&self.ledger),
            source: self.source.clone(),
            target: self.target.clone(),
            pool: self.pool.clone(),
            settings: TransferSettings { chunk: 4 * BLOCK as usize, ..TransferSettings::default() },
            pass: Some(1),
            progress: Arc::new(PassProgress::default()),
            limits: DiskShares::default(),
            baseline: Arc::default(),
            stop: StopSignal::new(),
        }
    }

    async fn pass(&self) -> DiskPassResult {
        let outcome = run_pass(self.job()).await.unwrap();
        assert!(outcome.finished && self.ledger.is_done(), "{outcome:?}");
        assert_eq!(self.pool.available(), 8, "a buffer was lost");
        outcome
    }

    fn verify(&self) -> VerifyJob {
        VerifyJob {
            ledger: Arc::clone(&self.ledger),
            part: VerifyPart::default(),
            pool: self.pool.clone(),
            chunk: 4 * BLOCK as usize,
            in_flight: 4,
            read_latency_factor: None,
            baseline: Arc::default(),
            trust_holes: true,
            round: 0,
            progress: Arc::default(),
            limits: DiskShares::default(),
            stop: StopSignal::new(),
        }
    }
}

fn blocks(first: u64, count: u64) -> Extent {
    Extent::new(Offset(first * BLOCK), Length(count * BLOCK)).unwrap().clip(SIZE).unwrap()
}

#[tokio::test]
async fn holes_of_a_fresh_target_are_neither_read_nor_written() {
    let bench = Bench::new(true).await;
    for block in 8..56 {
        bench.source.set_fill(block, 0);
    }
    let figures = bench.pass().await.figures;
    assert_eq!(figures.written, 16 * BLOCK - 512);
    assert_eq!(figures.zeroed, 0);
    assert!(figures.read < 40 * BLOCK, "holes were read: {figures:?}");
    assert_eq!(figures.drained, SIZE.0);
    assert_eq!(bench.source.contents(), bench.target.contents());
}

#[tokio::test]
async fn holes_are_written_over_an_unknown_target() {
    let bench = Bench::new(false).await;
    for block in 0..BLOCKS {
        bench.target.set_fill(block, 99);
    }
    for block in 8..56 {
        bench.source.set_fill(block, 0);
    }
    let figures = bench.pass().await.figures;
    assert_eq!((figures.zeroed, figures.skipped), (48 * BLOCK, 0));
    assert_eq!(bench.source.contents(), bench.target.contents());
}

/// On a clock that only advances when no task is busy: it never ended when the wait for a batch was due
/// again and again.
#[tokio::test(start_paused = true)]
async fn a_failed_pass_sleeps_while_its_last_writes_take_their_time() {
    let bench = Bench::new(false).await;
    bench.source.set_knows_holes(false);
    for block in 0..4 {
        bench.source.set_fill(block, 0);
    }
    bench.faults.add(DiskEvent::Read, 4, DiskFault::Fail);
    let (target, write) = (MemoryDisk::new("target", SIZE, bench.faults.clone(), 2), Duration::from_mins(1));
    let target = Arc::new(SlowDisk { write, ..SlowDisk::new(target) });
    let begun = tokio::time::Instant::now();
    let failure = run_pass(PassJob { target, ..bench.job() }).await.unwrap_err();
    assert!(matches!(failure, PassError::Source(_)), "{failure}");
    assert!(begun.elapsed() >= write, "nothing was in flight when it failed");
}

#[tokio::test]
async fn a_source_without_block_status_is_read() {
    let bench = Bench::new(true).await;
    bench.source.set_knows_holes(false);
    bench.source.set_fill(5, 0);
    let figures = bench.pass().await.figures;
    assert_eq!((figures.read, figures.skipped), (SIZE.0, BLOCK));
}

#[tokio::test]
async fn a_lost_mark_writes_only_what_differs() {
    let bench = Bench::new(true).await;
    bench.pass().await;
    let (writes, flushes) = (bench.faults.seen(DiskEvent::Write), bench.faults.seen(DiskEvent::Flush));
    bench.advance(&Changed::Unknown("lost".into())).await;
    let figures = bench.pass().await.figures;
    assert_eq!((figures.read, figures.skipped, figures.written), (SIZE.0, SIZE.0, 0));
    assert_eq!((bench.faults.seen(DiskEvent::Write), bench.faults.seen(DiskEvent::Flush)), (writes, flushes));
    bench.source.set_fill(9, 1234);
    bench.advance(&Changed::Unknown("lost".into())).await;
    assert_eq!(bench.pass().await.figures.written, BLOCK);
    assert_eq!(bench.source.contents(), bench.target.contents());
}

#[tokio::test]
async fn a_scattered_delta_reads_the_changed_blocks_alone() {
    let bench = Bench::new(true).await;
    bench.pass().await;
    let changed = [3, 7, 8, 40].map(|block| Extent::new(Offset(block * BLOCK + 700), Length(9)).unwrap());
    for block in [3, 7, 8, 40] {
        bench.source.set_fill(block, 777);
    }
    bench.advance(&Changed::Known(ExtentSet::of(bench.ledger.size(), changed.to_vec()))).await;
    assert_eq!((bench.ledger.pending_bytes().0, bench.ledger.pending_extents()), (4 * BLOCK, 3));
    let figures = bench.pass().await.figures;
    assert_eq!((figures.read, figures.written, figures.requests), (4 * BLOCK, 4 * BLOCK, 4));
    assert_eq!(bench.source.contents(), bench.target.contents());
}

#[tokio::test]
async fn many_disks_share_a_pool_of_one_buffer() {
    let mut bench = Vec::new();
    for _ in 0..5 {
        bench.push(Bench::new(false).await);
    }
    let pool = BufferPool::new(1, BLOCK as usize);
    let passes = bench.iter().map(|bench| run_pass(PassJob { pool: pool.clone(), ..bench.job() }));
    let outcomes = tokio::time::timeout(Duration::from_mins(1), futures::future::join_all(passes));
    for outcome in outcomes.await.expect("the passes wait for each other") {
        assert!(outcome.unwrap().finished);
    }
    assert_eq!(pool.available(), 1);
}

#[tokio::test]
async fn what_was_done_before_a_failed_read_is_kept() {
    let bench = Bench::new(true).await;
    bench.faults.add(DiskEvent::Read, 10, DiskFault::Fail);
    let progress = Arc::new(PassProgress::default());
    let job = PassJob { progress: Arc::clone(&progress), ..bench.job() };
    let error = run_pass(job).await.unwrap_err();
    assert!(matches!(error, PassError::Source(_)), "{error}");
    let pending = bench.ledger.pending_bytes().0;
    assert!(pending < SIZE.0 - 8 * BLOCK, "{pending} bytes are still pending");
    let view = progress.view();
    assert_eq!((view.reads_in_flight, view.writes_in_flight), (0, 0));
    assert_eq!((view.total, view.drained), (SIZE.0, SIZE.0 - pending));
    assert_eq!(bench.store.view(DISK).unwrap().figures.drained, SIZE.0 - pending);
    assert!(bench.pass().await.figures.read <= pending);
}

#[tokio::test]
async fn a_failed_flush_drains_nothing() {
    let bench = Bench::new(true).await;
    bench.faults.add(DiskEvent::Flush, 0, DiskFault::Fail);
    let error = run_pass(bench.job()).await.unwrap_err();
    assert!(matches!(error, PassError::Target(_)), "{error}");
    assert_eq!(bench.ledger.pending_bytes(), SIZE);
}

#[tokio::test]
async fn batches_are_committed_by_bytes() {
    let bench = Bench::new(true).await;
    let settings = TransferSettings { batch_bytes: 8 * BLOCK, zero_request: BLOCK, ..bench.job().settings };
    let figures = run_pass(PassJob { settings, ..bench.job() }).await.unwrap().figures;
    // Never more than two batches' room is uncommitted.
    assert!((4..=8).contains(&figures.batches), "{figures:?}");
}

#[tokio::test]
async fn a_stopped_pass_is_not_finished_and_goes_on() {
    let bench = Bench::new(true).await;
    let job = bench.job();
    job.stop.stop();
    let outcome = run_pass(job).await.unwrap();
    assert!(!outcome.finished);
    assert_eq!(bench.ledger.pending_bytes(), SIZE);
    bench.pass().await;
}

#[tokio::test]
async fn other_sizes_are_refused() {
    let bench = Bench::new(true).await;
    let size = |blocks: u64| Arc::new(MemoryDisk::new("other", Length(blocks * BLOCK), Faults::default(), 1));
    let grown = run_pass(PassJob { source: size(BLOCKS + 1), ..bench.job() }).await;
    assert!(matches!(grown, Err(PassError::Source(error)) if error.kind == ErrorKind::Refused));
    let small = run_pass(PassJob { target: size(BLOCKS - 1), ..bench.job() }).await;
    assert!(matches!(small, Err(PassError::Target(error)) if error.kind == ErrorKind::Refused));
    assert_eq!(bench.faults.seen(DiskEvent::Read), 0);
}

#[tokio::test]
async fn verification_lists_what_differs() {
    let bench = Bench::new(true).await;
    let target: Arc<dyn ReadDisk> = bench.target.clone();
    let refused = readback(bench.verify(), Arc::clone(&target)).await;
    assert!(matches!(refused, Err(VerifyError::Pending(SIZE))), "{refused:?}");
    bench.source.set_fill(20, 0);
    bench.source.set_fill(21, 0);
    bench.pass().await;
    let good = readback(bench.verify(), Arc::clone(&target)).await.unwrap();
    assert!(good.is_equal() && good.checked == SIZE, "{good:?}");
    // Different data, data for a hole, a hole for data, and the short last block.
    for (block, fill) in [(7, 1000), (8, 1000), (20, 5), (30, 0), (BLOCKS - 1, 9)] {
        bench.target.set_fill(block, fill);
    }
    let wrong = vec![blocks(7, 2), blocks(20, 1), blocks(30, 1), blocks(BLOCKS - 1, 1)];
    for trust_holes in [true, false] {
        let job = || VerifyJob { trust_holes, ..bench.verify() };
        let read = readback(job(), Arc::clone(&target)).await.unwrap();
        let compared = compare(job(), bench.source.clone(), Arc::clone(&target)).await.unwrap();
        for result in [read, compared] {
            assert!(!result.is_equal());
            assert_eq!(result.mismatched, wrong);
            assert_eq!((result.mismatched_bytes.0, result.checked), (5 * BLOCK - 512, SIZE));
            assert_eq!(result.root, good.root);
        }
    }
    // The source has a change that the manifest lacks: only a comparison with the source sees it.
    for (block, fill) in [(7, 8), (8, 9), (20, 0), (30, 31), (BLOCKS - 1, BLOCKS)] {
        bench.target.set_fill(block, fill);
    }
    bench.source.set_fill(50, 4711);
    assert!(readback(bench.verify(), Arc::clone(&target)).await.unwrap().is_equal());
    let compared = compare(bench.verify(), bench.source.clone(), target).await.unwrap();
    assert_eq!(compared.mismatched, [blocks(50, 1)]);
}

#[tokio::test]
async fn stopped_verification_has_no_result() {
    let bench = Bench::new(true).await;
    bench.pass().await;
    let job = bench.verify();
    job.stop.stop();
    let result = readback(job, bench.target.clone()).await.unwrap();
    assert!(!result.finished && !result.is_equal(), "{result:?}");
}

#[tokio::test]
async fn rows_that_contradict_each_other_are_not_loaded() {
    let mut bits = ChunkBits::default();
    bits.set(3..9, true);
    let past = ChunkRow { chunk: 5, pending: bits.clone(), trusted: ChunkBits::default() };
    let mut fewer = bits.clone();
    fewer.set(4..5, false);
    let beyond = ChunkRow { chunk: 0, pending: fewer, trusted: bits };
    for row in [past, beyond] {
        let store = Arc::new(MemoryStore::new(Faults::default(), 1));
        store.create(DISK, SIZE, &[row]);
        let error = Ledger::load(store, DISK).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Corrupt);
    }
    let store: Arc<dyn LedgerStore> = Arc::new(MemoryStore::new(Faults::default(), 1));
    assert_eq!(Ledger::load(store, DISK).await.unwrap_err().kind, StoreErrorKind::NotFound);
}

#[tokio::test]
async fn unknown_target_is_distinguished_from_one_to_compare() {
    let bench = Bench::new(false).await;
    assert!(bench.ledger.is_distrusted(), "nothing was copied yet");
    bench.pass().await;
    assert!(!bench.ledger.is_distrusted());
    bench.advance(&Changed::Unknown("lost".into())).await;
    assert!(!bench.ledger.is_distrusted(), "all of it is pending, and the hashes are trusted");
    bench.ledger.distrust_all().await.unwrap();
    // Also after the next snapshot: a pass that meets the same again distrusts nothing more.
    bench.advance(&Changed::Unknown("lost".into())).await;
    assert!(bench.ledger.is_distrusted());
    bench.pass().await;
}
