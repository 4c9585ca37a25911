//! A volume's failure as a target's.

use warmd_core::targets::{TargetError, TargetErrorKind};
use warmd_disks::volume::{VolumeError, VolumeErrorKind};

/// A volume's failure, as a target's.
pub(super) trait ForTarget {
    /// `context` names the operation and the disk.
    fn for_target(self, context: impl Into<String>) -> TargetError;
}

impl ForTarget for VolumeError {
    fn for_target(self, context: impl Into<String>) -> TargetError {
        let kind = match self.kind() {
            VolumeErrorKind::NotFound => TargetErrorKind::NotFound,
            VolumeErrorKind::Refused => TargetErrorKind::Refused,
            VolumeErrorKind::Conflict => TargetErrorKind::Conflict,
            VolumeErrorKind::Timeout => TargetErrorKind::Timeout,
            VolumeErrorKind::NoSpace => TargetErrorKind::NoSpace,
            VolumeErrorKind::Unreachable => TargetErrorKind::Unreachable,
            VolumeErrorKind::Failed => TargetErrorKind::Failed,
        };
        let is_in_use = matches!(self, VolumeError::InUse { .. });
        TargetError { is_in_use, ..TargetError::new(kind, context, self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_that_hangs_or_is_ours_passes() {
        for error in [
            VolumeError::Hangs { path: "/x".into() },
            VolumeError::InUse { path: "/x".into(), by: "warmd".into(), ours: true },
        ] {
            assert!(error.for_target("x").may_pass(), "it passes with the write, and the copy is whole");
        }
        let error = VolumeError::InUse { path: "/x".into(), by: "QEMU".into(), ours: false };
        let error = error.for_target("x");
        assert!(!error.may_pass() && error.is_in_use, "its user closes it sooner or later");
    }
}
