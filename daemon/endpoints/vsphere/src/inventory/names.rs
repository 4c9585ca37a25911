//! The names of what VMs are in and on: folders, datacenters, hosts, clusters, networks.
//!
//! Rule: only names and parents are kept. A chain of parents is followed a bounded number of steps.

use std::collections::HashMap;

use crate::soap::{Element, MoRef};

use super::Vm;

/// vCenter allows folders to nest far less deep.
const MAX_STEPS: usize = 64;

/// The names of a server's objects.
#[derive(Debug, Default)]
pub(super) struct ObjectNames {
    of: HashMap<MoRef, Named>,
    /// Port groups of distributed switches by their keys.
    keys: HashMap<String, MoRef>,
}

#[derive(Debug, Default)]
struct Named {
    name: String,
    parent: Option<MoRef>,
    /// Of a host: `connected`, `disconnected` or `notResponding`.
    connection: Option<String>,
}

/// A host of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAt {
    pub name: String,
    pub is_connected: bool,
}

impl ObjectNames {
    pub(super) fn apply(&mut self, of: &MoRef, property: &str, value: Option<&Element>) {
        let named = self.of.entry(of.clone()).or_default();
        let text = || value.map(|value| value.text.trim().to_owned());
        match property {
            "name" => named.name = plain(&text().unwrap_or_default()),
            "parent" => named.parent = value.and_then(Element::moref),
            "key" => drop(text().map(|key| self.keys.insert(key, of.clone()))),
            "runtime.connectionState" => named.connection = text(),
            _ => {}
        }
    }

    pub(super) fn remove(&mut self, of: &MoRef) {
        self.of.remove(of);
        self.keys.retain(|_, named| named != of);
    }

    /// Whether all that the VM refers to has a name.
    pub(super) fn know(&self, vm: &Vm) -> bool {
        vm.host_ref.iter().chain(&vm.parent).all(|of| self.of.contains_key(of))
    }

    /// The VM with the names of its places.
    pub(super) fn resolve(&self, mut vm: Vm) -> Vm {
        vm.folder = vm.parent.as_ref().map(|parent| self.path(parent)).unwrap_or_default();
        vm.host = vm.host_ref.as_ref().and_then(|host| self.of.get(host)).map(|named| named.name.clone());
        vm.host_connected = vm.host_ref.as_ref().and_then(|host| self.of.get(host)).and_then(is_connected);
        vm.cluster = vm.host_ref.as_ref().and_then(|host| self.cluster_of(host)).map(|(_, name)| name);
        for nic in &mut vm.nics {
            if let Some(name) = self.network(nic.network_ref.as_deref()) {
                nic.network = name;
            }
        }
        vm
    }

    pub(super) fn hosts(&self) -> Vec<HostAt> {
        let hosts = self.of.iter().filter(|(of, _)| of.kind == "HostSystem");
        let mut all: Vec<_> = hosts
            .map(|(_, named)| HostAt {
                name: named.name.clone(),
                is_connected: is_connected(named) == Some(true),
            })
            .collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    pub(super) fn cluster_of(&self, host: &MoRef) -> Option<(MoRef, String)> {
        let parent = self.of.get(host)?.parent.as_ref()?;
        if parent.kind != "ClusterComputeResource" {
            return None;
        }
        Some((parent.clone(), self.of.get(parent)?.name.clone()))
    }

    /// From the root to the object: `/Datacenter/vm/Production`. The root itself has no name in it.
    fn path(&self, of: &MoRef) -> String {
        let mut parts = Vec::new();
        let mut at = Some(of);
        while let Some(named) = at.and_then(|at| self.of.get(at)) {
            if parts.len() >= MAX_STEPS {
                break;
            }
            parts.push(named.name.as_str());
            at = named.parent.as_ref();
        }
        parts.reverse();
        parts.iter().fold(String::new(), |path, part| path + "/" + part)
    }

    /// The network's name by a reference's id or a port group's key.
    fn network(&self, of: Option<&str>) -> Option<String> {
        let id = of?;
        let by_id = ["Network", "DistributedVirtualPortgroup", "OpaqueNetwork"];
        let by_id = by_id.iter().find_map(|kind| self.of.get(&MoRef::new(*kind, id)));
        let found = by_id.or_else(|| self.of.get(self.keys.get(id)?))?;
        Some(found.name.clone()).filter(|name| !name.is_empty())
    }
}

fn is_connected(named: &Named) -> Option<bool> {
    named.connection.as_deref().map(|connection| connection == "connected")
}

/// vCenter writes `/`, `\` and `%` in names as in URLs.
pub(super) fn plain(name: &str) -> String {
    name.replace("%2f", "/").replace("%2F", "/").replace("%5c", "\\").replace("%5C", "\\").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> ObjectNames {
        let mut names = ObjectNames::default();
        let mut put = |kind: &str, id: &str, name: &str, parent: Option<(&str, &str)>| {
            let of = MoRef::new(kind, id);
            let text = Element { text: name.to_owned(), ..Element::default() };
            names.apply(&of, "name", Some(&text));
            let parent = parent.map(|(kind, id)| Element {
                text: id.to_owned(),
                refers_to: Some(kind.to_owned()),
                ..Element::default()
            });
            names.apply(&of, "parent", parent.as_ref());
        };
        put("Datacenter", "dc-1", "Berlin", Some(("Folder", "group-d1")));
        put("Folder", "group-v1", "vm", Some(("Datacenter", "dc-1")));
        put("Folder", "group-v2", "Prod 50%25", Some(("Folder", "group-v1")));
        put("ClusterComputeResource", "domain-c7", "Cluster A", None);
        put("HostSystem", "host-9", "esx1.example", Some(("ClusterComputeResource", "domain-c7")));
        put("Folder", "loop-1", "a", Some(("Folder", "loop-2")));
        put("Folder", "loop-2", "b", Some(("Folder", "loop-1")));
        names
    }

    #[test]
    fn a_vms_places_have_names() {
        let names = names();
        let mut vm = Vm::new(MoRef::vm("vm-1"));
        vm.name = "web1".to_owned();
        vm.parent = Some(MoRef::new("Folder", "group-v2"));
        vm.host_ref = Some(MoRef::new("HostSystem", "host-9"));
        assert!(names.know(&vm));
        let vm = names.resolve(vm);
        assert_eq!(vm.path(), "/Berlin/vm/Prod 50%/web1");
        assert_eq!((vm.host.as_deref(), vm.cluster.as_deref()), (Some("esx1.example"), Some("Cluster A")));
        assert_eq!(vm.host_connected, None, "it was not told");
    }

    #[test]
    fn parents_in_a_ring_end() {
        let path = names().path(&MoRef::new("Folder", "loop-1"));
        assert_eq!(path.matches('/').count(), MAX_STEPS);
    }

    #[test]
    fn a_network_is_found_by_id_and_by_key() {
        let mut names = ObjectNames::default();
        let of = MoRef::new("DistributedVirtualPortgroup", "dvportgroup-12");
        let text = |text: &str| Element { text: text.to_owned(), ..Element::default() };
        names.apply(&of, "name", Some(&text("VLAN 7")));
        names.apply(&of, "key", Some(&text("key-7")));
        assert_eq!(names.network(Some("dvportgroup-12")).as_deref(), Some("VLAN 7"));
        assert_eq!(names.network(Some("key-7")).as_deref(), Some("VLAN 7"));
        assert_eq!(names.network(Some("vm-1")), None);
    }
}
