//! What is removed from a source VM at a cutover, so that only warmd starts the VM again.
//!
//! Rule: plain facts. The cutover's record stores them before anything is removed.

use serde::{Deserialize, Serialize};

use super::id::MigrationId;

/// What can start a VM again besides warmd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldOff {
    /// The source starts it together with its host, or with its own service.
    pub autostart: bool,
}

/// Where a held-off VM was moved to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigratedMark {
    pub owner: MigrationId,
    /// The target's name.
    pub target: String,
}
