//! Who is asked for a disk's contents: the vCenter, or the VM's ESXi host where the settings name it.
//!
//! Rule: a host has its own ids for the same VM and the same snapshot. The VM is found there by its instance
//! UUID, the snapshot by its name and description.

use crate::{
    Vsphere,
    client::{Account, Client, Patience, Trust},
    error::{During as _, Kind, Result, VsphereError},
    inventory::ServerInventory,
    settings::EsxiHost,
    snapshot::Taken,
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
    let found = server::find_by_uuid(&client, instance_uuid).await?;
    let vm = found.ok_or_else(|| {
        let why =
            format!("it has no VM with the instance UUID {instance_uuid}: was it moved in this moment?");
        VsphereError::new(Kind::NotFound, "FindByUuid", why)
    })?;
    let snapshots = ServerInventory::new(client.clone()).snapshots_of(&vm).await?;
    let snapshot = snapshots.into_iter().find(|node| taken.owner.has_made(node)).ok_or_else(|| {
        let why = "the host does not show the snapshot; trying again";
        VsphereError::new(Kind::NotFound, format!("VM {}", vm.id), why)
    })?;
    let account = client.account().clone();
    let access = access(&client, &account, vm.id, snapshot.of.id).await;
    client.log_out().await;
    access
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
