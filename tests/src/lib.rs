//! Harness for tests of warmd against real guests and real servers, and for the demo.
//!
//! Rule: a fixture ends what it started, however its test ends; every wait has a deadline and reports
//! what it waited for; a missing tool is a failure that names it.

pub mod certs;
pub mod console;
pub mod contract;
mod crash;
pub mod daemon;
pub mod demonstration;
pub mod dir;
mod endpoints;
pub mod faults;
pub mod guest;
pub mod image;
pub mod interrupt;
pub mod libvirt;
pub mod openmetrics;
pub mod record;
pub mod rig;
pub mod scrape;
pub mod scratch;
pub mod simulated;
pub mod simulation;
pub mod tool;
pub mod vsphere;
pub mod wait;
pub mod warmctl;

pub use console::Console;
pub use daemon::Daemon;
pub use dir::{TestDir, asynchronous, run};
pub use guest::{Boot, Format, Guest, GuestDisk, GuestSpec};
pub use libvirt::Libvirtd;
pub use rig::{Rig, RigSpec};
pub use vsphere::VsphereRig;
pub use wait::wait_until;
pub use warmctl::Warmctl;
