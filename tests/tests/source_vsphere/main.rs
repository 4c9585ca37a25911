//! The source `vsphere` against the rig: a simulated vCenter, and nbdkit's real plugin over its disks' files.

mod bench;
mod copies;
mod describing;
mod faults;
mod hold_off;
mod leftovers;
mod migration;
