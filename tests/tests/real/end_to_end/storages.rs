//! A target with two storages beside its directory: a real guest's disks are copied to them, and it boots
//! from there.

use anyhow::{Context as _, Result, ensure};
use warmd_tests::{Rig, RigSpec, run};

#[test]
fn a_guest_whose_disks_go_to_two_storages_boots_from_there() {
    run(|dir| {
        let mut spec = RigSpec::new("spread", 8);
        spec.storages = vec!["fast", "slow"];
        let mut rig = Rig::running(dir, &spec)?;
        let maps = "[storage]\n\"*\" = \"fast\"\n[vm.\"spread\".disks]\nvdb = \"storage:slow\"\n";
        rig.write_plan(&format!("{}\n\n{maps}", spec.cutover))?;
        rig.daemon.start()?;
        let told = rig.ctl().text(&["target", "check", "new"])?;
        ensure!(told.contains("storage fast: ") && told.contains("storage slow: "), "{told}");
        rig.apply()?;
        rig.wait_for("synced")?;
        in_storages(&rig, dir.path())?;
        rig.daemon.stop()?;
        rig.daemon.start()?;
        rig.verb("sync")?;
        rig.cut_over_and_prove()?;
        in_storages(&rig, dir.path())?;
        let xml = rig.new.virsh(["dumpxml", "spread"])?;
        for disk in rig.locations()? {
            ensure!(
                xml.contains(&disk.display().to_string()),
                "it does not run from {}: {xml}",
                disk.display()
            );
        }
        Ok(())
    });
}

fn in_storages(rig: &Rig, dir: &std::path::Path) -> Result<()> {
    let id = rig.show()?["id"].as_str().context("no id")?.to_owned();
    let wanted = ["fast/ID/vda.raw", "slow/ID/vdb.raw"].map(|path| dir.join(path.replace("ID", &id)));
    let disks = rig.locations()?;
    ensure!(disks == wanted, "the disks are at {disks:?}, not at {wanted:?}");
    let left = std::fs::read_dir(rig.volumes.join(&id))?.map(|entry| Ok(entry?.file_name()));
    let left = left.collect::<Result<Vec<_>>>()?;
    let raw = left.iter().find(|name| name.to_string_lossy().contains(".raw"));
    ensure!(raw.is_none(), "in the target's directory lies {raw:?}");
    Ok(())
}
