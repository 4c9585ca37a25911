//! Simulated endpoints: a source and a target in memory that keep the contracts, remember what was asked of
//! them, and fail where a test injects a fault.
//!
//! Rule: they check that both VMs never run at once, and that nothing is left behind.

#![allow(clippy::expect_used, clippy::panic, reason = "how a test fails")]

mod disk;
mod faults;
mod fleet;
mod fleet_rig;
mod rig;
mod source;
mod target;
mod world;

pub use disk::{MemoryDisk, held_bytes};
pub use faults::{Faults, InjectedFault};
pub use fleet::{Fleet, FleetSource, FleetTarget, FleetVm, Taken};
pub use fleet_rig::FleetRig;
pub use rig::{Rig, on_a_clock};
pub use source::{SimulatedSource, VM};
pub use target::SimulatedTarget;
pub use world::SimulatedWorld;
