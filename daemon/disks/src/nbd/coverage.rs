//! Which bytes of a read have arrived: chunks may come in any order, but each byte once, and all of them.

use std::collections::BTreeMap;

use super::reply::Violation;

/// The received part of one read, as the fewest runs. Chunks that touch are joined, so that a reply in order
/// costs one run however many chunks it has.
#[derive(Debug)]
pub(super) struct Coverage {
    offset: u64,
    length: u64,
    /// Start of each run and its end, relative to `offset`.
    runs: BTreeMap<u64, u64>,
}

impl Coverage {
    /// Nothing yet of `length` bytes at `offset` of the disk.
    pub(super) fn new(offset: u64, length: u64) -> Self {
        Self { offset, length, runs: BTreeMap::new() }
    }

    /// Records a chunk at `offset` of the disk; returns its place relative to the request's start.
    pub(super) fn add(&mut self, offset: u64, length: u32) -> Result<std::ops::Range<usize>, Violation> {
        let length = u64::from(length);
        let outside = Violation::OutsideRequest { offset, length };
        let start = offset.checked_sub(self.offset).ok_or(outside.clone())?;
        let end = start.checked_add(length).filter(|end| *end <= self.length).ok_or(outside)?;
        let overlap = Violation::Overlap { offset, length };
        let before = self.runs.range(..=start).next_back().map(|(from, to)| (*from, *to));
        if before.is_some_and(|(_, to)| to > start) || self.runs.range(start..end).next().is_some() {
            return Err(overlap);
        }
        let from = before.filter(|(_, to)| *to == start).map_or(start, |(from, _)| from);
        let to = self.runs.remove(&end).unwrap_or(end);
        self.runs.insert(from, to);
        Ok(start as usize..end as usize)
    }

    /// Fails unless every byte has arrived.
    pub(super) fn check_complete(&self) -> Result<(), Violation> {
        let arrived: u64 = self.runs.iter().map(|(from, to)| to - from).sum();
        match self.length - arrived {
            0 => Ok(()),
            missing => Err(Violation::Incomplete { missing }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_in_any_order_fill_the_request_once() {
        let mut coverage = Coverage::new(1000, 100);
        assert_eq!(coverage.add(1050, 25), Ok(50..75));
        assert_eq!(coverage.add(1000, 10), Ok(0..10));
        assert_eq!(coverage.add(1010, 40), Ok(10..50));
        assert_eq!(coverage.runs.len(), 1, "runs that touch are joined");
        assert_eq!(coverage.check_complete(), Err(Violation::Incomplete { missing: 25 }));
        assert_eq!(coverage.add(1075, 25), Ok(75..100));
        assert_eq!(coverage.check_complete(), Ok(()));
    }

    #[test]
    fn chunks_outside_or_twice_are_refused() {
        let mut coverage = Coverage::new(1000, 100);
        for (offset, length) in [(999, 1), (1100, 1), (1099, 2), (u64::MAX, 8), (0, 2000)] {
            let error = coverage.add(offset, length).unwrap_err();
            assert_eq!(error, Violation::OutsideRequest { offset, length: u64::from(length) });
        }
        coverage.add(1020, 20).unwrap();
        for (offset, length) in [(1020, 20), (1019, 2), (1039, 1), (1000, 100), (1025, 2), (1020, 1)] {
            let error = coverage.add(offset, length).unwrap_err();
            assert_eq!(error, Violation::Overlap { offset, length: u64::from(length) });
        }
    }
}
