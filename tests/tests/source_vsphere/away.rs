//! A vCenter that answers 503 or restarts in any phase of a migration.

use anyhow::{Result, ensure};
use serde_json::json;
use warmd_core::{
    model::machine::PowerState,
    sources::{HoldOff, MigratedMark, Source},
};

use super::bench::{Bench, GRACEFUL, MIB, block_on};

#[test]
fn a_vcenter_that_is_away_in_any_phase_costs_nothing() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &[]).await?;
        let moved = MigratedMark { target: "rack-2".to_owned(), owner: bench.owner };
        for (how, seed) in [("unavailable", 200), ("restart", 300)] {
            let away = |bench: &Bench| bench.rig.order(how, &json!({"seconds": 0.7}));
            bench.rig.write(0, 2 * MIB, 100_000, seed)?;
            away(&bench)?;
            let snapshot = bench.snapshot().await?;
            away(&bench)?;
            snapshot.changed(&bench.disks[0].key).await?;
            let (_, unknown) = bench.copy(&*snapshot).await?;
            ensure!(unknown.is_empty(), "{how}: {unknown:?}");
            away(&bench)?;
            snapshot.release().await?;
            bench.assert_equal()?;
            bench.rig.assert_clean()?;
            away(&bench)?;
            bench.source.hold_off(&bench.vm, &moved, &HoldOff::default()).await?;
            away(&bench)?;
            bench.source.shut_down(&bench.vm, GRACEFUL).await?;
            away(&bench)?;
            ensure!(bench.pass(true).await?.is_empty(), "{how}");
            away(&bench)?;
            ensure!(bench.source.power(&bench.vm).await? == PowerState::Off);
            away(&bench)?;
            bench.source.let_go(&bench.vm, bench.owner, &HoldOff::default()).await?;
            away(&bench)?;
            bench.source.power_on(&bench.vm).await?;
            away(&bench)?;
            bench.source.end_snapshot(&bench.vm, bench.owner).await?;
            away(&bench)?;
            ensure!(bench.source.vms().await?.len() == 1);
        }
        away_at_the_end(&bench).await?;
        bench.rig.assert_clean()
    });
}

async fn away_at_the_end(bench: &Bench) -> Result<()> {
    bench.rig.order("restart", &json!({"seconds": 0.7}))?;
    ensure!(bench.source.delete_marks(&bench.vm, bench.owner, &[]).await?.is_empty());
    ensure!(bench.rig.machine()?["tracking_wanted"] == false);
    Ok(())
}
