//! The work of migrations: the driver that owns each one, its passes, its cutover, its verification, groups,
//! admission and preflight.
//!
//! Rule: one task owns a migration; all other code asks through [`warmd_core::control::Control`] and reads
//! views. Knows the ports of `core`, the state and the schedules; not clap, not an endpoint, not disks, not
//! gRPC, not metrics.
#![forbid(unsafe_code)]

mod access;
pub mod admission;
mod afterwards;
pub mod audit;
mod boot_check;
pub mod command;
mod confined;
pub mod context;
mod conversion;
mod conversion_program;
pub mod cutover;
mod doing;
pub mod driver;
pub mod explain;
pub mod failure;
pub mod forecast;
pub mod groups;
mod hook_call;
mod hooks;
mod inspection;
pub mod inventory;
pub mod limits;
mod machine_changes;
pub mod manager;
mod monotonic_pass;
mod overdue;
pub mod pass;
mod pass_history;
mod plan_apply;
mod plan_diff;
pub mod prepare;
mod program;
pub mod report;
pub mod restore;
pub mod retry;
mod rollback;
mod rules;
mod scheduled_cutover;
pub mod serve;
mod set_limit;
mod snapshot_cleanup;
mod stale_state;
pub mod status_publisher;
mod supervised;
mod telemetry;
mod timing;
mod unreadable;
pub mod verify;
mod waiting;
mod windows;
