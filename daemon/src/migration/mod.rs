//! Migrations at work: the driver that owns each one, its passes, its cutover, its verification.
//!
//! Rule: one task owns a migration. Everybody else asks through [`control::Control`] and looks at views.

pub mod admission;
mod applying;
mod appointed;
pub mod audit;
mod boot_check;
mod changes;
pub mod command;
pub mod context;
pub mod control;
mod conversion;
pub mod cutover;
mod doing;
pub mod driver;
pub mod explained;
mod facts;
pub mod failure;
pub mod forecast;
pub mod groups;
mod hook_call;
mod hooks;
pub mod inventory;
pub mod limits;
pub mod live;
mod machine_changes;
pub mod manager;
mod overtaken;
pub mod pass;
pub mod prepare;
mod program;
mod refusal;
pub mod report;
pub mod restore;
pub mod retry;
mod rollback;
mod rules;
pub mod serve;
mod set_limit;
mod supervised;
mod sweep;
pub mod telemetry;
mod timing;
mod unreadable;
pub mod verify;
mod windows;
