//! VMware vSphere as a source: vCenter 6.5 and newer, and standalone ESXi.
//!
//! Rule: this package knows vSphere and warmd's engine, not the daemon. It says what a server has and does
//! what it is asked for, once; what a migration makes of that is the daemon's.
//!
//! ```text
//! soap ◀─ client ◀─ vim ◀─ inventory ◀─ tracking (pure) ◀─ snapshot, power, hold_off, doctor
//!                                                          reader: nbdkit children that give NBD sockets
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
pub mod tracking;
pub mod vim;

pub use endpoint::Vsphere;
pub use error::{Kind, Result, VsphereError};
pub use settings::Settings;
pub use snapshot::Owner;
