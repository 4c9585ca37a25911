//! The source `libvirt` against a real libvirtd and QEMU.
//!
//! Most guests here have no operating system: the test itself writes through the guest's disk device, so that
//! it knows each byte. Tests that need a real guest (power button, writing all the time) are in `guest.rs`.

mod bench;
mod contract;
mod definitions;
mod describing;
mod final_snapshot;
mod finishing;
mod guest;
mod recovery;
mod refusals;
mod tracking;
