//! The source `vsphere` against the rig: a simulated vCenter, and nbdkit's real plugin over its disks' files.

mod away;
mod bad_input;
mod before_stop;
mod bench;
mod contract;
mod copies;
mod describing;
mod faults;
mod hold_off;
mod leftovers;
mod migration;
mod moves;
