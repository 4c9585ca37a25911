//! The nouns and their state changes: pure data and pure functions.
//!
//! Rule: nothing here waits, reads a clock, or touches a disk, a socket or a database.

pub mod access;
pub mod boot;
pub mod conversion;
pub mod coordination;
pub mod cutover_record;
pub mod decide;
pub mod event_kind;
pub mod forecast;
pub mod group;
pub mod hardware;
pub mod hold_off;
pub mod hook;
pub mod id;
pub mod limit;
pub mod location_claim;
pub mod machine;
pub mod outcome;
pub mod phase;
pub mod plan;
pub mod quota;
pub mod report;
pub mod request;
pub mod rule;
pub mod scheduled_cutover;
pub mod selection;
pub mod state;
pub mod storage;
pub mod tier;
pub mod transition;
pub mod verify;
pub mod view;
