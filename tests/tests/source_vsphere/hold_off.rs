//! Nothing but warmd starts a VM that was stopped to be moved.

use anyhow::ensure;
use serde_json::json;
use warmd_core::{
    model::{id::MigrationId, machine::PowerState, rule::Rule},
    sources::{HoldOff, MigratedMark, Source},
};

use super::bench::{Bench, GRACEFUL, block_on};

#[test]
fn the_autostart_is_taken_and_given_back() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &["-ha", "-drs"]).await?;
        let machine = bench.source.describe(&bench.vm.0).await?;
        let host = bench.source.host(&machine);
        ensure!(bench.source.starters(&bench.vm, bench.owner).await? == HoldOff::default());
        // As an administrator sets it.
        let was = HoldOff { autostart: true };
        bench.source.let_go(&bench.vm, bench.owner, &was).await?;
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
