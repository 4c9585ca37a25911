//! Extent sets: chunks of bits, as the ledger has them, against sorted runs, as a simpler set would.

use std::{collections::BTreeMap, hint::black_box};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use warmd_benches::scattered;
use warmd_cbt::{
    extents::ExtentSet,
    units::{BLOCK, Extent, Length},
};

/// 64 TiB.
const DISK: Length = Length(64 << 40);
const EXTENTS: usize = 100_000;

/// A set of runs by their start; inserting merges adjacent runs.
#[derive(Default)]
struct Runs(BTreeMap<u64, u64>);

impl Runs {
    fn insert(&mut self, extent: Extent) {
        let (mut start, mut end) = (extent.start().0, extent.end().0);
        while let Some((&at, &stop)) = self.0.range(..=end).next_back()
            && stop >= start
        {
            (start, end) = (start.min(at), end.max(stop));
            self.0.remove(&at);
        }
        self.0.insert(start, end);
    }
}

fn sets(criterion: &mut Criterion) {
    let extents = scattered(DISK, EXTENTS, BLOCK);
    let mut group = criterion.benchmark_group("insert 100,000 scattered blocks of 64 TiB");
    group.sample_size(10).throughput(Throughput::Elements(EXTENTS as u64));
    group.bench_function("chunks of bits", |bencher| {
        bencher.iter_batched(
            || ExtentSet::new(DISK),
            |mut set| {
                for extent in &extents {
                    set.insert(*extent);
                }
                set
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("sorted runs", |bencher| {
        bencher.iter_batched(
            Runs::default,
            |mut set| {
                for extent in &extents {
                    set.insert(*extent);
                }
                set.0.len()
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();

    let mut set = ExtentSet::new(DISK);
    for extent in &extents {
        set.insert(*extent);
    }
    criterion.bench_function("walk the runs of 100,000 scattered blocks", |bencher| {
        bencher.iter(|| black_box(set.extents().count()));
    });
}

criterion_group!(benches, sets);
criterion_main!(benches);
