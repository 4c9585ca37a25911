//! warmd's changed-block engine: selecting blocks, copying them, and verifying the copy.
//!
//! Rule: it knows no hypervisor, no SQLite and no gRPC. It sees disks through [`disk::ReadDisk`] and
//! [`disk::WriteDisk`], and durable state through [`store::LedgerStore`].
#![forbid(unsafe_code)]

pub mod batch;
pub mod buffer;
pub mod chunk;
pub mod disk;
pub mod extents;
pub mod ledger;
pub mod limit;
pub mod manifest;
pub mod mark;
pub mod stop;
pub mod store;
pub mod telemetry;
pub mod transfer;
pub mod units;
pub mod verify;
