//! The tree of a VM's snapshots.

use chrono::{DateTime, Utc};

use crate::{
    soap::{Element, MoRef},
    vim::server::time,
};

use super::Power;

/// A snapshot in a VM's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotNode {
    pub of: MoRef,
    pub name: String,
    pub description: String,
    pub created: Option<DateTime<Utc>>,
    /// The VM's power at its moment.
    pub power: Option<Power>,
    pub has_children: bool,
}

/// All snapshots in a VM's property `snapshot`, each after its parent.
pub(super) fn read(info: Option<&Element>) -> Vec<SnapshotNode> {
    let mut all = Vec::new();
    let mut open: Vec<&Element> = info.into_iter().flat_map(|info| info.all("rootSnapshotList")).collect();
    while let Some(node) = open.pop() {
        let children: Vec<&Element> = node.all("childSnapshotList").collect();
        if let Some(of) = node.moref_at("snapshot") {
            all.push(SnapshotNode {
                of,
                name: node.text_at("name").unwrap_or_default().to_owned(),
                description: node.text_at("description").unwrap_or_default().to_owned(),
                created: node.child("createTime").and_then(time),
                power: node.text_at("state").and_then(Power::read),
                has_children: !children.is_empty(),
            });
        }
        open.extend(children);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_flattened() {
        let text = "<val><currentSnapshot type='VirtualMachineSnapshot'>snapshot-3</currentSnapshot>\
            <rootSnapshotList><snapshot type='VirtualMachineSnapshot'>snapshot-2</snapshot><name>before</name>\
            <description>by hand</description><createTime>2026-01-01T00:00:00Z</createTime><state>poweredOff</state>\
            <childSnapshotList><snapshot type='VirtualMachineSnapshot'>snapshot-3</snapshot><name>after</name>\
            </childSnapshotList></rootSnapshotList></val>";
        let all = read(Some(&Element::read(text.as_bytes()).unwrap()));
        let seen: Vec<_> = all.iter().map(|node| (node.name.as_str(), node.has_children)).collect();
        assert_eq!(seen, [("before", true), ("after", false)]);
        assert!(all[0].created.is_some() && all[1].created.is_none());
        assert_eq!((all[0].power, all[1].power), (Some(Power::Off), None));
        assert!(read(None).is_empty());
    }
}
