//! The source VM, read again: at each pass, and in a cutover before anything is stopped.
//!
//! Rule: a target VM is created from the source VM as it is, not as it was when the plan was applied; and
//! before the source is stopped it is certain that nothing is lost which the plan does not accept. A check at
//! a pass never fails the pass.

use std::{collections::BTreeSet, time::Duration};

use warmd_core::{
    model::{
        event_kind::EventKind,
        hardware::HardwareElement,
        id::DiskKey,
        machine::Machine,
        rule::{Objection, Rule, Severity},
    },
    targets::Incoming,
};
use warmd_store::StoreError;

use super::{context::Context, failure::WorkError};

/// How long a pass waits for the source's description of its VM.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads the VM at the start of a pass, and reports changes.
pub(super) async fn look(context: &Context) {
    let source = context.planned_source();
    let asked = async {
        renew(context, source.describe(&context.vm.0).await?).await?;
        differences(context, &source.objections(&context.vm).await?).await;
        Ok::<_, WorkError>(())
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(migration = %context.id, %error, "VM not read again"),
        Err(_) => tracing::warn!(migration = %context.id, "VM not read again: the source does not answer"),
    }
}

/// Why the source must not be stopped now: saving might fail from then on.
pub(super) async fn room_to_stop(context: &Context) -> Result<(), WorkError> {
    match context.store.too_little_room_now().await? {
        Some(why) => Err(WorkError::operator(format!("the source VM was not stopped: {why}"))),
        None => Ok(()),
    }
}

/// Checks once more what would be lost, before anything is stopped.
pub(super) async fn before_stop(context: &Context) -> Result<(), WorkError> {
    room_to_stop(context).await?;
    let source = context.planned_source();
    renew(context, source.describe(&context.vm.0).await?).await?;
    let mut objections = source.objections(&context.vm).await?;
    differences(context, &objections).await;
    let incoming = Incoming {
        owner: Some(context.id),
        name: context.target_name.clone(),
        machine: context.mapped_machine(),
        disks: context.made_disks().await?,
    };
    objections
        .extend(context.target.objections(&[incoming]).await?.into_iter().map(|(_, objection)| objection));
    refuse(context, &objections)
}

/// The findings that prevent applying the plan and that it does not accept: they also prevent stopping the
/// VM, or the target's refusal would come with the VM off.
pub(super) fn open<'a>(context: &Context, all: &'a [Objection]) -> Vec<&'a Objection> {
    let plan = context.plan();
    let over = plan.override_by_name(&context.machine.name, &context.vm);
    let stands = |objection: &&Objection| {
        objection.rule.severity() == Severity::Error && !plan.accepts(over, objection.rule)
    };
    all.iter().filter(stands).collect()
}

/// Fails if the VM must not be stopped with these findings.
pub(super) fn refuse(context: &Context, all: &[Objection]) -> Result<(), WorkError> {
    let open: Vec<_> = open(context, all).into_iter().map(Objection::advice).collect();
    if open.is_empty() {
        return Ok(());
    }
    Err(WorkError::operator(format!("the source VM was not stopped: {}", open.join("; "))))
}

/// Takes over the present machine, and reports changes.
async fn renew(context: &Context, mut now: Machine) -> Result<(), StoreError> {
    let before = context.latest_machine();
    let told = changes(&before, &now);
    // The plan and the ledgers identify the VM by these.
    now.id.clone_from(&context.machine.id);
    now.name.clone_from(&context.machine.name);
    let known = |key: &DiskKey| now.disks.iter().find(|disk| disk.key == *key);
    now.disks = before.disks.iter().map(|disk| known(&disk.key).unwrap_or(disk).clone()).collect();
    if now == before {
        return Ok(());
    }
    context.store.save_machine(context.id, &now).await?;
    context.set_latest_machine(now);
    if !told.is_empty() {
        let text = format!(
            "the source VM has changed: {}; the target is made as it is at the cutover",
            told.join("; ")
        );
        context.log_event(EventKind::Warning, text).await;
    }
    Ok(())
}

/// Reports, once, where its definitions differ.
async fn differences(context: &Context, objections: &[Objection]) {
    let differ = |objection: &&Objection| {
        matches!(objection.rule, Rule::DefinitionsDiffer | Rule::DiskInOneDefinition)
    };
    let found: Vec<_> = objections.iter().filter(differ).map(|objection| objection.found.clone()).collect();
    if let Some(before) = context.tell_differences(&found) {
        let text = match (found.is_empty(), before.is_empty()) {
            (true, true) => return,
            (true, false) => "the running source VM is what its definition says again".to_owned(),
            (false, _) => {
                format!("the running source VM is not what its definition says: {}", found.join("; "))
            }
        };
        context.log_event(EventKind::Warning, text).await;
    }
}

