//! Calls to one VM.
//!
//! Rule: what starts a task answers the task; who called waits for it.

use crate::{
    client::{Client, Repeat},
    error::{Result, VsphereError},
    soap::{Element, MoRef, Node, SoapRequest},
};

/// One answer to "what changed": what it says of `start` up to `start + length`, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Areas {
    pub start: i64,
    pub length: i64,
    /// Start and length of each.
    pub areas: Vec<(i64, i64)>,
}

async fn start_task(
    client: &Client,
    method: &'static str,
    of: &MoRef,
    write: impl FnOnce(Node) -> Node,
) -> Result<MoRef> {
    let answer = client.call(&SoapRequest::new(method, of, write), Repeat::Once).await?;
    answer
        .moref_at("returnval")
        .ok_or_else(|| VsphereError::failed(format!("{method} of {of}"), "the answer names no task"))
}

/// Begins a snapshot of all disks, without memory.
pub async fn create_snapshot(
    client: &Client,
    vm: &MoRef,
    name: &str,
    description: &str,
    quiesce: bool,
) -> Result<MoRef> {
    start_task(client, "CreateSnapshot_Task", vm, |arguments| {
        arguments
            .text("name", name)
            .text("description", description)
            .text("memory", false)
            .text("quiesce", quiesce)
    })
    .await
}

/// Begins to remove a snapshot; its children stay, and its disks are consolidated.
pub async fn remove_snapshot(client: &Client, snapshot: &MoRef) -> Result<MoRef> {
    start_task(client, "RemoveSnapshot_Task", snapshot, |arguments| {
        arguments.text("removeChildren", false).text("consolidate", true)
    })
    .await
}

/// Begins to merge redo logs that belong to no snapshot.
pub async fn consolidate(client: &Client, vm: &MoRef) -> Result<MoRef> {
    start_task(client, "ConsolidateVMDisks_Task", vm, |arguments| arguments).await
}

/// Begins to change the VM's settings.
pub async fn reconfigure(client: &Client, vm: &MoRef, spec: impl FnOnce(Node) -> Node) -> Result<MoRef> {
    start_task(client, "ReconfigVM_Task", vm, |arguments| arguments.nest("spec", spec)).await
}

/// Notes as they are sent: an empty text may be taken for one that is not given, so notes are emptied by a
/// blank.
pub fn notes(text: &str) -> &str {
    if text.is_empty() { " " } else { text }
}

/// Begins to switch it on.
pub async fn power_on(client: &Client, vm: &MoRef) -> Result<MoRef> {
    start_task(client, "PowerOnVM_Task", vm, |arguments| arguments).await
}

/// Begins to cut its power.
pub async fn power_off(client: &Client, vm: &MoRef) -> Result<MoRef> {
    start_task(client, "PowerOffVM_Task", vm, |arguments| arguments).await
}

/// Asks the guest to shut down; the answer comes at once.
pub async fn shutdown_guest(client: &Client, vm: &MoRef) -> Result<()> {
    // Asking again a guest that shuts down changes nothing.
    client.call(&SoapRequest::new("ShutdownGuest", vm, |arguments| arguments), Repeat::Safe).await.map(drop)
}

/// What changed on a disk between the change id and the snapshot, from an offset on; without a snapshot, and
/// now, which works only while the VM is off.
pub async fn query_changed_areas(
    client: &Client,
    vm: &MoRef,
    snapshot: Option<&MoRef>,
    device_key: i32,
    start_offset: u64,
    change_id: &str,
) -> Result<Areas> {
    let request = SoapRequest::new("QueryChangedDiskAreas", vm, |arguments| {
        arguments
            .each(snapshot, |node, snapshot| node.object("snapshot", snapshot))
            .text("deviceKey", device_key)
            .text("startOffset", start_offset)
            .text("changeId", change_id)
    });
    let answer = client.call(&request, Repeat::Safe).await?;
    read_areas(&answer).ok_or_else(|| {
        let context = format!("QueryChangedDiskAreas of {vm}, disk {device_key}");
        VsphereError::failed(context, "a number is missing in the answer")
    })
}

fn read_areas(answer: &Element) -> Option<Areas> {
    let info = answer.child("returnval")?;
    let number = |element: &Element, name: &str| element.value_at::<i64>(name);
    let areas = info.all("changedArea").map(|area| Some((number(area, "start")?, number(area, "length")?)));
    Some(Areas {
        start: number(info, "startOffset")?,
        length: number(info, "length")?,
        areas: areas.collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_read_whole_or_not_at_all() {
        let read = |inner: &str| {
            let text = format!(
                "<QueryChangedDiskAreasResponse><returnval>{inner}</returnval></QueryChangedDiskAreasResponse>"
            );
            read_areas(&Element::read(text.as_bytes()).unwrap())
        };
        let good = "<startOffset>0</startOffset><length>1048576</length>\
                    <changedArea><start>65536</start><length>131072</length></changedArea>\
                    <changedArea><start>917504</start><length>65536</length></changedArea>";
        let areas = read(good).unwrap();
        assert_eq!((areas.start, areas.length), (0, 1 << 20));
        assert_eq!(areas.areas, [(65536, 131_072), (917_504, 65536)]);
        let empty = read("<startOffset>0</startOffset><length>1</length>").unwrap();
        assert!(empty.areas.is_empty());
        for broken in [
            "<startOffset>0</startOffset>",
            "<startOffset>x</startOffset><length>1</length>",
            "<startOffset>0</startOffset><length>1</length><changedArea><start>0</start></changedArea>",
        ] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
