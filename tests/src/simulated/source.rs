//! The simulated source: one VM, change tracking by granules, marks by number.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use warmd_cbt::{
    disk::ReadDisk,
    extents::ExtentSet,
    mark::{ChangeMark, Changed},
    units::{Extent, Length, Offset},
};
use warmd_core::{
    model::{
        id::{DiskKey, MigrationId, VmId},
        machine::{Machine, MachineDisk, PowerState, VmSummary},
        rule::Objection,
    },
    sources::{
        HoldOff, HowStopped, Leftover, MigratedMark, ShutdownPolicy, Snapshot, SnapshotDisk, SnapshotRequest,
        Source, SourceError, SourceErrorKind,
    },
};

use super::{
    disk::MemoryDisk,
    world::{SimulatedWorld, TRACKED},
};
use crate::endpoints::machine;

/// The name of the one VM.
pub const VM: &str = "guest";
const ID: &str = "0001";

/// A source in memory.
#[derive(Clone, Debug)]
pub struct SimulatedSource(pub SimulatedWorld);

impl SimulatedSource {
    async fn strike(&self, call: &str) -> Result<bool, SourceError> {
        let name = format!("source.{call}");
        self.0.faults.strike(&name).await.map_err(|may_pass| {
            let kind = match may_pass {
                true if self.0.faults.is_blocked(&name) => SourceErrorKind::Blocked,
                true => SourceErrorKind::Failed,
                false => SourceErrorKind::Refused,
            };
            SourceError::new(kind, call, "a fault of the test")
        })
    }

