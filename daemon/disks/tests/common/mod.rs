//! The common part of the NBD tests: existing servers, as children of the test, and a scripted one.
//!
//! Rule: a missing tool fails the test and is named. Every wait has a deadline. A server ends with its
//! handle.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "each test binary uses its own part"
)]

pub mod script;
pub mod server;

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use warmd_cbt::{
    buffer::Buffer,
    extents::coalesce,
    units::{Extent, Length, Offset},
};
use warmd_disks::nbd::{NbdDisk, NbdError};

/// The longest wait in a test.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The changed extents of the context in `range`, joined where it touches.
pub async fn dirty(disk: &NbdDisk, context: &str, range: Extent) -> Result<Vec<Extent>, NbdError> {
    let mut found = Vec::new();
    disk.dirty_extents(context, range, |extent| found.push(extent)).await?;
    Ok(coalesce(found, 0).collect())
}

/// Runs a tool to its end and fails unless it succeeds.
pub fn run(tool: &str, arguments: &[&str]) -> Output {
    let output = Command::new(tool)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("the tool `{tool}` does not start: {error}"));
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Waits until `condition` holds.
pub async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Bounds a test's whole work, so that a hang is a failure.
pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("the test hangs")
}

/// `len` bytes of noise that differ from seed to seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// A buffer that holds `bytes`.
pub fn buffer(bytes: &[u8]) -> Buffer {
    let mut buffer = Buffer::unpooled(bytes.len());
    buffer.copy_from_slice(bytes);
    buffer
}

/// A buffer to read into, full of bytes that must not stay.
pub fn stale(len: usize) -> Buffer {
    buffer(&vec![0xa5; len])
}

/// The extent of `len` bytes at `start`.
pub fn extent(start: u64, len: u64) -> Extent {
    Extent::new(Offset(start), Length(len)).expect("an extent")
}

/// Writes a file in the test's directory.
pub fn write_file(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// The seed of a random test: `WARMD_TEST_SEED`, or a new one. Printed, so that a failure can be run again.
pub fn seed() -> u64 {
    let seed = std::env::var("WARMD_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("seed: WARMD_TEST_SEED={seed}");
    seed
}
