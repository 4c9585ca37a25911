//! Sets of blocks of one disk, seen as extents: the live form of `pending`.
//!
//! Rule: a set may only be too large, never too small. [`ExtentSet::insert`] takes every block that the
//! extent touches; [`ExtentSet::remove`] removes only blocks that the extent covers whole.
//!
//! A set is an array of chunks of 1 GiB of disk ([`ChunkBits`]): 16 bytes for an empty or a full one, so a 64
//! TiB disk costs 1 MiB without scattered blocks, and at most 128 MiB more with any. Ten million single
//! blocks scattered over it take 24 MB (`daemon/store/examples/scale.rs`). Sorted runs of 16 bytes would take
//! 160 MB, grow without bound, and move their tail at each insert; in a B-tree, which does not, a random
//! insert was measured at 600 ns, here at 90 (`benches/benches/extents.rs`, two cores).

use std::ops::Range;

use crate::{
    chunk::{CHUNK_BLOCKS, ChunkBits},
    units::{BLOCK, Extent, Length, Offset, blocks_in},
};

/// Bytes of disk in one chunk.
pub const CHUNK_BYTES: u64 = CHUNK_BLOCKS * BLOCK;

/// A set of blocks of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentSet {
    size: Length,
    chunks: Vec<ChunkBits>,
}

impl ExtentSet {
    /// The empty set of a disk of `size` bytes.
    pub fn new(size: Length) -> Self {
        Self { size, chunks: vec![ChunkBits::default(); size.0.div_ceil(CHUNK_BYTES) as usize] }
    }

    /// All of a disk of `size` bytes.
    pub fn full(size: Length) -> Self {
        let mut set = Self::new(size);
        if let Some(whole) = Extent::whole(size) {
            set.insert(whole);
        }
        set
    }

    /// Every block that one of `extents` touches, on a disk of `size` bytes; in any order, perhaps
    /// overlapping.
    pub fn of(size: Length, extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut set = Self::new(size);
        extents.into_iter().for_each(|extent| set.insert(extent));
        set
    }

    /// Bytes on the disk.
    pub fn size(&self) -> Length {
        self.size
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(ChunkBits::is_empty)
    }

    /// Its size in bytes of disk, the shorter last block counted with its real length.
    pub fn bytes(&self) -> Length {
        let whole = self.chunks.iter().map(ChunkBits::count).sum::<u64>() * BLOCK;
        let short = blocks_in(self.size) * BLOCK - self.size.0;
        let last_is_in = self.size.0 > 0 && self.contains(blocks_in(self.size) - 1);
        Length(if last_is_in { whole - short } else { whole })
    }

    /// Whether it contains the block with this number.
    pub fn contains(&self, block: u64) -> bool {
        self.chunks
            .get((block / CHUNK_BLOCKS) as usize)
            .is_some_and(|bits| bits.get((block % CHUNK_BLOCKS) as usize))
    }

    /// Adds every block that `extent` touches; blocks past the disk's end are left out.
    pub fn insert(&mut self, extent: Extent) {
        let Some(extent) = extent.clip(self.size) else { return };
        for (chunk, blocks) in block_pieces(extent.blocks()) {
            self.chunks[chunk as usize].set(blocks, true);
        }
    }

    /// Removes every block that `extent` covers whole; a short last block is whole when its last byte is
    /// covered.
    pub fn remove(&mut self, extent: Extent) {
        for (chunk, blocks) in block_pieces(extent.covered_blocks(self.size)) {
            if let Some(bits) = self.chunks.get_mut(chunk as usize) {
                bits.set(blocks, false);
            }
        }
    }

    /// Adds every block of `other`, a set of a disk of the same size.
    pub fn union(&mut self, other: &Self) {
        self.chunks.iter_mut().zip(&other.chunks).for_each(|(ours, theirs)| ours.union(theirs));
    }

    /// Removes every block of `other`, a set of a disk of the same size.
    pub fn subtract(&mut self, other: &Self) {
        self.chunks.iter_mut().zip(&other.chunks).for_each(|(ours, theirs)| ours.subtract(theirs));
    }

    /// Keeps only the blocks that `other`, a set of a disk of the same size, contains too.
    pub fn intersect(&mut self, other: &Self) {
        self.chunks.iter_mut().zip(&other.chunks).for_each(|(ours, theirs)| ours.intersect(theirs));
    }

