//! The package against the rig of `tests/vsphere`: a simulated vCenter with real change tracking, and
//! nbdkit's real vddk plugin over a stand-in for VMware's library.
//!
//! Rule: every test has a rig of its own, which ends with it. A rig that is not set up fails the test and
//! says how to set it up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "how a test fails")]

mod copies;
mod harness;
mod listing;
mod power;
mod readers;
mod sessions;
mod snapshots;
mod tracking;
