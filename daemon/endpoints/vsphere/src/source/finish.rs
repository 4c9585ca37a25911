//! Whether a cutover can be finished, or undone: asked while the VM still runs.
//!
//! Rule: it changes nothing. What is surely missing refuses; that something cannot be asked does so too.

use warmd_core::{
    model::id::{DiskKey, VmId},
    sources::{SourceError, SourceErrorKind},
};

use crate::{
    error::During as _,
    inventory::{Connection, Vm},
    tracking,
    vim::server,
};

use super::{
    VsphereSource,
    describe::{disk_key, same_uuid},
};

/// What is done from the stop on.
const PRIVILEGES: [&str; 7] = [
    "VirtualMachine.Config.Annotation",
    "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",
    "VirtualMachine.Interact.PowerOff",
    "VirtualMachine.Interact.PowerOn",
    "VirtualMachine.Provisioning.DiskRandomRead",
    "VirtualMachine.Provisioning.GetVmFiles",
];

impl VsphereSource {
    /// See [`warmd_core::sources::Source::can_finish`].
    pub(super) async fn check_finish(&self, vm: &VmId, disks: &[DiskKey]) -> Result<(), SourceError> {
        let id = vm;
        let context = || format!("VM {id}: looking whether it can be read and started once it is off");
        let vm = self.vsphere.vm(&vm.0).await?;
        check(&vm, disks).map_err(|(kind, why)| SourceError::new(kind, context(), why))?;
        server::require(self.vsphere.client(), &vm.of, &PRIVILEGES).await.during(context)?;
        crate::reader::check(&self.vsphere.settings().reader).await.map(drop).map_err(|error| {
            let why = format!("{error}; {}", error.remedy());
            SourceError::new(SourceErrorKind::Refused, context(), why)
        })
    }
}

fn check(vm: &Vm, disks: &[DiskKey]) -> Result<(), (SourceErrorKind, String)> {
    if vm.connection != Some(Connection::Connected) || vm.host_connected == Some(false) {
        let why = "vCenter does not reach it or its host: see that the host answers";
        return Err((SourceErrorKind::Unreachable, why.to_owned()));
    }
    if let Some(question) = &vm.question {
        let why = format!("it waits for an answer to a question, answer it in vSphere: {question:?}");
        return Err((SourceErrorKind::Blocked, why));
    }
    if vm.consolidation_needed {
        let why = "its disks need consolidation: in vSphere, Snapshots, Consolidate";
        return Err((SourceErrorKind::Blocked, why.to_owned()));
    }
    if let Some(uuid) = vm.shared_uuid() {
        return Err((SourceErrorKind::Refused, same_uuid(uuid)));
    }
    for key in disks {
        let Some(disk) = vm.disks.iter().find(|disk| disk_key(disk) == *key) else {
            return Err((SourceErrorKind::NotFound, format!("it has no disk {key} any more")));
        };
        if let Some(obstacle) = tracking::obstacle(disk) {
            let why = format!("{}: {}; {}", disk.label, obstacle.why, obstacle.remedy);
            return Err((SourceErrorKind::Refused, why));
        }
    }
    Ok(())
}
