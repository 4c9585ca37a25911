//! The manifest: per [`BLOCK`] the hash of the target's right content, and the root over it.
//!
//! Rule: a block of zeroes is [`BlockHash::ZERO`] and costs nothing to keep; every other block's hash is the
//! first [`BlockHash::BYTES`] bytes of its BLAKE3. 16 bytes of 64 KiB are 0.024 % of the data, under the
//! allowed 0.03 % (20 bytes would exceed that), and a chance of 2⁻¹²⁸ that a corrupted block passes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::{BLOCK, Length, blocks_in};

/// Hash of one block's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockHash(pub [u8; Self::BYTES]);

impl BlockHash {
    /// Bytes kept of each BLAKE3 hash.
    pub const BYTES: usize = 16;
    /// A block of zero bytes alone.
    pub const ZERO: Self = Self([0; Self::BYTES]);

    /// The hash of `block`, at most [`BLOCK`] bytes.
    pub fn of(block: &[u8]) -> Self {
        if is_zero(block) {
            return Self::ZERO;
        }
        let full = blake3::hash(block);
        let mut kept = [0; Self::BYTES];
        kept.copy_from_slice(&full.as_bytes()[..Self::BYTES]);
        Self(kept)
    }

    /// The hashes of all blocks in `bytes`, which begin at a block's start; the last may be short.
    pub fn of_blocks(bytes: &[u8]) -> Vec<Self> {
        bytes.chunks(BLOCK as usize).map(Self::of).collect()
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whether all bytes are zero. Folds 256 bytes at a time, which the compiler turns into vector code.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<256>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// BLAKE3 over a disk's manifest; equal roots mean equal disks.
///
/// Defined as `BLAKE3("warmd manifest 1\n" ‖ size ‖ block size ‖ hash₀ ‖ hash₁ ‖ …)` with both numbers as
/// 64-bit little-endian bytes, and for each block in order its [`BlockHash`]: it can be recomputed from a raw
/// image.
pub struct RootHasher {
    hasher: blake3::Hasher,
    missing: u64,
}

impl RootHasher {
    /// For a disk of `size` bytes.
    pub fn new(size: Length) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"warmd manifest 1\n");
        hasher.update(&size.0.to_le_bytes());
        hasher.update(&BLOCK.to_le_bytes());
        Self { hasher, missing: blocks_in(size) }
    }

    /// Adds the next blocks' hashes, in order.
    pub fn update(&mut self, hashes: &[BlockHash]) {
        // Together, as the hasher is slow with so few bytes at a time: most of a big disk's manifest is
        // zeroes.
        let mut bytes = [0; 256 * BlockHash::BYTES];
        for some in hashes.chunks(256) {
            let (places, _) = bytes.as_chunks_mut::<{ BlockHash::BYTES }>();
            places.iter_mut().zip(some).for_each(|(place, hash)| *place = hash.0);
            self.hasher.update(&bytes[..some.len() * BlockHash::BYTES]);
        }
        self.missing = self.missing.saturating_sub(hashes.len() as u64);
    }

    /// The root in hexadecimal; `None` if blocks are missing.
    pub fn finish(self) -> Option<String> {
        (self.missing == 0).then(|| self.hasher.finalize().to_hex().to_string())
    }
}

impl fmt::Debug for RootHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootHasher").field("missing", &self.missing).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_bit_anywhere_is_not_zero() {
        for len in [1, 255, 256, 257, 70_000] {
            assert!(is_zero(&vec![0; len]));
            for at in [0, len / 2, len - 1] {
                let mut bytes = vec![0; len];
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{len} bytes, bit at {at}");
                assert_ne!(BlockHash::of(&bytes), BlockHash::ZERO);
            }
        }
    }

    #[test]
    fn root_needs_every_block_and_knows_the_size() {
        let size = Length(BLOCK + 1);
        let mut short = RootHasher::new(size);
        short.update(&[BlockHash::ZERO]);
        assert_eq!(short.finish(), None);
        let root = |size| {
            let mut hasher = RootHasher::new(size);
            hasher.update(&[BlockHash::ZERO; 2]);
            hasher.finish().unwrap()
        };
        assert_ne!(root(size), root(Length(BLOCK + 2)));
        assert_eq!(root(size).len(), 64);
    }
}
