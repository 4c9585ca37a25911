//! A running VM that differs from its definition.

use anyhow::{Context as _, Result, ensure};
use warmd_core::model::machine::PowerState;
use warmd_core::model::rule::Rule;
use warmd_core::sources::{Source, SourceErrorKind};

use super::bench::{Bench, MIB, Marks, UUID, assert_error, block_on};

async fn found(bench: &Bench, rule: Rule) -> Result<String> {
    let found = bench.source.objections(&bench.vm).await?;
    Ok(found.into_iter().filter(|one| one.rule == rule).map(|one| one.found).collect::<Vec<_>>().join("; "))
}

/// Changes the definition to other images of the same size, with other contents, while the VM runs.
fn redefine(bench: &Bench) -> Result<()> {
    let mut text = bench.xml("");
    for disk in &bench.disks {
        let name = disk.path.file_name().unwrap_or_default().to_string_lossy();
        let old = disk.path.with_file_name(format!("old-{name}"));
        std::fs::copy(&disk.path, &old)?;
        text = text.replace(&disk.path.display().to_string(), &old.display().to_string());
    }
    let path = bench.dir.join("domain.xml");
    std::fs::write(&path, text)?;
    bench.virsh(["define", &path.to_string_lossy()]).map(drop)
}

/// The passes copy the running VM's disks; once the VM is off it has other disks.
fn is_never_copied_over(disks: &[(&str, u64)]) {
    block_on(async |dir| {
        let mut bench = Bench::started(dir, disks)?;
        redefine(&bench)?;
        bench.write(0, 1, MIB, 512)?;
        let told = found(&bench, Rule::DiskInOneDefinition).await?;
        ensure!(told.contains("disk vda") && told.contains("old-"), "{told}");
        let first = bench.pass(&Marks::new()).await?;
        bench.virsh(["destroy", UUID])?;
        ensure!(found(&bench, Rule::DiskInOneDefinition).await?.is_empty(), "it differs while it is off");
        assert_error(bench.final_snapshot(&first).await, SourceErrorKind::Refused, "at the last pass")?;
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Off);
        bench.assert_nothing_runs()?;

        bench.define("")?;
        let last = bench.final_snapshot(&first).await?;
        bench.assert_contents(&*last).await?;
        Ok(last.release().await?)
    });
}

#[test]
fn other_image_in_the_definition_is_never_copied() {
    is_never_copied_over(&[("qcow2", 8)]);
}

#[test]
fn other_image_without_bitmaps_is_never_copied() {
    is_never_copied_over(&[("raw", 4)]);
}

#[test]
fn isolation_of_a_running_vms_nic_is_not_lost_silently() {
    block_on(async |dir| {
        let bench = Bench::new(dir, &[("qcow2", 8)])?;
        let mac = "52:54:00:aa:00:01";
        bench.define(&format!(
            "<interface type='user'><mac address='{mac}'/><model type='virtio'/></interface>"
        ))?;
        bench.virsh(["start", UUID])?;
        ensure!(found(&bench, Rule::IsolationLost).await?.is_empty());
        ensure!(found(&bench, Rule::DefinitionsDiffer).await?.is_empty());
        bench.virsh(["domif-setlink", UUID, mac, "down"])?;
        let told = found(&bench, Rule::IsolationLost).await?;
        ensure!(told.contains(mac) && told.contains("down"), "{told}");
        bench.virsh(["domif-setlink", UUID, mac, "down", "--config"])?;
        ensure!(found(&bench, Rule::IsolationLost).await?.is_empty());
        ensure!(found(&bench, Rule::DefinitionsDiffer).await?.is_empty());
        let summary = bench.source.vms().await?.pop().context("no VM")?;
        ensure!(summary.warnings.is_empty(), "{summary:?}");
        Ok(())
    });
}
