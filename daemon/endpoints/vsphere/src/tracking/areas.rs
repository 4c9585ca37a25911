//! The answers to "what changed", page by page.
//!
//! Rule: an answer speaks of `length` bytes from `start`, whatever areas it names, and the next question
//! begins where it ends; it may name none. Nothing is asked at or past the capacity, which is that of the
//! snapshot's own settings. An answer that does not fit its question is not corrected but makes the whole
//! unknown.

use thiserror::Error;
use warmd_cbt::{
    extents::ExtentSet,
    units::{Extent, Length, Offset},
};

use crate::vim::vm::Areas;

/// A walk over one disk.
#[derive(Debug)]
pub struct Walk {
    at: u64,
    capacity: u64,
    changed: ExtentSet,
    pages: u64,
}

/// Why an answer is not believed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Nonsense {
    #[error("an answer about the bytes from {asked} speaks of those from {told}")]
    Start { asked: u64, told: i64 },
    #[error("an answer about the bytes from {at} speaks of {length} bytes")]
    Length { at: u64, length: i64 },
    #[error("an answer names {length} bytes at {start}, which is no area of a disk of {capacity} bytes")]
    Area { start: i64, length: i64, capacity: u64 },
    #[error("the answers have not come to the disk's end after {0} pages")]
    Endless(u64),
}

/// Bytes that a page covers at least, on average, on a disk whose tracking is sane: 2,000 areas of 64 KiB.
const PAGE_COVERS: u64 = 2000 * 64 * 1024;
/// Pages that are allowed beyond that: a test's small ones, and disks that are smaller than a page.
const PAGES_MORE: u64 = 100_000;

impl Walk {
    /// Over a disk of `capacity` bytes.
    pub fn new(capacity: Length) -> Self {
        Self { at: 0, capacity: capacity.0, changed: ExtentSet::new(capacity), pages: 0 }
    }

    /// The offset to ask from; `None` when the answers have come to the disk's end.
    pub fn next(&self) -> Option<u64> {
        (self.at < self.capacity).then_some(self.at)
    }

    /// Takes the answer to a question from [`Walk::next`]'s offset.
    pub fn take(&mut self, answer: &Areas) -> Result<(), Nonsense> {
        let at = self.at;
        if u64::try_from(answer.start) != Ok(at) {
            return Err(Nonsense::Start { asked: at, told: answer.start });
        }
        let length = u64::try_from(answer.length).ok().filter(|length| *length > 0);
        let end = length.and_then(|length| at.checked_add(length));
        let end = end.ok_or(Nonsense::Length { at, length: answer.length })?;
        for (start, length) in &answer.areas {
            let wrong = || Nonsense::Area { start: *start, length: *length, capacity: self.capacity };
            let from = u64::try_from(*start).map_err(|_| wrong())?;
            let bytes = u64::try_from(*length).map_err(|_| wrong())?;
            if from >= self.capacity || from.checked_add(bytes).is_none() {
                return Err(wrong());
            }
            // An empty area says nothing. One that reaches past the end is cut there.
            let bytes = bytes.min(self.capacity - from);
            if let Some(extent) = Extent::new(Offset(from), Length(bytes)) {
                self.changed.insert(extent);
            }
        }
        self.pages += 1;
        if self.pages > self.capacity / PAGE_COVERS + PAGES_MORE {
            return Err(Nonsense::Endless(self.pages));
        }
        self.at = end;
        Ok(())
    }

    /// What changed, once [`Walk::next`] is `None`: sorted, merged, on the disk.
    pub fn changed(self) -> ExtentSet {
        self.changed
    }

