//! The movement of bytes: audit, drain and verification of disks that are given, for the daemon and for a
//! mover on another host.
//!
//! Rule: it works on an order, on disks that its caller opened, and on a ledger; it reports to observers. The
//! state commits before anything is acknowledged. Knows the engine (`cbt`) and the messages of `core`; not
//! the state, not endpoints, not gRPC, not metrics.
//!
//! ```text
//! PassOrder ─▶ audit ─▶ drain ─▶ verify           in the daemon: the ledger itself
//!                 └──────┴─▶ PassEvent            in a mover: a replica (ordered_ledger), whose
//!                                                 changes the daemon commits (ledger_keeper)
//! ```
#![forbid(unsafe_code)]

pub mod audit;
pub mod drain;
pub mod ledger_keeper;
pub mod ordered_ledger;
pub mod verify;
