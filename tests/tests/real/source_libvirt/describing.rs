//! Lists and descriptions.

use anyhow::{Context as _, Result, ensure};
use warmd_cbt::units::Length;
use warmd_core::model::machine::{Firmware, PowerState};
use warmd_core::model::rule::Rule;
use warmd_core::sources::Source;
use warmd_daemon::endpoints::SourceSettings;

use super::bench::{Bench, MIB, UUID, block_on};

#[test]
fn vms_are_listed_and_described() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &[("qcow2", 8), ("raw", 4)])?;
        bench.define(
            "<interface type='user'><mac address='52:54:00:AA:00:01'/><model type='virtio'/></interface>",
        )?;
        let other = bench
            .xml("")
            .replace("--help", "b &lt;c> 'd'")
            .replace(UUID, "99999999-2222-3333-4444-555555555555");
        let path = dir.join("other.xml");
        std::fs::write(&path, other)?;
        bench.virsh(["define", &path.to_string_lossy()])?;
        bench.virsh(["start", UUID])?;

        let vms = bench.source.vms().await?;
        let mut names: Vec<_> = vms.iter().map(|vm| (vm.name.as_str(), vm.power)).collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        ensure!(names == [("--help", PowerState::Running), ("b <c> 'd'", PowerState::Off)], "{names:?}");
        for vm in &vms {
            ensure!((vm.disks, vm.bytes) == (2, Length(12 * MIB)), "{vm:?}");
            ensure!(vm.warnings.len() == 1 && vm.warnings[0].contains("vdb"), "{vm:?}");
        }

        let machine = bench.source.describe("--help").await?;
        ensure!(machine == bench.source.describe(UUID).await?, "by name and by id differ");
        ensure!((machine.id.0.as_str(), machine.uuid.as_str()) == (UUID, UUID));
        ensure!((machine.firmware, machine.machine_type.as_str()) == (Firmware::Bios, "q35"), "{machine:?}");
        ensure!((machine.architecture.as_str(), machine.cpu.vcpus()) == ("x86_64", 1));
        ensure!(machine.memory == Length(64 * MIB));
        let disks: Vec<_> = machine
            .disks
            .iter()
            .map(|disk| (disk.key.0.as_str(), disk.size.0, disk.bus.as_str(), disk.boot_order))
            .collect();
        ensure!(disks == [("vda", 8 * MIB, "virtio", 0), ("vdb", 4 * MIB, "virtio", 1)], "{disks:?}");
        ensure!(machine.disks[0].untracked.is_none() && machine.disks[1].untracked.is_some());
        ensure!(machine.disks[0].location == bench.disks[0].path.to_string_lossy());
        let nic = machine.nics.first().context("no NIC")?;
        ensure!((nic.mac.as_str(), nic.model.as_str()) == ("52:54:00:aa:00:01", "virtio"), "{nic:?}");
        ensure!(bench.source.describe("b <c> 'd'").await?.name == "b <c> 'd'");

        let version = bench.source.check().await?;
        ensure!(version.starts_with("libvirt ") && version.contains("QEMU "), "{version}");
        bench.assert_nothing_runs()
    });
}

#[test]
fn a_source_is_opened_by_its_settings() -> Result<()> {
    let settings: SourceSettings = toml::from_str("kind = 'libvirt'\nuri = 'qemu:///session'")?;
    ensure!((settings.kind(), settings.address().as_str()) == ("libvirt", "qemu:///session"));
    settings.open("here")?;
    let remote: SourceSettings = toml::from_str("kind = 'libvirt'\nuri = 'qemu+ssh://far/system'")?;
    let error = remote.open("there").err().context("a remote URI was taken")?.to_string();
    ensure!(error.contains("there") && error.contains("far"), "{error}");
    for wrong in ["kind = 'libvirt'\nurl = 'x'", "kind = 'esx'", "uri = 'x'"] {
        ensure!(toml::from_str::<SourceSettings>(wrong).is_err(), "{wrong}");
    }
    Ok(())
}

#[test]
fn storage_that_other_hosts_may_have_is_told() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &[("qcow2", 8)])?;
        bench.define(
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/>\
             <source protocol='nbd' name='far'><host name='127.0.0.1' port='1'/></source>\
             <target dev='vdx' bus='virtio'/></disk>",
        )?;
        let found = bench.source.objections(&bench.vm).await?;
        let shared: Vec<_> = found.iter().filter(|objection| objection.rule == Rule::SharedStorage).collect();
        ensure!(shared.len() == 1 && shared[0].found == "vdx (nbd:far) is a network disk", "{found:?}");
        Ok(())
    });
}

#[test]
fn what_is_in_the_way_is_found_by_its_rule() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &[("qcow2", 8), ("qcow2", 4)])?;
        ensure!(bench.source.objections(&bench.vm).await?.is_empty(), "a plain VM has something in its way");
        bench.virsh(["snapshot-create-as", UUID, "before --now"])?;
        // Only raw images can be shared.
        let image = bench.disks[1].path.display();
        let text = bench
            .xml("<filesystem type='mount'><source dir='/tmp'/><target dir='t'/></filesystem>")
            .replace("<target dev='vdb' bus='virtio'/>", "<target dev='vdb' bus='virtio'/><shareable/>")
            .replace(
                &format!("type='qcow2' discard='unmap'/><source file='{image}'"),
                &format!("type='raw'/><source file='{image}'"),
            );
        let path = dir.join("odd.xml");
        std::fs::write(&path, text)?;
        bench.virsh(["define", &path.to_string_lossy()])?;
        let found = bench.source.objections(&bench.vm).await?;
        let mut rules: Vec<_> = found.iter().map(|objection| objection.rule).collect();
        rules.sort_unstable();
        ensure!(rules == [Rule::DiskShared, Rule::VmHasSnapshots, Rule::DeviceUnmapped], "{found:?}");
        ensure!(found.iter().any(|objection| objection.found.contains("before --now")), "{found:?}");
        Ok(())
    });
}
