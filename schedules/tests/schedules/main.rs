//! Time rules, by what a caller sees of them: each file tests one part.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "how a test fails")]

mod common;
mod examples;
mod forecast;
mod queue;
mod rules;
mod schedule_override;
mod windows;
mod years;
