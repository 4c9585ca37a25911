//! What every source and every target must keep, as functions that fail with what was not kept.

pub mod target;
