//! Limits hold, at once and for all, and what they leave is shared fairly. All on a clock that is paused
//! while any task can run.

mod world;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{sleep, timeout};
use warmd_cbt::limit::Limit;
use world::{KIB, LimitWorld, MIB, SimulatedLoad, assert_near, during, rate, requests, timed};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_rate_is_exact_over_ten_seconds() {
    for limit in [MIB, 10 * MIB, 12_345_678, 400 * MIB] {
        for size in [64 * KIB, 512 * KIB, 2 * MIB] {
            for (depth, latency) in [(1, MS), (16, MS), (64, 30 * MS)] {
                if depth as u64 * size * 1000 < latency.as_millis() as u64 * limit * 2 {
                    // The load itself would be too slow.
                    continue;
                }
                let world = LimitWorld::new();
                world.source.set(rate(limit));
                let loads = [SimulatedLoad::start(&world.alone(), depth, size, latency)];
                for at in [0, 7] {
                    let what = format!("{depth} × {size} bytes at {limit} B/s, window {at}");
                    let moved = during(WINDOW, &loads).await[0];
                    assert_near(&what, moved, 10 * limit, 5, size);
                    sleep(Duration::from_millis(100 * at + 33)).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn idling_saves_no_more_than_a_burst() {
    let world = LimitWorld::new();
    world.global.set(rate(10 * MIB));
    sleep(1000 * SECOND).await;
    let loads = [SimulatedLoad::start(&world.alone(), 16, 64 * KIB, MS)];
    assert_near("the first second after a long rest", during(SECOND, &loads).await[0], 12 * MIB, 1, 64 * KIB);
    assert_near("the next second", during(SECOND, &loads).await[0], 10 * MIB, 1, 64 * KIB);
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_limited_and_the_limit_is_used() {
    let world = LimitWorld::new();
    world.source.set(requests(5));
    let loads = [64, 3].map(|depth| SimulatedLoad::start(&world.alone(), depth, 64 * KIB, 10 * MS));
    let moved = during(WINDOW, &loads).await;
    assert_eq!(world.source.load().in_flight, 5);
    assert_eq!(world.source.load().waiting, 62);
    assert_near("what five at a time move", moved.iter().sum(), 5 * 1000 * 64 * KIB, 1, 0);
    assert!(loads.iter().map(|load| load.most.load(Relaxed)).max() <= Some(5));
}

#[tokio::test(start_paused = true)]
async fn a_changed_rate_is_exact_at_once() {
    let world = LimitWorld::new();
    let loads = [SimulatedLoad::start(&world.alone(), 16, 512 * KIB, MS)];
    for limit in [4, 40, 2, 400, 20] {
        world.global.set(rate(limit * MIB));
        let moved = during(WINDOW, &loads).await[0];
        assert_near(&format!("{limit} MiB/s"), moved, 10 * limit * MIB, 5, 512 * KIB);
    }
    world.global.set(Limit::default());
    assert!(during(SECOND, &loads).await[0] > 7000 * MIB, "nothing limits it any more");
    world.global.set(rate(MIB));
    assert_near("limited again", during(WINDOW, &loads).await[0], 10 * MIB, 5, 512 * KIB);
}

#[tokio::test(start_paused = true)]
async fn who_waits_already_goes_by_the_new_limit() {
    let world = LimitWorld::new();
    let limits = world.alone();
    for change in [rate(512 * MIB), Limit::default()] {
        world.global.set(Limit::default());
        world.global.set(rate(KIB));
        drop(limits.take(MIB).await);
        let waits = tokio::spawn({
            let limits = limits.clone();
            async move { timed(limits.take(1)).await.1 }
        });
        sleep(10 * SECOND).await;
        assert!(!waits.is_finished(), "it owes a thousand seconds");
        world.global.set(change);
        let waited = waits.await.unwrap();
        assert!(waited <= 10 * SECOND + 5 * MS, "{change:?}: waited {waited:?}");
    }
    world.global.set(requests(1));
    let first = limits.take(1).await;
    assert!(timeout(SECOND, limits.take(1)).await.is_err(), "two at once");
    world.global.set(requests(2));
    let second = timeout(MS, limits.take(1)).await.expect("two are allowed now");
    world.global.set(requests(1));
    drop(first);
    assert!(timeout(SECOND, limits.take(1)).await.is_err(), "one is still in flight");
    drop(second);
    drop(timeout(MS, limits.take(1)).await.expect("none is in flight any more"));
}

#[tokio::test(start_paused = true)]
async fn disks_share_a_rate_whatever_their_depths_and_sizes() {
    let cases: [&[(usize, u64)]; 4] = [
        &[(64, 512 * KIB), (1, 512 * KIB)],
        &[(64, 2 * MIB), (4, 64 * KIB)],
        &[
            (64, 512 * KIB),
            (32, 512 * KIB),
            (16, MIB),
            (8, MIB),
            (4, MIB),
            (2, MIB),
            (1, MIB),
            (1, 256 * KIB),
        ],
        &[(1, 2 * MIB), (64, 128 * KIB), (64, MIB)],
    ];
    for depths in cases {
        let world = LimitWorld::new();
        let migration = world.limiter();
        migration.set(rate(64 * MIB));
        let start =
            |(depth, size): &(usize, u64)| SimulatedLoad::start(&world.disk(&migration).1, *depth, *size, MS);
        let loads: Vec<_> = depths.iter().map(start).collect();
        let moved = during(WINDOW, &loads).await;
        assert_near("all together", moved.iter().sum(), 640 * MIB, 5, 0);
        for (share, disk) in moved.iter().zip(depths) {
            let fair = 640 * MIB / depths.len() as u64;
            assert_near(&format!("disk {disk:?} of {depths:?}"), *share, fair, 10, 2 * MIB);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn disks_share_slots_and_none_starves() {
    let world = LimitWorld::new();
    world.source.set(requests(4));
    let loads = [64, 64, 1].map(|depth| SimulatedLoad::start(&world.alone(), depth, 256 * KIB, 10 * MS));
    let moved = during(WINDOW, &loads).await;
    assert_near("the deep ones have the same", moved[0], moved[1], 2, 0);
    // A slot is free every 2.5 ms, and it has one turn in three: so long it waits at most, and then 10 ms go
    // by.
    assert!(moved[2] >= 10_000 / 18 * 256 * KIB, "the one with one request starves: {moved:?}");
}

#[tokio::test(start_paused = true)]
async fn migrations_share_an_endpoint_whatever_their_disks() {
    let world = LimitWorld::new();
    world.source.set(rate(64 * MIB));
    let [many, one] = [world.limiter(), world.limiter()];
    let mut loads: Vec<_> =
        (0..8).map(|_| SimulatedLoad::start(&world.disk(&many).1, 16, 512 * KIB, MS)).collect();
    loads.push(SimulatedLoad::start(&world.disk(&one).1, 16, 512 * KIB, MS));
    let moved = during(WINDOW, &loads).await;
    assert_near("the migration with one disk", moved[8], 320 * MIB, 3, 0);
    for (at, disk) in moved[..8].iter().enumerate() {
        assert_near(&format!("disk {at} of eight"), *disk, 40 * MIB, 3, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn shares_follow_weights_and_unused_share_is_not_kept() {
    let world = LimitWorld::new();
    world.source.set(rate(64 * MIB));
    let [heavy, light] = [world.limiter(), world.limiter()];
    heavy.set_weight(3);
    let loads = [(&heavy, 2), (&light, 16)]
        .map(|(migration, depth)| SimulatedLoad::start(&world.disk(migration).1, depth, 512 * KIB, MS));
    let moved = during(WINDOW, &loads).await;
    assert_near("the heavy one", moved[0], 480 * MIB, 3, 0);
    assert_near("the light one", moved[1], 160 * MIB, 3, 0);
    heavy.set_weight(1);
    let moved = during(WINDOW, &loads).await;
    assert_near("heavy no more", moved[0], 320 * MIB, 3, 0);
    heavy.set_weight(10);
    heavy.set(rate(MIB));
    let moved = during(WINDOW, &loads).await;
    assert_near("what is left to the light one", moved[1], 630 * MIB, 3, 0);
}

#[tokio::test(start_paused = true)]
async fn what_one_may_not_take_is_left_to_the_others() {
    let world = LimitWorld::new();
    world.global.set(rate(100 * MIB));
    let [slow, fast] = [world.limiter(), world.limiter()];
    slow.set(rate(10 * MIB));
    let loads = [(&slow, 64), (&fast, 4)]
        .map(|(migration, depth)| SimulatedLoad::start(&world.disk(migration).1, depth, 512 * KIB, MS));
    let moved = during(WINDOW, &loads).await;
    assert_near("the limited one", moved[0], 100 * MIB, 5, 0);
    assert_near("the other", moved[1], 900 * MIB, 5, 0);
    // It was delayed, and has no claim for that.
    slow.set(Limit::default());
    let moved = during(SECOND, &loads).await;
    assert_near("the one that was limited", moved[0], 50 * MIB, 5, MIB);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_only_passed_is_not_taken_from() {
    let world = LimitWorld::new();
    let target = world.limiter();
    world.global.set(rate(1));
    target.set(rate(8 * MIB));
    let writes = world.rate_limiter.limits([(&world.global, false), (&target, true)]);
    let loads = [SimulatedLoad::start(&writes, 4, 64 * KIB, MS)];
    assert_near("writes", during(WINDOW, &loads).await[0], 80 * MIB, 5, 0);
    let seen = target.load().rate;
    assert_near("the rate that is shown", seen as u64, 8 * MIB, 3, 0);
    assert_eq!(world.global.load(), warmd_cbt::limit::LimitLoad::default());
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_loses_nothing() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let world = LimitWorld::new();
    world.global.set(Limit { rate: rate(16 * MIB).rate, requests: requests(3).requests });
    let loads = [SimulatedLoad::start(&world.alone(), 2, 256 * KIB, MS)];
    let (impatient, migration) = (world.alone(), world.limiter());
    let mut tasks = tokio::task::JoinSet::new();
    let other = world.disk(&migration).1;
    for _ in 0..3000 {
        let limits = if random.random_bool(0.5) { impatient.clone() } else { other.clone() };
        let patience = Duration::from_micros(random.random_range(0..60_000));
        let (begin, slot) = (Duration::from_millis(random.random_range(0..9_000)), random.random_bool(0.5));
        tasks.spawn(async move {
            sleep(begin).await;
            // A request that is served in time returns a reservation whole, and of a permit at least the
            // slot.
            if slot {
                let _ = timeout(patience, limits.take(0)).await;
            } else {
                let _ = timeout(patience, limits.budget(MIB)).await;
            }
        });
    }
    let moved = during(WINDOW, &loads).await[0];
    assert_near("the one that stays has all", moved, 160 * MIB, 5, 0);
    tasks.join_all().await;
    drop(loads);
    sleep(MS).await;
    let load = world.global.load();
    assert_eq!((load.in_flight, load.waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_budget_does_not_spend_comes_back() {
    let world = LimitWorld::new();
    world.global.set(rate(MIB));
    let limits = world.alone();
    for _ in 0..1000 {
        limits.budget(MIB).await.spend(KIB);
    }
    let (_, took) = timed(limits.take(1)).await;
    assert!(took <= SECOND, "{took:?}");
    let (budget, took) = timed(limits.budget(10 * MIB)).await;
    assert!(took <= SECOND, "{took:?}");
    budget.spend(10 * MIB);
    let (_, took) = timed(limits.take(1)).await;
    assert_near("milliseconds for what was spent", took.as_millis() as u64, 10_000, 1, 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_free_is_not_paid_back() {
    let world = LimitWorld::new();
    let limits = world.alone();
    let free = limits.budget(1000 * MIB).await;
    world.source.set(requests(8));
    let half_free = limits.budget(1000 * MIB).await;
    sleep(MS).await;
    world.global.set(rate(MIB));
    drop(limits.take(10 * MIB).await);
    drop((free, half_free));
    let (_, took) = timed(limits.take(1)).await;
    assert_near("milliseconds for what was paid", took.as_millis() as u64, 10_000, 1, 0);
}

#[tokio::test(start_paused = true)]
async fn requests_without_bytes_wait_for_slots_and_not_for_rates() {
    let world = LimitWorld::new();
    world.global.set(Limit { rate: rate(1).rate, requests: requests(2).requests });
    let limits = world.alone();
    drop(limits.take(MIB).await);
    let poor = tokio::spawn({
        let limits = limits.clone();
        async move { drop(limits.take(1).await) }
    });
    sleep(MS).await;
    let zeroing = [limits.take(0).await, limits.take(0).await];
    assert!(timeout(SECOND, limits.take(0)).await.is_err(), "a third one");
    drop(zeroing);
    drop(timeout(MS, limits.take(0)).await.expect("slots are free"));
    assert!(!poor.is_finished(), "it owes years");
    poor.abort();
}

#[tokio::test(start_paused = true)]
async fn without_limits_nobody_waits_and_all_is_counted() {
    let world = LimitWorld::new();
    let limits = world.alone();
    let permits: Vec<_> = futures::future::join_all((0..1000).map(|_| limits.take(MIB))).await;
    let load = world.global.load();
    assert_eq!((load.in_flight, load.waiting, load.rate as u64), (1000, 0, 1000 * MIB));
    drop(permits);
    sleep(20 * SECOND).await;
    assert_eq!(world.global.load(), warmd_cbt::limit::LimitLoad::default());
    // No limits at all, as a caller has that sets none.
    drop(warmd_cbt::limit::Limits::default().take(u64::MAX).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_do_not_miss_each_other() {
    let world = Arc::new(LimitWorld::new());
    let migration = world.limiter();
    world.global.set(requests(3));
    let tasks = (0..64).map(|at| {
        let (world, migration) = (Arc::clone(&world), migration.clone());
        tokio::spawn(async move {
            let limits = world.disk(&migration).1;
            for turn in 0..300_u32 {
                let permit = limits.take(1).await;
                assert!(world.global.load().in_flight <= 3);
                tokio::task::yield_now().await;
                drop(permit);
                if turn % 50 == 0 {
                    migration.set(if at % 2 == 0 { requests(2) } else { Limit::default() });
                }
            }
        })
    });
    let all = futures::future::join_all(tasks);
    for ended in timeout(60 * SECOND, all).await.expect("one of them was never served") {
        ended.unwrap();
    }
    assert_eq!((world.global.load().in_flight, world.global.load().waiting), (0, 0));
}