/// The changes in words.
fn changes(before: &Machine, now: &Machine) -> Vec<String> {
    let mut changes = Vec::new();
    let mut compare = |what: &str, before: String, now: String| {
        if before != now {
            changes.push(format!("{what} was {before} and is {now}"));
        }
    };
    compare("its name", format!("{:?}", before.name), format!("{:?}", now.name));
    compare("memory", format!("{} MiB", before.memory.0 >> 20), format!("{} MiB", now.memory.0 >> 20));
    let cpu = |machine: &Machine| {
        let cpu = machine.cpu;
        format!("{} sockets × {} cores × {} threads", cpu.sockets, cpu.cores, cpu.threads)
    };
    compare("processors", cpu(before), cpu(now));
    compare("firmware", format!("{:?}", before.firmware), format!("{:?}", now.firmware));
    compare("machine type", before.machine_type.clone(), now.machine_type.clone());
    let disks = |machine: &Machine| {
        let disks =
            machine.disks.iter().map(|disk| format!("{} on {} ({})", disk.key, disk.bus, disk.location));
        in_words(disks.collect())
    };
    compare("disks", disks(before), disks(now));
    let nics = |machine: &Machine| {
        in_words(
            machine
                .nics
                .iter()
                .map(|nic| format!("{} on {} ({})", nic.mac, nic.network, nic.model))
                .collect(),
        )
    };
    compare("network interfaces", nics(before), nics(now));
    if let (Some(before), Some(now)) = (&before.hardware, &now.hardware) {
        let (had, has) = (pieces(before, now), pieces(now, before));
        let other: BTreeSet<_> = had.symmetric_difference(&has).map(|(name, _)| name.as_str()).collect();
        if !other.is_empty() {
            changes.push(format!("changed: {}", other.into_iter().collect::<Vec<_>>().join(", ")));
        }
    }
    changes
}

fn in_words(mut all: Vec<String>) -> String {
    all.sort();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// Each device by its name, with its content. PCI controllers are left out, and an interface's address if
/// `other` has none: a machine saved by an older version has neither.
fn pieces(hardware: &HardwareElement, other: &HardwareElement) -> BTreeSet<(String, String)> {
    let (devices, others): (Vec<_>, Vec<_>) = hardware.parts.iter().partition(|part| part.name == "devices");
    let all = devices.into_iter().flat_map(|devices| &devices.parts).chain(others);
    let all = all.filter(|part| !part.is_pci_bus()).cloned().map(|mut part| {
        let same = part.mac().and_then(|mac| other.nic(mac));
        if same.is_some_and(|same| same.part("address").is_none()) {
            part.parts.retain(|part| part.name != "address");
        }
        part
    });
    all.map(|part| {
        let name = match part.target().or_else(|| part.mac()) {
            Some(own) => format!("{} {own}", part.name),
            None => part.name.clone(),
        };
        (name, format!("{part:?}"))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(memory: u64, hardware: &str) -> Machine {
        serde_json::from_value(serde_json::json!({
            "id": "1", "name": "a", "uuid": "u", "firmware": "bios", "machine_type": "q35", "architecture": "x86_64",
            "cpu": {"sockets": 1, "cores": 2, "threads": 1}, "memory": memory, "disks": [],
            "nics": [{"mac": "52:54:00:00:00:01", "network": "default", "model": "e1000"}],
            "hardware": {"name": "domain", "parts": [{"name": "clock", "attributes": [["offset", hardware]]}]},
        }))
        .unwrap()
    }

    #[test]
    fn what_has_changed_is_said() {
        let before = machine(1 << 30, "utc");
        assert!(changes(&before, &before).is_empty());
        let mut now = machine(2 << 30, "localtime");
        now.nics.clear();
        let told = changes(&before, &now);
        assert_eq!(told[0], "memory was 1024 MiB and is 2048 MiB");
        assert!(told[1].contains("52:54:00:00:00:01") && told[1].ends_with("is none"), "{told:?}");
        assert_eq!(told[2], "changed: clock");
    }

    #[test]
    fn places_that_an_older_version_did_not_save_are_no_change() {
        let with = |devices: serde_json::Value| {
            let mut machine = machine(1 << 30, "utc");
            let devices = serde_json::json!({"name": "devices", "parts": devices});
            machine.hardware.as_mut().unwrap().parts.push(serde_json::from_value(devices).unwrap());
            machine
        };
        let mac = serde_json::json!({"name": "mac", "attributes": [["address", "52:54:00:00:00:01"]]});
        let nic = |slot: &str| {
            let address =
                serde_json::json!({"name": "address", "attributes": [["type", "pci"], ["slot", slot]]});
            serde_json::json!({"name": "interface", "parts": [mac, address]})
        };
        let bus = serde_json::json!({"name": "controller", "attributes": [["type", "pci"], ["index", "0"]]});
        let older = with(serde_json::json!([{"name": "interface", "parts": [mac]}]));
        let now = with(serde_json::json!([bus, nic("3")]));
        assert!(changes(&older, &now).is_empty(), "{:?}", changes(&older, &now));
        assert!(changes(&now, &older).is_empty());
        let moved = with(serde_json::json!([bus, nic("4")]));
        assert_eq!(changes(&now, &moved), ["changed: interface 52:54:00:00:00:01"]);
        let other = serde_json::json!({"name": "controller", "attributes": [["type", "usb"]]});
        assert_eq!(changes(&now, &with(serde_json::json!([bus, nic("3"), other]))), ["changed: controller"]);
    }

    #[test]
    fn a_machine_of_an_older_state_has_not_changed() {
        let now = machine(1 << 30, "utc");
        let before = Machine { hardware: None, ..now.clone() };
        assert!(changes(&before, &now).is_empty());
    }
}
