//! The nouns, and what may happen to them: pure data and pure functions.
//!
//! Rule: nothing here waits, reads a clock, or touches a disk, a socket or a database.

pub mod appointment;
pub mod boot;
pub mod budget;
pub mod conversion;
pub mod coordination;
pub mod forecast;
pub mod group;
pub mod hardware;
pub mod hold_off;
pub mod hook;
pub mod id;
pub mod limit;
pub mod machine;
pub mod phase;
pub mod place;
pub mod plan;
pub mod report;
pub mod request;
pub mod rule;
pub mod selection;
pub mod state;
pub mod storage;
pub mod tier;
pub mod transition;
pub mod verify;
pub mod view;
