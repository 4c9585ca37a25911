//! warmd's nouns, pure decisions and the ports of what it works with.
#![forbid(unsafe_code)]

pub mod clock;
pub mod control;
pub mod crash;
pub mod format;
pub mod model;
pub mod plan_file;
pub mod process;
pub mod sources;
pub mod span;
pub mod targets;
