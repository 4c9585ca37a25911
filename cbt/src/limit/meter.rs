//! Bytes a second, over the last few.
//!
//! Rule: counting takes no lock. Each second has a cell of its own, with its number beside its bytes, so that
//! the thread that comes first in a new second clears the cell's old value.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// More than are read, so that none is cleared while it is read.
const CELLS: usize = 8;
/// Whole seconds that are read, beside the current one.
const SECONDS: u64 = 5;
const SECOND: u64 = 1_000_000_000;
/// The low bits of a cell are its bytes (4 TiB), the others the second's number (2²² of them are 48 days,
/// after which a cell untouched since might count once more).
const BITS: u32 = 42;
const MASK: u64 = (1 << BITS) - 1;

#[derive(Debug, Default)]
pub(super) struct Meter([AtomicU64; CELLS]);

impl Meter {
    /// Counts bytes at a moment, in nanoseconds since the rate limiter began.
    pub(super) fn add(&self, now: u64, bytes: u64) {
        let second = now / SECOND;
        let stamp = (second << BITS) & !MASK;
        let cell = &self.0[second as usize % CELLS];
        let _ = cell.fetch_update(Relaxed, Relaxed, |held| {
            let before = if held & !MASK == stamp { held & MASK } else { 0 };
            Some(stamp | (before + bytes).min(MASK))
        });
    }

    /// Bytes a second, over the last five and the elapsed part of the current one.
    pub(super) fn rate(&self, now: u64) -> f64 {
        let current = now / SECOND;
        let first = current.saturating_sub(SECONDS);
        let bytes: u64 = (first..=current)
            .map(|second| {
                let held = self.0[second as usize % CELLS].load(Relaxed);
                if held & !MASK == (second << BITS) & !MASK { held & MASK } else { 0 }
            })
            .sum();
        let passed = (now - first * SECOND).max(SECOND);
        bytes as f64 * SECOND as f64 / passed as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_last_seconds() {
        let meter = Meter::default();
        for tenth in 0..200 {
            meter.add(tenth * SECOND / 10, 100);
        }
        assert!((meter.rate(20 * SECOND) - 1000.0).abs() < 1.0, "{}", meter.rate(20 * SECOND));
        assert!((meter.rate(23 * SECOND) - 400.0).abs() < 1.0, "{}", meter.rate(23 * SECOND));
        assert!(meter.rate(30 * SECOND) < f64::EPSILON, "{}", meter.rate(30 * SECOND));
    }
}
