//! How fast the engine alone is: memory to memory, no network, no SQLite.
//!
//! `cargo run --release -p warmd-cbt --example throughput [MiB]`. Only ratios to the printed grounds are
//! meaningful. The cost of ledgers with their store: `daemon/store/examples/scale.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement ends by them")]

use std::{
    ops::Range,
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use warmd_cbt::{
    buffer::{Buffer, BufferPool},
    disk::{Allocation, DiskError, DiskLimits, ReadDisk, WriteDisk},
    extents::ExtentSet,
    ledger::Ledger,
    limit::DiskShares,
    manifest::BlockHash,
    mark::{ChangeMark, Changed},
    stop::StopSignal,
    store::{DiskId, LedgerCommit, LedgerStore, StoreError, StoredLedger},
    transfer::{PassJob, PassProgress, TransferSettings, run_pass},
    units::{BLOCK, Extent, Length, Offset, blocks_in},
};

const PART: u64 = 1 << 20;

/// Flat memory in parts, each behind its lock.
struct Flat {
    size: Length,
    parts: Vec<RwLock<Vec<u8>>>,
    delay: Duration,
}

impl Flat {
    fn new(size: u64, fill: impl Fn(u64) -> u8, delay: Duration) -> Self {
        let parts =
            (0..size.div_ceil(PART)).map(|part| RwLock::new(vec![fill(part); PART as usize])).collect();
        Self { size: Length(size), parts, delay }
    }

    fn pieces(at: Offset, len: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
        let extent = Extent::new(at, Length(len as u64)).unwrap();
        extent.split(PART).map(move |piece| {
            let inside = (piece.start().0 % PART) as usize;
            let outside = (piece.start() - at).0 as usize;
            let len = piece.len().0 as usize;
            ((piece.start().0 / PART) as usize, inside..inside + len, outside..outside + len)
        })
    }
}

#[async_trait]
impl ReadDisk for Flat {
    fn size(&self) -> Length {
        self.size
    }

    fn limits(&self) -> DiskLimits {
        DiskLimits { max_request: 32 << 20, in_flight: 64 }
    }

    async fn read(&self, at: Offset, mut buffer: Buffer) -> Result<Buffer, DiskError> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        for (part, inside, outside) in Self::pieces(at, buffer.len()) {
            buffer[outside].copy_from_slice(&self.parts[part].read().unwrap()[inside]);
        }
        Ok(buffer)
    }

    async fn allocation(&self, extent: Extent) -> Result<Vec<Allocation>, DiskError> {
        Ok(vec![Allocation { extent, zero: false }])
    }
}

#[async_trait]
impl WriteDisk for Flat {
    async fn write(&self, at: Offset, buffer: Buffer, range: Range<usize>) -> Result<Buffer, DiskError> {
        let bytes = &buffer[range];
        for (part, inside, outside) in Self::pieces(at, bytes.len()) {
            self.parts[part].write().unwrap()[inside].copy_from_slice(&bytes[outside]);
        }
        Ok(buffer)
    }

