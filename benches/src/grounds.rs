//! The machine's own rates in memory: no copier is faster.

use std::{hint::black_box, thread, time::Instant};

use warmd_cbt::units::BLOCK;

/// Larger than any cache: a copy of it goes to memory and back.
const COPIED: usize = 256 << 20;
/// Hashed again and again, because the engine also hashes data that was just read.
const HASHED: usize = 4 << 20;

/// One thread's memcpy, in bytes a second.
pub fn memcpy() -> f64 {
    let (from, mut to) = (vec![1_u8; COPIED], vec![0_u8; COPIED]);
    let rate = |to: &mut Vec<u8>| {
        let begun = Instant::now();
        to.copy_from_slice(black_box(&from));
        black_box(to);
        COPIED as f64 / begun.elapsed().as_secs_f64()
    };
    (0..5).map(|_| rate(&mut to)).fold(0.0, f64::max)
}

/// BLAKE3 over `bytes` bytes in blocks of 64 KiB, divided among `threads` threads.
pub fn hash(bytes: u64, threads: u64) {
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let buffer = vec![0xa5; HASHED];
                let mut left = bytes / threads.max(1) / BLOCK;
                while left > 0 {
                    for block in buffer.chunks(BLOCK as usize).take(left as usize) {
                        black_box(blake3::hash(block));
                    }
                    left = left.saturating_sub((HASHED as u64) / BLOCK);
                }
            });
        }
    });
}

/// One thread's BLAKE3, in bytes a second.
pub fn blake3_rate() -> f64 {
    let bytes = 512 << 20;
    let rate = || {
        let begun = Instant::now();
        hash(bytes, 1);
        bytes as f64 / begun.elapsed().as_secs_f64()
    };
    (0..3).map(|_| rate()).fold(0.0, f64::max)
}
