//! The engine's parts beside the ledger and the pass: each file tests one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by them")]

mod limits;
mod proof;
mod sets;
mod telemetry;
