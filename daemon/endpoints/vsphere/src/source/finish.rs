//! Whether a cutover can be finished, or undone: asked while the VM still runs.
//!
//! Rule: it changes nothing. What is surely missing refuses; that something cannot be asked does so too.

use warmd_core::{
    model::id::{DiskKey, VmId},
    sources::{SourceError, SourceErrorKind},
};

use crate::{
    Owner,
    error::During as _,
    inventory::{Connection, Power, Vm},
    snapshot::pass_privileges,
    tracking,
    vim::{server, tasks},
};

use super::{
    VsphereSource,
    describe::{disk_key, foreign_snapshots, same_uuid},
};

/// What is done from the stop on, beside a pass.
const PRIVILEGES: [&str; 3] = [
    "VirtualMachine.Config.Annotation",
    "VirtualMachine.Interact.PowerOff",
    "VirtualMachine.Interact.PowerOn",
];

impl VsphereSource {
    /// See [`warmd_core::sources::Source::can_finish`].
    pub(super) async fn check_finish(
        &self,
        vm: &VmId,
        owner: &Owner,
        disks: &[DiskKey],
    ) -> Result<(), SourceError> {
        let id = vm;
        let context = || format!("VM {id}: looking whether it can be read and started once it is off");
        let vm = self.vsphere.vm(&vm.0).await?;
        check(&vm, owner, disks).map_err(|(kind, why)| SourceError::new(kind, context(), why))?;
        let client = self.vsphere.client();
        // The VM would be off while it is waited for.
        if let Some(task) = tasks::first_open(client, &vm.recent_tasks).await.during(context)? {
            let why = format!("{task}; wait for its end, then cut over again");
            return Err(SourceError::new(SourceErrorKind::Blocked, context(), why));
        }
        let wanted = [&PRIVILEGES[..], pass_privileges(self.vsphere.settings().reader.kind)].concat();
        server::require(client, &vm.of, &wanted).await.during(context)?;
        self.vsphere.can_hold_off(&vm).await.during(context)?;
        crate::reader::check(&self.vsphere.settings().reader).await.map(drop).map_err(|error| {
            let why = format!("{error}; {}", error.remedy());
            SourceError::new(SourceErrorKind::Refused, context(), why)
        })
    }
}

fn check(vm: &Vm, owner: &Owner, disks: &[DiskKey]) -> Result<(), (SourceErrorKind, String)> {
    if vm.connection != Some(Connection::Connected) || vm.host_connected == Some(false) {
        let why = "vCenter does not reach it or its host: see that the host answers";
        return Err((SourceErrorKind::Unreachable, why.to_owned()));
    }
    if let Some(question) = &vm.question {
        let why = format!("it waits for an answer to a question, answer it in vSphere: {question:?}");
        return Err((SourceErrorKind::Blocked, why));
    }
    // Its end may be hours away, and warmd takes no snapshot beside it: the VM would be off meanwhile.
    let others = tracking::snapshots_of_others(vm, |node| owner.has_made(node));
    if let Some(other) = others.iter().find_map(|node| Owner::of(node)) {
        let why = format!(
            "it has a snapshot of warmd's migration {other}, beside which this one takes none: wait for the end of its \
             pass; if that migration is no more, delete the snapshot in vSphere"
        );
        return Err((SourceErrorKind::Blocked, why));
    }
    // An untracked VM that is off is copied whole, with snapshots of others too.
    if let Some(names) = foreign_snapshots(vm).filter(|_| vm.power != Some(Power::Off)) {
        let why = format!(
            "it has snapshots that are not warmd's ({names}), with which its last changes cannot be read: delete them; if \
             they are a backup's, wait for its end"
        );
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