    fn answered(lost: bool, call: &str) -> Result<(), SourceError> {
        if lost {
            Err(SourceError::new(SourceErrorKind::Timeout, call, "the answer was lost"))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl Source for SimulatedSource {
    async fn check(&self) -> Result<String, SourceError> {
        self.strike("check").await?;
        Ok("simulated".to_owned())
    }

    async fn vms(&self) -> Result<Vec<VmSummary>, SourceError> {
        self.strike("vms").await?;
        let machine = self.describe(VM).await?;
        Ok(vec![VmSummary {
            id: machine.id.clone(),
            name: machine.name,
            power: self.power(&machine.id).await?,
            disks: machine.disks.len() as u32,
            bytes: machine.disks.iter().map(|disk| disk.size).sum(),
            tracked: machine.disks.len() as u32,
            snapshots: 0,
            warnings: Vec::new(),
        }])
    }

    async fn describe(&self, vm: &str) -> Result<Machine, SourceError> {
        self.strike("describe").await?;
        if ![VM, ID].contains(&vm) {
            return Err(SourceError::new(SourceErrorKind::NotFound, format!("VM {vm}"), "there is none"));
        }
        let sizes: Vec<_> = self.0.with(|truth| {
            truth.source_disks.iter().map(|(key, contents)| (key.clone(), contents.len() as u64)).collect()
        });
        let mut machine = machine(ID, VM, sizes.into_iter());
        if let Some(memory) = self.0.with(|truth| truth.memory) {
            machine.memory.0 = memory;
        }
        Ok(machine)
    }

    async fn objections(&self, _vm: &VmId) -> Result<Vec<Objection>, SourceError> {
        self.strike("objections").await?;
        Ok(self.0.with(|truth| truth.source_objects.clone()))
    }

    async fn can_finish(
        &self,
        _vm: &VmId,
        _owner: MigrationId,
        _disks: &[DiskKey],
    ) -> Result<(), SourceError> {
        self.strike("can-finish").await?;
        Ok(())
    }

    async fn power(&self, _vm: &VmId) -> Result<PowerState, SourceError> {
        self.strike("power").await?;
        Ok(self.0.with(|truth| if truth.source_runs { PowerState::Running } else { PowerState::Off }))
    }

    fn datastore(&self, disk: &MachineDisk) -> Option<String> {
        self.0.with(|truth| truth.datastores.get(&disk.key.0).cloned())
    }

    async fn snapshot(&self, request: &SnapshotRequest) -> Result<Box<dyn Snapshot>, SourceError> {
        let lost = self.strike(if request.is_final { "final-snapshot" } else { "snapshot" }).await?;
        let snapshot = self.0.with(|truth| {
            if request.is_final && truth.source_runs {
                truth.violations.push("final snapshot of a running VM".to_owned());
            }
            truth.marks_made += 1;
            let mark = truth.marks_made;
            truth.marks.insert(mark, std::collections::BTreeSet::new());
            truth.snapshot_open = true;
            truth.calls.push(format!("snapshot {mark}"));
            let changed = request.disks.iter().map(|(key, anchor)| {
                let since =
                    anchor.as_ref().and_then(|anchor| anchor.0.parse().ok()).and_then(|anchor: u64| {
                        let granules = truth.marks.get(&anchor)?.iter().filter(|(disk, _)| *disk == key.0);
                        let extents = granules.filter_map(|(_, granule)| {
                            Extent::new(Offset(granule * TRACKED), Length(TRACKED))
                        });
                        Some(extents.collect())
                    });
                let size = truth.source_disks.get(&key.0).map_or(0, Vec::len);
                since.map_or_else(
                    || Changed::Unknown("no such mark".to_owned()),
                    |extents: Vec<_>| Changed::Known(ExtentSet::of(Length(size as u64), extents)),
                )
            });
            let changed: Vec<_> = changed.collect();
            let disks = request.disks.iter().filter_map(|(key, _)| {
                let contents = truth.source_disks.get(&key.0)?.clone();
                let size = Length(contents.len() as u64);
                let disk = SnapshotDisk { key: key.clone(), size, mark: ChangeMark(mark.to_string()) };
                Some((disk, MemoryDisk::new("source-disk", contents, self.0.faults.clone())))
            });
            let (disks, readers): (Vec<_>, Vec<_>) = disks.unzip();
            SimulatedSnapshot { source: self.clone(), disks, readers, changed }
        });
        Self::answered(lost, "snapshot")?;
        Ok(Box::new(snapshot))
    }

    async fn end_snapshot(&self, _vm: &VmId, _owner: MigrationId) -> Result<(), SourceError> {
        let lost = self.strike("end-snapshot").await?;
        self.0.with(|truth| truth.snapshot_open = false);
        Self::answered(lost, "end-snapshot")
    }

    async fn delete_marks(
        &self,
        _vm: &VmId,
        _owner: MigrationId,
        keep: &[ChangeMark],
    ) -> Result<Vec<Leftover>, SourceError> {
        let lost = self.strike("release-marks").await?;
        self.0.with(|truth| {
            truth.calls.push(format!("release marks but {keep:?}"));
            truth.marks.retain(|mark, _| keep.contains(&ChangeMark(mark.to_string())));
        });
        Self::answered(lost, "release-marks")?;
        Ok(Vec::new())
    }

    async fn shut_down(&self, _vm: &VmId, policy: ShutdownPolicy) -> Result<HowStopped, SourceError> {
        let lost = self.strike("shut-down").await?;
        if self.0.with(|truth| truth.ignores_shutdown && truth.source_runs) {
            tokio::time::sleep(policy.graceful.min(Duration::from_millis(50))).await;
            if !policy.force {
                return Err(SourceError::new(
                    SourceErrorKind::StillRunning,
                    "shut-down",
                    "the guest does not heed it",
                ));
            }
        }
        let how = self.0.with(|truth| {
            truth.calls.push("source off".to_owned());
            let how = match (truth.source_runs, truth.ignores_shutdown) {
                (false, _) => HowStopped::WasOff,
                (true, true) => HowStopped::Forced,
                (true, false) => HowStopped::Gracefully,
            };
            truth.source_runs = false;
            for (disk, at, bytes) in std::mem::take(&mut truth.when_off) {
                truth.write_unreported(&disk, at, &bytes);
            }
            how
        });
        Self::answered(lost, "shut-down")?;
        Ok(how)
    }

    async fn starters(&self, _vm: &VmId, _owner: MigrationId) -> Result<HoldOff, SourceError> {
        let lost = self.strike("starters").await?;
        // An autostart that was turned off already is in the mark.
        let was = self.0.with(|truth| {
            let taken = truth.held_off.is_some() && truth.held_autostart;
            HoldOff { autostart: truth.source_autostart || taken }
        });
        Self::answered(lost, "starters")?;
        Ok(was)
    }

    async fn hold_off(&self, _vm: &VmId, moved: &MigratedMark, was: &HoldOff) -> Result<(), SourceError> {
        let lost = self.strike("hold-off").await?;
        self.0.with(|truth| {
            truth.calls.push("source held off".to_owned());
            (truth.held_off, truth.held_autostart) = (Some(moved.target.clone()), was.autostart);
            truth.source_autostart = false;
        });
        Self::answered(lost, "hold-off")
    }

    async fn let_go(&self, _vm: &VmId, _owner: MigrationId, was: &HoldOff) -> Result<(), SourceError> {
        let lost = self.strike("let-go").await?;
        self.0.with(|truth| {
            truth.calls.push("source let go".to_owned());
            // An autostart that was off before is neither turned on nor off.
            truth.source_autostart |= was.autostart || truth.held_autostart;
            (truth.held_off, truth.held_autostart) = (None, false);
        });
        Self::answered(lost, "let-go")
    }

    async fn power_on(&self, _vm: &VmId) -> Result<(), SourceError> {
        let lost = self.strike("power-on").await?;
        self.0.with(|truth| {
            truth.calls.push("source on".to_owned());
            truth.source_runs = true;
        });
        Self::answered(lost, "power-on")
    }
}

struct SimulatedSnapshot {
    source: SimulatedSource,
    disks: Vec<SnapshotDisk>,
    readers: Vec<MemoryDisk>,
    changed: Vec<Changed>,
}

impl SimulatedSnapshot {
    fn at(&self, key: &DiskKey) -> Result<usize, SourceError> {
        self.disks.iter().position(|disk| disk.key == *key).ok_or_else(|| {
            SourceError::new(SourceErrorKind::NotFound, format!("disk {key}"), "there is none")
        })
    }
}

#[async_trait]
impl Snapshot for SimulatedSnapshot {
    fn disks(&self) -> &[SnapshotDisk] {
        &self.disks
    }

    async fn changed(&self, disk: &DiskKey) -> Result<Changed, SourceError> {
        self.source.strike("changed").await?;
        Ok(self.changed[self.at(disk)?].clone())
    }

    async fn open(&self, disk: &DiskKey) -> Result<Arc<dyn ReadDisk>, SourceError> {
        self.source.strike("open").await?;
        Ok(Arc::new(self.readers[self.at(disk)?].clone()))
    }

    async fn release(self: Box<Self>) -> Result<(), SourceError> {
        let lost = self.source.strike("release").await?;
        self.source.0.with(|truth| truth.snapshot_open = false);
        SimulatedSource::answered(lost, "release")
    }
}
