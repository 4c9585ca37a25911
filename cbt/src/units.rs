//! Units as types: byte offsets, lengths, extents and blocks of a disk, so that they cannot be confused.
//!
//! Rule: arithmetic on untrusted data is checked ([`Extent::new`], [`Extent::within`]); inside a disk's
//! bounds it cannot overflow, because no disk is larger than [`MAX_DISK`].

use std::{
    fmt,
    ops::{Add, AddAssign, Range, Sub},
};

use serde::{Deserialize, Serialize};

/// Bytes in a manifest block, which is also the granule of `pending`.
pub const BLOCK: u64 = 64 * 1024;

/// The largest disk, 1 PiB: above every platform's limit, far below where 64-bit sums overflow.
pub const MAX_DISK: u64 = 1 << 50;

/// A position on a disk, in bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Length(pub u64);

/// The number of a [`BLOCK`]-sized block on a disk; the last one of a disk may be shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockIndex(pub u64);

impl Add<Length> for Offset {
    type Output = Self;
    fn add(self, length: Length) -> Self {
        Self(self.0 + length.0)
    }
}

impl Sub for Offset {
    type Output = Length;
    fn sub(self, earlier: Self) -> Length {
        Length(self.0 - earlier.0)
    }
}

impl Add for Length {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sub for Length {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl AddAssign for Length {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl std::iter::Sum for Length {
    fn sum<I: Iterator<Item = Self>>(lengths: I) -> Self {
        lengths.fold(Self(0), Add::add)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl BlockIndex {
    /// The block that holds the byte at `offset`.
    pub fn of(offset: Offset) -> Self {
        Self(offset.0 / BLOCK)
    }

    /// Where the block begins.
    pub fn start(self) -> Offset {
        Offset(self.0 * BLOCK)
    }
}

/// The number of blocks of a disk of `size` bytes, the shorter last one included.
pub fn blocks_in(size: Length) -> u64 {
    size.0.div_ceil(BLOCK)
}

/// A run of bytes on a disk: never empty, never past [`MAX_DISK`]. In a message it is its start and its
/// length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(Offset, Length)", into = "(Offset, Length)")]
pub struct Extent {
    start: Offset,
    len: Length,
}

impl TryFrom<(Offset, Length)> for Extent {
    type Error = String;
    fn try_from((start, len): (Offset, Length)) -> Result<Self, String> {
        Self::new(start, len).ok_or_else(|| format!("{start}+{len} is no run of bytes on a disk"))
    }
}

impl From<Extent> for (Offset, Length) {
    fn from(extent: Extent) -> Self {
        (extent.start, extent.len)
    }
}

impl Extent {
    /// The run of `len` bytes from `start`; `None` if it is empty or reaches past [`MAX_DISK`].
    pub fn new(start: Offset, len: Length) -> Option<Self> {
        let end = start.0.checked_add(len.0)?;
        (len.0 > 0 && end <= MAX_DISK).then_some(Self { start, len })
    }

    /// The run from `start` up to, not including, `end`; `None` as for [`Extent::new`] or if `end` is before
    /// `start`.
    pub fn between(start: Offset, end: Offset) -> Option<Self> {
        Self::new(start, Length(end.0.checked_sub(start.0)?))
    }

    /// All of a disk of `size` bytes; `None` for an empty disk.
    pub fn whole(size: Length) -> Option<Self> {
        Self::new(Offset(0), size)
    }

    /// First byte.
    pub fn start(&self) -> Offset {
        self.start
    }

    /// The byte after the last.
    pub fn end(&self) -> Offset {
        self.start + self.len
    }

    /// Bytes in the run.
    pub fn len(&self) -> Length {
        self.len
    }

    /// Always false: an extent has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether every byte of it is on a disk of `size` bytes.
    pub fn within(&self, size: Length) -> bool {
        self.end().0 <= size.0
    }

    /// The intersection.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        Self::between(self.start.max(other.start), self.end().min(other.end()))
    }

    /// The part of it on a disk of `size` bytes.
    pub fn clip(&self, size: Length) -> Option<Self> {
        Self::between(self.start, self.end().min(Offset(size.0)))
    }

    /// Grown outwards to multiples of `granule` bytes, then cut at `size`.
    pub fn align_out(&self, granule: u64, size: Length) -> Option<Self> {
        let start = self.start.0 / granule * granule;
        let end = self.end().0.div_ceil(granule) * granule;
        Self::between(Offset(start), Offset(end.min(size.0)))
    }

    /// The numbers of all blocks that it touches.
    pub fn blocks(&self) -> Range<u64> {
        self.start.0 / BLOCK..self.end().0.div_ceil(BLOCK)
    }

    /// The numbers of all blocks that it covers whole on a disk of `size` bytes; a short last block is whole
    /// when its last byte is covered.
    pub fn covered_blocks(&self, size: Length) -> Range<u64> {
        let first = self.start.0.div_ceil(BLOCK);
        let end = if self.end().0 >= size.0 { blocks_in(size) } else { self.end().0 / BLOCK };
        first..end.max(first)
    }

    /// Cut at multiples of `step` bytes (`step` > 0): pieces in order, each within one step.
    pub fn split(self, step: u64) -> impl Iterator<Item = Self> {
        let mut at = self.start;
        std::iter::from_fn(move || {
            let stop = Offset((at.0 / step + 1) * step).min(self.end());
            let piece = Self::between(at, stop)?;
            at = stop;
            Some(piece)
        })
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(Offset(start), Length(len)).unwrap()
    }

    #[test]
    fn outside_sums_do_not_overflow() {
        assert_eq!(Extent::new(Offset(u64::MAX), Length(2)), None);
        assert_eq!(Extent::new(Offset(0), Length(0)), None);
        assert_eq!(Extent::new(Offset(MAX_DISK), Length(1)), None);
        assert!(Extent::new(Offset(MAX_DISK - 1), Length(1)).is_some());
    }

    #[test]
    fn alignment_stops_at_the_disk_end() {
        let size = Length(BLOCK + 100);
        assert_eq!(extent(BLOCK + 1, 5).align_out(BLOCK, size), Some(extent(BLOCK, 100)));
        assert_eq!(extent(BLOCK - 1, 2).align_out(BLOCK, size), Some(extent(0, BLOCK + 100)));
    }

    #[test]
    fn split_cuts_at_multiples() {
        let pieces: Vec<_> = extent(10, 25).split(16).collect();
        assert_eq!(pieces, [extent(10, 6), extent(16, 16), extent(32, 3)]);
    }

    #[test]
    fn covered_blocks_are_whole() {
        let size = Length(2 * BLOCK + 100);
        assert_eq!(extent(1, 2 * BLOCK).covered_blocks(size), 1..2);
        assert_eq!(extent(1, 5).covered_blocks(size), 1..1);
        assert_eq!(extent(2 * BLOCK, 99).covered_blocks(size), 2..2);
        assert_eq!(extent(2 * BLOCK, 100).covered_blocks(size), 2..3);
    }

    #[test]
    fn blocks_are_those_touched() {
        assert_eq!(extent(BLOCK - 1, 2).blocks(), 0..2);
        assert_eq!(extent(BLOCK, BLOCK).blocks(), 1..2);
    }
}
