//! Inputs that the benchmarks share.

use warmd_cbt::units::{Extent, Length, Offset};

/// `count` aligned extents of `len` bytes, scattered over a disk of `size` bytes, the same at every call.
pub fn scattered(size: Length, count: usize, len: u64) -> Vec<Extent> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        // Xorshift64: cheap, and good enough to scatter.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(next)
        .filter_map(|random| Extent::new(Offset(random % (size.0 / len) * len), Length(len)))
        .take(count)
        .collect()
}
