//! A configured vCenter or ESXi: what its parts share.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use warmd_core::model::plan::snapshots::SnapshotPolicy;

use crate::{
    client::{Client, Patience},
    error::{During as _, Kind, Result, VsphereError},
    inventory::{Connection, ServerInventory, Vm},
    settings::Settings,
    soap::MoRef,
    vim::{About, server},
};

/// A vCenter or a standalone ESXi; clones share the session and the inventory.
#[derive(Clone, Debug)]
pub struct Vsphere {
    pub(crate) client: Client,
    pub(crate) inventory: ServerInventory,
    pub(crate) settings: Arc<Settings>,
    /// VMs whose redo logs a removal by this process may have left.
    pub(crate) unconsolidated: Arc<Mutex<BTreeSet<MoRef>>>,
}

impl Vsphere {
    /// By these settings, which are judged but not tried.
    pub fn new(settings: Settings) -> Result<Self> {
        Self::with_patience(settings, Patience::default())
    }

    /// The same, with other deadlines for calls.
    pub fn with_patience(settings: Settings, patience: Patience) -> Result<Self> {
        let account = settings.account()?;
        settings.check()?;
        let client = Client::new(account, patience)?;
        let inventory = ServerInventory::new(client.clone());
        Ok(Self { client, inventory, settings: Arc::new(settings), unconsolidated: Arc::default() })
    }

    /// The same server, session and inventory with other settings of its snapshots.
    pub(crate) fn with_policy(&self, policy: SnapshotPolicy) -> Self {
        Self { settings: Arc::new(self.settings.with_policy(policy)), ..self.clone() }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the server is; refused if it is too old.
    pub async fn about(&self) -> Result<About> {
        let about = self.client.content().await?.about.clone();
        if about.is_too_old() {
            let (major, minor) = crate::limits::OLDEST;
            let why = format!("{} is too old: {major}.{minor} or newer is needed", about.full_name);
            return Err(VsphereError::refused(self.client.account().server.to_string(), why));
        }
        Ok(about)
    }

    /// All VMs that are no templates.
    pub async fn vms(&self) -> Result<Vec<Vm>> {
        self.inventory.vms().await
    }

    /// The VM as it is now.
    pub async fn vm(&self, id: &str) -> Result<Vm> {
        self.inventory.fresh(&self.locate(id).await?).await
    }

    /// The VM that is called so, as it is now: by its id, instance UUID, path, or by its name if it is the
    /// only one.
    pub async fn find(&self, called: &str) -> Result<Vm> {
        self.inventory.fresh(&self.inventory.find(called).await?).await
    }

    /// The server's reference to the VM with this instance UUID, or with this id.
    ///
    /// A reference changes when a host leaves vCenter and comes back; the UUID stays. A VM counts as gone
    /// only when a whole listing lacks it.
    pub async fn locate(&self, id: &str) -> Result<MoRef> {
        let context = || format!("VM {id}");
        if !is_uuid(id) {
            return Ok(MoRef::vm(id));
        }
        if let Some(found) = server::find_by_uuid(&self.client, id).await.during(context)? {
            return Ok(found);
        }
        let vms = self.inventory.vms().await.during(context)?;
        if let Some(found) = vms.iter().find(|vm| vm.instance_uuid.as_deref() == Some(id)) {
            return Ok(found.of.clone());
        }
        // Of such a VM the server does not know the UUID: it may be this one.
        let unknown = vms.iter().find(|vm| {
            vm.instance_uuid.is_none() || !matches!(vm.connection, None | Some(Connection::Connected))
        });
        if let Some(vm) = unknown {
            let why = format!(
                "the server does not reach {}, which may be this VM: see that its host and datastore answer",
                vm.name
            );
            return Err(VsphereError::new(Kind::Unreachable, context(), why));
        }
        let why = "the server has no VM with this instance UUID";
        Err(VsphereError::new(Kind::NotFound, context(), why))
    }

    /// Ends the session.
    pub async fn close(&self) {
        self.client.log_out().await;
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(at, character)| match at {
            8 | 13 | 18 | 23 => character == '-',
            _ => character.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use warmd_cbt::mark::ChangeMark;

    use super::{Vsphere, is_uuid};
    use crate::{
        Owner,
        power::Shutdown,
        snapshot::{Taken, VmSnapshotRequest},
        soap::MoRef,
    };

    /// Every call can be made from a task that moves between threads. Only compiled.
    #[expect(dead_code, reason = "it holds if it compiles")]
    fn calls_are_send(
        vsphere: &Vsphere,
        of: &MoRef,
        owner: &Owner,
        taken: &Taken,
        order: &VmSnapshotRequest,
        how: Shutdown,
    ) {
        fn is_send(_: impl Send) {}
        is_send(vsphere.vms());
        is_send(vsphere.vm("x"));
        is_send(vsphere.find("x"));
        is_send(vsphere.locate("x"));
        is_send(vsphere.about());
        is_send(vsphere.doctor(&[]));
        is_send(vsphere.power(of));
        is_send(vsphere.power_on(of));
        is_send(vsphere.shut_down(of, how));
        is_send(vsphere.starters(of, owner));
        is_send(vsphere.hold_off(of, owner, "x", true));
        is_send(vsphere.let_go(of, owner, true));
        is_send(vsphere.take(order));
        is_send(vsphere.changed(taken, "x", None::<&ChangeMark>));
        is_send(vsphere.is_unchanged(taken));
        is_send(vsphere.reader(taken, "x"));
        is_send(vsphere.release(taken));
        is_send(vsphere.end_snapshots(of, owner));
        is_send(vsphere.set_tracking(of, true));
        is_send(vsphere.restore_tracking(of, owner));
    }

    #[test]
    fn uuids_are_told_from_ids() {
        assert!(is_uuid("5029c8d6-1b3e-3bcd-9a0e-0cbb1a6ff2aa"));
        for other in
            ["vm-57", "", "5029c8d61b3e3bcd9a0e0cbb1a6ff2aa", "5029c8d6-1b3e-3bcd-9a0e-0cbb1a6ff2ag", "8"]
        {
            assert!(!is_uuid(other), "{other}");
        }
    }
}
