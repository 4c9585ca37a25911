//! Sets of blocks of one disk, seen as extents: the live form of `pending`.
//!
//! Rule: a set may only be too large, never too small. [`ExtentSet::insert`] takes every block that the extent
//! touches; [`ExtentSet::remove`] gives up only blocks that the extent covers whole.
//!
//! A set is a bit per [`BLOCK`], in chunks of 1 GiB of disk that exist only while they hold something; a chunk with
//! all bits set keeps none. So a 64 TiB disk costs at most 128 MiB however its changes are scattered, and next to
//! nothing when they are not. Sorted runs were measured against it (`benches/`): 16 bytes a run are 160 MB for ten
//! million scattered extents *and* grow without bound, and a random insert moves the tail of the array.

use std::collections::{BTreeMap, btree_map::Entry};

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
    chunks: BTreeMap<u32, ChunkBits>,
}

impl ExtentSet {
    /// The empty set of a disk of `size` bytes.
    pub fn new(size: Length) -> Self {
        Self { size, chunks: BTreeMap::new() }
    }

    /// All of a disk of `size` bytes.
    pub fn full(size: Length) -> Self {
        let mut set = Self::new(size);
        if let Some(whole) = Extent::whole(size) {
            set.insert(whole);
        }
        set
    }

    /// Bytes on the disk.
    pub fn size(&self) -> Length {
        self.size
    }

    /// Whether it holds no block.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes of disk that it holds, the shorter last block counted as what it is.
    pub fn bytes(&self) -> Length {
        let whole = self.chunks.values().map(ChunkBits::count).sum::<u64>() * BLOCK;
        let short = blocks_in(self.size) * BLOCK - self.size.0;
        let last_is_in = self.size.0 > 0 && self.contains(blocks_in(self.size) - 1);
        Length(if last_is_in { whole - short } else { whole })
    }

    /// Whether it holds the block with this number.
    pub fn contains(&self, block: u64) -> bool {
        self.chunks
            .get(&((block / CHUNK_BLOCKS) as u32))
            .is_some_and(|bits| bits.get((block % CHUNK_BLOCKS) as usize))
    }

    /// Adds every block that `extent` touches; what lies past the disk's end is left out.
    pub fn insert(&mut self, extent: Extent) {
        let Some(extent) = extent.clip(self.size) else { return };
        for (chunk, from, to) in pieces(extent.blocks()) {
            self.chunks.entry(chunk).or_default().set(from..to, true);
        }
    }

    /// Removes every block that `extent` covers whole; a short last block is whole when its last byte is covered.
    pub fn remove(&mut self, extent: Extent) {
        let first = extent.start().0.div_ceil(BLOCK);
        let end = if extent.end().0 >= self.size.0 { blocks_in(self.size) } else { extent.end().0 / BLOCK };
        for (chunk, from, to) in pieces(first..end.max(first)) {
            if let Entry::Occupied(mut entry) = self.chunks.entry(chunk) {
                entry.get_mut().set(from..to, false);
                if entry.get().is_empty() {
                    entry.remove();
                }
            }
        }
    }

    /// Adds every block of `other`.
    pub fn union(&mut self, other: &Self) {
        for (chunk, bits) in &other.chunks {
            self.chunks.entry(*chunk).or_default().union(bits);
        }
    }

    /// Removes every block of `other`.
    pub fn subtract(&mut self, other: &Self) {
        self.chunks.retain(|chunk, bits| {
            if let Some(theirs) = other.chunks.get(chunk) {
                bits.subtract(theirs);
            }
            !bits.is_empty()
        });
    }

    /// Keeps only the blocks that `other` holds too.
    pub fn intersect(&mut self, other: &Self) {
        self.chunks.retain(|chunk, bits| {
            other.chunks.get(chunk).is_some_and(|theirs| {
                bits.intersect(theirs);
                !bits.is_empty()
            })
        });
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

    /// The chunks that hold something, in order.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, &ChunkBits)> + '_ {
        self.chunks.iter().map(|(chunk, bits)| (*chunk, bits))
    }

    /// One chunk's bits, empty if it holds nothing.
    pub fn chunk(&self, chunk: u32) -> ChunkBits {
        self.chunks.get(&chunk).cloned().unwrap_or_default()
    }

    /// Puts a chunk in as the store kept it; bits past the disk's end are dropped.
    pub fn put_chunk(&mut self, chunk: u32, mut bits: ChunkBits) {
        let on_disk = blocks_in(self.size).saturating_sub(u64::from(chunk) * CHUNK_BLOCKS).min(CHUNK_BLOCKS);
        bits.set(on_disk as usize..CHUNK_BLOCKS as usize, false);
        if bits.is_empty() {
            self.chunks.remove(&chunk);
        } else {
            self.chunks.insert(chunk, bits);
        }
    }

    fn next_block(&self, at: u64) -> Option<u64> {
        let chunk = (at / CHUNK_BLOCKS) as u32;
        self.chunks.range(chunk..).find_map(|(number, bits)| {
            let base = u64::from(*number) * CHUNK_BLOCKS;
            let from = at.saturating_sub(base) as usize;
            bits.first_set(from).map(|bit| base + bit as u64)
        })
    }

    fn next_gap(&self, at: u64) -> u64 {
        let mut at = at;
        loop {
            let Some(bits) = self.chunks.get(&((at / CHUNK_BLOCKS) as u32)) else { return at };
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

/// The part of a range of blocks in each chunk: chunk, first bit, end bit.
fn pieces(blocks: std::ops::Range<u64>) -> impl Iterator<Item = (u32, usize, usize)> {
    let mut at = blocks.start;
    std::iter::from_fn(move || {
        if at >= blocks.end {
            return None;
        }
        let chunk = at / CHUNK_BLOCKS;
        let end = ((chunk + 1) * CHUNK_BLOCKS).min(blocks.end);
        let piece = (chunk as u32, (at % CHUNK_BLOCKS) as usize, (end - chunk * CHUNK_BLOCKS) as usize);
        at = end;
        Some(piece)
    })
}
