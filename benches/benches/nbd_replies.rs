//! Parsing what an NBD server sends: the receiving half of a connection, fed from memory.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warmd_disks::nbd::fuzz::{self, CONTEXTS, COOKIES, LENGTH, OFFSET};

const SIMPLE: u32 = 0x6744_6698;
const STRUCTURED: u32 = 0x668e_33ef;
const DONE: u16 = 1;
const OFFSET_DATA: u16 = 1;
const BLOCK_STATUS: u16 = 5;

/// A structured chunk.
fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let (flags, kind, cookie) = (flags.to_be_bytes(), kind.to_be_bytes(), cookie.to_be_bytes());
    [&STRUCTURED.to_be_bytes()[..], &flags, &kind, &cookie, &length, payload].concat()
}

/// Two reads, the first in `parts` chunks; a write; a block status of `extents` extents in each context.
fn structured(parts: u32, extents: u32) -> Vec<u8> {
    let part = LENGTH / parts;
    let piece = |number: u32| {
        [&(OFFSET + u64::from(number * part)).to_be_bytes()[..], &vec![0x5a; part as usize]].concat()
    };
    let mut bytes = Vec::new();
    for number in 0..parts {
        let flags = if number + 1 == parts { DONE } else { 0 };
        bytes.extend(chunk(flags, OFFSET_DATA, COOKIES[0], &piece(number)));
    }
    let whole = [&OFFSET.to_be_bytes()[..], &[0x5a; LENGTH as usize]].concat();
    bytes.extend(chunk(DONE, OFFSET_DATA, COOKIES[1], &whole));
    bytes.extend(chunk(DONE, 0, COOKIES[2], &[]));
    for (number, context) in CONTEXTS.into_iter().enumerate() {
        let runs = (0..extents).flat_map(|run| [LENGTH / extents, run % 2 * 3]).flat_map(u32::to_be_bytes);
        let payload: Vec<u8> = context.to_be_bytes().into_iter().chain(runs).collect();
        let flags = if number + 1 == CONTEXTS.len() { DONE } else { 0 };
        bytes.extend(chunk(flags, BLOCK_STATUS, COOKIES[3], &payload));
    }
    bytes
}

fn simple() -> Vec<u8> {
    let head = |cookie: u64| [&SIMPLE.to_be_bytes()[..], &[0; 4], &cookie.to_be_bytes()].concat();
    let data = [0x5a; LENGTH as usize];
    [&head(COOKIES[0])[..], &data, &head(COOKIES[1]), &data, &head(COOKIES[2])].concat()
}

fn replies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("NBD replies to two reads of 4 KiB, a write, a block status");
    for (name, bytes, is_structured) in [
        ("simple, no status", simple(), false),
        ("structured, one chunk each, 2 extents", structured(1, 2), true),
        ("structured, 64 chunks, 512 extents", structured(64, 512), true),
    ] {
        let replayed = fuzz::replies(&bytes, is_structured);
        assert_eq!(replayed.data.len(), 2, "{name}: {:?}", replayed.outcomes);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| fuzz::replies(black_box(&bytes), is_structured));
        });
    }
    group.finish();
}

criterion_group!(benches, replies);
criterion_main!(benches);
