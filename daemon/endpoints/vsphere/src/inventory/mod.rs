//! The inventory: all VMs of a server, in memory, brought up to date by what changed since the last look.
//!
//! Rule: a list is never older than the call that asked for it. What decides about a VM is read again from
//! the server ([`ServerInventory::fresh`]); the memory serves lists and names.

pub(crate) mod devices;
mod names;
mod snapshots;
mod vm;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use tokio::sync::Mutex;

pub use devices::{Backing, Controller, RawMapping, VirtualDisk, VirtualNic};
pub use names::HostAt;
pub use snapshots::SnapshotNode;
pub use vm::{Connection, Power, Tools, Vm, VmFirmware};

#[cfg(test)]
pub(crate) use vm::tests as tests_support;

use names::ObjectNames;

use crate::{
    client::Client,
    error::{During as _, Kind, Result, VsphereError},
    soap::{FaultKind, MoRef},
    vim::{
        properties::{self, Wanted},
        updates::{Change, Update, Watch},
    },
};

/// What is watched of each type.
const WANTED: [Wanted<'_>; 7] = [
    Wanted { kind: "VirtualMachine", paths: &vm::PATHS },
    Wanted { kind: "HostSystem", paths: &["name", "parent", "runtime.connectionState"] },
    Wanted { kind: "ComputeResource", paths: &["name", "parent"] },
    Wanted { kind: "Folder", paths: &["name", "parent"] },
    Wanted { kind: "Datacenter", paths: &["name", "parent"] },
    Wanted { kind: "Network", paths: &["name"] },
    Wanted { kind: "DistributedVirtualPortgroup", paths: &["name", "key"] },
];

/// The inventory of one server; clones share it.
#[derive(Clone, Debug)]
pub struct ServerInventory {
    client: Client,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    watch: Option<Watch>,
    vms: HashMap<MoRef, Vm>,
    names: ObjectNames,
    /// VMs of which a part of a property changed: they are read again.
    stale: BTreeSet<MoRef>,
}

impl ServerInventory {
    pub fn new(client: Client) -> Self {
        Self { client, state: Arc::default() }
    }

    /// All VMs that are no templates, by name.
    pub async fn vms(&self) -> Result<Vec<Vm>> {
        let mut state = self.state.lock().await;
        self.refresh(&mut state).await?;
        let mut all: Vec<Vm> =
            state.vms.values().filter(|vm| !vm.template).map(|vm| state.names.resolve(vm.clone())).collect();
        all.sort_by(|one, other| (&one.name, &one.of).cmp(&(&other.name, &other.of)));
        Ok(all)
    }

    /// The VM as it is now, by its id.
    pub async fn fresh(&self, of: &MoRef) -> Result<Vm> {
        let context = || format!("VM {}", of.id);
        let object = properties::read_properties(&self.client, of, &vm::PATHS).await.during(context)?;
        let mut vm = Vm::new(of.clone());
        for (name, value) in &object.properties {
            vm.apply(name, Some(value));
        }
        vm.judge_reading(&object)?;
        let mut state = self.state.lock().await;
        // A host or a network that was added since the last look has no name yet.
        if state.watch.is_none() || !state.names.know(&vm) {
            self.refresh(&mut state).await?;
        }
        Ok(state.names.resolve(vm))
    }

    /// The VM's snapshots as they are now.
    pub async fn snapshots_of(&self, of: &MoRef) -> Result<Vec<SnapshotNode>> {
        let context = || format!("VM {}: listing its snapshots", of.id);
        let object = properties::read_properties(&self.client, of, &["snapshot"]).await.during(context)?;
        Ok(snapshots::read(object.get("snapshot")))
    }

    /// The id of the VM that is called so: by its id, its instance UUID, its path, or its name if it is the
    /// only one.
    pub async fn find(&self, called: &str) -> Result<MoRef> {
        let vms = self.vms().await?;
        choose(&vms, called)
    }

    /// All hosts, with their names and whether vCenter reaches them.
    pub async fn hosts(&self) -> Result<Vec<HostAt>> {
        let mut state = self.state.lock().await;
        self.refresh(&mut state).await?;
        Ok(state.names.hosts())
    }

    /// The cluster of a host, if it is in one.
    pub async fn cluster_of(&self, host: &MoRef) -> Result<Option<(MoRef, String)>> {
        let mut state = self.state.lock().await;
        self.refresh(&mut state).await?;
        Ok(state.names.cluster_of(host))
    }

    async fn refresh(&self, state: &mut State) -> Result<()> {
        let context = || format!("{}: listing VMs", self.client.account().server);
        if let Some(watch) = &state.watch
            && !watch.is_current(&self.client).await.during(context)?
        {
            *state = State::default();
        }
        match self.update(state).await {
            Ok(()) => return Ok(()),
            Err(error) if is_over(&error) => {}
            Err(error) => return Err(error).during(context),
        }
        tracing::info!(server = %self.client.account().server, "reading the list of VMs again");
        if let Some(watch) = std::mem::take(state).watch {
            watch.end(&self.client).await;
        }
        self.update(state).await.during(context)
    }

