//! Disks and a store in memory, which lose what real ones may lose and fail where a test says so.
//!
//! Rule: they are ordinary implementations of the engine's seams; the engine does not know them. All that happens
//! by chance comes from a seed.

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