    async fn write_zeroes(&self, extent: Extent) -> Result<(), DiskError> {
        for (part, inside, _) in Self::pieces(extent.start(), extent.len().0 as usize) {
            self.parts[part].write().unwrap()[inside].fill(0);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// Accepts every commit and keeps the part that the next pass needs.
struct Keeper {
    size: Length,
    hashes: Mutex<Vec<BlockHash>>,
}

#[async_trait]
impl LedgerStore for Keeper {
    async fn load(&self, _disk: DiskId) -> Result<StoredLedger, StoreError> {
        Ok(StoredLedger { size: self.size, anchor: None, chunks: Ledger::initial_rows(self.size, false) })
    }

    async fn commit(&self, _disk: DiskId, commit: LedgerCommit) -> Result<(), StoreError> {
        let mut hashes = self.hashes.lock().unwrap();
        for (block, hash) in &commit.hashes {
            hashes[block.0 as usize] = *hash;
        }
        Ok(())
    }

    async fn hashes(&self, _disk: DiskId, spans: &[Range<u64>]) -> Result<Vec<BlockHash>, StoreError> {
        let hashes = self.hashes.lock().unwrap();
        let of = |span: &Range<u64>| hashes[span.start as usize..span.end as usize].iter().copied();
        Ok(spans.iter().flat_map(of).collect())
    }
}

fn keeper(size: u64) -> Arc<Keeper> {
    let hashes = Mutex::new(vec![BlockHash::ZERO; blocks_in(Length(size)) as usize]);
    Arc::new(Keeper { size: Length(size), hashes })
}

fn scattered(size: u64, every: u64) -> ExtentSet {
    let blocks = (0..size / BLOCK / every).map(|at| at * every * BLOCK);
    ExtentSet::of(Length(size), blocks.filter_map(|at| Extent::new(Offset(at), Length(BLOCK))))
}

fn report(what: &str, bytes: u64, took: Duration) {
    println!(
        "{what:<44} {:>8.2} GB/s  {:>9.3} s",
        bytes as f64 / took.as_secs_f64() / 1e9,
        took.as_secs_f64()
    );
}

async fn pass(what: &str, ledger: &Arc<Ledger>, source: &Arc<Flat>, target: &Arc<Flat>, chunk: usize) {
    let settings = TransferSettings { chunk, ..TransferSettings::default() };
    let job = PassJob {
        ledger: Arc::clone(ledger),
        source: source.clone(),
        target: target.clone(),
        pool: BufferPool::new(64, chunk),
        settings,
        pass: None,
        progress: Arc::new(PassProgress::default()),
        limits: DiskShares::default(),
        baseline: Arc::default(),
        stop: StopSignal::new(),
    };
    let begun = Instant::now();
    let outcome = run_pass(job).await.unwrap();
    assert!(outcome.finished);
    report(&format!("{what}, {} KiB", chunk >> 10), outcome.figures.drained, begun.elapsed());
}

async fn copies(size: u64) {
    let source = Arc::new(Flat::new(size, |part| part as u8 | 1, Duration::ZERO));
    let target = Arc::new(Flat::new(size, |_| 0, Duration::ZERO));
    let begun = Instant::now();
    for part in &source.parts {
        std::hint::black_box(BlockHash::of_blocks(&part.read().unwrap()));
    }
    report("ground: BLAKE3, one thread", size, begun.elapsed());
    let begun = Instant::now();
    for (from, to) in source.parts.iter().zip(&target.parts) {
        to.write().unwrap().copy_from_slice(&from.read().unwrap());
    }
    report("ground: memcpy, one thread", size, begun.elapsed());
    for chunk in [64 << 10, 256 << 10, 512 << 10, 1 << 20] {
        let ledger = Arc::new(Ledger::load(keeper(size), DiskId(1)).await.unwrap());
        ledger.advance(ChangeMark("1".into()), &Changed::Unknown("first".into())).await.unwrap();
        pass("full pass", &ledger, &source, &target, chunk).await;
        ledger.advance(ChangeMark("2".into()), &Changed::Unknown("lost".into())).await.unwrap();
        pass("compare pass, nothing changed", &ledger, &source, &target, chunk).await;
        ledger.advance(ChangeMark("3".into()), &Changed::Known(scattered(size, 3))).await.unwrap();
        pass("scattered delta, every third block", &ledger, &source, &target, chunk).await;
    }
    let slow = Arc::new(Flat::new(size, |part| part as u8 | 1, Duration::from_millis(10)));
    let ledger = Arc::new(Ledger::load(keeper(size), DiskId(1)).await.unwrap());
    ledger.advance(ChangeMark("1".into()), &Changed::Unknown("first".into())).await.unwrap();
    pass("full pass, 10 ms a read", &ledger, &slow, &target, 512 << 10).await;
}

#[tokio::main]
async fn main() {
    let mib: u64 = std::env::args().nth(1).map_or(1024, |mib| mib.parse().unwrap());
    copies(mib << 20).await;
}
