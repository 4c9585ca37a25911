//! The waits of a pass and a verification: rates, turns, and a source that is strained.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use warmd_cbt::{
    buffer::BufferPool,
    limit::{DiskShares, Limit, Limiter, RateLimiter},
    mark::Changed,
    stop::StopSignal,
    transfer::{LatencyBaseline, PassJob, run_pass},
    units::BLOCK,
    verify::{VerifyJob, compare, readback},
};
use warmd_cbt_testing::{Faults, MemoryDisk, SlowDisk};

use super::{BLOCKS, Bench, SIZE};

/// One limit for each kind of disk operation, and one for both sorts of reads.
struct Limited {
    disk: Limiter,
    reads: Limiter,
    writes: Limiter,
    readbacks: Limiter,
    shares: DiskShares,
}

impl Limited {
    fn new() -> Self {
        let rate_limiter = RateLimiter::new();
        let [reads, writes, readbacks] = [(); 3].map(|()| rate_limiter.limiter(Limit::default()));
        let disk = rate_limiter.limiter(Limit::default());
        let of = |limiter, counts| rate_limiter.limits([(&disk, counts), (limiter, true)]);
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

/// Nothing is written when nothing changed, and its reservation is returned.
#[tokio::test(start_paused = true)]
async fn compare_pass_does_not_wait_for_a_target_it_does_not_write() {
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
async fn rate_limited_pass_holds_no_buffer_and_stops_at_once() {
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
    // More pieces than buffers: those that have one must get their turns.
    let job = VerifyJob { limits: limited.shares.clone(), in_flight: 16, ..bench.verify() };
    let verified = timeout(Duration::from_mins(1), compare(job, bench.source.clone(), bench.target.clone()));
    assert!(verified.await.expect("one of them waits for itself").unwrap().is_equal());
    assert!(limited.is_idle());
}

/// Passes have buffers and wait for their turn at the target; verifications of others must not hold the turn
/// and wait for a buffer.
#[tokio::test]
async fn passes_and_verifications_share_one_pool_and_one_target() {
    let pool = BufferPool::new(2, 4 * BLOCK as usize);
    let rate_limiter = RateLimiter::new();
    let target = rate_limiter.limiter(at_once(1));
    let shares = || {
        let disk = rate_limiter.limiter(Limit::default());
        let [writes, readbacks] = [(); 2].map(|()| rate_limiter.limits([(&target, true), (&disk, true)]));
        DiskShares { reads: rate_limiter.limits([(&disk, true)]), writes, readbacks }
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

/// A write that waits for its turn when the pass is dropped must not go when its turn comes.
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
    // The ledger lets the next pass in only when no request of the last one is left.
    let stopped = StopSignal::new();
    stopped.stop();
    run_pass(PassJob { stop: stopped, ..bench.job() }).await.unwrap();
    assert!(limited.is_idle());
    assert_eq!(bench.target.contents(), before, "written after the pass was dropped");
}

/// Both read at once, and rounds that distinguish a strained source from a usual one.
#[tokio::test(start_paused = true)]
async fn a_comparison_spares_a_strained_source() {
    let usual = Duration::from_millis(10);
    for (factor, read, spared) in
        [(Some(4.0), 20 * usual, true), (Some(4.0), usual, false), (None, 20 * usual, false)]
    {
        let bench = Bench::new(true).await;
        bench.pass().await;
        let source = MemoryDisk::new("source", SIZE, Faults::default(), 1);
        for block in 0..BLOCKS {
            source.set_fill(block, block + 1);
        }
        let baseline = Arc::new(Mutex::new(LatencyBaseline::of([(0, usual)])));
        let job = VerifyJob {
            chunk: BLOCK as usize,
            read_latency_factor: factor,
            baseline: Arc::clone(&baseline),
            ..bench.verify()
        };
        let (progress, begun) = (Arc::clone(&job.progress), Instant::now());
        let source = Arc::new(SlowDisk { read, ..SlowDisk::new(source) });
        assert!(compare(job, source, bench.target.clone()).await.unwrap().is_equal());
        let (took, held_back) = (begun.elapsed(), progress.held_back.load(Relaxed));
        assert_eq!(held_back > 0, spared, "{factor:?}, {read:?}: {took:?}");
        // 64 reads, four at a time, or a second between two of them after the first rounds.
        assert_eq!(took > Duration::from_secs(30), spared, "{factor:?}, {read:?}: {took:?}");
        let known: Vec<_> = baseline.lock().unwrap().known().map(|(class, _)| class).collect();
        assert_eq!(known, [0], "what it learnt is there for the next pass");
    }
}

/// Zeroing by writing costs the target's rate like data, whether the zeroes were read or known as a hole.
#[tokio::test(start_paused = true)]
async fn zeroes_that_are_written_cost_bytes() {
    for knows_holes in [true, false] {
        for (by_writing, seconds) in [(true, 15), (false, 0)] {
            let bench = Bench::new(false).await;
            for block in 0..BLOCKS {
                bench.source.set_fill(block, 0);
                bench.target.set_fill(block, 7);
            }
            bench.source.set_knows_holes(knows_holes);
            bench.target.set_zeroes_by_writing(by_writing);
            let limited = Limited::new();
            limited.writes.set(blocks_a_second(4));
            let begun = Instant::now();
            let outcome = run_pass(PassJob { limits: limited.shares.clone(), ..bench.job() }).await.unwrap();
            assert_eq!((outcome.figures.zeroed, outcome.figures.written), (SIZE.0, 0));
            let took = begun.elapsed().as_secs();
            assert!(took.abs_diff(seconds) <= 1, "{knows_holes}, {by_writing}: {took} s");
            assert!(limited.is_idle());
            assert_eq!(bench.source.contents(), bench.target.contents());
        }
    }
}