    pub fn pages(&self) -> u64 {
        self.pages
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use warmd_cbt::units::BLOCK;

    use super::*;

    fn areas(start: i64, length: i64, areas: &[(i64, i64)]) -> Areas {
        Areas { start, length, areas: areas.to_vec() }
    }

    #[test]
    fn empty_pages_in_the_middle_are_legal() {
        let mut walk = Walk::new(Length(4 << 20));
        walk.take(&areas(0, 1 << 20, &[(0, 1), (131_072, 65536)])).unwrap();
        assert_eq!(walk.next(), Some(1 << 20));
        walk.take(&areas(1 << 20, 2 << 20, &[])).unwrap();
        assert_eq!(walk.next(), Some(3 << 20));
        walk.take(&areas(3 << 20, 1 << 20, &[((4 << 20) - 10, 10)])).unwrap();
        assert_eq!(walk.next(), None);
        let blocks: Vec<u64> = walk.changed().extents().map(|extent| extent.start().0 / BLOCK).collect();
        assert_eq!(blocks, [0, 2, 63]);
    }

    #[test]
    fn what_does_not_fit_its_question_is_not_believed() {
        let after_one = || {
            let mut walk = Walk::new(Length(4 << 20));
            walk.take(&areas(0, 1 << 20, &[])).unwrap();
            walk
        };
        for wrong in [
            areas(0, 1 << 20, &[]),
            areas(-1, 1 << 20, &[]),
            areas(2 << 20, 1 << 20, &[]),
            areas(1 << 20, 0, &[]),
            areas(1 << 20, -5, &[]),
            areas(1 << 20, 1 << 20, &[(4 << 20, 1)]),
            areas(1 << 20, 1 << 20, &[(-1, 1)]),
            areas(1 << 20, 1 << 20, &[(0, -1)]),
        ] {
            assert!(after_one().take(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_length_or_an_area_past_the_end_ends_there() {
        let mut walk = Walk::new(Length((1 << 20) + 512));
        walk.take(&areas(0, 1 << 40, &[(1 << 20, i64::MAX / 2)])).unwrap();
        assert_eq!(walk.next(), None);
        assert_eq!(walk.changed().bytes(), Length(512));
    }

    #[test]
    fn a_server_that_never_ends_is_left() {
        let mut walk = Walk::new(Length(1 << 40));
        let mut taken = 0_u64;
        let error = loop {
            let at = i64::try_from(walk.next().unwrap()).unwrap();
            if let Err(error) = walk.take(&areas(at, 1, &[])) {
                break error;
            }
            taken += 1;
        };
        assert!(matches!(error, Nonsense::Endless(_)) && taken < 200_000, "{taken}");
    }

    /// A server that answers truly about `changed`, in pages of at most `most` areas, and at times of
    /// nothing.
    fn truly(capacity: u64, changed: &[(u64, u64)], at: u64, most: usize, gap: u64) -> Areas {
        let mut told = Vec::new();
        let mut end = capacity;
        for (start, length) in changed {
            let (from, to) = ((*start).max(at), start + length);
            if to <= at {
                continue;
            }
            if told.len() == most {
                end = told.last().map_or(capacity, |(start, length): &(i64, i64)| (start + length) as u64);
                break;
            }
            told.push((from.cast_signed(), (to - from).cast_signed()));
        }
        // Sometimes it speaks of less than it could.
        if gap > 0 && at + gap < end {
            end = at + gap;
            told.retain(|(start, _)| (*start as u64) < end);
        }
        Areas { start: at.cast_signed(), length: (end - at).cast_signed(), areas: told }
    }

    proptest! {
        #[test]
        fn every_change_is_found_and_nothing_is_asked_past_the_end(
            capacity in 1_u64..(1 << 24),
            starts in proptest::collection::btree_map(0_u64..(1 << 24), 1_u64..300_000, 0..40),
            most in 1_usize..8, gap in prop_oneof![Just(0_u64), 100_000_u64..4_000_000],
        ) {
            let mut changed: Vec<(u64, u64)> = Vec::new();
            for (start, length) in starts {
                let from = changed.last().map_or(0, |(start, length)| start + length).max(start);
                let to = (start + length).min(capacity);
                if from < to {
                    changed.push((from, to - from));
                }
            }
            let mut walk = Walk::new(Length(capacity));
            while let Some(at) = walk.next() {
                prop_assert!(at < capacity);
                walk.take(&truly(capacity, &changed, at, most, gap)).unwrap();
                prop_assert!(walk.pages() < 10_000);
            }
            let wanted = ExtentSet::of(
                Length(capacity),
                changed.iter().filter_map(|(start, length)| Extent::new(Offset(*start), Length(*length))),
            );
            prop_assert_eq!(walk.changed(), wanted);
        }

        #[test]
        fn no_answer_makes_it_panic_or_go_back(
            capacity in 1_u64..(1 << 20), start: i64, length: i64, area in (any::<i64>(), any::<i64>()),
        ) {
            let mut walk = Walk::new(Length(capacity));
            if walk.take(&areas(start, length, &[area])).is_ok() {
                prop_assert!(start == 0 && walk.next().is_none_or(|at| at > 0 && at < capacity));
            }
        }
    }
}
