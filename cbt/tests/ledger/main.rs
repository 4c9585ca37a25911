//! The ledger's promise, under all faults, at random from a seed.
//!
//! A guest writes, snapshots are taken, marks are lost, passes are run, stopped, abandoned; reads, writes,
//! flushes and commits fail; the process dies anywhere, and the target's cache with it. Checked all the time:
//! no block leaves `pending` before it is durable, and trusted and non-pending blocks match the manifest. In
//! the end, after one run without faults, the target equals the final snapshot, and the manifest matches the
//! target.
//!
//! `WARMD_SEED=… cargo test -p warmd-cbt --test ledger replay` runs one seed again; `WARMD_RUNS` changes the
//! count.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by them")]

mod watch;
mod world;

use std::hash::{BuildHasher, RandomState};

use world::LedgerWorld;

/// Runs in one go of the test.
const RUNS: u64 = 2000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

fn run(seed: u64) -> Result<world::Tally, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { LedgerWorld::new(seed).live().await })
}

#[test]
fn whatever_happens_the_target_becomes_the_final_snapshot() {
    let base = number("WARMD_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) >> 16);
    let runs = number("WARMD_RUNS").unwrap_or(RUNS);
    println!("seeds {base} to {}", base + runs - 1);
    let mut sum = world::Tally::default();
    for seed in base..base + runs {
        match run(seed) {
            Ok(tally) => sum += tally,
            Err(error) => panic!(
                "seed {seed}: {error}\nreplay: WARMD_SEED={seed} cargo test -p warmd-cbt --test ledger replay"
            ),
        }
    }
    println!("{runs} runs: {sum:?}");
    // The runs count only if all kinds of events happened.
    let happened = [
        sum.passes,
        sum.finished,
        sum.failed,
        sum.stopped,
        sum.abandoned,
        sum.crashes,
        sum.unknown,
        sum.skipped,
        sum.zeroed,
        sum.commits,
        sum.advance_failed,
    ];
    assert!(happened.iter().all(|count| *count > runs / 20), "something hardly ever happened: {sum:?}");
}

/// One seed again, by `WARMD_SEED`; without it, one that once found a fault.
#[test]
fn replay() {
    let seed = number("WARMD_SEED").unwrap_or(1);
    run(seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
}
