//! Single passes and verifications, each with one thing to show.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by them")]

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use warmd_cbt::{
    buffer::BufferPool,
    chunk::ChunkBits,
    disk::{ErrorKind, ReadDisk},
    extents::ExtentSet,
    ledger::Ledger,
    limit::{Arbiter, DiskShares, Limit, Limiter},
    mark::{ChangeMark, Changed},
    stop::StopSignal,
    store::{ChunkRow, DiskId, LedgerStore, StoreErrorKind},
    testing::{Event, Fault, Faults, MemoryDisk, MemoryStore},
    transfer::{PassError, PassJob, PassOutcome, PassProgress, TransferSettings, run_pass},
    units::{BLOCK, Extent, Length, Offset},
    verify::{VerifyError, VerifyJob, compare, readback},
};

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

    async fn pass(&self) -> PassOutcome {
        let outcome = run_pass(self.job()).await.unwrap();
        assert!(outcome.finished && self.ledger.is_done(), "{outcome:?}");
        assert_eq!(self.pool.available(), 8, "a buffer was lost");
        outcome
    }

    fn verify(&self) -> VerifyJob {
        VerifyJob {
            ledger: Arc::clone(&self.ledger),
            pool: self.pool.clone(),
            chunk: 4 * BLOCK as usize,
            in_flight: 4,
            trust_holes: true,
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
    let (writes, flushes) = (bench.faults.seen(Event::Write), bench.faults.seen(Event::Flush));
    bench.advance(&Changed::Unknown("lost".into())).await;
    let figures = bench.pass().await.figures;
    assert_eq!((figures.read, figures.skipped, figures.written), (SIZE.0, SIZE.0, 0));
    assert_eq!((bench.faults.seen(Event::Write), bench.faults.seen(Event::Flush)), (writes, flushes));
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
    bench.faults.add(Event::Read, 10, Fault::Fail);
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
    bench.faults.add(Event::Flush, 0, Fault::Fail);
    let error = run_pass(bench.job()).await.unwrap_err();
    assert!(matches!(error, PassError::Target(_)), "{error}");
    assert_eq!(bench.ledger.pending_bytes(), SIZE);
}

#[tokio::test]
async fn batches_are_sealed_by_bytes() {
    let bench = Bench::new(true).await;
    let settings = TransferSettings { batch_bytes: 8 * BLOCK, zero_request: BLOCK, ..bench.job().settings };
    let figures = run_pass(PassJob { settings, ..bench.job() }).await.unwrap().figures;
    // At most two batches' room is ever unsealed.
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
    assert_eq!(bench.faults.seen(Event::Read), 0);
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
    // Data that is other data, a hole that is data, data that is a hole, and the short last block.
    for (block, fill) in [(7, 1000), (8, 1000), (20, 5), (30, 0), (BLOCKS - 1, 9)] {
        bench.target.set_fill(block, fill);
    }
    let wrong = vec![blocks(7, 2), blocks(20, 1), blocks(30, 1), blocks(BLOCKS - 1, 1)];
    for trust_holes in [true, false] {
        let job = || VerifyJob { trust_holes, ..bench.verify() };
        let read = readback(job(), Arc::clone(&target)).await.unwrap();
        let compared = compare(job(), bench.source.clone(), Arc::clone(&target)).await.unwrap();
        for verdict in [read, compared] {
            assert!(!verdict.is_equal());
            assert_eq!(verdict.mismatched, wrong);
            assert_eq!((verdict.mismatched_bytes.0, verdict.checked), (5 * BLOCK - 512, SIZE));
            assert_eq!(verdict.root, good.root);
        }
    }
    // The source has what the manifest does not know: only the comparison with it can see that.
    for (block, fill) in [(7, 8), (8, 9), (20, 0), (30, 31), (BLOCKS - 1, BLOCKS)] {
        bench.target.set_fill(block, fill);
    }
    bench.source.set_fill(50, 4711);
    assert!(readback(bench.verify(), Arc::clone(&target)).await.unwrap().is_equal());
    let compared = compare(bench.verify(), bench.source.clone(), target).await.unwrap();
    assert_eq!(compared.mismatched, [blocks(50, 1)]);
}

#[tokio::test]
async fn a_stopped_verification_is_no_verdict() {
    let bench = Bench::new(true).await;
    bench.pass().await;
    let job = bench.verify();
    job.stop.stop();
    let verdict = readback(job, bench.target.clone()).await.unwrap();
    assert!(!verdict.finished && !verdict.is_equal(), "{verdict:?}");
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

/// One limit for each thing that is done to a disk, and one for both sorts of reads.
struct Limited {
    disk: Limiter,
    reads: Limiter,
    writes: Limiter,
    readbacks: Limiter,
    shares: DiskShares,
}

impl Limited {
    fn new() -> Self {
        let arbiter = Arbiter::new();
        let [reads, writes, readbacks] = [(); 3].map(|()| arbiter.limiter(Limit::default()));
        let disk = arbiter.limiter(Limit::default());
        let of = |limiter, counts| arbiter.limits([(&disk, counts), (limiter, true)]);
        let shares = DiskShares {
            reads: of(&reads, true),
            writes: of(&writes, false),
            readbacks: of(&readbacks, true),
        };
        Self { disk, reads, writes, readbacks, shares }
    }

    fn is_idle(&self) -> bool {
        [&self.disk, &self.reads, &self.writes, &self.readbacks].iter().all(|limiter| {
            let load = limiter.load();
            (load.in_flight, load.waiting) == (0, 0)
        })
    }
}

fn blocks_a_second(blocks: u64) -> Limit {
    Limit { rate: NonZeroU64::new(blocks * BLOCK), requests: None }
}

fn at_once(requests: u32) -> Limit {
    Limit { rate: None, requests: NonZeroU32::new(requests) }
}

/// 64 blocks in pieces of four, the last of which is paid for when all have gone: 60 blocks take their time.
#[tokio::test(start_paused = true)]
async fn a_pass_keeps_to_the_rates_of_both_sides() {
    for (reads, writes, seconds) in [(4, 64, 15), (64, 4, 15), (2, 4, 30)] {
        let bench = Bench::new(true).await;
        let limited = Limited::new();
        limited.reads.set(blocks_a_second(reads));
        limited.writes.set(blocks_a_second(writes));
        let begun = Instant::now();
        let outcome = run_pass(PassJob { limits: limited.shares.clone(), ..bench.job() }).await.unwrap();
        let took = begun.elapsed();
        assert!(outcome.finished);
        assert!(took.as_secs().abs_diff(seconds) <= 1, "{took:?} for {reads} and {writes} blocks a second");
        assert!(limited.is_idle());
        assert_eq!(bench.source.contents(), bench.target.contents());
    }
}

/// Nothing is written when nothing changed, and what was set aside for it comes back.
#[tokio::test(start_paused = true)]
async fn comparing_is_not_held_up_by_a_slow_target_it_does_not_write_to() {
    let bench = Bench::new(true).await;
    bench.pass().await;
    bench.advance(&Changed::Unknown("the source forgot".into())).await;
    let limited = Limited::new();
    limited.writes.set(blocks_a_second(1));
    let begun = Instant::now();
    let outcome = run_pass(PassJob { limits: limited.shares.clone(), ..bench.job() }).await.unwrap();
    assert_eq!(outcome.figures.written, 0);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_waits_for_a_rate_holds_no_buffer_and_stops_at_once() {
    for (reads, writes) in [(1, 64), (64, 1)] {
        let bench = Bench::new(true).await;
        let limited = Limited::new();
        limited.reads.set(blocks_a_second(reads));
        limited.writes.set(blocks_a_second(writes));
        let stop = StopSignal::new();
        let job = PassJob { limits: limited.shares.clone(), stop: stop.clone(), ..bench.job() };
        let running = tokio::spawn(run_pass(job));
        sleep(Duration::from_millis(9500)).await;
        assert_eq!(bench.pool.available(), 8, "a buffer waits for a rate");
        assert_eq!(limited.reads.load().waiting + limited.writes.load().waiting, 1);
        stop.stop();
        let ended = timeout(Duration::from_millis(500), running).await;
        assert!(!ended.expect("it still waits").unwrap().unwrap().finished);
        assert!(limited.is_idle());
        bench.pass().await;
        assert_eq!(bench.source.contents(), bench.target.contents());
    }
}

#[tokio::test(start_paused = true)]
async fn a_verification_keeps_to_the_rates_of_what_it_reads() {
    let bench = Bench::new(true).await;
    bench.pass().await;
    let limited = Limited::new();
    limited.readbacks.set(blocks_a_second(8));
    limited.reads.set(blocks_a_second(4));
    let job = || VerifyJob { limits: limited.shares.clone(), trust_holes: false, ..bench.verify() };
    let begun = Instant::now();
    assert!(readback(job(), bench.target.clone()).await.unwrap().is_equal());
    assert!(begun.elapsed().as_millis().abs_diff(7500) <= 1000, "readback: {:?}", begun.elapsed());
    let begun = Instant::now();
    assert!(compare(job(), bench.source.clone(), bench.target.clone()).await.unwrap().is_equal());
    assert!(begun.elapsed().as_millis().abs_diff(15_000) <= 1000, "compare: {:?}", begun.elapsed());
    let job = job();
    let (stop, progress) = (job.stop.clone(), Arc::clone(&job.progress));
    let running = tokio::spawn(compare(job, bench.source.clone(), bench.target.clone()));
    while progress.checked.load(Relaxed) == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    stop.stop();
    let ended = timeout(Duration::from_millis(500), running).await;
    assert!(!ended.expect("it still waits").unwrap().unwrap().finished);
    assert!(limited.is_idle() && bench.pool.available() == 8);
}

/// Every request is one, also the zeroing, and also those of one piece.
#[tokio::test]
async fn no_more_requests_are_in_flight_than_allowed() {
    let bench = Bench::new(false).await;
    for block in (1..BLOCKS).step_by(2) {
        bench.source.set_fill(block, 0);
    }
    let limited = Limited::new();
    for limiter in [&limited.disk, &limited.reads, &limited.writes, &limited.readbacks] {
        limiter.set(at_once(1));
    }
    let job = PassJob { limits: limited.shares.clone(), ..bench.job() };
    let progress = Arc::clone(&job.progress);
    let pass = tokio::spawn(run_pass(job));
    let mut seen = (0, 0);
    while !pass.is_finished() {
        let view = progress.view();
        seen = (seen.0.max(view.reads_in_flight), seen.1.max(view.writes_in_flight));
        tokio::task::yield_now().await;
    }
    assert!(pass.await.unwrap().unwrap().finished);
    assert!(seen.0 <= 1 && seen.1 <= 1, "{seen:?}");
    assert_eq!(bench.source.contents(), bench.target.contents());
    // More pieces than buffers: those that hold one must get their turns.
    let job = VerifyJob { limits: limited.shares.clone(), in_flight: 16, ..bench.verify() };
    let verified = timeout(Duration::from_mins(1), compare(job, bench.source.clone(), bench.target.clone()));
    assert!(verified.await.expect("somebody waits for itself").unwrap().is_equal());
    assert!(limited.is_idle());
}

/// Passes hold buffers and wait for their turn at the target; verifications of others must not hold the turn and wait
/// for a buffer.
#[tokio::test]
async fn passes_and_verifications_share_a_pool_and_one_turn_at_the_target() {
    let pool = BufferPool::new(2, 4 * BLOCK as usize);
    let arbiter = Arbiter::new();
    let target = arbiter.limiter(at_once(1));
    let shares = || {
        let disk = arbiter.limiter(Limit::default());
        let [writes, readbacks] = [(); 2].map(|()| arbiter.limits([(&target, true), (&disk, true)]));
        DiskShares { reads: arbiter.limits([(&disk, true)]), writes, readbacks }
    };
    for _ in 0..20 {
        let mut work = tokio::task::JoinSet::new();
        for number in 0..4 {
            let bench = Bench::new(false).await;
            for block in (1..BLOCKS).step_by(2) {
                bench.source.set_fill(block, 0);
            }
            if number % 2 == 0 {
                let job = PassJob { pool: pool.clone(), limits: shares(), ..bench.job() };
                work.spawn(async move { assert!(run_pass(job).await.unwrap().finished) });
            } else {
                bench.pass().await;
                let job = VerifyJob { pool: pool.clone(), limits: shares(), in_flight: 16, ..bench.verify() };
                work.spawn(async move { assert!(readback(job, bench.target).await.unwrap().is_equal()) });
            }
        }
        timeout(Duration::from_mins(1), work.join_all()).await.expect("they wait for each other");
    }
    assert_eq!((pool.available(), target.load().in_flight), (2, 0));
}

/// What waits for its turn at the target when the pass is dropped must not go when its turn comes.
#[tokio::test]
async fn a_dropped_pass_begins_no_write_when_its_turn_comes() {
    let bench = Bench::new(false).await;
    for block in (1..BLOCKS).step_by(2) {
        bench.source.set_fill(block, 0);
    }
    let limited = Limited::new();
    limited.writes.set(at_once(1));
    let held = limited.shares.writes.take(0).await;
    let running = tokio::spawn(run_pass(PassJob { limits: limited.shares.clone(), ..bench.job() }));
    let waits = async {
        while limited.writes.load().waiting == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_mins(1), waits).await.expect("nothing waits for its turn");
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let before = bench.target.contents();
    drop(held);
    // The ledger lets the next pass in only when nothing of the last one is left.
    let stopped = StopSignal::new();
    stopped.stop();
    run_pass(PassJob { stop: stopped, ..bench.job() }).await.unwrap();
    assert!(limited.is_idle());
    assert_eq!(bench.target.contents(), before, "written after the pass was dropped");
}
