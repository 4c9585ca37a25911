//! The simulated target: disks in memory, and one machine.

use std::sync::Arc;

use async_trait::async_trait;
use warmd_cbt::disk::WriteDisk;
use warmd_core::{
    model::{
        id::MigrationId,
        rule::{Objection, Rule},
    },
    targets::{
        CreateMachine, DiskSpec, GuestSign, Incoming, LastWriter, MachineState, PreparedDisk, Target,
        TargetError, TargetErrorKind, conversion_overlay::ConversionOverlay,
    },
};

use super::{disk::MemoryDisk, world::SimulatedWorld};

/// A target in memory.
#[derive(Clone, Debug)]
pub struct SimulatedTarget(pub SimulatedWorld);

impl SimulatedTarget {
    async fn strike(&self, call: &str) -> Result<bool, TargetError> {
        let name = format!("target.{call}");
        self.0.faults.strike(&name).await.map_err(|may_pass| {
            let kind = match may_pass {
                true if self.0.faults.is_blocked(&name) => TargetErrorKind::Unreachable,
                true => TargetErrorKind::Failed,
                false => TargetErrorKind::Refused,
            };
            TargetError::new(kind, call, "a fault of the test")
        })
    }

    fn answered(lost: bool, call: &str) -> Result<(), TargetError> {
        if lost {
            Err(TargetError::new(TargetErrorKind::Timeout, call, "the answer was lost"))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl Target for SimulatedTarget {
    async fn check(&self) -> Result<String, TargetError> {
        self.strike("check").await?;
        Ok("simulated".to_owned())
    }

    async fn objections(
        &self,
        machines: &[Incoming],
    ) -> Result<Vec<(Option<usize>, Objection)>, TargetError> {
        self.strike("objections").await?;
        let objections = self.0.with(|truth| truth.target_objects.clone());
        let mut objections: Vec<_> =
            objections.into_iter().map(|objection| (machines.len().checked_sub(1), objection)).collect();
        if let Some(files) = &self.0.files {
            // The test itself manages a location outside.
            let of_storages = files.objections(machines).await?.into_iter();
            objections.extend(of_storages.filter(|(_, it)| it.rule == Rule::StorageUnknown));
        }
        Ok(objections)
    }

    async fn prepare(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
    ) -> Result<Vec<PreparedDisk>, TargetError> {
        let lost = self.strike("prepare").await?;
        if let Some(files) = &self.0.files {
            let made = files.prepare(owner, disks).await?;
            Self::answered(lost, "prepare")?;
            return Ok(made);
        }
        let made = self.0.with(|truth| {
            let made = disks.iter().map(|disk| {
                let reads_zero = !truth.target_disks.contains_key(&disk.key.0);
                truth.target_disks.entry(disk.key.0.clone()).or_insert_with(|| {
                    MemoryDisk::new("target-disk", vec![0; disk.size.0 as usize], self.0.faults.clone())
                });
                PreparedDisk { key: disk.key.clone(), location: format!("memory:{}", disk.key), reads_zero }
            });
            made.collect()
        });
        Self::answered(lost, "prepare")?;
        Ok(made)
    }

    async fn open(&self, owner: MigrationId, disk: &DiskSpec) -> Result<Arc<dyn WriteDisk>, TargetError> {
        self.strike("open").await?;
        if let Some(files) = &self.0.files {
            return files.open(owner, disk).await;
        }
        let found = self.0.with(|truth| truth.target_disks.get(&disk.key.0).cloned());
        let found = found.ok_or_else(|| {
            TargetError::new(TargetErrorKind::NotFound, format!("disk {}", disk.key), "there is none")
        })?;
        Ok(Arc::new(found))
    }

    async fn create(&self, request: &CreateMachine) -> Result<(), TargetError> {
        let lost = self.strike("create").await?;
        self.0.with(|truth| {
            truth.calls.push("target created".to_owned());
            truth.target_exists = true;
            truth.created = Some(request.machine.clone());
        });
        Self::answered(lost, "create")
    }

    async fn start(&self, _owner: MigrationId) -> Result<(), TargetError> {
        let lost = self.strike("start").await?;
        self.0.with(|truth| {
            truth.calls.push("target started".to_owned());
            truth.target_runs = true;
        });
        Self::answered(lost, "start")
    }

    async fn look(&self, _owner: MigrationId) -> Result<MachineState, TargetError> {
        self.strike("look").await?;
        Ok(self.0.with(|truth| {
            if truth.target_dies {
                truth.target_runs = false;
            }
            match (truth.target_exists, truth.target_runs) {
                (false, _) => MachineState::Absent,
                (true, false) => MachineState::Stopped,
                (true, true) => MachineState::Running,
            }
        }))
    }

    fn sees_guests(&self) -> bool {
        true
    }

    async fn sign(&self, _owner: MigrationId, sign: &GuestSign) -> Result<(), TargetError> {
        self.strike("sign").await?;
        let seen = self.0.with(|truth| match sign {
            GuestSign::Serial(text) => truth.console.contains(text),
            GuestSign::Agent => truth.agent_answers,
        });
        if seen { Ok(()) } else { Err(TargetError::new(TargetErrorKind::Failed, "sign", "there is none")) }
    }

    fn keeps_autostart(&self) -> bool {
        true
    }

    async fn set_autostart(&self, _owner: MigrationId, on: bool) -> Result<(), TargetError> {
        let lost = self.strike("set-autostart").await?;
        self.0.with(|truth| truth.target_autostart = on);
        Self::answered(lost, "set-autostart")
    }

    async fn discard_machine(&self, _owner: MigrationId) -> Result<(), TargetError> {
        let lost = self.strike("discard").await?;
        self.0.with(|truth| {
            truth.calls.push("target discarded".to_owned());
            if truth.false_discards > 0 {
                truth.false_discards -= 1;
                truth.target_runs |= truth.starts_late;
                return;
            }
            truth.target_autostart = false;
            (truth.target_exists, truth.target_runs) = (false, false);
        });
        Self::answered(lost, "discard")
    }

    async fn discard_disks(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError> {
        let lost = self.strike("discard-disks").await?;
        if let Some(files) = &self.0.files {
            files.discard_disks(owner, disks).await?;
        }
        self.0.with(|truth| {
            truth.target_disks.clear();
            truth.noted = None;
        });
        Self::answered(lost, "discard-disks")
    }

    async fn conversion_overlay(&self) -> Result<Option<&dyn ConversionOverlay>, TargetError> {
        match &self.0.files {
            Some(files) => files.conversion_overlay().await,
            None => Ok(None),
        }
    }

    async fn note_writer(&self, owner: MigrationId, writer: Option<LastWriter>) -> Result<(), TargetError> {
        if let Some(files) = &self.0.files {
            return files.note_writer(owner, writer).await;
        }
        self.0.with(|truth| truth.noted = writer);
        Ok(())
    }

    async fn noted_writer(&self, owner: MigrationId) -> Result<Option<LastWriter>, TargetError> {
        if let Some(files) = &self.0.files {
            return files.noted_writer(owner).await;
        }
        Ok(self.0.with(|truth| truth.noted))
    }
}