    async fn update(&self, state: &mut State) -> Result<()> {
        let mut watch = if let Some(watch) = state.watch.take() {
            watch
        } else {
            *state = State::default();
            Watch::begin(&self.client, &WANTED).await?
        };
        let result = watch.updates(&self.client, |updates| state.take(updates)).await;
        state.watch = Some(watch);
        result?;
        for of in std::mem::take(&mut state.stale) {
            match properties::read_properties(&self.client, &of, &vm::PATHS).await {
                Ok(object) => {
                    let vm = state.vms.entry(of.clone()).or_insert_with(|| Vm::new(of));
                    for path in vm::PATHS {
                        vm.apply(path, object.get(path));
                    }
                }
                Err(error) if error.is_gone(&of) => drop(state.vms.remove(&of)),
                Err(error) => {
                    state.stale.insert(of);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Whether what the server held for us is gone, so that everything is read again.
fn is_over(error: &VsphereError) -> bool {
    matches!(
        error.fault(),
        Some(FaultKind::ObjectGone(_) | FaultKind::CollectorVersion | FaultKind::NotAuthenticated)
    )
}

impl State {
    fn take(&mut self, updates: Vec<Update>) {
        for update in updates {
            match update {
                Update::Leave(of) => {
                    self.vms.remove(&of);
                    self.names.remove(&of);
                }
                Update::Enter(of, changes) | Update::Modify(of, changes) if of.kind == "VirtualMachine" => {
                    self.change(&of, changes);
                }
                Update::Enter(of, changes) | Update::Modify(of, changes) => {
                    for Change { name, value } in changes {
                        self.names.apply(&of, &name, value.as_ref());
                    }
                }
            }
        }
    }

    fn change(&mut self, of: &MoRef, changes: Vec<Change>) {
        let vm = self.vms.entry(of.clone()).or_insert_with(|| Vm::new(of.clone()));
        for Change { name, value } in changes {
            if vm::PATHS.contains(&name.as_str()) {
                vm.apply(&name, value.as_ref());
            } else {
                // A part of a property (`config.hardware.device[2000]`), or a property above ours.
                self.stale.insert(of.clone());
            }
        }
    }
}

fn choose(vms: &[Vm], called: &str) -> Result<MoRef> {
    let context = || format!("VM {called:?}");
    if let Some(vm) = vms.iter().find(|vm| vm.of.id == called) {
        return Ok(vm.of.clone());
    }
    let named: Vec<&Vm> = vms
        .iter()
        .filter(|vm| vm.name == called || vm.path() == called || vm.instance_uuid.as_deref() == Some(called))
        .collect();
    match named.as_slice() {
        [vm] => Ok(vm.of.clone()),
        [] => Err(VsphereError::new(Kind::NotFound, context(), "no VM has that name or id")),
        several => {
            let all: Vec<String> = several.iter().map(|vm| format!("{} ({})", vm.path(), vm.of.id)).collect();
            let why =
                format!("several VMs have that name: {}; name one by its path or its id", all.join(", "));
            Err(VsphereError::new(Kind::Refused, context(), why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soap::Element;

    fn value(text: &str) -> Element {
        Element::read(format!("<val xmlns:xsi='u'>{text}</val>").as_bytes()).unwrap()
    }

    fn change(name: &str, text: &str) -> Change {
        Change { name: name.to_owned(), value: Some(value(text)) }
    }

    #[test]
    fn updates_are_taken_into_memory() {
        let mut state = State::default();
        let folder = MoRef::new("Folder", "group-v3");
        let vm = MoRef::vm("vm-1");
        state.take(vec![
            Update::Enter(folder.clone(), vec![change("name", "a%2fb")]),
            Update::Enter(
                vm.clone(),
                vec![change("name", "web1"), change("runtime.powerState", "poweredOn")],
            ),
        ]);
        let mut parent = value("group-v3");
        parent.refers_to = Some("Folder".to_owned());
        state.take(vec![Update::Modify(
            vm.clone(),
            vec![Change { name: "parent".to_owned(), value: Some(parent) }],
        )]);
        let known = state.names.resolve(state.vms[&vm].clone());
        assert_eq!((known.path().as_str(), known.power), ("/a/b/web1", Some(Power::On)));
        assert!(state.stale.is_empty());

        state.take(vec![Update::Modify(
            vm.clone(),
            vec![change("config.hardware.device[2000].backing.fileName", "x")],
        )]);
        assert_eq!(state.stale.iter().collect::<Vec<_>>(), [&vm]);
        state.take(vec![Update::Leave(vm)]);
        assert!(state.vms.is_empty());
    }

    #[test]
    fn a_name_that_two_have_names_none() {
        let vm = |id: &str, name: &str| {
            let mut vm = Vm::new(MoRef::vm(id));
            name.clone_into(&mut vm.name);
            vm
        };
        let vms = [vm("vm-1", "web"), vm("vm-2", "web"), vm("vm-3", "vm-1"), vm("vm-4", "db")];
        assert_eq!(choose(&vms, "db").unwrap(), MoRef::vm("vm-4"));
        assert_eq!(choose(&vms, "vm-1").unwrap(), MoRef::vm("vm-1"), "an id goes before a name");
        assert_eq!(choose(&vms, "web").unwrap_err().kind, Kind::Refused);
        assert!(choose(&vms, "web").unwrap_err().to_string().contains("vm-2"));
        assert_eq!(choose(&vms, "none").unwrap_err().kind, Kind::NotFound);
    }
}
