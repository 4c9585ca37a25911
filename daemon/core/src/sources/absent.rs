//! A source that a stored migration names and the configuration does not.
//!
//! Rule: it refuses every call with the reason, so that one removed endpoint does not stop other migrations.

use async_trait::async_trait;
use warmd_cbt::mark::ChangeMark;

use super::{
    HoldOff, HowStopped, Leftover, MigratedMark, ShutdownPolicy, Snapshot, SnapshotRequest, Source,
    SourceError, SourceErrorKind,
};
use crate::model::{
    id::{MigrationId, VmId},
    machine::{Machine, PowerState, VmSummary},
};

/// The missing source.
#[derive(Clone, Debug)]
pub struct AbsentSource {
    pub name: String,
}

impl AbsentSource {
    fn refuse<T>(&self) -> Result<T, SourceError> {
        let cause =
            "it is not in the daemon's configuration any more: add it there again and restart the daemon";
        Err(SourceError::new(SourceErrorKind::Refused, format!("source {:?}", self.name), cause))
    }
}

#[async_trait]
impl Source for AbsentSource {
    fn is_configured(&self) -> bool {
        false
    }

    async fn check(&self) -> Result<String, SourceError> {
        self.refuse()
    }

    async fn vms(&self) -> Result<Vec<VmSummary>, SourceError> {
        self.refuse()
    }

    async fn describe(&self, _vm: &str) -> Result<Machine, SourceError> {
        self.refuse()
    }

    async fn power(&self, _vm: &VmId) -> Result<PowerState, SourceError> {
        self.refuse()
    }

    async fn snapshot(&self, _request: &SnapshotRequest) -> Result<Box<dyn Snapshot>, SourceError> {
        self.refuse()
    }

    async fn end_snapshot(&self, _vm: &VmId, _owner: MigrationId) -> Result<(), SourceError> {
        self.refuse()
    }

    async fn delete_marks(
        &self,
        _vm: &VmId,
        _owner: MigrationId,
        _keep: &[ChangeMark],
    ) -> Result<Vec<Leftover>, SourceError> {
        self.refuse()
    }

    async fn shut_down(&self, _vm: &VmId, _policy: ShutdownPolicy) -> Result<HowStopped, SourceError> {
        self.refuse()
    }

    async fn starters(&self, _vm: &VmId, _owner: MigrationId) -> Result<HoldOff, SourceError> {
        self.refuse()
    }

    async fn hold_off(&self, _vm: &VmId, _moved: &MigratedMark, _was: &HoldOff) -> Result<(), SourceError> {
        self.refuse()
    }

    async fn let_go(&self, _vm: &VmId, _owner: MigrationId, _was: &HoldOff) -> Result<(), SourceError> {
        self.refuse()
    }

    async fn power_on(&self, _vm: &VmId) -> Result<(), SourceError> {
        self.refuse()
    }
}
