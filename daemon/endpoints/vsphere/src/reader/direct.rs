//! Who is asked for a disk's contents: the vCenter, or the VM's ESXi host where the settings name it.
//!
//! Rule: a host has its own ids for the same VM and the same snapshot. The VM is found there by its instance
//! UUID, the snapshot by its name and description.

use crate::{
    Vsphere,
    client::{Account, Client, Patience, Trust},
    error::{During as _, Kind, Result, VsphereError},
    inventory::{ServerInventory, SnapshotNode},
    settings::EsxiHost,
    snapshot::Taken,
    soap::MoRef,
    vim::server,
};

use super::command::Access;

impl Vsphere {
    /// How the snapshot's disks are reached.
    pub(super) async fn access(&self, taken: &Taken) -> Result<Access> {
        if !self.settings.hosts.is_empty() {
            let vm = self.inventory.fresh(&taken.vm).await?;
            let host = vm.host.as_deref().and_then(|name| self.settings.direct_host(name));
            if let (Some(host), Some(uuid)) = (host, &vm.instance_uuid) {
                return on_host(host, uuid, taken)
                    .await
                    .during(|| format!("ESXi host {}: finding the snapshot there", host.name));
            }
        }
        let account = self.client.account();
        access(&self.client, account, taken.vm.id.clone(), taken.of.id.clone()).await
    }
}

async fn on_host(host: &EsxiHost, instance_uuid: &str, taken: &Taken) -> Result<Access> {
    let thumbprint = host.thumbprint.parse();
    let thumbprint =
        thumbprint.map_err(|error| VsphereError::new(Kind::Refused, "settings: `thumbprint`", error))?;
    let account = Account {
        server: host.server()?,
        user: host.user.clone(),
        password_file: host.password_file.clone(),
        trust: Trust::Thumbprint(thumbprint),
    };
    let client = Client::new(account, Patience::default())?;
    let found = find_there(&client, instance_uuid, taken).await;
    // A host has few sessions, and keeps one that is not ended for half an hour.
    client.log_out().await;
    found
}

/// Where the snapshot is on this host. What is not there (yet) says nothing of the VM: it was moved in this
/// moment, or the host is behind vCenter.
async fn find_there(client: &Client, instance_uuid: &str, taken: &Taken) -> Result<Access> {
    let found = server::find_by_uuid(client, instance_uuid).await?;
    let vm = found.ok_or_else(|| {
        let why = format!(
            "it has no VM with the instance UUID {instance_uuid}: was it moved in this moment? Trying again"
        );
        VsphereError::blocked("FindAllByUuid", why)
    })?;
    let snapshots = ServerInventory::new(client.clone()).snapshots_of(&vm).await;
    let snapshot = only_own(snapshots.map_err(not_now)?, taken, &vm)?;
    let account = client.account().clone();
    access(client, &account, vm.id, snapshot.id).await
}

/// The snapshot of this migration that the host shows, if it is the only one: names do not tell two apart.
fn only_own(snapshots: Vec<SnapshotNode>, taken: &Taken, vm: &MoRef) -> Result<MoRef> {
    let own: Vec<_> = snapshots.into_iter().filter(|node| taken.owner.has_made(node)).collect();
    match own.as_slice() {
        [node] => Ok(node.of.clone()),
        several => {
            let count = several.len();
            let why = format!("the host shows {count} snapshots of this migration, not 1; trying again");
            Err(VsphereError::blocked(format!("VM {}", vm.id), why))
        }
    }
}

/// A VM that a host does not have any more is on another one.
fn not_now(error: VsphereError) -> VsphereError {
    if error.kind == Kind::NotFound { VsphereError { kind: Kind::Blocked, ..error } } else { error }
}

async fn access(client: &Client, account: &Account, vm: String, snapshot: String) -> Result<Access> {
    // VDDK wants the SHA-1 thumbprint, whatever is trusted here: that of the certificate that was.
    client.content().await?;
    let seen = client.certificate().ok_or_else(|| {
        VsphereError::failed(account.server.to_string(), "its certificate has not been seen; trying again")
    })?;
    Ok(Access {
        server: account.server.clone(),
        user: account.user.clone(),
        password_file: account.password_file.clone(),
        thumbprint: seen.sha1,
        vm,
        snapshot,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Owner,
        soap::{Fault, FaultKind},
    };

    fn taken() -> Taken {
        Taken {
            of: MoRef::new("VirtualMachineSnapshot", "snapshot-70"),
            vm: MoRef::vm("vm-57"),
            owner: Owner::new("m-1"),
            disks: Vec::new(),
            quiesced: false,
            made_in: None,
            switched_tracking_on: false,
            last_start: crate::snapshot::LastStart::Unknown,
            warnings: Vec::new(),
        }
    }

    fn node(id: &str, owner: &str) -> SnapshotNode {
        SnapshotNode {
            of: MoRef::new("VirtualMachineSnapshot", id),
            name: format!("warmd-{owner}"),
            description: format!("warmd, migration {owner}: x"),
            created: None,
            power: None,
            has_children: false,
        }
    }

    #[test]
    fn the_only_snapshot_of_the_migration_is_read() {
        let (taken, vm) = (taken(), MoRef::vm("7"));
        let found = only_own(vec![node("7-snapshot-1", "m-2"), node("7-snapshot-2", "m-1")], &taken, &vm);
        assert_eq!(found.unwrap().id, "7-snapshot-2");
        for wrong in [vec![], vec![node("7-snapshot-1", "m-2")], vec![node("a", "m-1"), node("b", "m-1")]] {
            let error = only_own(wrong, &taken, &vm).unwrap_err();
            assert_eq!(error.kind, Kind::Blocked, "{error}");
        }
    }

    #[test]
    fn a_vm_that_a_host_lacks_is_not_gone() {
        let fault = Fault { kind: FaultKind::ObjectGone(Some(MoRef::vm("7"))), message: String::new() };
        let gone = VsphereError::of_fault("x", fault);
        assert_eq!(gone.kind, Kind::NotFound);
        assert_eq!(not_now(gone).kind, Kind::Blocked);
        assert_eq!(not_now(VsphereError::refused("x", "no")).kind, Kind::Refused);
    }
}
