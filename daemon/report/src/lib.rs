//! Signed migration reports and the manifest root of a file: what an auditor builds.
#![forbid(unsafe_code)]

pub mod manifest_root;
pub mod seal;
