//! The fuzz targets without a fuzzer: every input of the committed corpus, and small changes of each.
//!
//! Rule: it needs no other build than the tests'. The seed of the changes is in the failure; `WARMD_SEED`
//! replays it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "how a test fails")]

#[allow(unreachable_pub, reason = "it is a library to the fuzz targets")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::{fs, panic, path::Path};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Changed inputs for each input of the corpus.
const CHANGES: u64 = 200;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "no corpus for {target}");
    inputs
}

/// A few bytes changed, taken out, doubled, or put in from elsewhere.
fn changed(input: &[u8], other: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..=bytes.len());
        let end = random.random_range(at..=bytes.len().min(at + 40));
        match random.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                let from = random.random_range(0..=other.len());
                let to = random.random_range(from..=other.len().min(from + 60));
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn the_corpus_and_its_neighbourhood_do_no_harm() {
    let seed = std::env::var("WARMD_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(rand::random::<u64>);
    for (target, run) in targets::TARGETS {
        let inputs = corpus(target);
        for (number, input) in inputs.iter().enumerate() {
            run(input);
            let mut random = StdRng::seed_from_u64(seed ^ number as u64);
            for _ in 0..CHANGES {
                let other = &inputs[random.random_range(0..inputs.len())];
                let bytes = changed(input, other, &mut random);
                panic::catch_unwind(|| run(&bytes)).unwrap_or_else(|_| {
                    panic!(
                        "{target} broke with WARMD_SEED={seed}: {}",
                        String::from_utf8_lossy(&bytes).escape_debug()
                    )
                });
            }
        }
    }
}
