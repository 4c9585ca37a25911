//! warmd's own NBD client, the data path from every source and to many targets.
//!
//! Rule: no byte of a server is trusted. Its messages are checked (`reply`, `option_reply`: pure) before they
//! are followed (`handshake`, `receive`); every wait has a deadline; memory is bounded by the request.
//! Nonsense, silence and lost connections are errors that say which request met them.
//!
//! ```text
//! NbdDisk ── pieces ──▶ pool  ──▶ connection ─┬─ send ────▶ socket
//!  status     (cut)    (pick,    (in_flight)  └─ receive ◀─ socket ── straight into the caller's buffer
//!  block_device         retry)
//! ```
//!
//! A connection that is abandoned with changes in flight is read until its answers are complete (`drain`);
//! changes that it may still make are recorded (`late_changes`) until they are settled, and read back where
//! they are not (`recheck`).

mod address;
mod block_device;
mod call;
mod connection;
mod connection_pool;
mod coverage;
mod dial;
mod disk;
mod drain;
mod durability;
mod errno;
mod error;
pub mod fuzz;
mod handshake;
mod in_flight;
mod late_changes;
mod option_reply;
mod options;
mod output;
mod payload;
mod pieces;
mod receive;
mod recheck;
mod reply;
mod send;
mod status;
mod wire;

pub use address::{AddressError, DEFAULT_PORT, NbdAddress, NbdUri};
pub use dial::list_exports;
pub use disk::{NbdDisk, ZeroFlags};
pub use errno::Errno;
pub use error::{NbdCause, NbdError, RequestAt};
pub use handshake::Export;
pub use option_reply::{BlockSizes, ListedExport};
pub use options::{BASE_ALLOCATION, NbdOptions};
pub use reply::Violation;
pub use status::{ContextStatus, StatusRun};
pub use wire::{ExportFlags, NbdCommand};
