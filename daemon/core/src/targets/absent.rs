//! A target that a stored migration names and the configuration does not.
//!
//! Rule: it refuses every call with the reason, so that one removed endpoint does not stop other migrations.

use std::sync::Arc;

use async_trait::async_trait;
use warmd_cbt::disk::WriteDisk;

use super::{
    CreateMachine, DiskSpec, LastWriter, MachineState, PreparedDisk, Target, TargetError, TargetErrorKind,
};
use crate::model::id::MigrationId;

/// The missing target.
#[derive(Clone, Debug)]
pub struct AbsentTarget {
    pub name: String,
}

impl AbsentTarget {
    fn refuse<T>(&self) -> Result<T, TargetError> {
        let cause =
            "it is not in the daemon's configuration any more: add it there again and restart the daemon";
        Err(TargetError::new(TargetErrorKind::Refused, format!("target {:?}", self.name), cause))
    }
}

#[async_trait]
impl Target for AbsentTarget {
    async fn check(&self) -> Result<String, TargetError> {
        self.refuse()
    }

    async fn prepare(
        &self,
        _owner: MigrationId,
        _disks: &[DiskSpec],
    ) -> Result<Vec<PreparedDisk>, TargetError> {
        self.refuse()
    }

    async fn open(&self, _owner: MigrationId, _disk: &DiskSpec) -> Result<Arc<dyn WriteDisk>, TargetError> {
        self.refuse()
    }

    async fn create(&self, _request: &CreateMachine) -> Result<(), TargetError> {
        self.refuse()
    }

    async fn start(&self, _owner: MigrationId) -> Result<(), TargetError> {
        self.refuse()
    }

    async fn look(&self, _owner: MigrationId) -> Result<MachineState, TargetError> {
        self.refuse()
    }

    async fn set_autostart(&self, _owner: MigrationId, _on: bool) -> Result<(), TargetError> {
        self.refuse()
    }

    async fn discard_machine(&self, _owner: MigrationId) -> Result<(), TargetError> {
        self.refuse()
    }

    async fn discard_disks(&self, _owner: MigrationId, _disks: &[DiskSpec]) -> Result<(), TargetError> {
        self.refuse()
    }

    async fn note_writer(&self, _owner: MigrationId, _writer: Option<LastWriter>) -> Result<(), TargetError> {
        self.refuse()
    }

    async fn noted_writer(&self, _owner: MigrationId) -> Result<Option<LastWriter>, TargetError> {
        self.refuse()
    }
}
