//! How snapshots of running VMs are made, where a plan differs from its source's settings.

use serde::{Deserialize, Serialize};

/// The part `[snapshots]` of a plan; what is absent is as the source's settings say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotPolicy {
    /// Whether the source may switch change tracking on where it is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_change_tracking: Option<bool>,
    /// Whether the guest's file systems are quiesced for a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<Quiesce>,
}

impl SnapshotPolicy {
    /// Whether it leaves all to the source's settings.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether a guest's file systems are quiesced for a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quiesce {
    /// No: the copy is crash-consistent. The final pass is of a VM that is off all the same.
    #[default]
    Never,
    /// Yes; where that fails, the snapshot is made without, with a warning.
    Try,
}
