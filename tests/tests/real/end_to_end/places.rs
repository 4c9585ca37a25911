//! Disk locations that are in use: identified by what they are, before a byte is written.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use warmd_cbt::units::Length;
use warmd_disks::volume::{FileDisk, VolumeError, VolumeOptions};
use warmd_tests::{
    Libvirtd, TestDir,
    rig::{Rig, RigSpec},
    run,
    scratch::Loop,
    tool,
};

const SIZE: u64 = 256 << 20;

/// A second node of a device: a host has many names for one device.
fn other_node(dir: &TestDir, device: &Path) -> Result<PathBuf> {
    let node = dir.join("other-node");
    let number = tool::call("stat", [Path::new("--format=%Hr %Lr"), device])?;
    let (major, minor) = number.trim().split_once(' ').context("no number")?;
    tool::call("mknod", [node.to_string_lossy().as_ref(), "b", major, minor])?;
    Ok(node)
}

/// A VM that has the device and no boot disk.
fn victim(libvirt: &Libvirtd, dir: &TestDir, device: &Path) -> Result<()> {
    let xml = dir.join("victim.xml");
    std::fs::write(
        &xml,
        format!(
            "<domain type='qemu'><name>victim</name><memory unit='MiB'>64</memory>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
             <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{}'/>\
             <target dev='vda' bus='virtio'/></disk></devices><seclabel type='none'/></domain>",
            device.display()
        ),
    )?;
    libvirt.virsh(["define", &xml.to_string_lossy()]).map(drop)
}

fn refused(rig: &Rig, dir: &TestDir, words: &[&str]) -> Result<()> {
    let plan = dir.join("plan.toml");
    let out = rig.ctl().outcome(&["plan", "validate", "-f", &plan.to_string_lossy()], tool::DEADLINE)?;
    let said = format!("{}{}", out.stdout, out.stderr);
    for word in words {
        ensure!(said.contains(word), "validate does not say {word:?}: {said}");
    }
    Ok(())
}

#[test]
fn a_device_of_a_vm_is_refused_by_any_name() {
    run(|dir| {
        let device = Loop::new(&dir.join("backing"), SIZE)?;
        let node = other_node(dir, device.path())?;
        let places = vec![("vda", node.display().to_string())];
        let spec = RigSpec { places, namespaces: true, ..RigSpec::new("mover", 1) };
        let mut rig = Rig::off(dir, &spec)?;
        victim(&rig.old, dir, device.path())?;
        rig.daemon.start()?;
        // Defined and off: only the definition shows the use.
        refused(&rig, dir, &["location-unusable", "victim", &device.place()])?;
        rig.old.virsh(["start", "victim"])?;
        let kind = rig.old.virsh(["dumpxml", "victim"])?;
        ensure!(kind.contains("victim"), "{kind}");
        refused(&rig, dir, &["location-unusable", "victim"])?;
        // QEMU has other nodes in a `/dev` of its own: a lock on this node proves nothing.
        let open = async {
            let options = VolumeOptions { lock_wait: std::time::Duration::ZERO, ..VolumeOptions::default() };
            FileDisk::open(&node, Length(SIZE), options).await
        };
        let error = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(open);
        match error {
            Err(VolumeError::InUse { by, .. }) => ensure!(by.contains("the running VM victim"), "{by}"),
            other => anyhow::bail!("opened under a running VM: {other:?}"),
        }
        rig.daemon.stop().map(drop)
    });
}

#[test]
fn the_sources_own_image_is_no_place() {
    run(|dir| {
        let link = dir.join("hard-link.qcow2");
        let spec = RigSpec { places: vec![("vda", link.display().to_string())], ..RigSpec::new("mover", 1) };
        let mut rig = Rig::off(dir, &spec)?;
        std::fs::hard_link(&rig.guest.disks[1], &link)?;
        rig.daemon.start()?;
        refused(&rig, dir, &["location-unusable", "a disk of the VM mover"])?;
        rig.daemon.stop().map(drop)
    });
}

#[test]
fn a_place_with_two_names_has_one_owner() {
    run(|dir| {
        let device = Loop::new(&dir.join("backing"), SIZE)?;
        let node = other_node(dir, device.path())?;
        let spec = RigSpec { places: vec![("vda", device.place())], ..RigSpec::new("first", 1) };
        let mut rig = Rig::off(dir, &spec)?;
        rig.daemon.start()?;
        rig.apply()?;
        let view: Value = rig.wait_for("synced")?;
        let id = view["id"].as_str().context("no id")?.to_owned();
        // Another VM, whose disk must go to the same device by its other name.
        let guest = warmd_tests::GuestSpec::new("second");
        warmd_tests::Guest::define(&rig.old, dir, &guest)?;
        let plan = dir.join("plan.toml");
        let text = std::fs::read_to_string(&plan)?.replace("first", "second").replace("\"move\"", "\"more\"");
        std::fs::write(&plan, text.replace(&device.place(), &node.to_string_lossy()))?;
        refused(&rig, dir, &["location-unusable", &id, "first"])?;
        rig.daemon.stop().map(drop)
    });
}
