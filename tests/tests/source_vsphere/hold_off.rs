//! Nothing but warmd starts a VM that was stopped to be moved.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use warmd_core::{
    model::{id::MigrationId, machine::PowerState, rule::Rule},
    sources::{HoldOff, MigratedMark, Source},
};

use warmd_tests::vsphere::NAME;
use warmd_vsphere::{Vsphere, client::Repeat, soap::SoapRequest, vim::properties};

use super::bench::{Bench, GRACEFUL, block_on};

/// Switches on that the VM's host starts VMs at all.
pub(crate) async fn host_starts_vms(vsphere: &Vsphere) -> Result<()> {
    let vm = vsphere.find(NAME).await?;
    let found = properties::read_properties(vsphere.client(), &vm.of, &["runtime.host"]).await?;
    let host = found.moref("runtime.host").context("the VM is on no host")?;
    let path = "configManager.autoStartManager";
    let found = properties::read_properties(vsphere.client(), &host, &[path]).await?;
    let manager = found.moref(path).context("the host starts no VMs")?;
    let request = SoapRequest::new("ReconfigureAutostart", &manager, |arguments| {
        arguments.nest("spec", |spec| spec.nest("defaults", |defaults| defaults.text("enabled", true)))
    });
    vsphere.client().call(&request, Repeat::Safe).await?;
    Ok(())
}

#[test]
fn the_autostart_is_taken_and_given_back() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &["-ha", "-drs"]).await?;
        let machine = bench.source.describe(&bench.vm.0).await?;
        let host = bench.source.host(&machine);
        ensure!(bench.source.starters(&bench.vm, bench.owner).await? == HoldOff::default());
        // As an administrator sets it, of the host and of the VM.
        let vsphere = Vsphere::new(bench.rig.settings()?)?;
        host_starts_vms(&vsphere).await?;
        let was = HoldOff { autostart: true };
        bench.source.let_go(&bench.vm, bench.owner, &was).await?;
        bench.rig.order("reboot", &json!({"host": host}))?;
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Running, "its host does not start it");
        ensure!(bench.source.starters(&bench.vm, bench.owner).await? == was);
        let found = bench.source.objections(&bench.vm).await?;
        let named =
            |word: &str| found.iter().any(|it| it.rule == Rule::VmAutostart && it.found.contains(word));
        ensure!(named("ESXi") && named("HA") && named("DRS"), "{found:?}");

        let moved = MigratedMark { owner: bench.owner, target: "rack-2".to_owned() };
        for _ in 0..2 {
            bench.source.hold_off(&bench.vm, &moved, &was).await?;
        }
        // A daemon that lost its record finds what was; another migration does not.
        ensure!(bench.source.starters(&bench.vm, bench.owner).await? == was);
        ensure!(bench.source.starters(&bench.vm, MigrationId::generate()).await? == HoldOff::default());
        let line = &bench.source.vms().await?[0];
        ensure!(line.warnings.iter().any(|warning| warning.contains("rack-2")), "{line:?}");
        bench.source.shut_down(&bench.vm, GRACEFUL).await?;
        bench.rig.order("reboot", &json!({"host": host}))?;
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Off, "its host started it");

        bench.source.let_go(&bench.vm, bench.owner, &HoldOff::default()).await?;
        bench.source.let_go(&bench.vm, bench.owner, &HoldOff::default()).await?;
        ensure!(bench.source.starters(&bench.vm, bench.owner).await? == was);
        let line = &bench.source.vms().await?[0];
        ensure!(!line.warnings.iter().any(|warning| warning.contains("rack-2")), "{line:?}");
        bench.rig.order("reboot", &json!({"host": host}))?;
        ensure!(bench.source.power(&bench.vm).await? == PowerState::Running, "its host does not start it");
        Ok(())
    });
}
