//! What is taken away from a source VM at a cutover, so that nothing but warmd starts it again.
//!
//! Rule: plain facts, which the cutover's record keeps from before anything is taken away.

use serde::{Deserialize, Serialize};

use super::id::MigrationId;

/// What can start a VM again beside warmd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldOff {
    /// The source starts it together with its host, or with its own service.
    pub autostart: bool,
}

/// Where a VM went that is held off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigratedMark {
    pub owner: MigrationId,
    /// The target's name.
    pub target: String,
}
