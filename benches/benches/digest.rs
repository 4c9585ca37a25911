//! The digest of what was read: BLAKE3 and the zero test, by 64 KiB block.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warmd_cbt::{manifest::BlockHash, units::BLOCK};

fn digest(criterion: &mut Criterion) {
    let blocks = 16;
    let mut group = criterion.benchmark_group("digest 1 MiB");
    group.throughput(Throughput::Bytes(blocks * BLOCK));
    for (name, byte) in [("data", 0xa5), ("zeroes", 0)] {
        let buffer = vec![byte; (blocks * BLOCK) as usize];
        group.bench_function(name, |bencher| bencher.iter(|| black_box(BlockHash::of_blocks(&buffer))));
    }
    group.finish();
}

criterion_group!(benches, digest);
criterion_main!(benches);
