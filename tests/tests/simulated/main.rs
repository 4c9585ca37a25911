//! The daemon's migrations over simulated endpoints: each file tests one part.
//!
//! Rule: one program for all files, because linking the daemon into each takes longer than most of them run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "how a test fails")]

mod accepted;
mod adaptive;
mod boot_check;
mod clock;
mod conversion;
mod cutover;
mod finished;
mod forecast;
mod groups;
mod hold_off;
mod hook_services;
mod hooks;
mod limits;
mod log;
mod metrics;
mod plans;
mod proof;
mod quotas;
mod report_signed;
mod restored;
mod rollback;
mod schedule;
mod scheduled_cutover;
mod started;
mod stopping;
mod storages;
mod supervised;
mod unreadable;
mod unsaved;
mod verify;
mod vm_schedules;
mod waiting;
