//! Change marks, and the answer to "what changed since".
//!
//! Rule: "I no longer know" is a normal answer, never an error and never an empty list.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::extents::ExtentSet;

/// An opaque point in time of one disk, from which the source can say what changed since. Only the source
/// that made it reads it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChangeMark(pub String);

impl fmt::Display for ChangeMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What changed on a disk between two marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Exactly these blocks: a set of the disk's size, filled while the source's answers arrive, so that a
    /// long list of extents is never kept.
    Known(ExtentSet),
    /// The source does not know, and why: bitmap lost, tracking reset, no earlier mark. All of the disk must
    /// be compared.
    Unknown(String),
}
