//! What the tests of the API and of `warmctl` share: a daemon that is all fake behind its real socket.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

pub mod cases;
#[path = "../../../../tests/src/certs.rs"]
pub mod certs;
pub mod fake_control;
pub mod raw;
pub mod running;
pub mod served;
