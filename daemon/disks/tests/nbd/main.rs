//! The NBD client, each file against one kind of server. Servers that do harm are in `nbd_hostile`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod lent;
mod nbdkit;
mod parsers;
mod plain;
mod qemu;
mod random;
