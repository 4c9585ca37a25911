//! Common code of the benchmarks, and the side-by-side benchmark of warmd and its peers.
//!
//! Rule: both sides of a comparison are separate processes, measured by the same code, over the same servers
//! and the same images; a run counts only if its target equals its source.
//!
//! ```text
//! run (bin) ─▶ side_by_side ─▶ cases ─▶ fixture (images, servers) ─▶ sides (command lines)
//!                                  │                                     ├─ bench-engine: warmd's engine
//!                                  ▼                                     ├─ nbdcopy, qemu-img
//!                        pairs A B A B, compared ◀── measure ────────────┴─ bench-peer: loops and grounds
//! ```

pub mod bars;
pub mod cases;
pub mod children;
pub mod client;
pub mod compare;
pub mod daemon;
pub mod delta;
pub mod downtime;
pub mod engine;
pub mod fixture;
pub mod grounds;
pub mod huge;
pub mod image;
pub mod loops;
pub mod measure;
pub mod pairs;
pub mod report;
pub mod scale;
pub mod servers;
pub mod side;
pub mod sides;
pub mod vddk;
pub mod vsphere_list;

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
