//! What the source says of a vCenter and its VMs, and of settings that are wrong.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use warmd_core::{
    model::{
        machine::{Firmware, PowerState},
        plan::snapshots::{Quiesce, SnapshotPolicy},
        rule::Rule,
    },
    sources::{Source, SourceErrorKind},
};
use warmd_tests::vsphere::NAME;
use warmd_vsphere::{Vsphere, client::Patience, source::VsphereSource};

use super::bench::{Bench, GRACEFUL, SIZES, assert_error, block_on};

#[test]
fn a_vm_is_listed_and_described() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &["-plain", "3"]).await?;
        let said = bench.source.check().await?;
        ensure!(said.contains("vCenter") && said.contains("VDDK") && said.contains("nbdkit"), "{said}");
        let vms = bench.source.vms().await?;
        ensure!(vms.len() == 4, "{vms:?}");
        let Some(line) = vms.iter().find(|vm| vm.name == NAME) else { anyhow::bail!("{vms:?}") };
        ensure!(line.power == PowerState::Running && line.id == bench.vm, "{line:?}");
        ensure!((line.disks, line.tracked, line.snapshots) == (2, 2, 0), "{line:?}");
        ensure!(line.bytes.0 == SIZES.iter().sum::<u64>() && line.warnings.is_empty(), "{line:?}");
        let names = bench.source.names().await?;
        ensure!(names.contains(&(bench.vm.clone(), NAME.to_owned())), "{names:?}");

        let machine = bench.source.describe(&bench.vm.0).await?;
        ensure!(machine == bench.source.describe(NAME).await?);
        let known = bench.rig.machine()?;
        ensure!(Some(machine.uuid.as_str()) == known["uuid"].as_str(), "{machine:?}");
        ensure!(Some(machine.id.0.as_str()) == known["instance_uuid"].as_str(), "{machine:?}");
        ensure!(machine.firmware == Firmware::Bios && machine.machine_type == "pc", "{machine:?}");
        ensure!(machine.cpu.vcpus() > 0 && machine.memory.0 > 0 && !machine.nics.is_empty(), "{machine:?}");
        let sizes: Vec<u64> = machine.disks.iter().map(|disk| disk.size.0).collect();
        ensure!(sizes == SIZES && machine.disks.iter().all(|disk| disk.untracked.is_none()), "{machine:?}");
        ensure!(bench.source.host(&machine).as_deref() == Some("DC0_C0_H0"));
        ensure!(bench.source.datastore(&machine.disks[0]).as_deref() == Some("LocalDS_0"));
        let told = bench.source.objections(&bench.vm).await?;
        ensure!(told.len() == 1 && told[0].rule == Rule::TrackingSwitchedOn, "{told:?}");
        let careful = SnapshotPolicy { enable_change_tracking: Some(false), quiesce: None };
        let careful = bench.source.with_policy(careful).context("no policy")?;
        ensure!(careful.objections(&bench.vm).await?.is_empty());
        let untracked = careful.describe(NAME).await?.disks.iter().all(|disk| disk.untracked.is_some());
        ensure!(untracked, "a plan that allows no tracking has tracked disks");
        let keys: Vec<_> = machine.disks.iter().map(|disk| disk.key.clone()).collect();
        bench.source.can_finish(&bench.vm, bench.owner, &keys).await?;
        assert_error(bench.source.describe("nothing").await, SourceErrorKind::NotFound, "nothing")
    });
}

#[test]
fn the_vm_is_the_same_after_a_move_and_under_another_name() {
    block_on(async |dir| {
        let mut bench = Bench::copied(dir, &[]).await?;
        bench.rig.order("move", &json!({"machine": NAME, "host": "DC0_C0_H1"}))?;
        bench.rig.order("rename", &json!({"machine": NAME, "name": "other name"}))?;
        let machine = bench.source.describe("other name").await?;
        ensure!(machine.id == bench.vm && machine.disks[0].key == bench.disks[0].key);
        ensure!(bench.source.host(&machine).as_deref() == Some("DC0_C0_H1"));
        bench.rig.order("rename", &json!({"machine": "other name", "name": NAME}))?;
        bench.rig.write(0, 9 << 20, 70_000, 51)?;
        bench.pass(false).await.map(drop)
    });
}

