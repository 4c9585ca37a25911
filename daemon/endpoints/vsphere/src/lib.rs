//! VMware vSphere as a source: vCenter 6.5 and newer, and standalone ESXi.
//!
//! Rule: it says what a server has and does what it is asked for, once. Knows the engine's marks; `source`
//! alone knows the port of `core` and disks. Not migrations, not the state, no other endpoint.
//!
//! ```text
//! soap ◀─ client ◀─ vim ◀─ inventory ◀─ tracking (pure) ◀─ snapshot, power, hold_off, doctor ◀─┬─ source
//!                                                          reader: nbdkit children, NBD sockets ◀┘
//! ```

#![forbid(unsafe_code)]

pub mod client;
pub mod doctor;
mod endpoint;
pub mod error;
pub mod hold_off;
pub mod inventory;
pub mod limits;
pub mod power;
pub mod reader;
pub mod settings;
pub mod snapshot;
pub mod soap;
pub mod source;
pub mod tracking;
pub mod vim;

pub use endpoint::Vsphere;
pub use error::{Kind, Result, VsphereError};
pub use settings::Settings;
pub use snapshot::Owner;
