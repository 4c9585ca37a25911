//! The cost of a batch's commit in the real store: one durable transaction of SQLite, on the disk below the
//! temporary directory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement ends by them")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use warmd_benches::engine;
use warmd_cbt::{
    chunk::ChunkBits,
    manifest::BlockHash,
    store::{ChunkRow, DiskId, LedgerCommit, LedgerStore as _, PassFigures},
    units::BlockIndex,
};

const DISK: u64 = 1 << 40;
/// Blocks in a chunk of the disk.
const CHUNK: u64 = 16_384;

/// A batch that drains `blocks`, each in a chunk's row that keeps half of its bits.
fn batch(blocks: impl Iterator<Item = u64>) -> LedgerCommit {
    let mut commit = LedgerCommit {
        figures: PassFigures { batches: 1, ..PassFigures::default() },
        ..LedgerCommit::default()
    };
    for block in blocks {
        let chunk = (block / CHUNK) as u32;
        if commit.chunks.last().is_none_or(|row| row.chunk != chunk) {
            let mut pending = ChunkBits::default();
            (0..CHUNK as usize / 2).for_each(|at| pending.set(at * 2..at * 2 + 1, true));
            commit.chunks.push(ChunkRow { chunk, trusted: pending.clone(), pending });
        }
        let mut hash = [0x5a; BlockHash::BYTES];
        hash[..8].copy_from_slice(&block.to_le_bytes());
        commit.hashes.push((BlockIndex(block), BlockHash(hash)));
    }
    commit
}

fn commits(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    runtime.block_on(engine::init(&state, &[DISK], false)).unwrap();
    let store = engine::store(&state).unwrap();
    let mut group = criterion.benchmark_group("ledger commit");
    group.sample_size(20);
    for (name, commit) in [
        ("one block", batch(0..1)),
        ("1 GiB in order", batch(0..CHUNK)),
        ("1,000 blocks in as many chunks", batch((0..1000).map(|at| at * CHUNK))),
    ] {
        group.throughput(Throughput::Elements(commit.hashes.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || commit.clone(),
                |commit| runtime.block_on(store.commit(DiskId(1), commit)).expect("a commit"),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
    runtime.block_on(store.close()).unwrap();
}

criterion_group!(benches, commits);
criterion_main!(benches);