#[test]
fn what_stands_in_the_way_is_named_by_its_rule() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &[]).await?;
        let keys: Vec<_> = bench.disks.iter().map(|disk| disk.key.clone()).collect();
        let found = async |rule: Rule, word: &str| -> Result<()> {
            let found = bench.source.objections(&bench.vm).await?;
            let hit = found.iter().any(|it| it.rule == rule && it.found.contains(word));
            ensure!(hit, "no {rule:?} with {word:?}: {found:?}");
            Ok(())
        };
        let other = bench.rig.order("snapshot", &json!({"machine": NAME, "name": "Backup"}))?;
        found(Rule::ForeignSnapshots, "Backup").await?;
        ensure!(bench.source.vms().await?[0].snapshots == 1);
        bench.rig.order("remove", &json!({"machine": NAME, "snapshot": other["snapshot"]}))?;
        bench.rig.order("consolidation", &json!({"machine": NAME, "on": true}))?;
        found(Rule::ConsolidationNeeded, "onsolidat").await?;
        let finish = bench.source.can_finish(&bench.vm, bench.owner, &keys).await;
        assert_error(finish, SourceErrorKind::Blocked, "onsolidat")?;
        bench.rig.order("consolidation", &json!({"machine": NAME, "on": false}))?;
        for (way, word) in [("independent", "independent"), ("shared", "multi-writer"), ("rdm", "physical")] {
            bench.rig.order("disk", &json!({"machine": NAME, "disk": 1, "do": way}))?;
            found(Rule::DiskUnsupported, word).await?;
            let finish = bench.source.can_finish(&bench.vm, bench.owner, &keys).await;
            assert_error(finish, SourceErrorKind::Refused, word)?;
            bench.rig.order("disk", &json!({"machine": NAME, "disk": 1, "do": "plain"}))?;
        }
        bench.rig.order("guest", &json!({"machine": NAME, "do": "no_tools", "on": true}))?;
        let quiescing = SnapshotPolicy { enable_change_tracking: None, quiesce: Some(Quiesce::Try) };
        let quiescing = bench.source.with_policy(quiescing).context("no policy")?;
        let told = quiescing.objections(&bench.vm).await?;
        ensure!(told.iter().any(|it| it.rule == Rule::QuiesceUnavailable), "{told:?}");
        bench.rig.order("guest", &json!({"machine": NAME, "do": "no_tools", "on": false}))?;
        for privilege in ["VirtualMachine.Interact.PowerOn", "VirtualMachine.State.CreateSnapshot"] {
            let deny = |on: bool| bench.rig.order("deny", &json!({"privilege": privilege, "on": on}));
            deny(true)?;
            let finish = bench.source.can_finish(&bench.vm, bench.owner, &keys).await;
            assert_error(finish, SourceErrorKind::Refused, privilege)?;
            let warnings = bench.source.warnings().await;
            ensure!(warnings.iter().any(|warning| warning.contains(privilege)), "{warnings:?}");
            deny(false)?;
        }
        bench.source.can_finish(&bench.vm, bench.owner, &keys).await?;
        let told = bench.source.objections(&bench.vm).await?;
        ensure!(told.len() == 1 && told[0].rule == Rule::TrackingSwitchedOn, "{told:?}");
        bench.rig.order("unregister", &json!({"machine": NAME}))?;
        assert_error(bench.source.power(&bench.vm).await, SourceErrorKind::NotFound, &bench.vm.0)?;
        let finish = bench.source.can_finish(&bench.vm, bench.owner, &keys).await;
        assert_error(finish, SourceErrorKind::NotFound, &bench.vm.0)
    });
}

#[test]
fn wrong_settings_are_refused_with_what_to_do() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &[]).await?;
        let refused = async |change: &dyn Fn(&mut warmd_vsphere::Settings), word: &str| -> Result<()> {
            let source = bench.source_with(|settings| change(settings))?;
            assert_error(source.check().await, SourceErrorKind::Refused, word)
        };
        let wrong = dir.join("wrong");
        std::fs::write(&wrong, "wrong-password\n")?;
        refused(&|settings| settings.password_file.clone_from(&wrong), "password").await?;
        refused(&|settings| settings.user = "administrator".to_owned(), "domain").await?;
        refused(&|settings| settings.thumbprint = Some("00".repeat(20)), "thumbprint").await?;
        let empty = dir.join("empty");
        std::fs::create_dir_all(empty.join("lib64"))?;
        refused(&|settings| settings.reader.libdir = Some(empty.clone()), "libdir").await?;
        refused(&|settings| settings.reader.nbdkit = dir.join("no-nbdkit"), "no-nbdkit").await?;
        refused(&|settings| settings.reader.plugin = Some("no-such-plugin".to_owned()), "plugin").await?;
        let relative = bench.source_with(|settings| settings.password_file = "password".into());
        ensure!(format!("{:#}", relative.map(drop).unwrap_err()).contains("password_file"));
        // A server that is not there is not one that refuses.
        let mut settings = bench.rig.settings()?;
        settings.url = "https://127.0.0.1:1".to_owned();
        let patience = Patience { exchange: Duration::from_secs(1), whole: Duration::from_secs(2) };
        let nowhere = VsphereSource::over(Vsphere::with_patience(settings, patience)?);
        match nowhere.power(&bench.vm).await {
            Err(error) if error.kind == SourceErrorKind::Unreachable => Ok(()),
            other => anyhow::bail!("not unreachable: {other:?}"),
        }
    });
}

#[test]
fn snapshots_count_by_what_the_vm_does() {
    block_on(async |dir| {
        let bench = Bench::start(dir, &[]).await?;
        let rules = async || -> Result<Vec<Rule>> {
            let told = bench.source.objections(&bench.vm).await?;
            Ok(told.into_iter().map(|it| it.rule).collect())
        };
        // warmd's own come and go with the passes, and keep no plan from being applied again.
        let own = bench.snapshot().await?;
        ensure!(rules().await?.is_empty());
        own.release().await?;
        let other = bench.rig.order("snapshot", &json!({"machine": NAME, "name": "Backup"}))?;
        ensure!(rules().await? == [Rule::ForeignSnapshots]);
        bench.source.shut_down(&bench.vm, GRACEFUL).await?;
        ensure!(rules().await? == [Rule::VmHasSnapshots]);
        bench.rig.order("remove", &json!({"machine": NAME, "snapshot": other["snapshot"]}))?;
        ensure!(rules().await?.is_empty());
        Ok(())
    });
}