    /// Its blocks as the fewest extents, in order, from the first block at or after `from`.
    pub fn extents_from(&self, from: Offset) -> impl Iterator<Item = Extent> + '_ {
        let mut at = from.0.div_ceil(BLOCK);
        std::iter::from_fn(move || {
            let first = self.next_block(at)?;
            let end = self.next_gap(first);
            at = end;
            Extent::between(Offset(first * BLOCK), Offset((end * BLOCK).min(self.size.0)))
        })
    }

    /// Its blocks as the fewest extents, in order.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents_from(Offset(0))
    }

    /// How many extents [`ExtentSet::extents`] gives.
    pub fn extent_count(&self) -> u64 {
        let runs: u64 = self.chunks.iter().map(ChunkBits::run_count).sum();
        let goes_on =
            |(one, next): &(&ChunkBits, &ChunkBits)| one.get(CHUNK_BLOCKS as usize - 1) && next.get(0);
        let joined = self.chunks.iter().zip(self.chunks.iter().skip(1)).filter(goes_on).count();
        runs - joined as u64
    }

    /// The chunks that are not empty, in order.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, &ChunkBits)> + '_ {
        (0..).zip(&self.chunks).filter(|(_, bits)| !bits.is_empty())
    }

    /// Whether a part of the chunk is on the disk.
    pub fn has_chunk(&self, chunk: u32) -> bool {
        (chunk as usize) < self.chunks.len()
    }

    /// One chunk's bits, empty if it has none.
    pub fn chunk(&self, chunk: u32) -> ChunkBits {
        self.chunks.get(chunk as usize).cloned().unwrap_or_default()
    }

    /// Inserts a chunk from the store; bits past the disk's end are dropped.
    pub fn put_chunk(&mut self, chunk: u32, mut bits: ChunkBits) {
        let Some(place) = self.chunks.get_mut(chunk as usize) else { return };
        let on_disk = (blocks_in(self.size) - u64::from(chunk) * CHUNK_BLOCKS).min(CHUNK_BLOCKS);
        bits.set(on_disk as usize..CHUNK_BLOCKS as usize, false);
        *place = bits;
    }

    fn next_block(&self, at: u64) -> Option<u64> {
        let first = at / CHUNK_BLOCKS;
        let rest = self.chunks.get(first as usize..)?;
        (first..).zip(rest).find_map(|(chunk, bits)| {
            let base = chunk * CHUNK_BLOCKS;
            bits.first_set(at.saturating_sub(base) as usize).map(|bit| base + bit as u64)
        })
    }

    fn next_gap(&self, at: u64) -> u64 {
        let mut at = at;
        loop {
            let Some(bits) = self.chunks.get((at / CHUNK_BLOCKS) as usize) else { return at };
            let base = at / CHUNK_BLOCKS * CHUNK_BLOCKS;
            match bits.first_clear((at - base) as usize) {
                Some(bit) => return base + bit as u64,
                None => at = base + CHUNK_BLOCKS,
            }
        }
    }
}

/// Joins extents whose gap is at most `gap` bytes. The input must be in order and without overlap.
pub fn coalesce(extents: impl IntoIterator<Item = Extent>, gap: u64) -> impl Iterator<Item = Extent> {
    let mut extents = extents.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut run = extents.next()?;
        while let Some(next) = extents.next_if(|next| next.start().0 <= run.end().0 + gap) {
            run = Extent::between(run.start(), next.end().max(run.end()))?;
        }
        Some(run)
    })
}

/// A range of blocks cut at the chunks' borders: each chunk with the range of its bits.
pub fn block_pieces(blocks: Range<u64>) -> impl Iterator<Item = (u32, Range<usize>)> {
    let mut at = blocks.start;
    std::iter::from_fn(move || {
        if at >= blocks.end {
            return None;
        }
        let chunk = at / CHUNK_BLOCKS;
        let end = ((chunk + 1) * CHUNK_BLOCKS).min(blocks.end);
        let bits = (at % CHUNK_BLOCKS) as usize..(end - chunk * CHUNK_BLOCKS) as usize;
        at = end;
        Some((chunk as u32, bits))
    })
}
