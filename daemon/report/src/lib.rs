//! Signed migration reports and the manifest root of a file: what an auditor builds to check a migration
//! without warmd.
//!
//! Rule: a report counts only with a valid signature over all of its bytes. Knows the engine's hashes
//! (`cbt`); not the state, not endpoints, not the daemon.
#![forbid(unsafe_code)]

pub mod manifest_root;
pub mod signing;
