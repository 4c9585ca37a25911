//! Target `disk`: warmd writes only the disks; the machine is created and started by a provisioner, the
//! platform's own gRPC service, or by an operator, from a description that is put beside the disks.
//!
//! Rule: it knows machines only from the provisioner's answers; without one it never says that a machine
//! runs. Knows the ports of `core`, disks and the provisioner's contract; not a platform.
#![forbid(unsafe_code)]

mod convert;
mod description;
mod provisioner;
mod settings;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use warmd_cbt::disk::WriteDisk;
use warmd_core::{
    model::{
        id::MigrationId,
        machine::Machine,
        rule::{Objection, Rule},
    },
    targets::{
        CreateMachine, DiskSpec, Incoming, LastWriter, MachineState, PreparedDisk, Target, TargetError,
        TargetErrorKind, conversion_overlay::ConversionOverlay, host::Host,
    },
};
use warmd_disks::volume;
use warmd_storage::{Storage, blocking_on};

pub use self::settings::{DiskTargetSettings, ProvisionerSettings};
use self::{description::DESCRIPTION, provisioner::Provisioner};

/// Folders that only warmd's user may enter.
const FOLDER_MODE: u32 = 0o700;

/// The target.
#[derive(Debug)]
pub struct DiskTarget {
    storage: Storage,
    provisioner: Option<Provisioner>,
}

impl DiskTarget {
    /// Checks the settings; connects to nothing.
    pub fn new(settings: &DiskTargetSettings) -> Result<Self, TargetError> {
        Ok(Self {
            storage: Storage::new(&settings.directory, FOLDER_MODE)?.with(&settings.storages)?,
            provisioner: settings.provisioner.as_ref().map(Provisioner::new).transpose()?,
        })
    }

    fn description(&self, owner: MigrationId) -> PathBuf {
        self.storage.folder(owner).join(DESCRIPTION)
    }

    async fn is_described(&self, owner: MigrationId) -> Result<bool, TargetError> {
        let path = self.description(owner);
        let (doing, there) = (format!("looking at {}", path.display()), path.clone());
        blocking_on(&there, doing, move || {
            path.try_exists().map_err(|error| volume::VolumeError::io("looking at", &path, error))
        })
        .await
    }
}

/// The machine's hardware that only its source's platform can describe: the creator of the machine here does
/// not read it.
fn lost(machine: &Machine) -> Vec<Objection> {
    let Some(hardware) = &machine.hardware else { return Vec::new() };
    let mut objections = Vec::new();
    for nic in &machine.nics {
        let isolation = hardware
            .nic(&nic.mac)
            .map(warmd_core::model::hardware::HardwareElement::isolation)
            .unwrap_or_default();
        if !isolation.is_empty() {
            let found = format!("interface {}: {}", nic.mac, isolation.join(", "));
            objections.push(Objection::new(Rule::IsolationLost, found));
        }
    }
    let summary = hardware.summary();
    if !summary.is_empty() {
        let found =
            format!("only a target of kind `libvirt` makes these as they were: {}", summary.join(", "));
        objections.push(Objection::new(Rule::HardwareChanged, found));
    }
    objections
}

#[async_trait]
impl Target for DiskTarget {
    fn on(&self, host: &Arc<dyn Host>) {
        self.storage.on(host);
    }

    async fn check(&self) -> Result<String, TargetError> {
        let room = self.storage.room().await?;
        let machines = match &self.provisioner {
            Some(provisioner) => {
                provisioner.check().await?;
                format!("machines by the provisioner at {}", provisioner.address())
            }
            None => format!("no provisioner: machines are described in {DESCRIPTION}"),
        };
        let storages = self.storage.others_in_words().await;
        Ok(format!("disks of this host, {} GiB free{storages}; {machines}", room.0 >> 30))
    }

    async fn objections(
        &self,
        machines: &[Incoming],
    ) -> Result<Vec<(Option<usize>, Objection)>, TargetError> {
        let mut objections = self.storage.objections(machines).await?;
        for (at, incoming) in machines.iter().enumerate() {
            objections.extend(lost(&incoming.machine).into_iter().map(|lost| (Some(at), lost)));
        }
        Ok(objections)
    }

    async fn prepare(
        &self,
        owner: MigrationId,
        disks: &[DiskSpec],
    ) -> Result<Vec<PreparedDisk>, TargetError> {
        self.storage.prepare(owner, disks).await
    }

    async fn open(&self, owner: MigrationId, disk: &DiskSpec) -> Result<Arc<dyn WriteDisk>, TargetError> {
        self.storage.open(owner, disk).await
    }

    async fn create(&self, request: &CreateMachine) -> Result<(), TargetError> {
        let disks = self.storage.locate(request.owner, &request.disks).await?;
        if let Some(provisioner) = &self.provisioner {
            return provisioner.create(request, &disks).await;
        }
        self.storage.make_folder(request.owner).await?;
        let path = self.description(request.owner);
        let doing = format!("describing the machine in {}", path.display());
        let text = description::machine_description(request, &disks)
            .map_err(|error| TargetError::new(TargetErrorKind::Failed, doing.clone(), error))?;
        let there = path.clone();
        blocking_on(&there, doing, move || volume::write_file(&path, text.as_bytes())).await
    }

    async fn start(&self, owner: MigrationId) -> Result<(), TargetError> {
        match &self.provisioner {
            Some(provisioner) => provisioner.start(owner).await,
            None if self.is_described(owner).await? => Ok(()),
            None => Err(TargetError::new(
                TargetErrorKind::NotFound,
                format!("starting the machine of migration {owner}"),
                "no machine was described yet",
            )),
        }
    }

    async fn look(&self, owner: MigrationId) -> Result<MachineState, TargetError> {
        match &self.provisioner {
            Some(provisioner) => provisioner.look(owner).await,
            None => Ok(MachineState::NotManaged),
        }
    }

    async fn discard_machine(&self, owner: MigrationId) -> Result<(), TargetError> {
        if let Some(provisioner) = &self.provisioner {
            return provisioner.discard(owner).await;
        }
        let path = self.description(owner);
        let (doing, there) = (format!("removing {}", path.display()), path.clone());
        blocking_on(&there, doing, move || volume::remove_file(&path)).await
    }

    async fn discard_disks(&self, owner: MigrationId, disks: &[DiskSpec]) -> Result<(), TargetError> {
        let exists = match &self.provisioner {
            Some(provisioner) => provisioner.look(owner).await? != MachineState::Absent,
            None => self.is_described(owner).await?,
        };
        if exists {
            return Err(TargetError::new(
                TargetErrorKind::Refused,
                format!("discarding the disks of migration {owner}"),
                "its machine exists: discard the machine first",
            ));
        }
        self.storage.discard(owner, disks, |_| false).await
    }

    async fn conversion_overlay(&self) -> Result<Option<&dyn ConversionOverlay>, TargetError> {
        Ok(Some(&self.storage))
    }

    async fn note_writer(&self, owner: MigrationId, writer: Option<LastWriter>) -> Result<(), TargetError> {
        self.storage.note_writer(owner, writer).await
    }

    async fn noted_writer(&self, owner: MigrationId) -> Result<Option<LastWriter>, TargetError> {
        self.storage.noted_writer(owner).await
    }
}
