//! The deterministic simulation over many seeds, and the replay of one:
//! `SIM_SEED=123 cargo test --test simulation replay -- --nocapture`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "how a test fails")]

use std::{
    collections::BTreeMap,
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use warmd_tests::simulation::{SimulationOutcome, run};

/// Seeds that fail if a bug that the simulation has found returns, and what was wrong. When the
/// scenarios change, choose new ones: `tests/mutants NAME` prints a seed.
const REGRESSIONS: &[(u64, &str)] = &[
    (
        24222,
        "a step whose commit failed, and was durable, was entered once more in the daemon's end, and told twice",
    ),
    (
        21,
        "step-told-twice: a step whose commit failed and was durable all the same was told twice in the journal",
    ),
    (1, "request-not-told: the journal did not tell of an accepted request"),
    (276, "migration-orphaned: one whose making failed and was durable all the same was driven by nobody"),
    (43, "barrier-ignored: a VM was started on the target before the others of its group were there"),
];

/// Real time after which a seed is stuck: it takes some hundredths of a second.
const STUCK: Duration = Duration::from_secs(30);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The violation of a seed, and how to replay it.
fn failure(outcome: &SimulationOutcome) -> Option<String> {
    let seed = outcome.seed;
    (!outcome.violations.is_empty()).then(|| {
        let first: Vec<_> = outcome.violations.iter().take(3).map(String::as_str).collect();
        format!("seed {seed}: {}\n  {}", first.join("\n    "), how_to_replay(seed))
    })
}

fn how_to_replay(seed: u64) -> String {
    format!("SIM_SEED={seed} cargo test --test simulation replay -- --nocapture")
}

/// Runs seeds on all cores, and returns their outcomes in order of completion.
fn run_all(seeds: &[u64], mut take: impl FnMut(SimulationOutcome)) {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(0);
    // For callers that only need to know whether a seed fails.
    let first_only = std::env::var_os("SIM_FIRST_ONLY").is_some();
    let (begun, told) = mpsc::channel();
    thread::scope(|scope| {
        for worker in 0..workers {
            let (next, begun) = (&next, begun.clone());
            scope.spawn(move || {
                while let Some(seed) = seeds.get(next.fetch_add(1, Relaxed) as usize) {
                    begun.send((worker, Ok(*seed))).ok();
                    let outcome = run(*seed, false);
                    if first_only && !outcome.violations.is_empty() {
                        next.store(u64::MAX >> 1, Relaxed);
                    }
                    begun.send((worker, Err(outcome))).ok();
                }
            });
        }
        drop(begun);
        let mut running = BTreeMap::new();
        loop {
            match told.recv_timeout(Duration::from_secs(1)) {
                Ok((worker, Ok(seed))) => drop(running.insert(worker, (seed, Instant::now()))),
                Ok((worker, Err(outcome))) => {
                    running.remove(&worker);
                    take(outcome);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if let Some((seed, _)) = running.values().find(|(_, since)| since.elapsed() > STUCK) {
                // Its thread cannot be ended.
                eprintln!("seed {seed} is stuck: {}", how_to_replay(*seed));
                std::process::abort();
            }
        }
    });
}

/// Prints all events of the seed `SIM_SEED`.
#[test]
fn replay() {
    let seed = number("SIM_SEED");
    let outcome = run(seed.unwrap_or(1), seed.is_some());
    println!("{} steps, {:#?}", outcome.steps, outcome.counts.0);
    assert!(outcome.violations.is_empty(), "{:#?}", outcome.violations);
}

#[test]
fn seeds_that_failed_once_hold() {
    for (seed, what) in REGRESSIONS {
        let failure = failure(&run(*seed, false));
        assert!(failure.is_none(), "{}\n  once it was this: {what}", failure.unwrap());
    }
}

#[test]
fn a_seed_means_one_run() {
    let seeds: Vec<_> = (1000..1000 + number("SIM_SEEDS").unwrap_or(48)).collect();
    let [mut first, mut second] = [BTreeMap::new(), BTreeMap::new()];
    run_all(&seeds, |outcome| {
        first.insert(outcome.seed, (outcome.hash, outcome.steps));
    });
    run_all(&seeds, |outcome| {
        second.insert(outcome.seed, (outcome.hash, outcome.steps));
    });
    for (seed, once) in &first {
        assert_eq!(once, &second[seed], "seed {seed} was another run: {}", how_to_replay(*seed));
    }
    let hashes: std::collections::BTreeSet<_> = first.values().map(|(hash, _)| hash).collect();
    assert_eq!(hashes.len(), seeds.len(), "different seeds are the same run");
}

/// As many seeds as `SIM_SEEDS` says, from `SIM_FROM` on, or up to the first that fails with
/// `SIM_FIRST_ONLY`; `SIM_SLOW` milliseconds make a seed worth a line.
#[test]
fn many_seeds_hold() {
    let (from, count) = (number("SIM_FROM").unwrap_or(0), number("SIM_SEEDS").unwrap_or(500));
    let begun = Instant::now();
    let mut failures = Vec::new();
    let mut counts = BTreeMap::<_, u64>::new();
    let mut steps = 0;
    let slow = number("SIM_SLOW").unwrap_or(u64::MAX);
    run_all(&(from..from + count).collect::<Vec<_>>(), |outcome| {
        if outcome.took.as_millis() as u64 > slow {
            println!("seed {} took {:?} for {} steps", outcome.seed, outcome.took, outcome.steps);
        }
        failures.extend(failure(&outcome));
        steps += outcome.steps;
        for (what, often) in outcome.counts.0 {
            *counts.entry(what).or_default() += often;
        }
    });
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{count} seeds from {from} on in {took:.1} s ({:.0} a second), {steps} steps, {} failed: {counts:#?}",
        count as f64 / took,
        failures.len()
    );
    failures.truncate(20);
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    // Fewer seeds say nothing about the rarest events: a dozen in thousands of seeds.
    if count >= 2000 {
        for (what, least) in EVENTS {
            let often = counts.get(what).copied().unwrap_or_default();
            assert!(
                often * 1000 >= least * count,
                "{what}: {often} in {count} seeds, and {least} in 1,000 is the least"
            );
        }
    }
}

/// The minimum counts of events in 1,000 seeds; with fewer the seeds prove less than they seem to.
const EVENTS: [(&str, u64); 25] = [
    ("cancelled", 90),
    ("crashes", 400),
    ("cutovers", 700),
    ("deltas", 500),
    ("done", 600),
    ("failed flushes", 30),
    ("failures", 60),
    ("false discards", 5),
    ("faults", 1500),
    ("guest writes", 30_000),
    ("marks lost", 100),
    ("pauses", 150),
    ("power changes", 200),
    ("reboots", 150),
    ("restores", 80),
    ("runs that nobody saw", 10),
    ("sources started after all", 120),
    ("starts after their end", 3),
    ("starts beside the target", 120),
    ("starts in a cutover", 5),
    ("store faults", 200),
    ("target guest writes", 10_000),
    ("target power cuts", 80),
    ("undone cutovers", 90),
    ("unknown changes", 150),
];
