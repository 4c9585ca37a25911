//! The wire between movers: reading a disk that lies at another host.
//!
//! Rule: a block counts only if it matches the digest that was computed where the disk lies. Only the mover
//! that an order named, with the secret of that one snapshot, reads it; a lost peer is noticed within ten
//! seconds by both sides; memory is bounded on both. It knows the engine's disks (`cbt`), not orders,
//! ledgers, the state or gRPC.
//!
//! ```text
//! source's mover                                         target's mover
//! ReadDisk ─▶ answer (zeroes? digest, pack) ─▶ server ══▶ connection ─▶ in_flight (check) ─▶ RemoteDisk
//!             export: who may read what       TLS 1.3    connection_pool: opened at once, and again
//!                                                        flow: bytes in flight, packed or not
//! ```
#![forbid(unsafe_code)]

mod answer;
mod bytes;
mod connection;
mod connection_pool;
mod error;
mod export;
mod flow;
pub mod fuzz;
mod in_flight;
mod link;
pub mod message;
mod pack;
mod remote_disk;
mod server;
mod tls;

pub use self::{
    answer::digest_of,
    error::WireError,
    export::{Exports, MoverExport},
    flow::FlowView,
    message::{DIGEST_BLOCKS, Digest, OLDEST, VERSION, ZERO_DIGEST},
    remote_disk::{RemoteDisk, RemoteOptions},
    server::{ServerOptions, serve},
    tls::TlsIdentity,
};
