//! Disks and a store in memory, which may lose unflushed data as real ones do, and fail where a test says so.
//!
//! Rule: they are ordinary implementations of the engine's interfaces; the engine does not know them. All
//! random choices come from a seed.
#![forbid(unsafe_code)]

mod disk;
mod faults;
mod slow;
mod store;

pub use self::{
    disk::MemoryDisk,
    faults::{DiskEvent, DiskFault, Faults, Random},
    slow::SlowDisk,
    store::{LedgerView, MemoryStore},
};
