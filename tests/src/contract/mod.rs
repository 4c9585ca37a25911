//! The contracts of sources and targets, as functions that fail with the violated rule.

pub mod source;
pub mod target;
