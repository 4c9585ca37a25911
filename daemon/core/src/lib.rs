//! warmd's nouns, pure decisions, the plan file, and the ports: [`sources::Source`], [`targets::Target`],
//! [`control::Control`].
//!
//! Rule: each decision here is a function of its arguments. Knows the engine (`cbt`) and the schedules;
//! not SQL, not gRPC, not hypervisors. Of the outside only the clock is here, for the simulation.
#![forbid(unsafe_code)]

pub mod clock;
pub mod control;
pub mod crash;
pub mod format;
pub mod guarded;
pub mod hook_service;
pub mod images;
pub mod metrics_view;
pub mod model;
pub mod pass;
pub mod plan_file;
pub mod process;
pub mod signed_report;
pub mod sources;
pub mod span;
pub mod targets;
